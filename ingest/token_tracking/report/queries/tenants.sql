-- one row per tenant that pays for usage
select distinct monthly_token_usage.tenant_id as name
from monthly_token_usage
