{% macro lies_behind(rows, table, saved) -%}
    {#- Raw tables are appended to, so what the saved snapshot saw ends there. A row behind it is to be
        counted also where its number says that it was seen: that is of another time then (restored or
        replicated rows, a counter that was set back), or that snapshot was older than the table's file.
        A row that was changed in place, as personal data are erased, lies there, too, and counts as
        before. -#}
    {{ rows }}.ctid > '{{ fromjson(saved['read_to'])[table] }}'::tid
{%- endmacro %}
