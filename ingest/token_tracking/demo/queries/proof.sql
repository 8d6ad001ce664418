-- one row: the same total, computed in three ways, without voided events
select
    (
        select coalesce(sum(usage_events.tokens), 0)
        from token_tracking_raw.usage_events
        where
            not exists (
                select
                from token_tracking_raw.usage_voids
                where
                    usage_voids.tenant_id = usage_events.tenant_id
                    and usage_voids.idempotency_key = usage_events.idempotency_key
            )
    ) as raw_tokens,
    (select coalesce(sum(daily_token_usage.tokens), 0) from token_tracking.daily_token_usage)
        as daily_tokens,
    (select coalesce(sum(monthly_token_usage.tokens), 0) from token_tracking.monthly_token_usage)
        as monthly_tokens
