{% macro billing_date(instant) -%}
    ({{ instant }} at time zone '{{ var('billing_timezone') | replace("'", "''") }}')::date
{%- endmacro %}


{% macro month_of(day) -%}
    date_trunc('month', {{ day }}::timestamp)::date
{%- endmacro %}


{% macro check_billing_timezone() %}
    {#- PostgreSQL accepts more: IST and CET are abbreviations, whose meaning depends on the session's
        settings, and +05:30 and UTC+5:30 are zones west of Greenwich. -#}
    {% set zone = var('billing_timezone') %}
    {% if zone != 'UTC' and not ('/' in zone and zone in modules.pytz.all_timezones_set) %}
        {{ exceptions.raise_compiler_error(
            "The variable 'billing_timezone' is '" ~ zone ~ "': it must be UTC or a zone's full name"
            ~ " of the form Area/City, as in pg_timezone_names: Europe/Madrid, Asia/Kolkata."
        ) }}
    {% endif %}
{% endmacro %}
