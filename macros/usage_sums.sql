{% macro usage_sums(relation, period, of_events=false) -%}
    {#- PostgreSQL's own error for a sum that is too large does not name the payer. The parts need no
        check, for tokens are at least their sum. Characters that could control a terminal are replaced
        in the name. -#}
    case
            when sum({{ relation }}.tokens) <= 9223372036854775807 then sum({{ relation }}.tokens)::bigint
            else (
                'more tokens than a bigint holds, of payer '
                || regexp_replace(
                    to_json({{ relation }}.tenant_id)::text,
                    '[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069]', '?', 'g'
                )
                || ' in ' || {{ period }} || ': void those that are not real with void_token_usage'
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
