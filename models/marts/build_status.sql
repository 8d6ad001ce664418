{{ config(materialized='token_tracking_view') }}

-- one row per rollup
select
    build_state.model,
    build_state.billing_timezone,
    coalesce(build_state.usage_run, build_state.run_no) as run_number,
    build_state.snapshot,
    build_state.as_of,
    build_state.aliases = {{ aliases_digest() }} as aliases_are_current,
    build_state.price_snapshot
from {{ build_table('build_state') }} as build_state
where build_state.run_no is not null
