{% macro identified_rows(relation) -%}
    {#- A table in a publication needs a name for each row that goes: where no key is one, the row. -#}
    do $identity$
    begin
        if exists (
            select
            from pg_class as found
            where
                found.oid = '{{ relation }}'::regclass
                and found.relreplident in ('d', 'n')
                and not exists (
                    select from pg_index where indrelid = found.oid and indisprimary and found.relreplident = 'd'
                )
        ) then
            {{ wait_briefly() }};
            alter table {{ relation }} replica identity full;
        end if;
    end
    $identity$
{%- endmacro %}
