{% macro usage_sums(relation, period, of_events=false) -%}
    {#- What PostgreSQL says of a sum that is too large names nobody. Tokens are at least their parts. -#}
    case
            when sum({{ relation }}.tokens) <= 9223372036854775807 then sum({{ relation }}.tokens)::bigint
            else (
                'more tokens than a bigint holds, of payer ' || {{ relation }}.tenant_id || ' in '
                || {{ period }} || ': void those that are not real with void_token_usage'
            )::bigint
        end as tokens,
        coalesce(sum({{ relation }}.input_tokens), 0)::bigint as input_tokens,
        coalesce(sum({{ relation }}.output_tokens), 0)::bigint as output_tokens,
        {% if of_events -%}
        count(*) as event_count
        {%- else -%}
        sum({{ relation }}.event_count)::bigint as event_count
        {%- endif %}
{%- endmacro %}
