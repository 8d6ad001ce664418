{% macro read_to(saved) %}
    {#- Raw tables are appended to: what lies behind the last row that the saved snapshot saw was not
        there for it. If such a row's transaction had ended by then all the same, its number is of
        another time (a restored or replicated row, a counter that was set back), or that snapshot was
        older than the table's file: nothing is known. -#}
    {% set ends = fromjson(saved['read_to'] or '{}') if saved is not none else {} %}
    {% set tables = [] %}
    {% for table in raw_tables() %}
        {% set end = ends.get(table, '(0,0)') %}
        {% set is_unforeseen = "not (" ~ is_new('ingest_xid', saved['snapshot']) ~ ")"
            if saved is not none else "false" %}
        {% do tables.append(
            "select '" ~ table ~ "' as name, coalesce(max(ctid), '" ~ end ~ "'::tid) as read_to,"
            ~ " coalesce(bool_or(" ~ is_unforeseen ~ "), false) as is_unforeseen"
            ~ " from " ~ source('token_tracking_raw', table) ~ " where ctid > '" ~ end ~ "'::tid"
        ) %}
    {% endfor %}
    {% set found = run_query(
        "select jsonb_object_agg(name, read_to)::text as read_to, bool_or(is_unforeseen) as is_unforeseen"
        ~ " from (" ~ tables | join(" union all ") ~ ") as tables"
    ).rows[0] %}
    {% if found['is_unforeseen'] %}
        {% do log(
            "Raw rows came that are not new by their transaction numbers: everything is counted.",
            info=true
        ) %}
    {% endif %}
    {{ return(found) }}
{% endmacro %}
