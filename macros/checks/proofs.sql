{% macro proved_run(query) %}
    {#- Read in the test's own snapshot. Nothing was compared where a rollup is behind or the aliases
        have changed, and not everything where one was rebuilt since the query was put together. -#}
    {% set mark = modules.re.search('/[*]proves (.*?)[*]/', query) %}
    {% if not mark or flags.EMPTY or invocation_args_dict.get('sample') %}
        {{ return(none) }}
    {% endif %}
    {% set claim = fromjson(mark.group(1)) %}
    {% set rollups = [] %}
    {% for schema, identifier in claim['rollups'] %}
        {% do rollups.append(api.Relation.create(schema=schema, identifier=identifier)) %}
    {% endfor %}
    {% set reads_labels = model.refs | map(attribute='name') | select('equalto', 'label_aliases') | list %}
    {% set query %}
        select
            states.basis,
            states.run_no
        from ({{ common_state(rollups) }}) as states
        where
            states.is_level
            and states.basis = '{{ claim['basis'] }}'
            {%- if reads_labels %}
            and states.aliases = {{ aliases_digest() }}
            {%- endif %}
    {% endset %}
    {% set proved = run_query(query).rows %}
    {{ return(proved[0] if proved else none) }}
{% endmacro %}


{% macro lock_proofs() -%}
    lock table {{ build_table('build_proofs') }} in share row exclusive mode
{%- endmacro %}


{% macro save_proof(proved) %}
    {% set query %}
        insert into {{ build_table('build_proofs') }} as saved (test, basis, run_no)
        values ('{{ model.unique_id }}', '{{ proved['basis'] }}', {{ proved['run_no'] }})
        on conflict (test) do update
        set (basis, run_no) = (excluded.basis, excluded.run_no)
        where saved.basis <> excluded.basis or saved.run_no < excluded.run_no
    {% endset %}
    {% do run_query(query) %}
{% endmacro %}
