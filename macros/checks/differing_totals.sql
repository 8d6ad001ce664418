{% macro differing_totals(keys, numbers, sides=['found', 'expected'], one_row=none, grouped=none, unless_behind=[], unless_aliases_changed=none) -%}
    {#- Grouped and not joined: NULL keys meet, and no side has to be summed up before. -#}
    {%- set grouped = grouped or keys | join(", ") -%}
    {%- set sums = {} -%}
    {%- for side in sides -%}
        {%- set of_side = [] -%}
        {%- for number in numbers -%}
            {%- do of_side.append(
                "sum(compared." ~ number ~ ") filter (where compared.side = " ~ sides.index(side) ~ ")"
            ) -%}
        {%- endfor -%}
        {%- do sums.update({side: of_side}) -%}
    {%- endfor -%}
    {#- A deferred side has the enum types of its own schema. -#}
    {%- set chosen = [] -%}
    {%- for key in keys -%}
        {%- do chosen.append(key ~ "::text as " ~ key if invocation_args_dict.get('defer') else key) -%}
    {%- endfor -%}
    {%- set rows = "count(*) filter (where compared.side = " ~ sides.index(one_row) ~ ")" if one_row -%}
    select
        {%- for key in keys %}
        compared.{{ key }},
        {%- endfor %}
        {%- if one_row %}
        {{ rows }} as {{ one_row }}_rows,
        {%- endif %}
        {%- for number in numbers %}
        {%- set outer_loop = loop %}
        {%- for side in sides %}
        {{ sums[side][outer_loop.index0] }} as {{ side }}_{{ number }}
        {{- "," if not (loop.last and outer_loop.last) }}
        {%- endfor %}
        {%- endfor %}
    from (
        {%- for side in sides %}
        {{ "union all" if not loop.first }}
        select {{ loop.index0 }} as side, {{ (chosen + numbers) | join(", ") }} from {{ side }}
        {%- endfor %}
    ) as compared
    -- The test nothing_to_check warns of what cannot be compared.
    where
        true
        {%- if unless_aliases_changed %}
        -- labels are read again, with the current aliases
        and {{ has_current_aliases(unless_aliases_changed) }}
        {%- endif %}
        {%- if unless_behind %}
        -- a partial selection leaves one of them behind
        and (
            select
                count(states.run_no) = {{ unless_behind | length }}
                and count(distinct states.run_no) = 1
            from (
                {%- for rollup in unless_behind %}
                {{ "union all" if not loop.first }}
                select state.run_no from {{ build_table('build_state', rollup.schema) }} as state
                where state.model = '{{ rollup.identifier }}'
                {%- endfor %}
            ) as states
        )
        {%- endif %}
    group by {{ grouped }}
    having
        {%- for side in sides[1:] %}
        {{ "or " if not loop.first }}({{ sums[sides[0]] | join(", ") }})
        is distinct from ({{ sums[side] | join(", ") }})
        {%- endfor %}
        {%- if one_row %}
        or {{ rows }} > 1
        {%- endif %}
{%- endmacro %}
