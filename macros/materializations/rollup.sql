{% materialization token_tracking_rollup, adapter='postgres' %}
    {#- A table that each build changes by what is new: docs/exactness.md. -#}
    {% set relation = this.incorporate(type='table') %}

    {{ run_hooks(pre_hooks, inside_transaction=false) }}
    {% do begin_build() %}
    {{ run_hooks(pre_hooks, inside_transaction=true) }}
    {% if config.get('period') %}
        {% do build_rollup(relation, input_of_rollup()) %}
    {% else %}
        {% do build_base(relation) %}
    {% endif %}
    {% do grant_to_existing_roles(relation, config.get('grants')) %}
    {#- A hook that alters a table waits for its readers, and every build would wait for this one. -#}
    {% do run_query(short_lock_timeout()) %}
    {{ run_hooks(post_hooks, inside_transaction=true) }}
    {% do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=false) }}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}
