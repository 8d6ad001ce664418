{% macro check_label_list(list, labels) %}
    {% set ns = namespace(bad=[]) %}
    {% for label in labels if not modules.re.fullmatch('[a-z][a-z0-9_]{0,62}', label | string) %}
        {% do ns.bad.append(label) %}
    {% endfor %}
    {% if ns.bad or labels | unique | list | length != labels | length %}
        {{ exceptions.raise_compiler_error(
            "The list '" ~ list ~ "' is [" ~ labels | join(", ") ~ "]: labels are lower case letters,"
            ~ " digits and _, at most 63 characters, each once."
        ) }}
    {% endif %}
    {% if list != 'attribution_rules' and 'unknown' not in labels %}
        {{ exceptions.raise_compiler_error(
            "The list '" ~ list ~ "' is [" ~ labels | join(", ") ~ "]: it needs the label 'unknown',"
            ~ " under which every unforeseen one is counted."
        ) }}
    {% endif %}
{% endmacro %}
