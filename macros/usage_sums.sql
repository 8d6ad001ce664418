{% macro usage_sums(relation, of_events=false) -%}
    sum({{ relation }}.tokens)::bigint as tokens,
        coalesce(sum({{ relation }}.input_tokens), 0)::bigint as input_tokens,
        coalesce(sum({{ relation }}.output_tokens), 0)::bigint as output_tokens,
        {% if of_events -%}
        count(*) as event_count
        {%- else -%}
        sum({{ relation }}.event_count)::bigint as event_count
        {%- endif %}
{%- endmacro %}
