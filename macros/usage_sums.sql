{% macro usage_sums(relation, period, of_events=false) -%}
    {{ checked_total(
        'sum(' ~ relation ~ '.tokens)', relation ~ '.tenant_id', period
    ) }} as tokens,
        coalesce(sum({{ relation }}.input_tokens), 0)::bigint as input_tokens,
        coalesce(sum({{ relation }}.output_tokens), 0)::bigint as output_tokens,
        {% if of_events -%}
        count(*) as event_count
        {%- else -%}
        sum({{ relation }}.event_count)::bigint as event_count
        {%- endif %}
{%- endmacro %}


{% macro checked_total(total, tenant, period) -%}
    {#- PostgreSQL's own error for a sum that is too large does not name the payer. The parts need no
        check, for tokens are at least their sum. Characters that could control a terminal are replaced
        in the name. -#}
    case
            when {{ total }} <= 9223372036854775807 then ({{ total }})::bigint
            else (
                'more tokens than a bigint holds, of payer '
                || regexp_replace(
                    to_json({{ tenant }})::text,
                    '[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069]', '?', 'g'
                )
                || ' in ' || {{ period }} || ': void those that are not real with void_token_usage'
            )::bigint
        end
{%- endmacro %}
