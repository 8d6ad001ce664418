{% macro role_name(kind) -%}
    {{ env_var('TOKEN_TRACKING_ROLE_PREFIX', 'token_tracking_') }}{{ kind }}
{%- endmacro %}
