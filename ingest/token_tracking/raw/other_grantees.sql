-- one row per role with privileges in the raw schema that is neither one of ours nor
-- the owner
with

grants as (
    select
        pg_namespace.nspowner as owner,
        pg_namespace.nspacl as acl
    from pg_namespace
    where pg_namespace.nspname = 'token_tracking_raw'
    union all
    select
        pg_class.relowner as owner,
        pg_class.relacl as acl
    from pg_class
    where pg_class.relnamespace = 'token_tracking_raw'::regnamespace
    union all
    select
        pg_class.relowner as owner,
        pg_attribute.attacl as acl
    from pg_attribute
    inner join pg_class on pg_attribute.attrelid = pg_class.oid
    where pg_class.relnamespace = 'token_tracking_raw'::regnamespace
    union all
    select
        pg_proc.proowner as owner,
        pg_proc.proacl as acl
    from pg_proc
    where pg_proc.pronamespace = 'token_tracking_raw'::regnamespace
)

select distinct pg_roles.rolname::text as role_name
from grants
cross join lateral aclexplode(grants.acl) as granted
inner join pg_roles on granted.grantee = pg_roles.oid
where
    granted.grantee <> grants.owner
    and pg_roles.rolname <> all(%(ours)s::text[])
order by role_name
