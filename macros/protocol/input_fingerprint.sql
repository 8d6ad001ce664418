{% macro input_fingerprint(log) %}
    {#- Everything that the base is a function of, except for the rows that raw tables gain. Its query
        holds the rules, the lists of labels and the billing time zone: nobody has to remember to raise
        a version. Without the log of changes, what reads the base could not follow. -#}
    {% set query %}
        select concat_ws(
            ', ',
            'query {{ local_md5(sql) }}',
            {{ surroundings_of_base() }},
            'log ' || pg_relation_filenode('{{ log }}'::regclass)
            {%- for view in views_of_base() %},
            'view ' || md5(pg_get_viewdef('{{ view }}'::regclass))
            {%- endfor %}
        )
    {% endset %}
    {{ return(run_query(query).columns[0][0]) }}
{% endmacro %}


{% macro origin_of_totals() -%}
    {#- The same for the views that go on from saved totals: an expression of the rules instead of the base's
        query, and of nothing that differs between sessions. pg_get_viewdef() follows the session's
        search_path, so a view is taken as PostgreSQL keeps it. -#}
    concat_ws(
            ', ',
            'rules {{ rules_digest() }}',
            {{ surroundings_of_base() }}
            {%- for view in views_of_base() %},
            'view ' || (
                select md5(rule.ev_action::text)
                from pg_rewrite as rule
                where rule.ev_class = '{{ view }}'::regclass
            )
            {%- endfor %}
        )
{%- endmacro %}


{% macro rules_digest() -%}
    {#- Without the names of databases and schemas: a deferred build reads another schema. -#}
    {{ local_md5(modules.re.sub('"[^"]*"[.]', '', attributed_events('events'))) }}
{%- endmacro %}


{% macro surroundings_of_base() -%}
    {#- A table that was restored or emptied has another file. -#}
            'cluster ' || (select control.system_identifier from pg_control_system() as control),
            'database ' || (select oid from pg_database where datname = current_database()),
            {%- for table in raw_tables() %}
            {%- set name = source('token_tracking_raw', table).include(database=false) %}
            'file ' || pg_relation_filenode('{{ name }}'::regclass),
            {%- endfor %}
            'aliases ' || {{ aliases_digest() }}
{%- endmacro %}


{% macro views_of_base() %}
    {% set views = [] %}
    {% for view in ['stg_usage__events', 'stg_usage__voids', 'stg_usage__agent_owners'] %}
        {% do views.append(ref(view).include(database=false) | string) %}
    {% endfor %}
    {{ return(views) }}
{% endmacro %}
