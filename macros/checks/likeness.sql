{% macro likeness(text) -%}
    {#- The same on every server: no rule of a collation takes part, so only Latin letters lose their
        case, those with accents too, which NFKD takes apart. What goes is white space and what takes
        no ink. As the validation's ids_do_not_look_alike. -#}
    regexp_replace(
        lower(normalize({{ text }}, nfkd) collate "C"),
        '[\u0001-\u0020\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f'
        || '\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0'
        || '\ufff9-\ufffb\U000e0000-\U000e0fff]+',
        '',
        'g'
    )
{%- endmacro %}
