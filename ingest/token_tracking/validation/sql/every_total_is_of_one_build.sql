with

builds as (
    select build_status.*
    from build_status
    -- models of the project; a model that was removed leaves its row
    where build_status.model in ({rollups})
)

select
    builds.model,
    builds.run_number,
    newest.run_number as newest_run_number,
    coalesce(
        builds.price_snapshot::text = daily_costs.price_snapshot::text, true
    ) as prices_are_those_of_daily,
    builds.aliases_are_current,
    builds.as_of
from builds
cross join (
    select max(every_build.run_number) as run_number from builds as every_build
) as newest
left join builds as daily_costs on daily_costs.model = 'daily_token_cost'
where
    builds.run_number < newest.run_number
    or builds.aliases_are_current is not true
    or builds.price_snapshot::text <> daily_costs.price_snapshot::text
