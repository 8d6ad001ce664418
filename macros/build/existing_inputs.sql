{% macro existing_inputs() %}
    {#- What the node reads, and is there: of what is missing a better sentence comes later. The base
        asks the raw tables themselves, too. A view is locked together with what it reads. -#}
    {% if config.get('materialized') == 'view' %}
        {{ return([]) }}
    {% endif %}
    {% set inputs = [] %}
    {% if model.resource_type == 'model' and not config.get('reads') %}
        {% for table in raw_tables() %}
            {% do inputs.append(source('token_tracking_raw', table)) %}
        {% endfor %}
    {% endif %}
    {% for id in model.depends_on.nodes %}
        {% if id in graph.sources %}
            {% do inputs.append(source(graph.sources[id].source_name, graph.sources[id].name)) %}
        {% elif id in graph.nodes %}
            {% do inputs.append(ref(graph.nodes[id].name)) %}
        {% endif %}
    {% endfor %}
    {% set names = [] %}
    {% for input in inputs %}
        {% do names.append(input.include(database=false) | string) %}
    {% endfor %}
    {{ return(run_query(
        "select name from unnest(" ~ text_array(names | unique | list) ~ ") with ordinality"
        ~ " as inputs (name, place) where to_regclass(name) is not null order by place"
    ).columns[0].values() | list) }}
{% endmacro %}
