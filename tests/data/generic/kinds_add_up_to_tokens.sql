{% test kinds_add_up_to_tokens(model) %}
{%- set changes = changes_to_compare([model]) -%}
{{ changes.mark }}
{%- set kinds = token_kinds('compared') -%}
with

-- one row per usage_date and tenant_id
found as (
    select
        compared.usage_date,
        compared.tenant_id,
        sum(compared.tokens) as tokens,
        {%- for kind, tokens in kinds.items() %}
        sum({{ tokens }}) as {{ kind }}_of_kinds,
        min({{ tokens }}) as least_{{ kind }}{{ "," if not loop.last }}
        {%- endfor %}
    from {{ compared_groups(model, {'usage_date': 'usage_date'}, changes, is_finer=false) }} as compared
    group by
        compared.usage_date,
        compared.tenant_id
)

select *
from found
where
    tokens <> {{ kinds.keys() | join('_of_kinds + ') }}_of_kinds
    or least(least_{{ kinds.keys() | join(', least_') }}) < 0
{% endtest %}
