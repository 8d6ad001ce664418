with

-- one row per tenant, agent or model, and mart that counts its tokens
used as (
    select
        kinds.id_kind,
        kinds.id,
        sum(monthly.tokens) as tokens
    from monthly_token_usage as monthly
    cross join lateral (
        values
        ('tenant', monthly.tenant_id),
        ('model', monthly.model)
    ) as kinds (id_kind, id)
    group by kinds.id_kind, kinds.id

    union all

    select
        kinds.id_kind,
        kinds.id,
        sum(daily.tokens) as tokens
    from daily_agent_token_usage as daily
    cross join lateral (
        values
        ('agent', daily.agent_id),
        -- payers are in the months already
        ('tenant', nullif(daily.requester_tenant_id, daily.tenant_id))
    ) as kinds (id_kind, id)
    where kinds.id is not null
    group by kinds.id_kind, kinds.id
),

-- one row per id; likeness does not depend on a collation, so it is the same on every
-- server
ids as (
    select
        used.id_kind,
        used.id,
        regexp_replace(
            lower(normalize(used.id, nfkd) collate "C"),
            '[\u0001-\u0020\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5'
            || '\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164'
            || '\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]+',
            '',
            'g'
        ) as likeness,
        sum(used.tokens) as tokens
    from used
    group by used.id_kind, used.id
),

alike as (
    select
        ids.id_kind,
        ids.likeness,
        ids.id,
        '"' || encode(convert_to(ids.id, 'UTF8'), 'escape') || '"' as spelling,
        ids.tokens,
        count(*) over (partition by ids.id_kind, ids.likeness) as ids_alike
    from ids
)

select
    alike.id_kind,
    alike.id,
    alike.spelling,
    alike.likeness,
    alike.tokens
from alike
where alike.ids_alike > 1
