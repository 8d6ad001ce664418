{% macro is_prepared() %}
    {% set conditions = [
        "(select count(*) = 7 from pg_attribute where attrelid = to_regclass('"
        ~ build_table('build_state') ~ "') and attname in"
        ~ " ('rebuilt_as_of', 'billing_timezone', 'definition', 'log_schema', 'aliases', 'read_to',"
        ~ " 'relation_file'))"
    ] %}
    {% for table in ['rollup_changes', 'build_proofs'] + ([] if invocation_args_dict.get('defer') else ['label_aliases']) %}
        {% do conditions.append("to_regclass('" ~ build_table(table) ~ "') is not null") %}
    {% endfor %}
    {% for type, list in enum_types().items() %}
        {% do conditions.append(
            "array(select enumlabel::text from pg_enum where enumtypid = to_regtype('"
            ~ enum_type(type) ~ "')::oid order by enumsortorder) = " ~ text_array(var(list))
        ) %}
    {% endfor %}
    {{ return(run_query("select " ~ conditions | join(" and ")).columns[0][0]) }}
{% endmacro %}
