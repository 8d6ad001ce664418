-- one row per role with privileges in the raw schema that is neither one of ours nor the owner
with

grants as (
    select nspowner as owner, nspacl as acl
    from pg_namespace where nspname = 'token_tracking_raw'
    union all
    select relowner, relacl
    from pg_class where relnamespace = 'token_tracking_raw'::regnamespace
    union all
    select pg_class.relowner, pg_attribute.attacl
    from pg_attribute
    inner join pg_class on pg_attribute.attrelid = pg_class.oid
    where pg_class.relnamespace = 'token_tracking_raw'::regnamespace
    union all
    select proowner, proacl
    from pg_proc where pronamespace = 'token_tracking_raw'::regnamespace
)

select distinct pg_roles.rolname::text
from grants
cross join lateral aclexplode(grants.acl) as granted
inner join pg_roles on granted.grantee = pg_roles.oid
where granted.grantee <> grants.owner and pg_roles.rolname <> all (%s::text[])
order by 1
