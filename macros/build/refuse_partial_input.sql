{% macro refuse_partial_input() %}
    {% if flags.EMPTY or invocation_args_dict.get('sample') %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' cannot be built with --empty or --sample: it would count as read what"
            ~ " was not. Build without, or leave it out of the selection."
        ) }}
    {% endif %}
{% endmacro %}
