"""The commands `token-tracking prices`, for what tokens cost."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    INTERRUPTED,
    NOT_ALL_WELL,
    SCHEMA,
    SchemaOption,
    TableFormat,
    TableFormatOption,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from ..pricing.book import PriceBook, Recorded
    from ..pricing.bundled import LeftOut
    from ..pricing.changes import Change
    from ..pricing.effective import Effective
    from ..pricing.names import Suggestion
    from ..pricing.price import PriceKey
    from ..pricing.rules import Subject
    from .terminal import Terminal

SHOWN = 40  # lines of a table
PROBLEMS_SHOWN = 20

prices_app = typer.Typer(
    no_args_is_help=True,
    help="What tokens cost: prices per million tokens, each from an hour on. A price is never "
    "changed: a later one follows it, or a correction of the same hour. See docs/prices.md.",
)

FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="The first instant, a whole hour of UTC such as 2026-12-01 or 2026-12-01T15:00; it "
        "may be in the past. Default: the next whole hour.",
        show_default=False,
    ),
]
ListOption = Annotated[str, typer.Option("--list", help="The price list.")]
NoteOption = Annotated[
    str | None, typer.Option(help="Why, as kept with the row.", show_default=False)
]
EndOption = Annotated[bool, typer.Option("--end", help="End it instead.")]


@prices_app.command("import")
def import_command(
    providers: Annotated[
        str | None,
        typer.Option(
            help="Whose prices, such as openai,anthropic; all is every provider of the list. "
            "Default: those whose responses usage_of reads.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="From when on prices count that have no date in the list. Default: the hour of "
            "the first recorded event.",
            show_default=False,
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Record the differences.")] = False,
    output: TableFormatOption = TableFormat.TABLE,
) -> None:
    """Compare the public prices in the package genai-prices with those in force; --apply records.

    Nothing is read from the network: a newer list is a newer version of the package. A price with
    a date in the list counts from that date. One without never changes the past: where another
    price is in force, it counts from the next whole hour. Prices that you have set are kept.

    token-tracking prices import --providers openai,anthropic --apply
    """
    from ..pricing.book import fields_of
    from ..pricing.bundled import read_bundled
    from ..pricing.changes import difference
    from ..pricing.hours import begun_hour, next_hour, shown
    from .terminal import Terminal

    terminal = Terminal()
    start = None if since is None else _hour("since", since)
    now = datetime.now(UTC)
    with _whole_or_nothing(terminal), _book() as book:
        bundled = read_bundled([name for name in (providers or "").split(",") if name.strip()])
        if start is None:
            first = book.first_hour()
            start = first or begun_hour(now)
            why = "the hour of the first event" if first else "no event is recorded yet"
            terminal.say(f"prices without a date count from {shown(start)} ({why})")
        found = difference(bundled, book.prices(bundled.providers), start, next_hour(now))
        changes = sorted(found.changes, key=lambda one: (one.price.key, one.price.valid_from))
        if output is TableFormat.JSON:
            for change in changes:
                terminal.json(_change_fields(change))
        else:
            _print_prices(terminal, [_cell_of_change(change) for change in changes])
        _say_left_out(terminal, bundled.left_out)
        for key in found.kept[:PROBLEMS_SHOWN]:
            terminal.warn(f"kept, because it was not imported: {_name(key)}")
        if len(found.kept) > PROBLEMS_SHOWN:
            terminal.warn(f"{len(found.kept) - PROBLEMS_SHOWN:,} more prices are kept")
        if not changes:
            terminal.say(f"nothing to do: the prices in force are those of {bundled.source}")
            return
        if not apply:
            terminal.say(
                f"{len(changes):,} prices of {bundled.source} differ; --apply records them"
            )
            return
        with terminal.steps() as progress:
            task = progress.add_task("recording", total=len(changes))
            done = book.record(
                "model_prices",
                [fields_of(change.price) for change in changes],
                lambda count: progress.update(task, advance=count),
            )
        terminal.say(f"{done.recorded:,} prices recorded, {done.known:,} known")


@prices_app.command("set")
def set_command(
    provider: Annotated[
        str, typer.Argument(help="As events have it: openai, gcp.gemini.", show_default=False)
    ],
    model: Annotated[str, typer.Argument(help="As events have it.", show_default=False)],
    amounts: Annotated[
        list[str],
        typer.Argument(
            metavar="KIND=PRICE...",
            help="Per million tokens: input=2.5 output=10. 0 is free, none ends a price. Kinds: "
            "input, cache_read, cache_write, cache_write_long, output, reasoning, unsplit.",
            show_default=False,
        ),
    ],
    start: FromOption = None,
    tier: Annotated[str, typer.Option(help="The service tier.")] = "standard",
    over: Annotated[
        int, typer.Option(min=0, help="Only for requests with more input tokens than these.")
    ] = 0,
    price_list: ListOption = "list",
    currency: Annotated[str, typer.Option(help="A code of ISO 4217.")] = "USD",
    note: NoteOption = None,
    output: TableFormatOption = TableFormat.TABLE,
) -> None:
    """Set prices of a model from an hour on; the same hour again corrects them.

    reasoning costs what output does, unless it is given.

    token-tracking prices set openai gpt-4o input=2.5 output=10 cache_read=1.25 --from 2026-12-01
    """
    from ..pricing.book import fields_of
    from ..pricing.changes import Change, in_force
    from ..pricing.price import Price
    from ..pricing.rules import cleaned_label
    from .terminal import Terminal

    terminal = Terminal()
    given = _amounts(amounts)
    if "output" in given and "reasoning" not in given:
        given["reasoning"] = given["output"]
        terminal.say("reasoning costs what output does; reasoning=... sets another price")
    _warn_of_bound(terminal, over)
    valid_from = _from(start)
    prices = [
        Price(
            cleaned_label(provider),
            model,
            kind,
            valid_from,
            amount,
            price_list,
            cleaned_label(tier),
            over,
            currency,
            source="set",
            note=note,
        )
        for kind, amount in given.items()
    ]
    with _whole_or_nothing(terminal), _book() as book:
        rows = [fields_of(price) for price in prices]
        _check("model_prices", rows)
        recorded = book.prices([cleaned_label(provider)])
        by_key = {price.key: [one for one in recorded if one.key == price.key] for price in prices}
        done = book.record("model_prices", rows)
        changes = [Change(price, in_force(by_key[price.key], valid_from)) for price in prices]
        _print(terminal, output, changes)
        for price in prices:
            later = [one for one in by_key[price.key] if one.valid_from > valid_from]
            if later:
                following = min(later, key=lambda one: one.valid_from)
                terminal.warn(
                    f"{price.token_kind}: counts until {_time(following.valid_from)}, where the "
                    "next recorded price begins"
                )
        _say_recorded(terminal, done, valid_from)


@prices_app.command("load")
def load_command(
    file: Annotated[Path, typer.Argument(help="A .csv or .jsonl file.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and say what would be recorded.")
    ] = False,
) -> None:
    """Record prices from a file: all of them or, if one is wrong, none.

    Its columns are those of model_prices: provider, model, token_kind, valid_from and amount; and
    price_list (list), service_tier (standard), context_over (0), currency (USD), source and note,
    which may be left out. An amount of none, in JSON null, ends a price.

    Exit codes: 0 recorded; 1 failed; 3 rows are wrong, and nothing is recorded.
    """
    from ..pricing.file import PriceFile
    from .terminal import Terminal

    terminal = Terminal()
    read = PriceFile.read(file)
    for problem in read.problems[:PROBLEMS_SHOWN]:
        terminal.warn(f"{file}, line {problem.line}: {problem.reason}")
    if read.problems:
        more = len(read.problems) - PROBLEMS_SHOWN
        and_more = f" ({more:,} more are not shown)" if more > 0 else ""
        terminal.fail(f"{len(read.problems):,} rows are wrong{and_more}; nothing is recorded")
        raise typer.Exit(NOT_ALL_WELL)
    if not read.rows:
        terminal.say(f"{file}: no rows")
        raise typer.Exit(NOT_ALL_WELL)
    for bound in {row.get("context_over", 0) for row in read.rows}:
        _warn_of_bound(terminal, bound)
    rows = [{"source": file.name[:255], **row} for row in read.rows]
    with _whole_or_nothing(terminal), _book() as book, terminal.steps() as progress:
        task = progress.add_task("checking" if dry_run else "recording", total=len(rows))
        done = book.record(
            "model_prices",
            rows,
            lambda count: progress.update(task, advance=count),
            is_trial=dry_run,
        )
    what = "would be recorded" if dry_run else "recorded"
    terminal.result(f"{file}: {done.recorded:,} prices {what}, {done.known:,} known")


@prices_app.command("show")
def show_command(
    model: Annotated[str, typer.Argument(help="As events have it.", show_default=False)],
    provider: Annotated[
        str | None, typer.Option(help="Only this provider's.", show_default=False)
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="The time, such as 2026-03-01 (UTC). Default: now.", show_default=False),
    ] = None,
    price_list: Annotated[
        str | None,
        typer.Option("--list", help="Only this list; default: all.", show_default=False),
    ] = None,
    output: TableFormatOption = TableFormat.TABLE,
) -> None:
    """Show what a million tokens of a model cost at a time, by list, tier and size of request.

    Exit codes: 0 shown; 1 failed; 3 the model has no price then.
    """
    from ..pricing.effective import effective_prices, resolved
    from ..pricing.rules import cleaned_label
    from .terminal import Terminal

    terminal = Terminal()
    time = datetime.now(UTC) if at is None else _instant("at", at)
    with _book() as book:
        prices, aliases, rules = book.prices(), book.aliases(), book.rules()
    place = None if provider is None else cleaned_label(provider)
    names = {(price.provider, price.model) for price in prices}
    # The name itself, and each that it stands for.
    names |= {(alias.provider, alias.alias) for alias in aliases if alias.valid_from <= time}
    stands_for: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        if name[1] == model and place in {None, name[0]}:
            priced = resolved(aliases, *name, time)
            stands_for[priced] = "" if priced == name else f"{'/'.join(name)} is priced as "
    lists = sorted({price.price_list for price in prices} | {rule.price_list for rule in rules})
    found = [
        one
        for wanted in (lists if price_list is None else [price_list])
        for one in effective_prices(prices, rules, wanted, time)
        if (one.key.provider, one.key.model) in stands_for
    ]
    if output is TableFormat.JSON:
        for one in found:
            terminal.json(_effective_fields(one), default=_plain)
    elif found:
        _print_prices(terminal, [_cell_of_effective(one) for one in found])
    for priced, words in stands_for.items():
        if words:
            terminal.say(f"{words}{'/'.join(priced)}")
    if not found:
        where = model if provider is None else f"{provider}/{model}"
        terminal.say(
            f"{where} has no price at {_time(time)}; token-tracking prices suggest looks for names"
        )
        raise typer.Exit(NOT_ALL_WELL)


@prices_app.command("suggest")
def suggest_command(
    accept: Annotated[
        list[str] | None,
        typer.Option(
            help="Record the proposal for this provider/model as an alias; may be repeated.",
            show_default=False,
        ),
    ] = None,
    accept_all: Annotated[
        bool, typer.Option("--accept-all", help="Record every proposal. Look at them first.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="The aliases' first instant, a whole hour of UTC. Default: the day before the "
            "first use without price.",
            show_default=False,
        ),
    ] = None,
    schema: SchemaOption = SCHEMA,
    output: TableFormatOption = TableFormat.TABLE,
) -> None:
    """List models whose tokens have no price, with the names that they may be priced under.

    A proposal is a guess, from the spelling or from the patterns of genai-prices: it prices nothing
    until it is accepted, which records an alias. The models are those of the last build.

    Exit codes: 0 none is left; 1 failed; 2 wrong usage; 3 models without a price are left.
    """
    from ..pricing.names import read_unpriced, suggestions
    from ..target import differing_databases
    from .terminal import Terminal

    terminal = Terminal()
    if warning := differing_databases():
        terminal.warn(warning)
    valid_from = None if start is None else _hour("from", start)
    unpriced = read_unpriced(schema)
    with _whole_or_nothing(terminal), _book() as book:
        priced = {(price.provider, price.model) for price in book.prices()}
        found = suggestions(unpriced, priced, book.aliases(), datetime.now(UTC))
        wanted = _accepted(found, accept or [], is_all=accept_all)
        if output is TableFormat.JSON:
            for one in found:
                terminal.json(_suggestion_fields(one, is_accepted=one in wanted), default=str)
        elif found:
            _print_suggestions(terminal, found)
        rows = [_alias_row(one, valid_from) for one in wanted]
        if rows:
            done = book.record("model_aliases", rows)
            terminal.say(
                f"{done.recorded:,} aliases recorded, {done.known:,} known; the next build counts "
                "their tokens"
            )
    if not found:
        terminal.say("every model has its prices, as of the last build")
    left = len(found) - len(wanted)
    if left:
        terminal.say(f"{left:,} models without a price are left")
        raise typer.Exit(NOT_ALL_WELL)


@prices_app.command("alias")
def alias_command(
    provider: Annotated[str, typer.Argument(help="As events have it; unknown if they have none.")],
    alias: Annotated[str, typer.Argument(help="The model's name in events.")],
    priced_provider: Annotated[str | None, typer.Argument(show_default=False)] = None,
    priced_model: Annotated[str | None, typer.Argument(show_default=False)] = None,
    start: FromOption = None,
    end: EndOption = False,
    note: NoteOption = None,
) -> None:
    """Price a model under another name from an hour on.

    token-tracking prices alias azure.ai.openai our-deployment openai gpt-4o --from 2026-03-01
    """
    if end == (priced_provider is not None or priced_model is not None):
        message = "give PRICED_PROVIDER and PRICED_MODEL, or --end and neither"
        raise typer.BadParameter(message)
    _record_one(
        "model_aliases",
        {
            "provider": provider,
            "alias": alias,
            "priced_provider": priced_provider,
            "priced_model": priced_model,
        },
        start,
        note,
    )


@prices_app.command("rule")
def rule_command(
    price_list: Annotated[str, typer.Argument(metavar="LIST", help="The list.")],
    base: Annotated[
        str | None, typer.Option(help="The list whose prices it takes.", show_default=False)
    ] = None,
    factor: Annotated[
        str | None, typer.Option(help="Times this factor.", show_default=False)
    ] = None,
    start: FromOption = None,
    end: EndOption = False,
    note: NoteOption = None,
) -> None:
    """Make a list a factor of another one from an hour on; its own prices go before.

    token-tracking prices rule customer --base list --factor 1.2
    """
    from ..errors import InvalidPriceError
    from ..pricing.file import amount_of

    if end == (base is not None or factor is not None):
        message = "give --base and --factor, or --end and neither"
        raise typer.BadParameter(message)
    try:
        number = None if factor is None else amount_of(factor)
    except InvalidPriceError as error:
        message = f"{factor!r} is not a number"
        raise typer.BadParameter(message, param_hint="--factor") from error
    _record_one(
        "price_list_rules",
        {"price_list": price_list, "base_list": base, "factor": number},
        start,
        note,
    )


@prices_app.command("assign")
def assign_command(
    tenant: Annotated[str, typer.Argument(help="The tenant's id.")],
    price_list: Annotated[str | None, typer.Argument(metavar="LIST", show_default=False)] = None,
    start: FromOption = None,
    end: EndOption = False,
    note: NoteOption = None,
) -> None:
    """Let a tenant pay by a price list from an hour on; without one it pays by the list `list`.

    token-tracking prices assign acme customer --from 2026-12-01
    """
    if end == (price_list is not None):
        message = "give LIST, or --end"
        raise typer.BadParameter(message)
    _record_one("tenant_price_lists", {"tenant_id": tenant, "price_list": price_list}, start, note)


def _record_one(
    subject: Subject, values: Mapping[str, object], start: str | None, note: str | None
) -> None:
    from .terminal import Terminal

    terminal = Terminal()
    valid_from = _from(start)
    row = {**values, "valid_from": valid_from, "source": "set", "note": note}
    _check(subject, [row])
    with _whole_or_nothing(terminal), _book() as book:
        done = book.record(subject, [row])
        priced = book.prices()
        lists = {one.price_list for one in priced} | {one.price_list for one in book.rules()}
    _say_recorded(terminal, done, valid_from)
    names = {(one.provider, one.model) for one in priced}
    name = (values.get("priced_provider"), values.get("priced_model"))
    taken = values.get("price_list" if subject == "tenant_price_lists" else "base_list")
    if name[0] is not None and name not in names:
        terminal.warn(f"{name[0]}/{name[1]} has no price yet: such tokens count as unpriced")
    if taken is not None and taken not in lists:
        terminal.warn(
            f"the list {taken!r} has no price yet: tokens that it is for count as unpriced"
        )


def _say_recorded(terminal: Terminal, done: Recorded, valid_from: datetime) -> None:
    if done.recorded:
        terminal.say(f"recorded, from {_time(valid_from)}; the next build counts with it")
    else:
        terminal.say(f"recorded before, from {_time(valid_from)}: nothing to do")


@contextmanager
def _book() -> Generator[PriceBook]:
    from ..pricing.book import PriceBook

    with PriceBook.open() as book:
        yield book


@contextmanager
def _whole_or_nothing(terminal: Terminal) -> Generator[None]:
    """Say what Ctrl-C leaves: all rows of a command are recorded in one transaction."""
    try:
        yield
    except KeyboardInterrupt:
        terminal.fail("interrupted: all is recorded or nothing; the same command does the rest")
        raise typer.Exit(INTERRUPTED) from None


def _check(subject: Subject, rows: Iterable[Mapping[str, object]]) -> None:
    """Refuse what the arguments say before anything connects."""
    from ..pricing.rules import price_problem

    for row in rows:
        if problem := price_problem(subject, row):
            raise typer.BadParameter(problem)


def _amounts(texts: Sequence[str]) -> dict[str, Decimal | None]:
    from ..errors import InvalidPriceError
    from ..pricing.file import amount_of
    from ..pricing.rules import TOKEN_KINDS

    given: dict[str, Decimal | None] = {}
    for text in texts:
        kind, sign, amount = text.partition("=")
        kind = kind.strip()
        if not sign or kind not in TOKEN_KINDS:
            message = f"{text!r} is not KIND=PRICE; the kinds are {', '.join(TOKEN_KINDS)}"
            raise typer.BadParameter(message, param_hint="KIND=PRICE")
        if kind in given:
            message = f"{kind} is given twice"
            raise typer.BadParameter(message, param_hint="KIND=PRICE")
        try:
            given[kind] = amount_of(amount)
        except InvalidPriceError as error:
            message = f"{kind}: {error.reason}"
            raise typer.BadParameter(message, param_hint="KIND=PRICE") from error
    return given


def _from(text: str | None) -> datetime:
    from ..pricing.hours import next_hour

    return next_hour(datetime.now(UTC)) if text is None else _hour("from", text)


def _hour(option: str, text: str) -> datetime:
    from ..pricing.hours import hour_of

    return _time_option(option, text, hour_of)


def _instant(option: str, text: str) -> datetime:
    from ..pricing.hours import time_of

    return _time_option(option, text, time_of)


def _time_option(option: str, text: str, read: Callable[[str], datetime]) -> datetime:
    from ..errors import InvalidPriceError

    try:
        return read(text)
    except InvalidPriceError as error:
        raise typer.BadParameter(error.reason, param_hint=f"--{option}") from error


def _time(instant: datetime) -> str:
    from ..pricing.hours import shown

    return shown(instant)


def _warn_of_bound(terminal: Terminal, over: object) -> None:
    from ..pricing.rules import CONTEXT_BOUNDS

    if over and over not in CONTEXT_BOUNDS:
        bounds = ", ".join(f"{bound:,}" for bound in CONTEXT_BOUNDS)
        terminal.warn(
            f"{over} is not one of the bounds of context_bounds ({bounds}): add it to that "
            "variable of the dbt project, or the price counts from the next bound on"
        )


def _name(key: PriceKey) -> str:
    size = f", over {key.context_over:,} tokens" if key.context_over else ""
    return f"{key.provider}/{key.model} {key.token_kind}, tier {key.service_tier}{size}"


# A cell of the table of prices: its line, its kind, its text.
_Line = tuple[str, str, str, str, str, str]
_Cell = tuple[_Line, str, str]
_HEADINGS = ("provider", "model", "list", "tier", "over", "from")
_USUAL = (None, None, "list", "standard", "", None)
_FROM = 5


def _print(terminal: Terminal, output: TableFormat, changes: Sequence[Change]) -> None:
    if output is TableFormat.JSON:
        for change in changes:
            terminal.json(_change_fields(change))
    else:
        _print_prices(terminal, [_cell_of_change(change) for change in changes])


def _print_prices(terminal: Terminal, cells: Iterable[_Cell]) -> None:
    """Print prices, a column a kind, with one line for what else they have in common."""
    from rich.table import Table

    from ..pricing.rules import TOKEN_KINDS

    lines: dict[_Line, dict[str, str]] = {}
    for line, kind, text in cells:
        lines.setdefault(line, {})[kind] = text
    if not lines:
        return
    kinds = [kind for kind in TOKEN_KINDS if any(kind in texts for texts in lines.values())]
    # What is usual everywhere takes no room.
    places = [
        place
        for place, usual in enumerate(_USUAL)
        if usual is None or any(line[place] != usual for line in lines)
    ]
    table = Table()
    for place in places:
        table.add_column(_HEADINGS[place], overflow="fold", no_wrap=place == _FROM)
    for kind in kinds:
        table.add_column(kind.replace("_", " "), justify="right")
    for line, texts in list(lines.items())[:SHOWN]:
        table.add_row(*(line[place] for place in places), *(texts.get(kind, "") for kind in kinds))
    terminal.table(table)
    if len(lines) > SHOWN:
        terminal.say(f"{len(lines) - SHOWN:,} more lines; --format json shows all")


def _line_of(key: PriceKey, valid_from: datetime, currency: str) -> _Line:
    shown = key.price_list if currency == "USD" else f"{key.price_list} ({currency})"
    over = f"{key.context_over:,}" if key.context_over else ""
    return key.provider, key.model, shown, key.service_tier, over, _time(valid_from)


def _cell_of_change(change: Change) -> _Cell:
    price, before = change.price, change.before
    text = _amount(price.amount)
    if before is not None and before.value != price.value:
        text = f"{_amount(before.amount)} → {text}"
    line = _line_of(price.key, price.valid_from, price.currency)
    return line, price.token_kind, text


def _cell_of_effective(one: Effective) -> _Cell:
    line = _line_of(one.key, one.price.valid_from, one.price.currency)
    return line, one.key.token_kind, _amount(one.amount)


def _amount(amount: Decimal | None) -> str:
    from ..pricing.rules import number_text

    return "none" if amount is None else number_text(amount)


def _change_fields(change: Change) -> dict[str, object]:
    price, before = change.price, change.before
    return {
        **price.key._asdict(),
        "valid_from": price.valid_from.isoformat(),
        "currency": price.currency,
        "amount": _plain(price.amount),
        "note": price.note,
        "in_force": None if before is None else _plain(before.amount),
    }


def _effective_fields(one: Effective) -> dict[str, object]:
    return {
        **one.key._asdict(),
        "valid_from": one.price.valid_from.isoformat(),
        "currency": one.price.currency,
        "amount": _plain(one.amount),
        "source": one.origin,
        "note": one.price.note,
    }


def _plain(value: object) -> object:
    """Return a price as text: as a JSON number, other programs would round it."""
    return _amount(value) if isinstance(value, Decimal) else value


def _say_left_out(terminal: Terminal, left_out: LeftOut) -> None:
    for name in left_out.by_time_of_day:
        terminal.warn(f"left out, its price depends on the time of day: {name}")
    for name in left_out.unknown_bounds:
        terminal.warn(f"left out, not one of the bounds of context_bounds: {name}")
    if left_out.without_token_price:
        count = len(left_out.without_token_price)
        terminal.say(f"left out: {count:,} models without a price of tokens")
    if left_out.units:
        units = ", ".join(f"{name} ({count:,})" for name, count in left_out.units.most_common())
        terminal.say(f"left out, other units than text tokens (with their models): {units}")


def _accepted(
    found: Sequence[Suggestion], accept: Sequence[str], *, is_all: bool
) -> list[Suggestion]:
    by_name = {one.unpriced.name: one for one in found}
    for name in accept:
        one = by_name.get(name)
        if one is None:
            message = f"{name!r} is not a model without price; without --accept, all are listed"
            raise typer.BadParameter(message, param_hint="--accept")
        if one.proposal is None:
            message = f"{name}: there is no proposal to accept: {one.says}"
            raise typer.BadParameter(message, param_hint="--accept")
    return [
        one for one in found if one.proposal is not None and (is_all or one.unpriced.name in accept)
    ]


def _alias_row(one: Suggestion, valid_from: datetime | None) -> dict[str, object]:
    unpriced, proposal = one.unpriced, one.proposal
    if valid_from is None:
        # A day may begin in UTC on the day before.
        day = unpriced.first_used_on - timedelta(days=1)
        valid_from = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return {
        "provider": unpriced.provider,
        "alias": unpriced.model,
        "valid_from": valid_from,
        "priced_provider": proposal.priced_provider if proposal else None,
        "priced_model": proposal.priced_model if proposal else None,
        "source": f"suggest: {proposal.found_by}" if proposal else None,
    }


def _suggestion_fields(one: Suggestion, *, is_accepted: bool) -> dict[str, object]:
    unpriced, proposal = one.unpriced, one.proposal
    return {
        **vars(unpriced),
        "priced_provider": proposal.priced_provider if proposal else None,
        "priced_model": proposal.priced_model if proposal else None,
        "found_by": proposal.found_by if proposal else None,
        "says": one.says,
        "accepted": is_accepted,
    }


def _print_suggestions(terminal: Terminal, found: Sequence[Suggestion]) -> None:
    from rich.table import Table

    table = Table("provider/model")
    table.add_column("tokens", justify="right")
    for heading in ("price lists", "kinds", "tiers", "first used", "proposal"):
        table.add_column(heading)
    for one in found:
        unpriced, proposal = one.unpriced, one.proposal
        words = (
            f"{proposal.priced_provider}/{proposal.priced_model} ({proposal.found_by})"
            if proposal
            else ""
        )
        table.add_row(
            unpriced.name,
            f"{unpriced.tokens:,}",
            ", ".join(unpriced.lists),
            ", ".join(unpriced.kinds),
            ", ".join(unpriced.tiers),
            str(unpriced.first_used_on),
            "; ".join(text for text in (words, one.says) if text),
        )
    terminal.table(table)
