"""All analyses: the files of this folder that define `analyse`, found by their names.

An analysis is one file with

    TITLE        a heading for people
    analyse      Subject -> plain data without NaN, with at least `coverage` (share of the map that
                 was judged) and `refused` (why there is no result, or None); None where the subject
                 is not of the kind that it analyses (a bare picture has no losses, say)
    lines        that data -> (label, text) rows for a terminal and for the page
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from fractal_k8s.analysis.subject import Subject
from fractal_k8s.errors import UsageError
from fractal_k8s.sweep.axes import near

Result = dict[str, Any]
Rows = list[tuple[str, str]]


class Analysis(Protocol):
    """What a file of this folder offers."""

    TITLE: str

    def analyse(self, subject: Subject) -> Result | None: ...
    def lines(self, result: Result) -> Rows: ...


@cache
def names() -> tuple[str, ...]:
    """Names of all analyses, sorted."""
    files = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    return tuple(name for name in files if hasattr(_module(name), "analyse"))


def load(name: str) -> Analysis:
    """The analysis of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in names():
        raise UsageError(f"no analysis {name!r}{near(name, list(names()))}")
    return cast(Analysis, _module(name))


def run_analyses(subject: Subject, only: tuple[str, ...] = ()) -> dict[str, Result]:
    """Results of all analyses that apply to the subject, or of the named ones, by name."""
    found = ((name, load(name).analyse(subject)) for name in only or names())
    return {name: result for name, result in found if result is not None}


def _module(name: str) -> Any:
    if name in ("__init__", "registry"):
        return None
    return importlib.import_module(f"fractal_k8s.analysis.{name}")
