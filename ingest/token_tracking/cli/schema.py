"""The commands `token-tracking schema`: the raw schema that events are recorded in."""

from __future__ import annotations

from typing import Annotated

import typer

from ..marts.schema_name import schema_name
from .options import SCHEMA

schema_app = typer.Typer(no_args_is_help=True, help="The raw schema that events are recorded in.")


@schema_app.command("apply")
def schema_apply(
    roles: Annotated[
        bool, typer.Option("--roles", help="Make the group roles, too; see docs/roles.md.")
    ] = False,
    role_prefix: Annotated[
        str,
        typer.Option(
            envvar="TOKEN_TRACKING_ROLE_PREFIX",
            help="What the names begin with of the roles owner, writer, transformer, analyst and "
            "tenant_reader. dbt reads the variable.",
        ),
    ] = "token_tracking_",
    warehouse: Annotated[
        str,
        typer.Option(
            envvar="DBT_SCHEMA", callback=schema_name, help="The schema that dbt builds in."
        ),
    ] = SCHEMA,
) -> None:
    """Create the raw schema, or bring an older one to this version. Doing it again is harmless.

    With --roles it makes five roles that nobody can log in as, gives each the rights that it needs,
    and takes every right in the raw schema from all others, also what was granted by name: it says
    from whom. It needs no superuser: CREATEROLE and CREATE on the database are enough.
    """
    from ..client.connection import Connection
    from ..raw.roles import Roles
    from ..raw.schema import apply_schema
    from ..target import Target
    from .terminal import Terminal

    target = Target.of()
    wanted = Roles(role_prefix, warehouse)
    taken_from: tuple[str, ...] = ()
    with Connection.open() as database:
        if roles:
            applied = wanted.apply(database)
            change, taken_from = applied.schema, applied.taken_from
        else:
            change = apply_schema(database)
    done = (
        f"version {change.after}, as before"
        if change.before == change.after
        else f"version {change.after}, created"
        if change.before == 0
        else f"version {change.after}, upgraded from {change.before}"
    )
    Terminal().result(f"token_tracking_raw: {done} ({target})")
    if roles:
        Terminal().result(f"roles: {', '.join(wanted.names.values())}")
    if taken_from:
        Terminal().warn(f"rights in token_tracking_raw were taken from {', '.join(taken_from)}")
