{% macro has_aliases_of_now(base) -%}
    exists (
        select 1
        from {{ build_table('build_state', base.schema) }} as state
        where
            state.model = '{{ base.identifier }}'
            and state.aliases = {{ aliases_digest() }}
    )
{%- endmacro %}
