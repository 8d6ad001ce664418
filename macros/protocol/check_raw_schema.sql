{% macro check_raw_schema() %}
    {#- PostgreSQL's own error would name a table that nobody has heard of. -#}
    {% set query %}
        select
            to_regclass('{{ source('token_tracking_raw', 'usage_events').include(database=false) }}') is not null
            and not (
                {%- for table in price_tables() %}
                {{ "and " if not loop.first }}to_regclass('{{ source('token_tracking_raw', table).include(database=false) }}') is not null
                {%- endfor %}
            )
    {% endset %}
    {% if run_query(query).columns[0][0] %}
        {{ exceptions.raise_compiler_error(
            "The schema token_tracking_raw is of an older version than this project: run"
            ~ " `token-tracking schema apply`, which changes no row, and build again."
        ) }}
    {% endif %}
{% endmacro %}
