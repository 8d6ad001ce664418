{% macro postgres__create_schema(relation) -%}
    {#- "if not exists" looks before it writes: of two builds at once on an empty database one would fail. -#}
    {%- call statement('create_schema') -%}
        do $create$
        begin
            create schema if not exists {{ relation.without_identifier().include(database=false) }};
        exception when unique_violation then
            null; -- another build has just created it
        end
        $create$
    {%- endcall -%}
{%- endmacro %}
