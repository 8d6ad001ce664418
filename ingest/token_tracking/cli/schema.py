"""The commands `token-tracking schema`, for the raw schema in which events are recorded."""

from __future__ import annotations

from typing import Annotated

import typer

from ..marts.schema_name import schema_name
from .options import SCHEMA

schema_app = typer.Typer(no_args_is_help=True, help="The raw schema, in which events are recorded.")


@schema_app.command("apply")
def schema_apply(
    roles: Annotated[
        bool, typer.Option("--roles", help="Also create the group roles; see docs/roles.md.")
    ] = False,
    role_prefix: Annotated[
        str,
        typer.Option(
            envvar="TOKEN_TRACKING_ROLE_PREFIX",
            help="Prefix of the names of the roles owner, writer, transformer, analyst, "
            "biller and tenant_reader. dbt reads the variable.",
        ),
    ] = "token_tracking_",
    warehouse: Annotated[
        str,
        typer.Option(
            envvar="DBT_SCHEMA", callback=schema_name, help="The schema that dbt builds in."
        ),
    ] = SCHEMA,
) -> None:
    """Create the raw schema, or upgrade an older one to this version; it is safe to repeat.

    With --roles it also creates five NOLOGIN roles, grants each the privileges that it needs, and
    revokes all privileges in the raw schema from all other roles, including individual grants: it
    prints from whom. It needs no superuser: CREATEROLE and CREATE on the database are sufficient.
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
