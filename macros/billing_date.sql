{% macro billing_date(instant) -%}
    ({{ instant }} at time zone '{{ var('billing_timezone') | replace("'", "''") }}')::date
{%- endmacro %}
