{% macro read_to(saved) %}
    {#- From the saved ends on: no row before them has come since, but into holes. -#}
    {% set ends = fromjson(saved['read_to']) if saved is not none else {} %}
    {% set tables = [] %}
    {% for table in raw_tables() %}
        {% set end = "'" ~ ends.get(table, '(0,0)') ~ "'::tid" %}
        {% do tables.append(
            "'" ~ table ~ "', (select coalesce(max(ctid), " ~ end ~ ") from "
            ~ source('token_tracking_raw', table) ~ " where ctid > " ~ end ~ ")"
        ) %}
    {% endfor %}
    {{ return("jsonb_build_object(" ~ tables | join(", ") ~ ")") }}
{% endmacro %}
