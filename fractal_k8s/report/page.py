"""The web page: one file, no server, no request to anywhere."""

from __future__ import annotations

import html
import json
from importlib import resources
from string import Template
from typing import Any, Final

from fractal_k8s import __version__
from fractal_k8s.report import sections
from fractal_k8s.report.colours import DEFAULT_SCHEME
from fractal_k8s.report.content import page_content
from fractal_k8s.report.payload import loss_curves
from fractal_k8s.results.grid import Grid

# the page's script, in the order in which its files build on one another
_SCRIPTS: Final = ("data.js", "view.js", "maps.js", "inspector.js", "main.js")


def render_page(grid: Grid, summary: dict[str, Any], *, colours: str = DEFAULT_SCHEME) -> str:
    """The report of a map as HTML, with everything it needs inside.

    The same grid and summary give the same text.

    Args:
        colours: which of `colours.SCHEMES` the page shows first; the reader can change it.
    """
    curves = loss_curves(grid)
    content, records = page_content(grid, summary, curves, colours)
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    return Template(_asset("page.html")).substitute(
        title=html.escape(grid.sweep.id),
        style=_asset("page.css"),
        family=sections.family_path(grid, summary),
        subtitle=html.escape(sections.subtitle(grid)),
        tiles=sections.tiles(grid, summary),
        notices=sections.notices(grid, summary),
        sections=sections.all_sections(grid, summary),
        footer=html.escape(f"{grid.sweep.id}, drawn by fractal-k8s {__version__}"),
        data=_script_safe(json.dumps(content, separators=(",", ":"), allow_nan=False)),
        records=records,
        curves=curves.text,
        script=f'(() => {{\n"use strict";\n{script}\n}})();',
    )


def _asset(name: str) -> str:
    return (resources.files("fractal_k8s.report") / "assets" / name).read_text(encoding="utf-8")


def _script_safe(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("<", "\\u003c")
