"""Imported by the fork server alone: does once what every build would do again."""

import contextlib
import functools
import gc
import os
import tempfile
import warnings
from pathlib import Path

import parsedatetime
import psycopg2
import psycopg2.extensions
from dbt.cli.main import dbtRunner
from dbt.plugins.manager import PluginManager
from dbt_common.events.base_types import BaseEvent, EventLevel
from dbt_common.events.event_manager import EventManager
from jinja2 import Environment

from tests.support.project import invoke, is_read

warnings.simplefilter("ignore")

# More than half of a build's time in tests is dbt's own: it reads the whole environment for each
# event, makes each event for a log that is not kept, looks for plugins among all packages,
# compiles the same templates, opens a connection for each node, and makes the same parsers of dates
# for each result of a query.
for name in set(os.environ) - {"HOME", "LANG", "PATH", "PYTHONPATH", "TMPDIR"}:
    del os.environ[name]
parsedatetime.Constants = functools.cache(parsedatetime.Constants)
PluginManager.get_prefixed_modules = functools.cache(PluginManager.get_prefixed_modules)

make_event = BaseEvent.__init__
fire_event = EventManager.fire_event


def prepare_event(event, *words, **values):
    object.__setattr__(event, "made_of", (words, values))


def made_event(event, key):
    if key == "pb_msg" and "made_of" in vars(event):
        words, values = vars(event).pop("made_of")
        make_event(event, *words, **values)
        return event.pb_msg
    return getattr(event.pb_msg, key)


def fire_doubts(manager, event, level=None, node=None, force_warn_or_error_handling=False):
    if force_warn_or_error_handling or (level or event.level_tag()) in DOUBTS:
        fire_event(manager, event, level, node, force_warn_or_error_handling)


compile_template = Environment.compile
compiled = {}


def compile_once(environment, source, *words, **options):
    kind = (type(environment), *environment.extensions, *words, *sorted(options.items()))
    if (source, kind) not in compiled:
        compiled[source, kind] = compile_template(environment, source, *words, **options)
    return compiled[source, kind]


Environment.compile = compile_once


class KeptConnection(psycopg2.extensions.connection):
    """A connection that the build's next node takes over; dbt opens one for each."""

    def close(self):
        try:
            self.rollback()
            self.autocommit = True
            with self.cursor() as cursor:
                cursor.execute("discard all")
            self.autocommit = False
        except psycopg2.Error:
            super().close()
        else:
            kept.append(self)


kept = []
open_connection = psycopg2.connect
run_command = dbtRunner.invoke


def open_or_take(**place):
    with contextlib.suppress(IndexError):
        return kept.pop()
    return open_connection(connection_factory=KeptConnection, **place)


def run_and_close(runner, *words, **options):
    try:
        return run_command(runner, *words, **options)
    finally:
        for connection in kept:
            super(KeptConnection, connection).close()
        kept.clear()


psycopg2.connect = open_or_take
dbtRunner.invoke = run_and_close
DOUBTS = {EventLevel.WARN, EventLevel.ERROR}
BaseEvent.__init__ = prepare_event
BaseEvent.__getattr__ = made_event
EventManager.fire_event = fire_doubts

with tempfile.TemporaryDirectory() as folder:
    # No server is there: the run ends before its first query, and all that it needs is loaded.
    os.environ.update(PGHOST=folder, PGDATABASE="nowhere")
    outcome = invoke(Path(folder), ["run"])
# The parser's threads are not in a forked child, which would wait for them if it had to parse.
if not is_read():
    message = f"the project cannot be read: {outcome.exception}"
    raise RuntimeError(message)
# A third of a build's time was the collector's, which went through all that was read here.
gc.collect()
gc.freeze()
