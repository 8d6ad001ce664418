"""Data Docs in a folder: the pages load nothing from the network, as they show tenants' names."""

# Great Expectations is only partly typed.
# ruff: noqa: ANN401
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any, Final, cast

from great_expectations.render.view.view import DefaultJinjaIndexPageView, DefaultJinjaPageView
from jinja2 import ChoiceLoader, PackageLoader

from ..errors import QualityError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jinja2 import BaseLoader

SITE: Final = "token_tracking"
# Marks a folder as ours: file names alone do not distinguish Data Docs from another site.
_MARK: Final = ".token-tracking-data-docs"
_OURS: Final = frozenset({_MARK, "index.html", "expectations", "validations", "static"})
# The markup of an expectation's result in our pages, and of a suite's in Great Expectations'.
_CLASS: Final = r'class="[^"]*\b{}\b'
_FAILED: Final = re.compile(r"fa-times text-danger(.*?)Failed", re.DOTALL)
_PAGES: Final = PackageLoader("token_tracking", "validation/pages")


def _ours_first(loader: BaseLoader | None) -> ChoiceLoader:
    return ChoiceLoader([_PAGES, *([loader] if loader else [])])


class OfflinePage(DefaultJinjaPageView):
    """A page of a suite or its result, with templates that do not need a network."""

    def __init__(self, **directories: Any) -> None:
        super().__init__(**directories)
        self.env.loader = _ours_first(self.env.loader)

    def render(self, document: Any, template: Any = None, **options: Any) -> str:
        """Return the page; corrects a suite that only warns, which is shown as failed."""
        html = super().render(document, template, **options)
        is_warning = re.search(_CLASS.format("warns"), html) and not re.search(
            _CLASS.format("fails"), html
        )
        return _FAILED.sub(r"fa-bell\1Succeeded, with warnings", html) if is_warning else html


class OfflineIndexPage(DefaultJinjaIndexPageView):
    """The index page, likewise; `warned` are the suites that only warn."""

    def __init__(self, warned: Sequence[str] = (), **directories: Any) -> None:
        super().__init__(**directories)
        self.env.loader = _ours_first(self.env.loader)
        cast("dict[str, object]", self.env.globals)["warned"] = warned


def site(folder: Path, warned: Sequence[str] = ()) -> dict[str, object]:
    """Return Great Expectations' configuration of a site in a folder.

    Args:
        folder: the folder for the pages.
        warned: the suites that only warn.

    """
    page = {"view": {"module_name": __name__, "class_name": "OfflinePage"}}
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder.absolute()),
        },
        "site_section_builders": {"expectations": page, "validations": page, "profiling": "None"},
        "site_index_builder": {
            "class_name": "DefaultSiteIndexBuilder",
            "view": {
                "module_name": __name__,
                "class_name": "OfflineIndexPage",
                "warned": [*warned],
            },
        },
    }


def make_room(folder: Path) -> None:
    """Create the folder; remove the Data Docs of an earlier run from it, and nothing else.

    Raises:
        QualityError: the folder holds other files.

    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in folder.iterdir()}
    if foreign := sorted(names - _OURS if _MARK in names else names):
        message = f"{folder} holds other files ({foreign[0]}): name another folder with --out"
        raise QualityError(message)
    (folder / _MARK).touch()
    for name in names - {_MARK}:
        path = folder / name
        path.unlink() if path.is_file() else shutil.rmtree(path)


def tidy(folder: Path, suites: Sequence[str]) -> None:
    """Remove unused files, and check that each suite has its pages.

    Raises:
        QualityError: a page is missing: Great Expectations only logs the errors of a page.

    """
    shutil.rmtree(folder / "static", ignore_errors=True)
    missing = [
        suite
        for suite in suites
        if not (folder / "expectations" / f"{suite}.html").is_file()
        or not any((folder / "validations" / suite).rglob("*.html"))
    ]
    index = folder / "index.html"
    if missing or not index.is_file() or not index.stat().st_size:
        message = f"the Data Docs in {folder} are not whole: {', '.join(missing) or 'no index'}"
        raise QualityError(message)
