{% macro check_cost_variables() %}
    {% set lists = var('price_lists') %}
    {% set is_list = lists is sequence and lists is not string and lists is not mapping %}
    {% if not is_list or lists | reject('string') | list or lists | map('trim') | reject | list
        or lists | unique(case_sensitive=true) | list | length != lists | length %}
        {{ exceptions.raise_compiler_error(
            "The variable 'price_lists' is " ~ tojson(lists, lists | string)
            ~ ": it must be a list of names of price lists, each once, or an empty list."
        ) }}
    {% endif %}
    {% set bounds = var('context_bounds') %}
    {% set is_list = bounds is sequence and bounds is not string and bounds is not mapping %}
    {% if not is_list or bounds | reject('integer') | list or bounds | select('boolean') | list
        or bounds | select('lessthan', 0) | list or bounds | unique | list | length != bounds | length %}
        {{ exceptions.raise_compiler_error(
            "The variable 'context_bounds' is " ~ tojson(bounds, bounds | string)
            ~ ": it must be a list of numbers of input tokens, whole and not negative, each once."
        ) }}
    {% endif %}
{% endmacro %}
