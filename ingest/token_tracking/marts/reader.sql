-- one row: the current role, and whether row-level security shows it only part of the
-- marts
with

mart as (
    select to_regclass(
        format('%%I.daily_token_usage', coalesce(%(schema)s::text, current_schema()))
    ) as oid
)

select
    current_user::text as role,
    coalesce(row_security_active(mart.oid::oid), false)
    and not exists (
        select
        from pg_policy
        cross join lateral unnest(pg_policy.polroles) as granted (role_oid)
        where
            pg_policy.polrelid = mart.oid
            and pg_policy.polcmd in ('r', '*')
            and pg_policy.polpermissive
            and pg_get_expr(pg_policy.polqual, pg_policy.polrelid) = 'true'
            -- 0 is PUBLIC
            and case
                when granted.role_oid = 0 then true
                else pg_has_role(granted.role_oid, 'usage')
            end
    ) as is_restricted
from mart
