{% macro grain_digest(columns) -%}
    {#- A btree row holds 2,704 bytes and three ids of 255 characters can take 3,060. Text becomes
        bytea by its escape format, for convert_to() is not immutable; each part stands behind its
        length, so that no two grains give the same text. -#}
    {%- set parts = [] -%}
    {%- for column in columns -%}
        {%- do parts.append(
            "octet_length(coalesce(" ~ column ~ ", '')) || ':' || coalesce(" ~ column ~ ", '')"
        ) -%}
    {%- endfor -%}
    sha256(replace({{ parts | join(' || ') }}, '\', '\\')::bytea)
{%- endmacro %}
