{% macro changes_to_compare(rollups) %}
    {% if 'full' in config.get('tags', []) %}
        {{ return(none) }}
    {% endif %}
    {% set finest = rollups[-1] %}
    {% set log_schemas = [finest.schema] %}
    {% for schema in rollups | map(attribute='schema') | unique(true) if execute %}
        {% set state = build_table('build_state', schema) %}
        {% if run_query("select to_regclass('" ~ state ~ "')::text").columns[0][0] %}
            {#- A whole rebuild leaves no log of changes: it changed everything. Another build may have
                come since this one began. Of a deferred base the log is in the base's schema. -#}
            {% for row in run_query(
                "select model, log_schema, rebuilt_as_of >= least(as_of, '" ~ run_started_at ~ "')"
                ~ " as is_rebuilt from " ~ state ~ " where model in ('"
                ~ rollups | selectattr('schema', 'equalto', schema) | map(attribute='identifier')
                | join("', '") ~ "')"
            ).rows %}
                {% if row['is_rebuilt'] %}
                    {{ return(none) }}
                {% elif row['log_schema'] and [schema, row['model']] == [finest.schema, finest.identifier] %}
                    {% do log_schemas.append(row['log_schema']) %}
                {% endif %}
            {% endfor %}
        {% endif %}
    {% endfor %}
    {{ return(build_table('rollup_changes', log_schemas[-1])) }}
{% endmacro %}
