"""The command `token-tracking demo`: a complete demonstration on an embedded server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import FOLDER, INTERRUPTED, FolderOption

if TYPE_CHECKING:
    from pathlib import Path

    from ..demo.demo import Demo, Story
    from ..refresh.project import Warehouse
    from .terminal import Terminal


def demo_command(
    folder: FolderOption = FOLDER,
    size: Annotated[float, typer.Option(hidden=True, min=0.001, max=100)] = 1.0,
) -> None:
    """Run a complete demonstration on an embedded server: from calls to totals and costs.

    The first run sends ninety days of usage of a fictitious platform, records what its models cost
    (public prices, and an invented change of one in mid-month), and builds the totals. Later runs
    only show them. It needs no database of yours, and does not touch any.
    """
    import time

    from ..demo.demo import Demo
    from ..embedded.databases import forget_other_databases, server_in
    from .terminal import Terminal

    terminal = Terminal()
    started = time.monotonic()
    if ignored := forget_other_databases():
        terminal.warn(f"not used, the demo has a server of its own: {', '.join(ignored)}")
    server = server_in(folder)
    try:
        with terminal.err.status("starting PostgreSQL"):
            server.start()
            demo = Demo(server, folder / "demo")
            warehouse = demo.warehouse()
            story = demo.prepare(size=size)
        _send_usage(demo, story, terminal)
        _price_usage(demo, story, terminal)
        _build_totals(demo, warehouse, terminal)
        _show_totals(demo, story, terminal)
    except KeyboardInterrupt:
        terminal.fail("interrupted: what is there stays, and token-tracking demo goes on from it")
        raise typer.Exit(INTERRUPTED) from None
    _show_way_on(demo, warehouse, folder, terminal)
    terminal.say(f"Done in {time.monotonic() - started:.0f} s.")


def _send_usage(demo: Demo, story: Story, terminal: Terminal) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    if story.is_sent:
        terminal.say(
            f"The ninety days before {story.end_date} are all there since an earlier run: "
            "nothing is added."
        )
        return
    with Progress(
        TextColumn("calling track_token_usage"),
        BarColumn(),
        TextColumn("{task.fields[calls]:,} calls"),
        TimeElapsedColumn(),
        console=terminal.err,
        disable=not terminal.err.is_terminal,
    ) as progress:
        task = progress.add_task("", calls=0)
        calls = 0

        def advance(more: int, days: int) -> None:
            nonlocal calls
            calls += more
            progress.update(task, advance=1, total=days, calls=calls)

        sent = demo.send(story, advance)
    terminal.say(
        f"{sent.recorded:,} calls of the ninety days before {story.end_date} recorded; "
        f"{sent.known:,} came again with a known key and count once; "
        f"{sent.contradictions} contradicted their key, {sent.refused} were refused."
    )


def _price_usage(demo: Demo, story: Story, terminal: Terminal) -> None:
    from ..demo.prices import CHEAPER, change_of_price

    source = demo.price(story)
    if source is not None:
        terminal.say(
            f"Prices of {source} recorded; as an example, {CHEAPER} costs half of that from "
            f"{change_of_price(story.end_date)} on."
        )


def _build_totals(demo: Demo, warehouse: Warehouse, terminal: Terminal) -> None:
    with terminal.steps() as progress:
        task = progress.add_task("dbt build", total=None)
        nodes = 0

        def advance(done: int, total: int) -> None:
            nonlocal nodes
            nodes = total
            progress.update(task, completed=done, total=total)

        was_built = demo.build(warehouse, advance)
    if was_built:
        terminal.say(f"dbt build: {nodes} models, seeds and tests are green.")
    else:
        terminal.say("dbt has built its totals of them already.")


def _show_totals(demo: Demo, story: Story, terminal: Terminal) -> None:
    from ..demo import tables as demo_tables
    from ..demo.prices import CHEAPER, change_of_price

    terminal.table(demo_tables.last_week(demo.rows("last_week", {"end_date": story.end_date})))
    terminal.table(demo_tables.months(demo.rows("months")))
    change_date = change_of_price(story.end_date)
    rows = demo.rows("costs", {"change_date": change_date})
    terminal.table(demo_tables.costs(rows, CHEAPER, change_date))
    terminal.table(demo_tables.shared_agents(demo.rows("shared_agents")))
    terminal.table(demo_tables.doubtful(demo.rows("doubtful")))
    terminal.result(demo_tables.proof(demo.rows("proof")))


def _show_way_on(demo: Demo, warehouse: Warehouse, folder: Path, terminal: Terminal) -> None:
    from ..embedded.server import embedded_bin_dir

    option = "" if folder == FOLDER else f" --folder {folder}"
    project = warehouse.project
    ours, dbt = (_typed(name) for name in ("token-tracking", "dbt"))
    terminal.result(
        "",
        f"The database {demo.database!r} runs in {folder}. To look further:",
        "",
        f'  {embedded_bin_dir() / "psql"} "{demo.url}"',
        "",
        "    select * from token_tracking.monthly_token_usage order by usage_month, tokens desc;",
        "    select * from token_tracking.monthly_token_cost order by usage_month, cost desc;",
        "    select * from token_tracking.usage_events where agent_id = 'support-triage' limit 10;",
        "    select * from token_tracking_raw.usage_event_rejections;",
        "",
        f'  eval "$({ours} db url --env --database {demo.database}{option})"',
        f"  {dbt} build --project-dir {project} --profiles-dir {project}",
        f"  {ours} prices suggest",
        "",
        f"  {ours} db stop{option}",
    )


def _typed(program: str) -> str:
    """Return the command for a program of this environment, which need not be activated."""
    import os
    import sys
    from pathlib import Path

    if sys.prefix in {sys.base_prefix, os.environ.get("VIRTUAL_ENV")}:
        return program
    mine, here = Path(sys.prefix) / "bin" / program, Path.cwd()
    return str(mine.relative_to(here) if mine.is_relative_to(here) else mine)
