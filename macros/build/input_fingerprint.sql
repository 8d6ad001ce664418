{% macro input_fingerprint() %}
    {#- Everything that the base is a function of, but for the rows that raw tables gain. Its query
        holds the rules, the lists of labels and the billing time zone: no hand-kept version can be
        forgotten. A table that was restored or emptied has another file. -#}
    {% set parts = [
        "'query " ~ local_md5(sql) ~ "'",
        "'cluster ' || (select control.system_identifier from pg_control_system() as control)",
        "'database ' || (select oid from pg_database where datname = current_database())",
    ] %}
    {% for table in raw_tables() %}
        {% do parts.append(
            "'file ' || pg_relation_filenode('"
            ~ source('token_tracking_raw', table).include(database=false) ~ "'::regclass)"
        ) %}
    {% endfor %}
    {% for view in ['stg_usage__events', 'stg_usage__voids', 'stg_usage__agent_owners'] %}
        {% do parts.append(
            "'view ' || md5(pg_get_viewdef('" ~ ref(view).include(database=false) ~ "'::regclass))"
        ) %}
    {% endfor %}
    {% do parts.append("'aliases ' || " ~ aliases_digest()) %}
    {{ return(run_query("select concat_ws(', ', " ~ parts | join(", ") ~ ")").columns[0][0]) }}
{% endmacro %}
