{% macro wait_briefly() -%}
    {#- A change of a table or view waits for those who read it in an open transaction, and every new
        reader would wait behind it. -#}
    set local lock_timeout = '5s'
{%- endmacro %}
