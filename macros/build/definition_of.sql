{% macro definition_of(relation) -%}
    {#- In PostgreSQL's own words: a view goes on to read a table that was renamed, and a table that a
        restore made is not of our own statement. Names of indexes mean nothing. -#}
    (
        select md5(concat_ws(
            ' ',
            case when found.relkind = 'v' then pg_get_viewdef(found.oid) end,
            found.reloptions::text,
            (
                select string_agg(
                    concat_ws(' ', attname, format_type(atttypid, atttypmod), attcollation, attnotnull),
                    ', ' order by attnum
                )
                from pg_attribute
                where attrelid = found.oid and attnum > 0 and not attisdropped
            ),
            (
                select string_agg(rule, ', ' order by rule collate "C")
                from (
                    select pg_get_constraintdef(oid) as rule
                    from pg_constraint
                    where conrelid = found.oid and contype in ('c', 'p')
                    union all
                    select regexp_replace(pg_get_indexdef(indexrelid), 'INDEX .*? ON ', 'INDEX ON ')
                    from pg_index
                    where indrelid = found.oid
                ) as rules
            )
        ))
        from pg_class as found
        where found.oid = to_regclass('{{ relation.include(database=false) }}')
    )
{%- endmacro %}
