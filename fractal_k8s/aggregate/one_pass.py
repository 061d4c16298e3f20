"""One pass over the store: outcomes -> grid, analyses, figures, page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fractal_k8s.analysis.distance import signed_distance
from fractal_k8s.analysis.summary import summarise
from fractal_k8s.errors import (
    EXIT_CORRUPT,
    ConflictError,
    CorruptError,
    IncompleteError,
    UsageError,
)
from fractal_k8s.results import schema
from fractal_k8s.results.collect import Collected, collect
from fractal_k8s.results.grid import STATE_NAMES, TRAINABLE, Grid, build_grid
from fractal_k8s.results.lineage import Family, family
from fractal_k8s.results.published import publish_files
from fractal_k8s.results.store import (
    MANIFEST_FILE,
    PAGE_FILE,
    PROGRESS_FILE,
    SUMMARY_FILE,
    SweepStore,
    to_json,
)
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.rule import VerdictRule

if TYPE_CHECKING:
    from fractal_k8s.report.figures import Box, ZoomLevel

# zooms into a map that its strip of zooms shows beside it
_MAX_CHILDREN: Final = 4


@dataclass(frozen=True)
class Aggregation:
    """What a pass found, and where it put it."""

    grid: Grid
    summary: dict[str, Any]
    # name of the file -> path or URI
    written: dict[str, str]
    # outcome objects, how many of them were read and not known from an earlier pass, and the
    # seconds that this and putting them together took
    objects: int = 0
    num_read: int = 0
    reading_seconds: float = 0.0
    # sha256 of the summary's manifest: the same for the same bytes in every file
    digest: str = ""
    # that of the manifest which was replaced
    replaced: str | None = None

    @property
    def exit_code(self) -> int:
        """0 = every point has a verdict; 1 = there are holes; 65 = the store contradicts itself."""
        if self.summary["problems"]:
            return EXIT_CORRUPT
        return 0 if self.summary["complete"] else IncompleteError.exit_code


def read_grid(
    folder: SweepStore, plan: Plan, *, rule: VerdictRule | None = None, allow_mixed: bool = False
) -> Grid:
    """The grid of everything that is stored about a sweep; see `build_grid`."""
    outcomes = collect(folder, plan.sweep, keep=False)
    return build_grid(plan.sweep, outcomes, rule=rule, allow_mixed=allow_mixed)


def aggregate(
    folder: SweepStore,
    plan: Plan,
    *,
    allow_mixed: bool = False,
    colours: str = "original",
    read: Callable[[], Collected] | None = None,
    families: Family | None = None,
) -> Aggregation:
    """Writes the summary of a sweep: pictures, page, grid, the numbers and, last, the manifest.

    The same outcomes give the same bytes, whatever the attempts they came from and however many
    passes it took. Everything is made before the first file is written, and killed at any moment it
    leaves the summary of the pass before; see `results.published`. Scattered points have no
    pictures and no page.

    Args:
        folder: where it is stored.
        plan: the sweep and its deal.
        allow_mixed: accept points of different numerics classes as one map.
        colours: one of `report.colours.SCHEMES`.
        read: gives the outcomes; by default all of them are read, and nothing is kept.
        families: all sweeps of the store, if they were read just now.
    """
    began = time.perf_counter()
    collected = collect(folder, plan.sweep, keep=False) if read is None else read()
    objects, num_read = collected.objects, collected.num_read
    grid = build_grid(plan.sweep, collected, allow_mixed=allow_mixed)
    reading_seconds = time.perf_counter() - began
    del collected  # as large as the grid's own table
    summary = summarise(grid, notes=folder.notes(grid.problems))
    if plan.sweep.is_scattered:
        made = _numbers(folder, grid, summary)
    else:
        if (kin := family(folder, plan, summary, families)) is not None:
            summary["family"] = kin
        made = _pictures(grid, summary, colours)
    made[SUMMARY_FILE] = to_json(summary)
    facts = {key: summary[key] for key in ("sweep", "complete", "coverage")}
    written = publish_files(folder, made, {"format": 1, **facts})
    folder.files.discard([folder.key("summary", PROGRESS_FILE)])
    return Aggregation(
        grid=grid,
        summary=summary,
        written={name: folder.where("summary", name) for name in (*made, MANIFEST_FILE)},
        objects=objects,
        num_read=num_read,
        reading_seconds=reading_seconds,
        digest=written.digest,
        replaced=written.replaced,
    )


def _pictures(grid: Grid, summary: dict[str, Any], colours: str) -> dict[str, bytes]:
    """A map's files by name."""
    from fractal_k8s.report.colours import SCHEMES
    from fractal_k8s.report.figures import study_picture, three_panels
    from fractal_k8s.report.page import render_page
    from fractal_k8s.report.typography import png

    scheme = SCHEMES[colours]
    return {
        "map.png": png(three_panels(grid, summary, scheme)),
        "measure.png": png(study_picture(grid, scheme)),
        PAGE_FILE: render_page(grid, summary, colours=colours).encode(),
        "grid.parquet": schema.to_bytes(grid_table(grid)),
    }


def _numbers(folder: SweepStore, grid: Grid, summary: dict[str, Any]) -> dict[str, bytes]:
    """The table of a pilot or of controls; keeps the pilot's result as a note."""
    pilot = summary["analyses"].get("pilot")
    if pilot and pilot != summary["notes"].get("pilot"):
        folder.put_note("pilot", pilot)
        summary["notes"]["pilot"] = pilot
    return {"grid.parquet": schema.to_bytes(grid_table(grid))}


def write_figures(
    folder: SweepStore, done: Aggregation, *, allow_mixed: bool = False, colours: str = "original"
) -> dict[str, str]:
    """Figures for a paper, as vector PDF and as PNG: map, dimension fit, strip of zooms.

    The fit is left out where no boxes were counted, the strip where the map has no family.

    Returns:
        name of the file -> path or URI.
    """
    from fractal_k8s.report.colours import SCHEMES
    from fractal_k8s.report.dimension_figure import dimension_figure
    from fractal_k8s.report.figures import three_panels, zoom_strip
    from fractal_k8s.report.fit import fit_of
    from fractal_k8s.report.typography import pdf, png

    scheme = SCHEMES[colours]
    figures = {"map": three_panels(done.grid, done.summary, scheme)}
    if fit := fit_of(done.summary):
        figures["dimension"] = dimension_figure(fit, done.grid.sweep.id)
    levels = zoom_levels(folder, done, allow_mixed=allow_mixed)
    if len(levels) > 1:
        figures["zoom"] = zoom_strip(levels, scheme)
    return {
        f"{name}.{kind}": folder.put_summary(f"{name}.{kind}", save(figure))
        for name, figure in figures.items()
        for kind, save in (("pdf", pdf), ("png", png))
    }


def zoom_levels(
    folder: SweepStore, done: Aggregation, *, allow_mixed: bool = False
) -> list[ZoomLevel]:
    """The maps from the first of the family down to this one, and some of the zooms into it.

    A member that is no longer in the store, or is no map that can be read, is left out.
    """
    from fractal_k8s.report.figures import ZoomLevel

    family = done.summary.get("family") or {}
    ancestors = family.get("ancestors", [])
    children = family.get("children", [])[:_MAX_CHILDREN]
    boxes = [_boxes([member]) for member in (*ancestors[1:], family.get("self") or {})]
    members = [
        *zip([member["id"] for member in ancestors], boxes, strict=False),
        (done.grid.sweep.id, _boxes(children)),
        *((child["id"], ()) for child in children),
    ]
    grids = {done.grid.sweep.id: done.grid}
    found = (
        (name, grids.get(name) or _member_grid(folder, name, allow_mixed), inside)
        for name, inside in members
    )
    return [ZoomLevel(name, grid, inside) for name, grid, inside in found if grid is not None]


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


def grid_table(grid: Grid) -> pa.Table:
    """One row per stored point: the outcome without its series, the verdict, cells to the edge."""
    index = grid.point_indexes()
    states = grid.states.ravel()[index]
    names = pa.array([STATE_NAMES[state] for state in states], pa.string())
    table = grid.table.drop_columns(["losses"])
    # dictionaries keep the order in which attempts were read; plain texts do not
    plain = [
        pa.field(
            part.name, part.type.value_type if pa.types.is_dictionary(part.type) else part.type
        )
        for part in table.schema
    ]
    table = table.cast(pa.schema(plain, metadata=table.schema.metadata)).combine_chunks()
    distance = None  # scattered points have no neighbours
    if not grid.sweep.is_scattered:
        distance = signed_distance(grid.trainable, grid.known)
    cells = None if distance is None else distance.ravel()[index]
    return (
        table.append_column("verdict", names)
        .append_column("trainable", pa.array(states == TRAINABLE, pa.bool_()))
        # positive inside, negative outside; null where there is no verdict or no edge
        .append_column("edge_distance", _nullable(cells, len(index)))
    )


def _nullable(values: npt.NDArray[np.float64] | None, count: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, pa.float64())
    return pa.array(values, pa.float64(), from_pandas=True)  # NaN becomes null
