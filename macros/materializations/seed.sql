{% materialization seed, adapter='postgres' %}
    {#- In another project's build it is called for all seeds: docs/using.md. -#}
    {% if model.package_name != 'token_tracking' %}
        {{ return(dbt.materialization_seed_default()) }}
    {% endif %}
    {#- The table is never dropped or truncated, for views and builds read it: its rows are replaced
        under the builds' lock, so that two builds at once fill it one after the other. -#}
    {% set relation = this.incorporate(type='table') %}
    {% set rows = load_agate_table() %}
    {% do store_result('agate_table', response='OK', agate_table=rows) %}

    {{ run_hooks(pre_hooks, inside_transaction=false) }}
    {{ run_hooks(pre_hooks, inside_transaction=true) }}
    {% set delete_old_rows %}
        {{ lock_builds() }};
        create table if not exists {{ relation }} (
            {%- for name in rows.column_names %}
            {{ name }} {{ model.config.column_types[name] }},
            {%- endfor %}
            primary key ({{ config.require('unique_key') | join(', ') }})
        );
        delete from {{ relation }}
    {% endset %}
    {% call statement('delete_old_rows') %}{{ delete_old_rows }}{% endcall %}
    {% set insert_rows = load_csv_rows(model, rows) if rows.rows else '' %}
    {% call noop_statement('main', 'INSERT ' ~ rows.rows | length, 'INSERT', rows.rows | length) %}
        {{ get_csv_sql(delete_old_rows, insert_rows) }}
    {% endcall %}
    {% do persist_docs(relation, model) %}
    {{ run_hooks(post_hooks, inside_transaction=true) }}
    {% do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=false) }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}
