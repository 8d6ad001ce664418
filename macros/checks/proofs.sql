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
            states.run_no,
            states.snapshot::text as snapshot
        from ({{ common_state(rollups) }}) as states
        where
            states.is_level
            and states.basis = '{{ claim['basis'] }}'
            {%- if reads_labels %}
            and states.aliases = {{ aliases_digest() }}
            {%- endif %}
    {% endset %}
    {% set proved = run_query(query).rows %}
    {{ return(dict(claim, run_no=proved[0]['run_no'], snapshot=proved[0]['snapshot']) if proved else none) }}
{% endmacro %}


{% macro lock_proofs() -%}
    lock table {{ build_table('build_proofs') }} in share row exclusive mode
{%- endmacro %}


{% macro saved_proof(columns) -%}
    select {{ columns }}
    from {{ build_table('build_proofs') }} as saved
    where saved.test = '{{ model.unique_id }}'
{%- endmacro %}


{% macro save_proof(proved) %}
    {% set query %}
        insert into {{ build_table('build_proofs') }} as saved (test, basis, run_no, snapshot)
        values (
            '{{ model.unique_id }}', '{{ proved['basis'] }}', {{ proved['run_no'] }}, '{{ proved['snapshot'] }}'
        )
        on conflict (test) do update
        set (basis, run_no, snapshot) = (excluded.basis, excluded.run_no, excluded.snapshot)
        where
            saved.basis <> excluded.basis
            or saved.run_no < excluded.run_no
            or saved.snapshot is null
    {% endset %}
    {% if not proved['keeps_totals'] %}
        {% do run_query(query) %}
    {#- Of two runs at once that went on from the same totals, the first one saves. -#}
    {% elif proof_of_totals() == proved['proof'] %}
        {% do run_query(save_proved_totals(proved) ~ query) %}
    {% endif %}
{% endmacro %}


{% macro proof_of_totals() %}
    {{ return(run_query(saved_proof('basis, run_no, snapshot::text')).rows | map('list') | list) }}
{% endmacro %}


{% macro keep_proved_totals(proved) %}
    {#- As this test's snapshot shows them, before it ends: of all payers, or of those that changed. -#}
    {% do proved.update({'proof': proof_of_totals()}) %}
    {% set schema, name = proved['rollups'][-1] %}
    {% set months = api.Relation.create(schema=schema, identifier=name) %}
    {% set changes = proved['changes'] %}
    {% set query %}
        drop table if exists pg_temp.proved_groups, pg_temp.proved_rows;
        create temporary table proved_groups as
        {% if changes['log'] -%}
        select * from {{ groups_changed({'usage_month': month_of('usage_date')}, changes) }} as changed
        {%- else -%}
        select distinct usage_month, tenant_id from {{ months }}
        {%- endif %};
        create temporary table proved_rows as
        select proved.*
        from {{ rows_of_groups(months, 'proved_groups', {'usage_month': 'usage_month'}) }} as proved
    {% endset %}
    {% do run_query(query) %}
{% endmacro %}


{% macro save_proved_totals(proved) -%}
    {%- set totals = build_table('proved_totals') -%}
    {%- set columns = build_tables()['proved_totals']['columns'].keys() | join(', ') -%}
    delete from {{ totals }} as old
    {% if proved['changes']['log'] -%}
    using pg_temp.proved_groups as changed
    where
        old.usage_month = changed.usage_month
        and old.tenant_id = changed.tenant_id
    {%- endif %};
    insert into {{ totals }} ({{ columns }})
    select {{ columns }} from pg_temp.proved_rows;
    drop table pg_temp.proved_groups, pg_temp.proved_rows;
{%- endmacro %}
