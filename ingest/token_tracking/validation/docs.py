"""Data Docs in a folder: pages that load nothing from elsewhere, for they show tenants' names."""

# Great Expectations is typed in part.
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
# Names alone tell no Data Docs of ours from somebody's own site.
_MARK: Final = ".token-tracking-data-docs"
_OURS: Final = frozenset({_MARK, "index.html", "expectations", "validations", "static"})
# How the pages show the end of an expectation, and Great Expectations that of a suite.
_CLASS: Final = r'class="[^"]*\b{}\b'
_FAILED: Final = re.compile(r"fa-times text-danger(.*?)Failed", re.DOTALL)
_PAGES: Final = PackageLoader("token_tracking", "validation/pages")


def _ours_first(loader: BaseLoader | None) -> ChoiceLoader:
    return ChoiceLoader([_PAGES, *([loader] if loader else [])])


class OfflinePage(DefaultJinjaPageView):
    """A page of a suite or its result, by our templates where the original ones need a network."""

    def __init__(self, **directories: Any) -> None:
        super().__init__(**directories)
        self.env.loader = _ours_first(self.env.loader)

    def render(self, document: Any, template: Any = None, **options: Any) -> str:
        """Return the page; Great Expectations calls a suite failed that only warns."""
        html = super().render(document, template, **options)
        is_warning = re.search(_CLASS.format("warns"), html) and not re.search(
            _CLASS.format("fails"), html
        )
        return _FAILED.sub(r"fa-bell\1Succeeded, with warnings", html) if is_warning else html


class OfflineIndexPage(DefaultJinjaIndexPageView):
    """The first page, likewise; `warned` are the suites of which nothing fails."""

    def __init__(self, warned: Sequence[str] = (), **directories: Any) -> None:
        super().__init__(**directories)
        self.env.loader = _ours_first(self.env.loader)
        cast("dict[str, object]", self.env.globals)["warned"] = warned


def site(folder: Path, warned: Sequence[str] = ()) -> dict[str, object]:
    """Return Great Expectations' configuration of a site in a folder.

    Args:
        folder: where the pages go.
        warned: the suites of which nothing fails, but not all holds.

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
    """Make the folder, and remove the Data Docs of an earlier run from it, and nothing else.

    Raises:
        QualityError: it holds something else.

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
    """Remove what no page shows, and see that each suite has its pages.

    Raises:
        QualityError: one is missing: Great Expectations only logs what goes wrong with a page.

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
