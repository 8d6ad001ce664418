"""The commands `token-tracking db`, which control the embedded server."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import DATABASE, FOLDER, DatabaseOption, FolderOption

db_app = typer.Typer(
    no_args_is_help=True, help="The embedded PostgreSQL server, for trials without another server."
)


@db_app.command("start")
def db_start(folder: FolderOption = FOLDER, database: DatabaseOption = DATABASE) -> None:
    """Start the server and create the database if necessary; print the database's URL."""
    from ..embedded.databases import create_database, forget_other_databases, server_in
    from .terminal import Terminal

    terminal = Terminal()
    forget_other_databases()
    server = server_in(folder)
    server.start()
    if create_database(server, database):
        terminal.say(f"made the database {database}; its raw schema comes with: schema apply")
    terminal.say(f"PostgreSQL runs in {folder}; to stop it: token-tracking db stop")
    terminal.result(server.url(database))


@db_app.command("stop")
def db_stop(folder: FolderOption = FOLDER) -> None:
    """Stop the server; its databases are kept."""
    from ..embedded.databases import server_in
    from .terminal import Terminal

    was_running = server_in(folder).stop()
    Terminal().say(f"stopped PostgreSQL in {folder}" if was_running else f"none runs in {folder}")


@db_app.command("url")
def db_url(
    folder: FolderOption = FOLDER,
    database: DatabaseOption = DATABASE,
    env: Annotated[
        bool, typer.Option("--env", help="Print shell commands that set libpq's variables.")
    ] = False,
) -> None:
    r"""Print the URL of the running server's database, for psql or TOKEN_TRACKING_DSN.

    For dbt and all other programs: eval "$(token-tracking db url --env)"
    """
    import shlex

    from ..embedded.databases import server_in
    from .terminal import Terminal

    terminal = Terminal()
    server = server_in(folder)
    if env:
        for name, value in server.environment(database).items():
            terminal.result(f"export {name}={shlex.quote(value)}")
    else:
        terminal.result(server.url(database))
