-- one row per rollup: the time as of which it is right, in the billing time zone
select
    build_status.model,
    build_status.run_number,
    build_status.snapshot::text as snapshot,
    build_status.billing_timezone as zone,
    build_status.as_of at time zone build_status.billing_timezone as as_of,
    now() at time zone build_status.billing_timezone as read_at
from build_status
where
    build_status.model in (
        'daily_token_usage',
        'monthly_token_usage',
        'daily_agent_token_usage',
        'daily_token_cost',
        'monthly_token_cost'
    )
