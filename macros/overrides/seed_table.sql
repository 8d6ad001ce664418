{% macro postgres__create_csv_table(model, agate_table) -%}
    {#- Never dropped, for views and builds read it: emptied under the builds' lock, so that two
        builds at once fill it one after the other. -#}
    {%- set types = model.config.get('column_types', {}) -%}
    {%- set columns = [] -%}
    {%- for name in agate_table.column_names -%}
        {%- do columns.append(
            name ~ " " ~ types.get(name, adapter.convert_type(agate_table, loop.index0))
        ) -%}
    {%- endfor -%}
    {%- set query -%}
        {{ lock_builds() }};
        create table if not exists {{ this }} (
            {{ columns | join(', ') }},
            primary key ({{ config.require('unique_key') | join(', ') }})
        );
        delete from {{ this }};
    {%- endset -%}
    {%- call statement('_') -%}{{ query }}{%- endcall -%}
    {{ return(query) }}
{%- endmacro %}


{% macro postgres__reset_csv_table(model, full_refresh, old_relation, agate_table) -%}
    {{ return(postgres__create_csv_table(model, agate_table)) }}
{%- endmacro %}
