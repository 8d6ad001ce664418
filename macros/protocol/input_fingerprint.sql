{% macro input_fingerprint(log) %}
    {#- Everything that the base is a function of, except for the rows that raw tables gain. Its query
        holds the rules, the lists of labels and the billing time zone: nobody has to remember to raise
        a version. A table that was restored or emptied has another file; without the log of
        changes, what reads the base could not follow. -#}
    {% set query %}
        select concat_ws(
            ', ',
            'query {{ local_md5(sql) }}',
            'cluster ' || (select control.system_identifier from pg_control_system() as control),
            'database ' || (select oid from pg_database where datname = current_database()),
            {%- for table in raw_tables() %}
            {%- set name = source('token_tracking_raw', table).include(database=false) %}
            'file ' || pg_relation_filenode('{{ name }}'::regclass),
            {%- endfor %}
            'log ' || pg_relation_filenode('{{ log }}'::regclass),
            {%- for view in ['stg_usage__events', 'stg_usage__voids', 'stg_usage__agent_owners'] %}
            'view ' || md5(pg_get_viewdef('{{ ref(view).include(database=false) }}'::regclass)),
            {%- endfor %}
            'aliases ' || {{ aliases_digest() }}
        )
    {% endset %}
    {{ return(run_query(query).columns[0][0]) }}
{% endmacro %}


{% macro origin_of_totals() -%}
    {#- The same without the base's own query, as an expression that gives the same in every session: views
        compare with it what a build has saved. What the views read is taken as PostgreSQL keeps it, for
        pg_get_viewdef() follows the session's search_path. -#}
    concat_ws(
            ', ',
            'rules {{ rules_digest() }}',
            'cluster ' || (select control.system_identifier from pg_control_system() as control),
            'database ' || (select oid from pg_database where datname = current_database()),
            {%- for table in raw_tables() %}
            'file ' || pg_relation_filenode(
                '{{ source('token_tracking_raw', table).include(database=false) }}'::regclass
            ),
            {%- endfor %}
            {%- for view in ['stg_usage__events', 'stg_usage__voids', 'stg_usage__agent_owners'] %}
            'view ' || (
                select md5(rule.ev_action::text)
                from pg_rewrite as rule
                where rule.ev_class = '{{ ref(view).include(database=false) }}'::regclass
            ),
            {%- endfor %}
            'aliases ' || {{ aliases_digest() }}
        )
{%- endmacro %}


{% macro rules_digest() -%}
    {#- Without the names of databases and schemas: a deferred build reads another schema. -#}
    {{ local_md5(modules.re.sub('"[^"]*"[.]', '', attributed_events('events'))) }}
{%- endmacro %}
