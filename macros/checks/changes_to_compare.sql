{% macro changes_to_compare(rollups) %}
    {% set everything = {'log': none, 'since': 'null', 'mark': ''} %}
    {% if not execute or not have_state(rollups) %}
        {{ return(everything) }}
    {% endif %}
    {% set known = run_query(
        "select states.*, proofs.run_no as proved_run from (" ~ joint_state(rollups) ~ ") as states"
        ~ " left join " ~ build_table('build_proofs') ~ " as proofs"
        ~ " on proofs.test = '" ~ model.unique_id ~ "' and proofs.basis = states.basis"
    ).rows[0] %}
    {% set is_doubt = config.get('severity') | lower == 'warn' %}
    {% if not is_doubt and not config.get('where') %}
        {#- For proved_run(), after the test. -#}
        {% do everything.update({'mark': "/*proves " ~ tojson({
            'rollups': zip(
                rollups | map(attribute='schema'), rollups | map(attribute='identifier')
            ) | list,
            'basis': known['basis'],
        }) ~ "*/"}) %}
    {% endif %}
    {#- A whole rebuild leaves no log of changes: it changed everything. -#}
    {% if 'full' in config.get('tags', []) or known['is_rebuilt'] or not known['log_schema'] %}
        {{ return(everything) }}
    {% endif %}
    {% set log = build_table('rollup_changes', known['log_schema']) %}
    {#- A doubt is told with the run that gave rise to it. -#}
    {% if is_doubt %}
        {{ return({'log': log, 'since': 'null', 'mark': ''}) }}
    {% endif %}
    {% if known['proved_run'] is none or run_query(
        "select coalesce(min(run_no), " ~ known['run_no'] ~ " + 1) > " ~ known['proved_run'] ~ " + 1"
        ~ " from " ~ log
    ).columns[0][0] %}
        {{ return(everything) }}
    {% endif %}
    {{ return(dict(everything, log=log, since=known['proved_run'] + 1)) }}
{% endmacro %}
