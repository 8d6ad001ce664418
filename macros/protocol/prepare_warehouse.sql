{% macro prepare_warehouse() %}
    {#- What every build needs, made behind the builds' lock. dbt creates the schema before it builds; a
        command that builds nothing needs nothing here. -#}
    {% if execute %}
        {% do check_root_project() %}
    {% endif %}
    {% if execute and run_query(
        "select to_regnamespace('\"" ~ target.schema ~ "\"')::text"
    ).columns[0][0] %}
        {% do check_billing_timezone() %}
        {% for list in enum_types().values() %}
            {% do check_label_list(list, var(list)) %}
        {% endfor %}
        {% do check_cost_variables() %}
        {% do check_raw_schema() %}
        {% if not is_prepared() %}
            {#- dbt runs hooks outside of a transaction, in which the lock would be gone at once.
                "if not exists" looks before it writes: what another build creates at the same moment
                is there at the next attempt. -#}
            {% call statement('begin_preparation', auto_begin=false) %}
                begin isolation level read committed;
                do $create$
                begin
                    loop
                        begin
                            {{ create_build_table('build_state') }}
                            exit;
                        exception when unique_violation or duplicate_table or duplicate_object then
                            null;
                        end;
                    end loop;
                end
                $create$;
                {{ lock_builds() }};
            {% endcall %}
            {% do create_enum_types() %}
            {% do run_query(short_lock_timeout()) %}
            {% for name in build_tables() %}
                {% do complete_build_table(name) %}
            {% endfor %}
            {% do run_query('commit') %}
        {% endif %}
    {% endif %}
{% endmacro %}


{% macro is_prepared() %}
    {% set query %}
        select
            {%- for type, list in enum_types().items() %}
            array(
                select enumlabel::text from pg_enum
                where enumtypid = to_regtype('{{ enum_type(type) }}')::oid
                order by enumsortorder
            ) = {{ text_array(var(list)) }} and
            {%- endfor %}
            {%- for name, table in build_tables().items() %}
            (
                select count(*) = {{ table['columns'] | length }}
                from pg_attribute
                where
                    attrelid = to_regclass('{{ build_table(name) }}')
                    and attname = any({{ text_array(table['columns'].keys()) }})
                    and not attisdropped
            ){{ " and" if not loop.last }}
            {%- endfor %}
    {% endset %}
    {{ return(run_query(query).columns[0][0]) }}
{% endmacro %}


{% macro build_table(name, schema=target.schema) -%}
    "{{ schema }}".{{ name }}
{%- endmacro %}


{% macro build_tables() %}
    {#- The tables in which builds keep what they need, each column with its type and its meaning. This
        is the only list of them: a column that is added here is added to existing tables too. -#}
    {% set tables = {
        'build_state': {
            'meaning': 'One row per model: what its newest build saved. Its lock is that of all builds.',
            'key': ['model'],
            'columns': {
                'model': ['text', 'Name of the model.'],
                'relation_oid': [
                    'oid not null',
                    'The relation that this is the state of: one that was dropped and created again is empty.',
                ],
                'shape': ['text', 'Digest of columns, constraints and indexes.'],
                'docs': ['text not null', 'Digest of the descriptions.'],
                'fingerprint': ['text not null', 'What the rows are a function of, besides the rows that are read.'],
                'basis': [
                    'uuid not null',
                    'Renewed by each whole rebuild; part of the fingerprint of what reads the relation.',
                ],
                'run_no': ['bigint', 'The number of the newest build that changed a row.'],
                'log_schema': [
                    'text',
                    'The schema whose rollup_changes counts these runs: that of the base, another one under --defer.',
                ],
                'snapshot': ['pg_snapshot', 'What the newest build saw of the raw tables.'],
                'as_of': ['timestamptz', 'A time by which all that had committed is counted.'],
                'rebuilt_as_of': [
                    'timestamptz', 'as_of of the newest whole rebuild, which leaves no log of changes.'
                ],
                'billing_timezone': ['text', 'The zone of the days.'],
                'aliases': ['text', 'Digest of the aliases that labels were read with.'],
                'origin': [
                    'text',
                    'What the rows are a function of, besides the raw rows that the snapshot sees: see origin_of_totals().',
                ],
                'definition': ['text', 'Digest of the relation, by which a restored one is recognized.'],
                'read_to': ['jsonb', 'The end of each raw table, or of each table of prices.'],
                'usage_run': [
                    'bigint',
                    "Of costs, which count runs of their own: the base's run that they follow.",
                ],
                'price_snapshot': ['pg_snapshot', 'What the newest build of costs saw of the tables of prices.'],
                'price_lists': ['text[]', 'Of costs: the lists that every usage is priced by.'],
                'moved_run': [
                    'bigint',
                    'The newest run in which rows counted that lay beyond that end under numbers of old.',
                ],
                'relation_file': [
                    'oid',
                    'The file of the relation, null for a view: one that was truncated or rewritten has another.',
                ],
            },
        },
        'rollup_changes': {
            'meaning': 'One row per hour, date and payer of whom a build of the base changed a row.',
            'key': ['usage_hour', 'usage_date', 'tenant_id'],
            'index': 'run_no',
            'columns': {
                'usage_hour': ['timestamptz', 'The hour.'],
                'usage_date': ['date', 'The day.'],
                'tenant_id': ['text', 'The payer.'],
                'run_no': ['bigint not null', 'The number of the newest such build.'],
            },
        },
        'cost_changes': {
            'meaning': 'One row per date and payer of whom a build of daily_token_cost changed a row.',
            'key': ['usage_date', 'tenant_id'],
            'index': 'run_no',
            'columns': {
                'usage_date': ['date', 'The day.'],
                'tenant_id': ['text', 'The payer.'],
                'run_no': ['bigint not null', 'The number of the newest such build of costs.'],
            },
        },
        'build_hours': {
            'meaning': 'One row per hour: how many events it has, and when tests were to count it again.',
            'key': ['usage_hour'],
            'index': 'due_run',
            'columns': {
                'usage_hour': ['timestamptz', 'The hour.'],
                'event_count': ['bigint not null', 'Its counted events.'],
                'due_count': ['bigint not null', 'As many as they were when it was due.'],
                'due_run': [
                    'bigint not null',
                    'The newest run after which tests count it again: it was recounted, or had grown by half.',
                ],
            },
        },
        'build_proofs': {
            'meaning': 'One row per test that was green: what it has compared, so that the next run continues from there.',
            'key': ['test'],
            'columns': {
                'test': ['text', "dbt's name of the test."],
                'basis': [
                    'text not null',
                    'The whole rebuilds of the compared rollups; after another one everything is compared.',
                ],
                'run_no': ['bigint not null', 'The run number up to which all changes were compared.'],
                'snapshot': ['pg_snapshot', 'What the base had seen of the raw tables then.'],
            },
        },
        'proved_totals': {
            'meaning': 'One row per grain of the months, as the test months_grow_by_new_events last proved it.',
            'key': ['usage_month', 'tenant_id', 'token_type', 'operation', 'model'],
            'columns': {
                'usage_month': ['date', 'First day of the month.'],
                'tenant_id': ['text', 'The payer.'],
                'token_type': ['text', 'As in monthly_token_usage.'],
                'operation': ['text', 'As in monthly_token_usage.'],
                'model': ['text', 'As in monthly_token_usage.'],
                'tokens': ['bigint not null', 'Tokens that count.'],
                'input_tokens': ['bigint not null', 'Prompt tokens.'],
                'output_tokens': ['bigint not null', 'Completion tokens.'],
                'event_count': ['bigint not null', 'Counted events.'],
                'cache_read_tokens': ['bigint not null default 0', 'Prompt tokens read from a cache.'],
                'cache_write_tokens': ['bigint not null default 0', 'Prompt tokens written to a cache.'],
                'cache_write_long_tokens': ['bigint not null default 0', 'Those of them that it keeps longer.'],
                'reasoning_tokens': ['bigint not null default 0', 'Tokens of hidden reasoning.'],
            },
        },
    } %}
    {#- A seed, which `dbt run` does not fill; a deferred build reads that of another schema. -#}
    {% if not invocation_args_dict.get('defer') %}
        {% do tables.update({
            'label_aliases': {
                'key': ['label_kind', 'alias'],
                'columns': {
                    'label_kind': ['text collate "C"'],
                    'alias': ['text collate "C"'],
                    'label': ['text collate "C"'],
                },
            },
        }) %}
    {% endif %}
    {{ return(tables) }}
{% endmacro %}


{% macro create_build_table(name) -%}
    {%- set table = build_tables()[name] -%}
    create table if not exists {{ build_table(name) }} (
        {%- for column, definition in table['columns'].items() %}
        {{ column }} {{ definition[0] }},
        {%- endfor %}
        primary key ({{ table['key'] | join(', ') }})
    );
    {%- if table['index'] %}
    create index if not exists {{ name }}_{{ table['index'] }} on {{ build_table(name) }} ({{ table['index'] }});
    {%- endif %}
{%- endmacro %}


{% macro complete_build_table(name) %}
    {% set table = build_tables()[name] %}
    {% do run_query(drop_unless_keyed(name, table['key'])) %}
    {% do run_query(create_build_table(name)) %}
    {% set query %}
        select wanted.name
        from unnest({{ text_array(table['columns'].keys()) }}) as wanted (name)
        where
            not exists (
                select from pg_attribute
                where
                    attrelid = '{{ build_table(name) }}'::regclass
                    and attname = wanted.name
                    and not attisdropped
            )
    {% endset %}
    {% for column in run_query(query).columns[0].values() %}
        {% do run_query(
            "alter table " ~ build_table(name) ~ " add column " ~ column ~ " "
            ~ table['columns'][column][0]
        ) %}
    {% endfor %}
    {% if table['meaning'] %}
        {% set comments %}
            comment on table {{ build_table(name) }}
            is {{ string_literal(escape_single_quotes(table['meaning'])) }};
            {%- for column, definition in table['columns'].items() %}
            comment on column {{ build_table(name) }}.{{ column }}
            is {{ string_literal(escape_single_quotes(definition[1])) }};
            {%- endfor %}
        {% endset %}
        {% do run_query(comments) %}
    {% endif %}
{% endmacro %}


{% macro drop_unless_keyed(name, key) -%}
    {#- An earlier version kept another grain: a new table makes the next build count everything. -#}
    do $drop$
    begin
        if (
            select array_agg(columns.attname::text order by columns.attname)
            from pg_index as keys
            inner join pg_attribute as columns
                on columns.attrelid = keys.indrelid and columns.attnum = any(keys.indkey)
            where keys.indrelid = to_regclass('{{ build_table(name) }}') and keys.indisprimary
        ) <> {{ text_array(key | sort) }} then
            drop table {{ build_table(name) }};
        end if;
    end
    $drop$
{%- endmacro %}
