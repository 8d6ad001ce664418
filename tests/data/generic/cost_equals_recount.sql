{% test cost_equals_recount(model, base, changed_costs=false) %}
{%- set changes = changes_to_compare([model if changed_costs else base]) -%}
{{ changes.mark }}
{%- set grain = [
    'usage_date', 'tenant_id', 'token_type', 'operation', 'provider', 'model', 'token_kind',
    'service_tier', 'price_list', 'is_billed', 'currency',
] -%}
{%- set days = {'usage_date': 'usage_date'} -%}
with

found as (
    select
        {{ grain | join(',\n        ') }},
        tokens,
        cost,
        unpriced_tokens
    from {{ compared_groups(model, days, changes, is_finer=false) }} as compared
),

expected as (
    {{ recounted_costs(compared_groups(base, days, changes), model) }}
)

select differing.*
from (
    {{ differing_totals(grain, ['tokens', 'cost', 'unpriced_tokens'], one_row='found') }}
) as differing
-- A partial selection leaves the costs behind.
where exists (
    select
    from {{ build_table('build_state', model.schema) }} as costs
    inner join {{ build_table('build_state', base.schema) }} as usage
        on costs.usage_run = usage.run_no
    where
        costs.model = '{{ model.identifier }}'
        and usage.model = '{{ base.identifier }}'
)
{% endtest %}
