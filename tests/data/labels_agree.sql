{{ config(tags=['full', 'every_build']) }}

with
{%- set types = {
    'token_type': 'token_types',
    'operation_type': 'operations',
    'attribution_rule': 'attribution_rules',
} %}

variables as (
    {%- for type, list in types.items() %}
    select
        '{{ type }}' as enum_type,
        listed.label
    from
        unnest(array[
            {%- for label in var(list) %}
            '{{ label }}'{{ "," if not loop.last }}
            {%- endfor %}
        ]) as listed (label)
    {{ "union all" if not loop.last }}
    {%- endfor %}
),

enums as (
    select
        enum_types.typname::text as enum_type,
        labels.enumlabel::text as label
    from pg_enum as labels
    inner join pg_type as enum_types
        on labels.enumtypid = enum_types.oid
    inner join pg_namespace as namespaces
        on enum_types.typnamespace = namespaces.oid
    where
        namespaces.nspname = '{{ target.schema }}'
        -- other types in that schema are not ours
        and enum_types.typname in (
            {%- for type in types %}
            '{{ type }}'{{ "," if not loop.last }}
            {%- endfor %}
        )
),

compared as (
    select
        coalesce(variables.enum_type, enums.enum_type) as enum_type,
        coalesce(variables.label, enums.label) as label,
        variables.label is not null as is_in_variable,
        enums.label is not null as is_in_database
    from variables
    full outer join enums
        on
            variables.enum_type = enums.enum_type
            and variables.label = enums.label
),

aliases as (
    select
        label_kind,
        alias,
        label,
        case
            when label_kind = 'operation' then 'operation_type'
            else label_kind
        end as enum_type
    from {{ ref('label_aliases') }}
)

select
    'the list and the type differ' as problem,
    compared.enum_type as label_kind,
    null::text as alias,
    compared.label,
    compared.is_in_variable,
    compared.is_in_database
from compared
where compared.is_in_variable != compared.is_in_database

union all

select
    case
        when aliases.alias = lower(trim(aliases.alias))
            then 'the alias means no label of its list'
        else 'the alias can match nothing: labels come in lower case, trimmed'
    end as problem,
    aliases.label_kind,
    aliases.alias,
    aliases.label,
    variables.label is not null as is_in_variable,
    null as is_in_database
from aliases
left join variables
    on
        aliases.enum_type = variables.enum_type
        and aliases.label = variables.label
where
    variables.label is null
    or aliases.label_kind not in ('token_type', 'operation')
    or aliases.alias != lower(trim(aliases.alias))
