{% macro protect_rows(relation) %}
    {% if not execute or not (config.get('tenant_readable')
        or config.get('materialized') == 'token_tracking_rollup') %}
        {{ return('') }}
    {% endif %}
    {% set reader = role_name('tenant_reader') %}
    {% if config.get('tenant_readable') %}
        {% do grant_to_existing_roles(relation, {'select': [reader]}) %}
    {% endif %}
    {% if config.get('materialized') == 'token_tracking_rollup' %}
        {{ return(row_policies(relation, reader, config.get('grants', {}).get('select', []))) }}
    {% endif %}
{% endmacro %}


{% macro row_policies(relation, reader, readers_of_all) -%}
    {%- set table = relation.include(database=false) -%}
    {#- Not forced on the table's owner: no total is ever computed through a policy. Nothing is written
        where everything is in place: each policy's comment has a digest of what it was made from. -#}
    do $policies$
    declare
        reader constant text := ({{ text_array([reader]) }})[1];
        readers_of_all constant text := (
            select string_agg(quote_ident(rolname), ', ' order by rolname)
            from pg_roles where rolname = any({{ text_array(readers_of_all) }})
        );
        own_rows constant text := $own_rows$
            {%- if 'tenant_id' in model.columns %} {{ is_tenant_of_current_user('tenant_id') }}
            {%- if 'is_billed' in model.columns %} and is_billed {%- endif %}
            {%- else %} false {%- endif %} $own_rows$;
        mark constant text := 'row_policies() ' || md5(concat_ws(' ', readers_of_all, reader, own_rows));
        found constant bigint := (
            select count(*) from pg_policy
            where polrelid = '{{ table }}'::regclass and obj_description(oid, 'pg_policy') = mark
        );
    begin
        if not exists (select from pg_roles where rolname = reader) then
            return;
        end if;
        if not (select relrowsecurity from pg_class where oid = '{{ table }}'::regclass) then
            alter table {{ table }} enable row level security;
        end if;
        if found <> 1 + (readers_of_all is not null)::integer then
            drop policy if exists own_rows on {{ table }};
            drop policy if exists all_rows on {{ table }};
            execute format('create policy own_rows on {{ table }} for select to %I using (%s)', reader, own_rows);
            execute format('comment on policy own_rows on {{ table }} is %L', mark);
            if readers_of_all is not null then
                execute format('create policy all_rows on {{ table }} for select to %s using (true)', readers_of_all);
                execute format('comment on policy all_rows on {{ table }} is %L', mark);
            end if;
        end if;
    end
    $policies$
{%- endmacro %}
