-- one row: who reads, and whether a policy shows them only a part of the marts
select
    current_user::text as role,
    row_security_active('daily_token_usage')
    and not exists (
        select
        from pg_policy
        cross join lateral unnest(pg_policy.polroles) as granted (role_oid)
        where
            pg_policy.polrelid = 'daily_token_usage'::regclass
            and pg_policy.polcmd in ('r', '*')
            and pg_policy.polpermissive
            and pg_get_expr(pg_policy.polqual, pg_policy.polrelid) = 'true'
            -- zero is everybody
            and case
                when granted.role_oid = 0 then true
                else pg_has_role(granted.role_oid, 'usage')
            end
    ) as is_restricted
