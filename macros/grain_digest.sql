{% macro grain_digest(columns) -%}
    {#- A btree row holds 2,704 bytes and three ids of 255 characters can take 3,060. Text becomes
        bytea by its escape format, for convert_to() is not immutable; each part is hashed by itself,
        so that no two grains give the same text. -#}
    {%- set digests = [] -%}
    {%- for column in columns -%}
        {%- do digests.append(
            "sha256(replace(coalesce(" ~ column ~ ", ''), '\\', '\\\\')::bytea)"
        ) -%}
    {%- endfor -%}
    sha256({{ digests | join(' || ') }})
{%- endmacro %}
