{% macro refuse_foreign_transactions() %}
    {% set checks = [] %}
    {% for table in raw_tables() %}
        {% do checks.append(
            "exists (select 1 from " ~ source('token_tracking_raw', table)
            ~ " where ingest_xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint)"
        ) %}
    {% endfor %}
    {#- By the index also where a table was never analyzed. -#}
    {% set found = run_query(
        "set local enable_seqscan = off; select " ~ checks | join(" or ")
    ).columns[0][0] %}
    {% if found %}
        {{ exceptions.raise_compiler_error(
            "Rows of the raw tables carry transaction numbers that this cluster has not reached, so"
            ~ " they come from a dump of another one. Run `token-tracking schema apply`, which"
            ~ " stamps them with its own transaction, and build again."
        ) }}
    {% endif %}
{% endmacro %}
