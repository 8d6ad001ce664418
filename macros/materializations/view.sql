{% materialization token_tracking_view, adapter='postgres' %}
    {#- dbt's own view drops the old one with everything on top of it, and fails when two builds swap
        at once. This one touches a view only when its query or its descriptions changed. -#}
    {% set relation = this.incorporate(type='view') %}
    {% set options = config.get('view_options', '') %}
    {% set query = cast_to_own_enums(sql) if config.get('contract').enforced else sql %}
    {% set fingerprint = "query " ~ local_md5(query ~ options) %}

    {{ run_hooks(pre_hooks, inside_transaction=false) }}
    {% do begin_build() %}
    {{ run_hooks(pre_hooks, inside_transaction=true) }}
    {% set saved = saved_state(relation) %}
    {% if saved is not none and saved['is_same'] and saved['looks_same']
        and saved['fingerprint'] == fingerprint and saved['docs'] == docs_digest() %}
        {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED', 0) %}{% endcall %}
    {% else %}
        {% if config.get('contract').enforced %}
            {% do get_assert_columns_equivalent(query) %}
        {% endif %}
        {% set with_options = "with (" ~ options ~ ")" if options else "" %}
        {% call statement('main') %}
            {{ short_lock_timeout() }};
            do $build$
            begin
                create or replace view {{ relation }} {{ with_options }} as {{ query }}
                ;
            exception when invalid_table_definition then
                -- The columns changed. Without cascade: somebody else's view on top stops the build, and
                -- PostgreSQL's message names it.
                drop view {{ relation }};
                create view {{ relation }} {{ with_options }} as {{ query }}
                ;
            end
            $build$
        {% endcall %}
        {% do persist_docs(relation, model) %}
        {% do save_state(relation, {
            'fingerprint': "'" ~ fingerprint ~ "'",
            'basis': "gen_random_uuid()",
        }) %}
    {% endif %}
    {% do grant_to_existing_roles(relation, config.get('grants')) %}
    {{ run_hooks(post_hooks, inside_transaction=true) }}
    {% do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=false) }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{% materialization view, adapter='postgres' %}
    {#- No model of this project is one: `dbt clone` copies every table as a view by this name. -#}
    {% if flags.WHICH == 'clone' and model.package_name == 'token_tracking' %}
        {{ exceptions.raise_compiler_error(
            "`dbt clone` is not supported: a copy would have no state to continue from. Build the other"
            ~ " schema, or read this one with --defer."
        ) }}
    {% endif %}
    {{ return(dbt.materialization_view_default()) }}
{% endmaterialization %}
