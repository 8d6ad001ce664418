{% macro log_of_changes(rollup) %}
    {% set state = build_table('build_state', rollup.schema) %}
    {% if execute and run_query("select to_regclass('" ~ state ~ "')::text").columns[0][0] %}
        {#- Of a deferred base the log is in the base's schema. -#}
        {% for row in run_query(
            "select log_schema from " ~ state
            ~ " where model = '" ~ rollup.identifier ~ "' and log_schema is not null"
        ).rows %}
            {{ return(build_table('rollup_changes', row['log_schema'])) }}
        {% endfor %}
    {% endif %}
    {{ return(build_table('rollup_changes', rollup.schema)) }}
{% endmacro %}
