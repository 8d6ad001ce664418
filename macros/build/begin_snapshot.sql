{% macro begin_snapshot(lock='') %}
    {#- LOCK TABLE takes no snapshot: the transaction's only one is taken after all locks. So everything
        that is read is of one moment, and no command that is blind to snapshots (TRUNCATE, an ALTER
        TABLE that writes the table again, CREATE OR REPLACE VIEW) comes between that moment and the
        last read: a snapshot that is older than such a command finds the table empty. A statement that
        can say whom it waits for takes a snapshot, so the wait comes first, in a transaction of its
        own. Whose process is gone is rolled back within the second, also while it waits. -#}
    {% set inputs = existing_inputs() %}
    {% call statement('begin_snapshot') %}
        set local client_connection_check_interval = '1s';
        {{ wait_for_inputs(inputs) }}
        commit;
        begin;
        set transaction isolation level repeatable read;
        set local client_connection_check_interval = '1s';
        {{ lock ~ ';' if lock }}
        {% if inputs %}
        set local lock_timeout = '60s';
        lock table {{ inputs | join(', ') }} in access share mode;
        set local lock_timeout to default;
        {% endif %}
        -- No setting of a session may show in how PostgreSQL reads SQL.
        set local standard_conforming_strings = on;
        set local datestyle = iso;
        set local jit = off;
    {% endcall %}
{% endmacro %}
