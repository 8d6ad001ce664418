{% materialization incremental, adapter='postgres' %}
    {#- Named like dbt's own, for only there dbt makes the constraints of a contract. -#}
    {% set relation = this.incorporate(type='table') %}

    {{ run_hooks(pre_hooks, inside_transaction=false) }}
    {% do begin_build() %}
    {{ run_hooks(pre_hooks, inside_transaction=true) }}
    {% if config.get('reads') %}
        {% do build_rollup(relation, ref(config.get('reads'))) %}
    {% else %}
        {% do build_base(relation) %}
    {% endif %}
    {% do apply_grants(relation, config.get('grants'), should_revoke=true) %}
    {#- What a hook alters waits for readers, and every build waits for this one. -#}
    {% do run_query(wait_briefly()) %}
    {{ run_hooks(post_hooks, inside_transaction=true) }}
    {% do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=false) }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}
