{% macro begin_build() %}
    {% do refuse_partial_input() %}
    {#- LOCK TABLE takes no snapshot: the transaction's only one is taken after it, so it shows what
        the build before has committed, and everything that this build reads is of one moment. A
        build whose process is gone is rolled back within the second, also while it waits. -#}
    {% call statement('begin_build') %}
        set transaction isolation level repeatable read;
        set local client_connection_check_interval = '1s';
        {{ lock_builds() }};
        -- No setting of a session may show in what PostgreSQL says of a view, or in how it reads SQL.
        set local search_path = pg_catalog;
        set local quote_all_identifiers = off;
        set local standard_conforming_strings = on;
        set local datestyle = iso;
        set local jit = off;
    {% endcall %}
{% endmacro %}
