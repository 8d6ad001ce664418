{% macro aliases_digest() -%}
    (
        select
            encode(sha256(convert_to(coalesce(string_agg(
                jsonb_build_array(known.label_kind, known.alias, known.label)::text,
                ',' order by known.label_kind, known.alias
            ), ''), 'UTF8')), 'hex')
        from {{ ref('label_aliases') }} as known
    )
{%- endmacro %}


{% macro has_current_aliases(base) -%}
    exists (
        select 1
        from {{ build_table('build_state', base.schema) }} as state
        where
            state.model = '{{ base.identifier }}'
            and state.aliases = {{ aliases_digest() }}
    )
{%- endmacro %}
