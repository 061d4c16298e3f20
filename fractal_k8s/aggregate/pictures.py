"""A map's pictures and its page as files, drawn as was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fractal_k8s.aggregate.drawing import Drawing
from fractal_k8s.aggregate.grids import read_grid
from fractal_k8s.errors import ConflictError, CorruptError, UsageError
from fractal_k8s.results.grid import Grid
from fractal_k8s.results.store import PAGE_FILE, SweepStore

if TYPE_CHECKING:
    from fractal_k8s.report.colours import Scheme
    from fractal_k8s.report.figures import Box, ZoomLevel

# what there is only where figures for a paper are wanted
PAPER_FILES: Final = ("map.pdf", "dimension.pdf", "dimension.png", "zoom.pdf", "zoom.png")
# zooms into a map that its strip of zooms shows beside it
_MAX_CHILDREN: Final = 4


def map_files(
    folder: SweepStore,
    grid: Grid,
    summary: dict[str, Any],
    drawing: Drawing,
    *,
    allow_mixed: bool = False,
) -> dict[str, bytes]:
    """Pictures and page by name; with figures for a paper also `PAPER_FILES`.

    Of those the fit of the dimension is left out where no boxes were counted, the strip of zooms
    where the map has no family.
    """
    from fractal_k8s.report.colours import SCHEMES
    from fractal_k8s.report.figures import study_picture, three_panels
    from fractal_k8s.report.page import render_page
    from fractal_k8s.report.typography import pdf, png

    scheme = SCHEMES[drawing.colours]
    panels = three_panels(grid, summary, scheme)
    made = {
        "map.png": png(panels),
        "measure.png": png(study_picture(grid, scheme)),
        PAGE_FILE: render_page(grid, summary, colours=drawing.colours).encode(),
    }
    if drawing.figures:
        made["map.pdf"] = pdf(panels)
        made |= _paper_files(folder, grid, summary, scheme, allow_mixed)
    return made


def _paper_files(
    folder: SweepStore, grid: Grid, summary: dict[str, Any], scheme: Scheme, allow_mixed: bool
) -> dict[str, bytes]:
    """The fit of the dimension and the strip of zooms, where there are any."""
    from fractal_k8s.report.dimension_figure import dimension_figure
    from fractal_k8s.report.figures import zoom_strip
    from fractal_k8s.report.fit import fit_of
    from fractal_k8s.report.typography import pdf, png

    figures = {}
    if fit := fit_of(summary):
        figures["dimension"] = dimension_figure(fit, grid.sweep.id)
    levels = zoom_levels(folder, grid, summary, allow_mixed=allow_mixed)
    if len(levels) > 1:
        figures["zoom"] = zoom_strip(levels, scheme)
    return {
        f"{name}.{kind}": save(figure)
        for name, figure in figures.items()
        for kind, save in (("pdf", pdf), ("png", png))
    }


def zoom_levels(
    folder: SweepStore, grid: Grid, summary: Mapping[str, Any], *, allow_mixed: bool = False
) -> list[ZoomLevel]:
    """The maps from the first of the family down to this one, and some of the zooms into it.

    A member that is no longer in the store, or is no map that can be read, is left out.
    """
    from fractal_k8s.report.figures import ZoomLevel

    family = summary.get("family") or {}
    ancestors = family.get("ancestors", [])
    children = family.get("children", [])[:_MAX_CHILDREN]
    boxes = [_boxes([member]) for member in (*ancestors[1:], family.get("self") or {})]
    members = [
        *zip([member["id"] for member in ancestors], boxes, strict=False),
        (grid.sweep.id, _boxes(children)),
        *((child["id"], ()) for child in children),
    ]
    grids = {grid.sweep.id: grid}
    found = (
        (name, grids.get(name) or _member_grid(folder, name, allow_mixed), inside)
        for name, inside in members
    )
    return [ZoomLevel(name, one, inside) for name, one, inside in found if one is not None]


def _boxes(members: list[dict[str, Any]]) -> tuple[Box, ...]:
    """Where zooms lie in their parent's map."""
    found = (member["box"] for member in members if member.get("box"))
    return tuple(((rows[0], rows[1]), (columns[0], columns[1])) for rows, columns in found)


def _member_grid(folder: SweepStore, sweep_id: str, allow_mixed: bool) -> Grid | None:
    member = SweepStore(folder.files, sweep_id)
    try:
        plan = member.read_plan()
        return None if plan is None else read_grid(member, plan, allow_mixed=allow_mixed)
    except (ConflictError, CorruptError, UsageError):
        return None
