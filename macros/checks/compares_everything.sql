{% macro compares_everything(rollups) %}
    {% if 'full' in config.get('tags', []) %}
        {{ return(true) }}
    {% endif %}
    {#- A whole rebuild leaves no log of changes: it changed everything. Another build may have come
        since this one began. -#}
    {% for rollup in rollups if execute %}
        {% set state = build_table('build_state', rollup.schema) %}
        {% if run_query("select to_regclass('" ~ state ~ "')::text").columns[0][0] and run_query(
            "select 1 from " ~ state ~ " where model = '" ~ rollup.identifier
            ~ "' and rebuilt_as_of >= least(as_of, '" ~ run_started_at ~ "')"
        ).rows %}
            {{ return(true) }}
        {% endif %}
    {% endfor %}
    {{ return(false) }}
{% endmacro %}
