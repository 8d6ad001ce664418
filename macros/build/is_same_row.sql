{% macro is_same_row() -%}
    {#- Equality where there is no null, for only that can be hashed. -#}
    {%- set equal = [] -%}
    {%- for column in model.columns.values() -%}
        {%- set not_null = column.constraints | selectattr('type', 'equalto', 'not_null') | list -%}
        {%- do equal.append(
            "kept." ~ column.name ~ (" = " if not_null else " is not distinct from ")
            ~ "fresh." ~ column.name
        ) -%}
    {%- endfor -%}
    {{ equal | join(' and ') }}
{%- endmacro %}
