{% materialization incremental, adapter='postgres' %}
    {#- Named like dbt's own, for only there dbt makes the constraints of a contract. -#}
    {% set relation = this.incorporate(type='table') %}

    {{ run_hooks(pre_hooks, inside_transaction=false) }}
    {% do begin_build() %}
    {{ run_hooks(pre_hooks, inside_transaction=true) }}
    {% if config.get('period') %}
        {% do build_rollup(relation, input_of_rollup()) %}
    {% else %}
        {% do build_base(relation) %}
    {% endif %}
    {% do apply_grants(relation, config.get('grants'), should_revoke=true) %}
    {#- A hook that alters a table waits for its readers, and every build would wait for this one. -#}
    {% do run_query(short_lock_timeout()) %}
    {{ run_hooks(post_hooks, inside_transaction=true) }}
    {% do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=false) }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}
