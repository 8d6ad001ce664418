{{ config(severity='warn', tags=['full', 'every_build']) }}

with
{%- set base_relation = ref('int_usage__hourly') %}
{%- set rollups = [
    'hourly_token_usage', 'daily_token_usage', 'monthly_token_usage', 'daily_agent_token_usage',
    'daily_token_cost', 'monthly_token_cost',
] %}
{%- for rollup in rollups %}
-- depends_on: {{ ref(rollup) }}
{%- endfor %}

build as (
    select
        model,
        coalesce(usage_run, run_no) as run_no
    from {{ build_table('build_state') }}
),

base as (
    select * from {{ base_relation }}
)

select
    'nothing to check: no event is counted' as finding,
    'int_usage__hourly' as model,
    0::bigint as run_number,
    0::bigint as run_number_of_base
where not exists (select 1 from base)

union all

select
    'nothing to check: behind the base since an earlier build' as finding,
    build.model,
    build.run_no as run_number,
    ahead.run_no as run_number_of_base
from build
inner join build as ahead
    on ahead.model = 'int_usage__hourly'
where
    build.model in (
        {%- for rollup in rollups %}
        '{{ rollup }}'{{ "," if not loop.last }}
        {%- endfor %}
    )
    and build.run_no != ahead.run_no

union all

select
    'nothing to check: label_aliases changed since the build' as finding,
    ahead.model,
    ahead.run_no as run_number,
    ahead.run_no as run_number_of_base
from {{ build_table('build_state', base_relation.schema) }} as ahead
where
    ahead.model = 'int_usage__hourly'
    and not {{ has_current_aliases(base_relation) }}
