"""Directed histories, and proof that they catch easily made mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT, directed, directed_costs
from tests.support.oracle import Settings
from tests.support.project import DbtProject, Edit
from tests.support.warehouse import Warehouse, WrongTotalsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.support.databases import Database

    History = Callable[[DbtProject, Warehouse], None]


@dataclass(frozen=True)
class Mistake:
    """What somebody could have written instead, and the history that shows it.

    The history ends in wrong totals, or where `stops` is told in an assertion that says it. The
    first `harmless` edits are no mistake by themselves: the history is right with them alone.
    """

    name: str
    history: History
    edits: tuple[Edit, ...]
    stops: str | None = None
    harmless: int = 0

    @classmethod
    def of(
        cls,
        name: str,
        history: History,
        *texts: str,
        stops: str | None = None,
        harmless: int = 0,
    ) -> Mistake:
        """Read the texts as file, right, wrong, and so on."""
        files = [texts[start : start + 3] for start in range(0, len(texts), 3)]
        return cls(name, history, tuple(Edit(*each) for each in files), stops, harmless)


BASE = "macros/protocol/build_base.sql"
ROLLUP = "macros/protocol/build_rollup.sql"
CHANGES = "macros/protocol/raw_changes.sql"
EVENTS = "macros/attributed_events.sql"
FINGERPRINT = "macros/protocol/input_fingerprint.sql"
PREPARE = "macros/protocol/prepare_rollup.sql"
BEGIN = "macros/protocol/begin_build.sql"
REPLACE = "macros/protocol/replace_rows.sql"
GROUPS = "macros/rows_of_groups.sql"
RATED = "macros/costs/rated_usage.sql"
PRICES = "macros/costs/price_changes.sql"
# Rows are found only by their numbers, and not by their place in the file.
BLIND = (CHANGES, "{{ rows }}.ctid >", "false and {{ rows }}.ctid >")

MISTAKES = [
    Mistake.of(
        "watermark on recorded_at",
        directed.late_commit,
        CHANGES,
        "            {{ is_new('events.ingest_xid', saved['snapshot']) }}",
        "            events.recorded_at > (select max(as_of) from token_tracking.build_state)",
        *BLIND,
    ),
    Mistake.of(
        "watermark on a void's recorded_at",
        directed.late_void,
        CHANGES,
        "is_new('voids.ingest_xid', snapshot) if",
        "'voids.recorded_at > (select max(as_of) from token_tracking.build_state)' if",
        *BLIND,
    ),
    Mistake.of(
        "watermark on an owner's recorded_at",
        directed.late_void,
        CHANGES,
        "is_new('owners.ingest_xid', snapshot) if",
        "'owners.recorded_at > (select max(as_of) from token_tracking.build_state)' if",
        *BLIND,
    ),
    Mistake.of(
        "watermark on the highest transaction",
        directed.late_commit,
        CHANGES,
        "saved_snapshot.split(':')[0]",
        "saved_snapshot.split(':')[1]",
        *BLIND,
    ),
    Mistake.of(
        "only the snapshot's xmin is used",
        directed.nothing_new,
        CHANGES,
        "and not pg_visible_in_snapshot",
        "and true or false and pg_visible_in_snapshot",
    ),
    Mistake.of(
        "each statement sees other data, the horizon is read last",
        directed.commit_during_build,
        BEGIN,
        "set transaction isolation level repeatable read;",
        "",
    ),
    Mistake.of(
        "the horizon is read before the lock is there",
        directed.two_builds_wait,
        BEGIN,
        "begin_snapshot(lock_builds())",
        "begin_snapshot('select pg_current_snapshot(); ' ~ lock_builds())",
        stops="could not serialize access due to concurrent update",
    ),
    # The saved snapshot is taken before the build waits.
    Mistake.of(
        "events are added that the saved snapshot does not show",
        directed.commit_during_build,
        BASE,
        "    {% do refuse_foreign_transactions() %}",
        "    {% do run_query(\"select set_config('s.s', pg_current_snapshot()::text, true)\") %}",
        BASE,
        "'snapshot': 'pg_current_snapshot()',",
        "'snapshot': \"current_setting('s.s')::pg_snapshot\",",
        BASE,
        "    {% set events = marked_input(sql) %}",
        "    {% set events = marked_input(sql) %}"
        "{% do run_query('lock table ' ~ relation ~ ' in row exclusive mode') %}",
        BEGIN,
        "set transaction isolation level repeatable read;",
        "",
        harmless=3,
    ),
    Mistake.of(
        "delete by grain, not by period",
        directed.payer_loses_everything,
        REPLACE,
        "from {{ kept }} as kept\n            where not",
        "from {{ kept }} as kept\n            where"
        " {{ '' if log else 'tenant_id in (select tenant_id from fresh_rows) and' }} not",
    ),
    Mistake.of(
        "periods derived from what was rebuilt",
        directed.last_event_is_voided,
        REPLACE,
        "run_query(logged(delete_rows_without_events, log, run_no))",
        "run_query(delete_rows_without_events)",
    ),
    Mistake.of(
        "dates of an hour derived from its start",
        directed.midnight_comes_twice,
        REPLACE,
        "{{ run_no }}, changed.{{ columns | join(', changed.') }}\n",
        "{{ run_no }}, changed.{{ columns | join(', changed.') | replace('usage_hour,"
        " changed.usage_date', \"usage_hour,"
        " (changed.usage_hour at time zone 'America/St_Johns')::date\") }}\n",
    ),
    Mistake.of(
        "a new event of a recounted hour is added, too",
        directed.added_and_recounted,
        CHANGES,
        "and date_trunc('hour', events.occurred_at, 'UTC') not in (",
        "and 'infinity' not in (",
        BASE,
        '"select * from fresh_rows where usage_hour not in'
        ' (select usage_hour from hours_to_recount)"',
        '"select * from fresh_rows"',
        BASE,
        "(select * from fresh_rows where usage_hour in (select usage_hour from hours_to_recount))",
        "fresh_rows",
    ),
    Mistake.of(
        "what is counted again is added",
        directed.added_and_recounted,
        BASE,
        '"select * from fresh_rows where usage_hour not in'
        ' (select usage_hour from hours_to_recount)"',
        '"select * from fresh_rows"',
    ),
    Mistake.of(
        "events are added, and nothing is counted again",
        directed.added_and_recounted,
        BASE,
        "{% if found['recounts'] %}",
        "{% if false %}",
    ),
    Mistake.of(
        "the void of a counted event is taken for a new event's",
        directed.added_and_recounted,
        CHANGES,
        "and not ({{ is_new('events.ingest_xid', snapshot) }})\n\n        union all\n\n"
        "        -- An",
        "and {{ is_new('events.ingest_xid', snapshot) }}\n\n        union all\n\n        -- An",
    ),
    Mistake.of(
        "an owner counts for new events only",
        directed.owner_of_new_events,
        CHANGES,
        "where not ({{ is_new('events.ingest_xid', snapshot) }})\n        {%- endfor %}",
        "where {{ is_new('events.ingest_xid', snapshot) }}\n        {%- endfor %}",
    ),
    Mistake.of(
        "a row that moved is a new event",
        directed.updated_in_place,
        CHANGES,
        "            {{ is_new('events.ingest_xid', saved['snapshot']) }}",
        "            ({{ is_new('events.ingest_xid', saved['snapshot']) }}"
        " or events.metadata = '{}')",
        CHANGES,
        "{{ is_beyond_saved_end('events', 'usage_events', saved) }}\n            and not",
        "false and not",
    ),
    Mistake.of(
        "what is added is committed before the state",
        directed.state_is_not_saved,
        REPLACE,
        "    {% call statement('main') %}{{ logged(add_to_rows, log, run_no) }}{% endcall %}",
        "    {% call statement('main') %}{{ logged(add_to_rows, log, run_no) }}{% endcall %}"
        "{% do run_query('commit; begin') %}",
        BASE,
        "has_moved_rows boolean)\n        on commit drop;",
        "has_moved_rows boolean);",
        REPLACE,
        "create temporary table fresh_rows on commit drop as",
        "create temporary table fresh_rows as",
    ),
    Mistake.of(
        "added under the payer of the hour's first row",
        directed.added_and_recounted,
        REPLACE,
        "        {{ added }}\n",
        "        select {{ columns | replace('tenant_id, requester',"
        " 'first_value(tenant_id) over (partition by usage_hour order by tenant_id), requester')"
        " }} from ({{ added }}) as counted\n",
    ),
    Mistake.of(
        "the newest events replace the others",
        directed.late_commit,
        REPLACE,
        "'kept.tokens::numeric + excluded.tokens'",
        "'excluded.tokens'",
        stops="parts_within_tokens",
    ),
    Mistake.of(
        "parts are not added",
        directed.late_commit,
        REPLACE,
        "{{ number }} = kept.{{ number }} + excluded.{{ number }}",
        "{{ number }} = kept.{{ number }}"
        "{{ ' + excluded.' ~ number if number != 'output_tokens' }}",
    ),
    Mistake.of(
        "events are not added",
        directed.late_commit,
        REPLACE,
        "{{ number }} = kept.{{ number }} + excluded.{{ number }}",
        "{{ number }} = kept.{{ number }}{{ ' + excluded.' ~ number if number != 'event_count' }}",
    ),
    Mistake.of(
        "a payer's change is logged the first time only",
        directed.many_groups,
        REPLACE,
        "do update\n    set run_no = excluded.run_no",
        "do nothing",
    ),
    Mistake.of(
        "only the first payer of an hour is logged",
        directed.added_and_recounted,
        REPLACE,
        "select distinct {{ run_no }}, changed.{{ columns | join(', changed.') }}",
        "select {{ run_no }}, {{ columns[:-1] | join(', ') }}, min(changed.tenant_id)",
        REPLACE,
        "    from changed\n",
        "    from changed group by {{ columns[:-1] | join(', ') }}\n",
    ),
    Mistake.of(
        "a changed group is read once per hour that changed",
        directed.many_groups,
        GROUPS,
        "    select distinct\n",
        "    select\n",
    ),
    Mistake.of(
        "the groups of the newest run only",
        directed.partial_selections,
        GROUPS,
        "where run_no >= {{ first_run }}",
        "where run_no = (select max(run_no) from {{ log }})",
    ),
    Mistake.of(
        "a group is replaced for every payer",
        directed.many_groups,
        GROUPS,
        "rows.tenant_id = changed.tenant_id\n",
        "{{ 'changed' if 'place' in columns else 'rows' }}.tenant_id = changed.tenant_id\n",
    ),
    Mistake.of(
        "today's owner",
        directed.sold_agent,
        EVENTS,
        "agent_owners.valid_from <= events.occurred_at",
        "agent_owners.valid_from <= now()",
    ),
    Mistake.of(
        "the instant of the sale is the seller's",
        directed.sold_agent,
        EVENTS,
        "agent_owners.valid_from <= events.occurred_at",
        "agent_owners.valid_from < events.occurred_at",
    ),
    Mistake.of(
        "the first revision wins",
        directed.corrected_owner,
        EVENTS,
        "agent_owners.revision desc",
        "agent_owners.revision",
    ),
    Mistake.of(
        "a correction covers no time",
        directed.corrected_owner,
        "macros/ownership_end.sql",
        "later.valid_from > {{ period }}",
        "later.valid_from >= {{ period }}",
    ),
    Mistake.of(
        "the first instant of an owner is not its own",
        directed.corrected_owner,
        CHANGES,
        "and events.occurred_at >= owners.valid_from",
        "and events.occurred_at > owners.valid_from",
    ),
    Mistake.of(
        "a change of the owner touches nothing",
        directed.payer_loses_everything,
        CHANGES,
        "is_new('owners.ingest_xid', snapshot) if",
        "'false' if",
        *BLIND,
    ),
    Mistake.of(
        "a void touches nothing",
        directed.last_event_is_voided,
        CHANGES,
        "is_new('voids.ingest_xid', snapshot) if",
        "'false' if",
        *BLIND,
    ),
    Mistake.of(
        "voids are forgotten",
        directed.void_first,
        EVENTS,
        "        not exists (",
        "        true or not exists (",
    ),
    Mistake.of(
        "a void counts for every tenant",
        directed.void_first,
        EVENTS,
        "voids.requester_tenant_id = events.requester_tenant_id",
        "voids.requester_tenant_id is not null",
    ),
    Mistake.of(
        "day of arrival",
        directed.old_event,
        EVENTS,
        "billing_date('events.occurred_at')",
        "billing_date('events.recorded_at')",
    ),
    Mistake.of(
        "day of the session's time zone",
        directed.half_hour_zone,
        "macros/billing_calendar.sql",
        "at time zone '{{ var('billing_timezone') | replace(\"'\", \"''\") }}')::date",
        ")::date",
    ),
    Mistake.of(
        "day of the hour's start",
        directed.half_hour_zone,
        EVENTS,
        "billing_date('events.occurred_at')",
        "billing_date(\"date_trunc('hour', events.occurred_at, 'UTC')\")",
    ),
    Mistake.of(
        "hour of the session's time zone",
        directed.old_event,
        EVENTS,
        "date_trunc('hour', events.occurred_at, 'UTC')",
        "date_trunc('hour', events.occurred_at)",
    ),
    Mistake.of(
        "the logic is not in the fingerprint",
        directed.changed_zone,
        FINGERPRINT,
        "'query {{ local_md5(sql) }}'",
        "'query'",
    ),
    Mistake.of(
        "the aliases are not in the fingerprint",
        directed.new_alias,
        FINGERPRINT,
        "'aliases ' || {{ aliases_digest() }}",
        "'aliases'",
    ),
    Mistake.of(
        "the tables are not in the fingerprint",
        directed.restored_tables,
        FINGERPRINT,
        "pg_relation_filenode('{{ name }}'",
        "text('{{ name }}'",
    ),
    Mistake.of(
        "the tables are known by their names' numbers",
        directed.restored_tables,
        FINGERPRINT,
        "pg_relation_filenode('{{ name }}'",
        "oid('{{ name }}'",
    ),
    Mistake.of(
        "the cluster is not in the fingerprint",
        directed.restored_elsewhere,
        FINGERPRINT,
        "'cluster ' || (select control.system_identifier from pg_control_system() as control)",
        "'cluster'",
    ),
    Mistake.of(
        "the database is not in the fingerprint",
        directed.restored_elsewhere,
        FINGERPRINT,
        "'database ' || (select oid from pg_database where datname = current_database())",
        "'database'",
    ),
    Mistake.of(
        "the views are not in the fingerprint",
        directed.changed_view,
        FINGERPRINT,
        "md5(pg_get_viewdef('",
        "text(('",
    ),
    Mistake.of(
        "a rollup takes the newest run number for its input's",
        directed.partial_selections,
        ROLLUP,
        "'run_no': ahead['run_no'],",
        "'run_no': '(select max(run_no) from token_tracking.build_state)',",
    ),
    Mistake.of(
        "the log is taken for complete",
        directed.lost_log,
        ROLLUP,
        "and not log_reaches(log, read_run) %}",
        "and false %}",
    ),
    Mistake.of(
        "the log is taken for one run longer",
        directed.lost_log,
        ROLLUP,
        "> max(run_no) - {{ runs_in_log() }}",
        ">= max(run_no) - {{ runs_in_log() }}",
    ),
    Mistake.of(
        "an emptied log is taken for complete",
        directed.lost_log,
        ROLLUP,
        "{{ runs_in_log() }}, false) from",
        "{{ runs_in_log() }}, true) from",
    ),
    Mistake.of(
        "the state of a dropped table is believed",
        directed.made_anew,
        PREPARE,
        "saved is not none and saved['is_same'] %}",
        "saved is not none %}",
    ),
    Mistake.of(
        "a restored table is dropped",
        directed.made_anew,
        PREPARE,
        "and (is_same or saved['looks_same']) %}",
        "and is_same %}",
        stops="cannot drop table token_tracking.hourly_token_usage because other objects",
    ),
    Mistake.of(
        "the status tells the newest build's zone",
        directed.changed_zone,
        "models/marts/build_status.sql",
        "build_state.billing_timezone,",
        "'{{ var('billing_timezone') }}'::text as billing_timezone,",
        stops=r"build_status tells \('UTC', 'UTC'\)",
    ),
    Mistake.of(
        "the snapshot is older than the file that it reads",
        directed.rewritten_tables,
        BEGIN,
        "{{ wait_for_inputs(inputs) }}",
        "",
        BEGIN,
        "lock table {{ inputs | join(', ') }} in access share mode;",
        "",
    ),
    Mistake.of(
        "the snapshot is taken while the build waits for a table",
        directed.rewritten_tables,
        BEGIN,
        "{{ wait_for_inputs(inputs) }}",
        "",
        BEGIN,
        "lock table {{ inputs | join(', ') }} in access share mode;",
        "do $$ begin lock table {{ inputs | join(', ') }} in access share mode; end $$;",
    ),
    Mistake.of(
        "the ends of the raw tables are not looked at",
        directed.old_numbers,
        *BLIND,
    ),
    Mistake.of(
        "a snapshot of the future is believed",
        directed.future_snapshot,
        *BLIND,
        PREPARE,
        " and saved['is_of_past']",
        "",
        harmless=1,
    ),
    Mistake.of(
        "--empty is not refused",
        directed.empty_is_refused,
        BEGIN,
        "flags.EMPTY or invocation_args_dict.get('sample')",
        "false",
        stops="which was never built",
    ),
    Mistake.of(
        "a request of the bound's size is above it",
        directed_costs.long_requests,
        "macros/costs/context_over.sql",
        "> {{ bound }} then",
        ">= {{ bound }} then",
    ),
    Mistake.of(
        "of several bounds the lowest counts",
        directed_costs.long_requests,
        RATED,
        "found.context_over desc",
        "found.context_over",
    ),
    Mistake.of(
        "a price that ended hides the one below",
        directed_costs.long_requests,
        RATED,
        "where found.amount is not null",
        "where true",
        stops="is_priced_or_unpriced",
    ),
    Mistake.of(
        "a new price is its own list's alone",
        directed_costs.list_of_lists,
        PRICES,
        "on followers.price_list = assignments.price_list",
        "on followers.changed_list = assignments.price_list",
    ),
    Mistake.of(
        "a list is followed in one step",
        directed_costs.list_of_lists,
        PRICES,
        "on rules.price_list = second_rules.base_list",
        "on false",
    ),
    Mistake.of(
        "a new factor touches nothing",
        directed_costs.list_of_lists,
        PRICES,
        "select new_rules.price_list from new_rules",
        "select new_rules.price_list from new_rules where false",
    ),
    Mistake.of(
        "a new price is its own name's alone",
        directed_costs.names_of_models,
        PRICES,
        "aliases.priced_provider = new_prices.provider",
        "false",
    ),
    Mistake.of(
        "only prices are looked for",
        directed_costs.names_of_models,
        ROLLUP,
        "{%- for table in price_tables() %}",
        "{%- for table in ['model_prices'] %}",
    ),
    Mistake.of(
        "the first revision of a price counts",
        directed_costs.corrected_price,
        RATED,
        "prices.valid_from desc, prices.revision desc",
        "prices.valid_from desc, prices.revision",
    ),
    Mistake.of(
        "the first price counts for ever",
        directed_costs.corrected_price,
        RATED,
        "prices.valid_from desc, prices.revision desc",
        "prices.valid_from, prices.revision desc",
    ),
    Mistake.of(
        "the correction of a price covers no time",
        directed_costs.corrected_price,
        PRICES,
        "= new_rows.context_over\n                    and later.valid_from > new_rows",
        "= new_rows.context_over\n                    and later.valid_from >= new_rows",
    ),
    Mistake.of(
        "a price ends where another kind's begins",
        directed_costs.corrected_price,
        PRICES,
        "and later.token_kind = new_rows.token_kind",
        "",
    ),
    Mistake.of(
        "the first hour of a price is not its own",
        directed_costs.corrected_price,
        PRICES,
        "base.usage_hour >= spans.valid_from",
        "base.usage_hour > spans.valid_from",
    ),
    Mistake.of(
        "today's price list",
        directed_costs.assigned_list,
        RATED,
        "and assigned.valid_from <= usage.usage_hour",
        "",
    ),
    Mistake.of(
        "a list that everybody's usage is priced by counts twice for who pays by it",
        directed_costs.assigned_list,
        RATED,
        "where coalesce(assigned.price_list, 'list') <> all ({{ lists }})",
        "where assigned.price_list is not null",
    ),
    Mistake.of(
        "a cost is a quotient",
        directed_costs.long_amount,
        RATED,
        ".amount), 0) * 0.000001)",
        ".amount), 0) / 1000000)",
    ),
    Mistake.of(
        "watermark on a price's recorded_at",
        directed_costs.late_price,
        PRICES,
        "{{ is_new(rows ~ '.ingest_xid', saved['price_snapshot']) }}",
        "{{ rows }}.recorded_at > (select max(as_of) from token_tracking.build_state)",
        *BLIND,
    ),
    Mistake.of(
        "prices are saved as seen that were not",
        directed_costs.price_during_build,
        BEGIN,
        "set transaction isolation level repeatable read;",
        "",
    ),
    Mistake.of(
        "prices are saved as the base saw them",
        directed_costs.partial_selections,
        ROLLUP,
        "'price_snapshot': 'pg_current_snapshot()',",
        "'price_snapshot': of_input.replace('{}', 'snapshot'),",
    ),
    Mistake.of(
        "what was seen of prices is not saved",
        directed_costs.partial_selections,
        ROLLUP,
        "'price_snapshot': 'pg_current_snapshot()',",
        "'price_snapshot': \"'\" ~ saved['price_snapshot'] ~ \"'\" if saved is not none"
        " else 'pg_current_snapshot()',",
    ),
    Mistake.of(
        "costs take their own run for the base's",
        directed_costs.partial_selections,
        ROLLUP,
        "saved['usage_run'] if own_log else",
        "saved['run_no'] if own_log else",
    ),
    Mistake.of(
        "a build of costs does not count as a run",
        directed_costs.partial_selections,
        ROLLUP,
        "{% set run_no = saved['run_no'] + 1 %}",
        "{% set run_no = saved['run_no'] %}",
    ),
    Mistake.of(
        "changed costs are not logged",
        directed_costs.partial_selections,
        ROLLUP,
        "        own_log,\n        run_no\n",
        "        none,\n        run_no\n",
    ),
    Mistake.of(
        "the tables of prices are not in the fingerprint",
        directed_costs.emptied_prices,
        PRICES,
        "pg_relation_filenode('{{ source('token_tracking_raw', table).include(database=false) }}'",
        "oid('{{ source('token_tracking_raw', table).include(database=false) }}'",
    ),
    Mistake.of(
        "the views of prices are not in the fingerprint",
        directed_costs.emptied_prices,
        PRICES,
        "md5(pg_get_viewdef(",
        "text((",
    ),
    Mistake.of(
        "the ends of the tables of prices are not looked at",
        directed_costs.old_numbers,
        PRICES,
        "or {{ is_beyond_saved_end(rows, table, saved) }}",
        "",
    ),
    Mistake.of(
        "prices of another cluster are believed",
        directed_costs.old_numbers,
        ROLLUP,
        "{% do refuse_foreign_transactions(price_tables()) %}",
        "",
        stops="a foreign row was read",
    ),
    Mistake.of(
        "prices seen in the future are believed",
        directed_costs.future_snapshot,
        *BLIND,
        "macros/protocol/build_state.sql",
        "coalesce(price_snapshot, snapshot)",
        "snapshot",
        harmless=1,
    ),
]


def play(history: History, database: Database, folder: Path, edits: Sequence[Edit] = ()) -> None:
    """Play a history with the edited project."""
    project = DbtProject({**database.env, "PGTZ": "Asia/Kolkata"}, folder, tuple(edits))
    # `dbt run` leaves the aliases to the history.
    history(project, Warehouse(database, Settings(aliases={})))


@pytest.mark.parametrize("history", directed.HISTORIES, ids=lambda history: history.__name__)
def test_history_ends_in_exact_totals(history: History, database: Database, tmp_path: Path) -> None:
    play(history, database, tmp_path)


@pytest.mark.parametrize("history", directed_costs.HISTORIES, ids=lambda history: history.__name__)
def test_history_ends_in_exact_costs(history: History, prebuilt: Database, tmp_path: Path) -> None:
    play(history, prebuilt, tmp_path)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_mistake_is_caught(mistake: Mistake, prebuilt: Database, tmp_path: Path) -> None:
    for edit in mistake.edits:
        text = (ROOT / edit.file).read_text()
        assert text.count(edit.old) == 1, f"{edit.file} has no single {edit.old!r}"
    shown = WrongTotalsError if mistake.stops is None else AssertionError
    with pytest.raises(shown, match=mistake.stops):
        play(mistake.history, prebuilt, tmp_path, mistake.edits)


@pytest.mark.parametrize(
    "mistake", [one for one in MISTAKES if one.harmless], ids=lambda mistake: mistake.name
)
def test_what_leads_to_a_mistake_is_none(
    mistake: Mistake, prebuilt: Database, tmp_path: Path
) -> None:
    play(mistake.history, prebuilt, tmp_path, mistake.edits[: mistake.harmless])
