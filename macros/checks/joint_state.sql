{% macro joint_state(rollups) -%}
    {#- Another build may have come since this one began: its whole rebuild is of this run, too. -#}
    select
        string_agg(concat(state.model, ' ', state.basis), ', ' order by state.model) as basis,
        case when count(distinct state.log_schema) = 1 then min(state.log_schema) end as log_schema,
        min(state.run_no) as run_no,
        min(state.aliases) as aliases,
        count(state.run_no) = {{ rollups | length }}
        and count(distinct (state.log_schema, state.run_no)) = 1 as is_level,
        bool_or(state.rebuilt_as_of >= least(state.as_of, '{{ run_started_at }}')) as is_rebuilt
    from (
        {%- for rollup in rollups %}
        {{ "union all" if not loop.first }}
        select
            found.model,
            found.basis,
            coalesce(found.log_schema, '{{ rollup.schema }}') as log_schema,
            found.run_no,
            found.aliases,
            found.as_of,
            found.rebuilt_as_of
        from {{ build_table('build_state', rollup.schema) }} as found
        where found.model = '{{ rollup.identifier }}'
        {%- endfor %}
    ) as state
{%- endmacro %}
