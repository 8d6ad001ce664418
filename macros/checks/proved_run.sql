{% macro proved_run(query) %}
    {#- Of the test's own snapshot. Nothing was compared where a rollup is behind or the aliases are
        others, and not everything where one was made anew since the query was put together. -#}
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
    {% set proved = run_query(
        "select states.basis, states.run_no from (" ~ joint_state(rollups) ~ ") as states"
        ~ " where states.is_level and states.basis = '" ~ claim['basis'] ~ "'"
        ~ (" and states.aliases = " ~ aliases_digest() if reads_labels else "")
    ).rows %}
    {{ return(proved[0] if proved else none) }}
{% endmacro %}
