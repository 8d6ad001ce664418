{% test no_ids_that_look_alike(model, agents) %}
{%- set changes = changes_to_compare([agents, model], is_doubt=true) -%}
with

-- one row per tenant, agent or model, and where its tokens are counted
used as (
    select
        kinds.id_kind,
        kinds.id,
        sum(monthly.tokens) as tokens
    from {{ model }} as monthly
    cross join lateral (
        values
        ('tenant', monthly.tenant_id),
        ('model', monthly.model)
    ) as kinds (id_kind, id)
    where {{ is_compared('monthly.usage_month', month_of('changes.usage_date'), changes) }}
    group by
        kinds.id_kind,
        kinds.id

    union all

    select
        kinds.id_kind,
        kinds.id,
        sum(daily.tokens) as tokens
    from {{ agents }} as daily
    cross join lateral (
        values
        ('agent', daily.agent_id),
        -- payers are in the months
        ('tenant', nullif(daily.requester_tenant_id, daily.tenant_id))
    ) as kinds (id_kind, id)
    where
        kinds.id is not null
        and {{ is_compared('daily.usage_date', 'changes.usage_date', changes) }}
    group by
        kinds.id_kind,
        kinds.id
),

-- one row per id
ids as (
    select
        id_kind,
        id,
        -- The same on every server: no rule of a collation takes part, so only Latin
        -- letters lose their case, accented ones too, which NFKD takes apart. White space
        -- and what takes no ink are removed, as by the validation's ids_do_not_look_alike.
        regexp_replace(
            lower(normalize(id, nfkd) collate "C"),
            '[\u0001-\u0020\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f'
            || '\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0'
            || '\ufff9-\ufffb\U000e0000-\U000e0fff]+',
            '',
            'g'
        ) as likeness,
        sum(tokens) as tokens
    from used
    group by
        id_kind,
        id
),

final as (
    select
        ids.id_kind,
        ids.likeness,
        ids.id,
        -- in ASCII, between quotes: two ids never look the same
        '"' || encode(convert_to(ids.id, 'UTF8'), 'escape') || '"' as spelling,
        ids.tokens,
        count(*) over (partition by ids.id_kind, ids.likeness) as ids_alike
    from ids
)

select *
from final
where ids_alike > 1
{% endtest %}
