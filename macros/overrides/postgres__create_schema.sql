{% macro postgres__create_schema(relation) -%}
    {#- "if not exists" looks before it writes: two builds at once on an empty database would meet. -#}
    {%- call statement('create_schema') -%}
        do $create$
        begin
            create schema if not exists {{ relation.without_identifier().include(database=false) }};
        exception when unique_violation then
            null; -- the other one has made it
        end
        $create$
    {%- endcall -%}
{%- endmacro %}
