{% macro usage_sums(relation, period, of_events=false) -%}
    {{ checked_total(
        'sum(' ~ relation ~ '.tokens)', relation ~ '.tenant_id', period
    ) }} as tokens,

        {%- for number in usage_numbers()[1:] %}
        {% if number in token_parts() -%}
        coalesce(sum({{ relation }}.{{ number }}), 0)::bigint
        {%- elif of_events -%}
        count(*)
        {%- else -%}
        sum({{ relation }}.event_count)::bigint
        {%- endif %} as {{ number }}{{ "," if not loop.last }}
        {%- endfor %}
{%- endmacro %}


{% macro token_parts() %}
    {{ return([
        'input_tokens', 'output_tokens', 'cache_read_tokens', 'cache_write_tokens',
        'cache_write_long_tokens', 'reasoning_tokens',
    ]) }}
{% endmacro %}


{% macro usage_numbers() %}
    {#- Every rollup of usage sums these, in the order of its columns. A view can only grow at its end. -#}
    {{ return(['tokens'] + token_parts()[:2] + ['event_count'] + token_parts()[2:]) }}
{% endmacro %}


{% macro token_kinds(relation) %}
    {#- Each token of a row is of one kind: the parts of the wire lie in each other. What is neither input
        nor output was not told apart by its caller. -#}
    {% set kinds = {
        'input': 'input_tokens - {0}cache_read_tokens - {0}cache_write_tokens',
        'cache_read': 'cache_read_tokens',
        'cache_write': 'cache_write_tokens - {0}cache_write_long_tokens',
        'cache_write_long': 'cache_write_long_tokens',
        'output': 'output_tokens - {0}reasoning_tokens',
        'reasoning': 'reasoning_tokens',
        'unsplit': 'tokens - {0}input_tokens - {0}output_tokens',
    } %}
    {% set expressions = {} %}
    {% for kind, expression in kinds.items() %}
        {% do expressions.update({kind: relation ~ "." ~ expression.format(relation ~ ".")}) %}
    {% endfor %}
    {{ return(expressions) }}
{% endmacro %}


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
