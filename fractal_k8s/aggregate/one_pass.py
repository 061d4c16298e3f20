"""One pass over the store: outcomes -> grid, analyses, figures, page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fractal_k8s.aggregate.drawing import drawing_of
from fractal_k8s.aggregate.grids import grid_table
from fractal_k8s.aggregate.pictures import PAPER_FILES, map_files
from fractal_k8s.analysis.summary import summarise
from fractal_k8s.errors import EXIT_CORRUPT, IncompleteError
from fractal_k8s.results import schema
from fractal_k8s.results.collect import Collected, collect
from fractal_k8s.results.grid import Grid, build_grid
from fractal_k8s.results.lineage import Kin, family
from fractal_k8s.results.problems import PROBLEMS_FILE, as_file
from fractal_k8s.results.published import publish_files
from fractal_k8s.results.store import (
    MANIFEST_FILE,
    PROGRESS_FILE,
    SUMMARY_FILE,
    SweepStore,
    to_json,
)
from fractal_k8s.sweep.assignment import Plan


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


def aggregate(
    folder: SweepStore,
    plan: Plan,
    *,
    allow_mixed: bool = False,
    read: Callable[[], Collected] | None = None,
    kin: Kin | None = None,
) -> Aggregation:
    """Writes the summary of a sweep: pictures, page, grid, the numbers and, last, the manifest.

    The same outcomes, drawn as was chosen last (`drawing.choose`), give the same bytes, whatever
    the attempts they came from and however many passes it took. Everything is made before the first
    file is written, and killed at any moment it leaves the summary of the pass before; see
    `results.published`. Scattered points have no pictures and no page.

    Args:
        folder: where it is stored.
        plan: the sweep and its deal.
        allow_mixed: accept points of different numerics classes as one map.
        read: gives the outcomes; by default all of them are read, and nothing is kept.
        kin: the families of the store's sweeps, if they were read just now.
    """
    began = time.perf_counter()
    collected = collect(folder, plan.sweep, keep=False) if read is None else read()
    objects, num_read = collected.objects, collected.num_read
    grid = build_grid(plan.sweep, collected, allow_mixed=allow_mixed)
    reading_seconds = time.perf_counter() - began
    del collected  # as large as the grid's own table
    notes = folder.notes(grid.problems)
    drawing = drawing_of(folder, notes, grid.problems)
    summary = summarise(grid, notes=notes)
    if plan.sweep.is_scattered:
        made = _numbers(folder, grid, summary)
    else:
        if (found := family(plan, summary, kin or Kin(folder.files))) is not None:
            summary["family"] = found
        made = map_files(folder, grid, summary, drawing, allow_mixed=allow_mixed)
        made["grid.parquet"] = schema.to_bytes(grid_table(grid))
    made |= as_file(grid.problems)
    made[SUMMARY_FILE] = to_json(summary)
    facts = {key: summary[key] for key in ("sweep", "complete", "coverage")}
    written = publish_files(folder, made, {"format": 1, **facts})
    _discard_others(folder, made)
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


def _numbers(folder: SweepStore, grid: Grid, summary: dict[str, Any]) -> dict[str, bytes]:
    """The table of a pilot or of controls; keeps the pilot's result as a note."""
    pilot = summary["analyses"].get("pilot")
    if pilot and pilot != summary["notes"].get("pilot"):
        folder.put_note("pilot", pilot)
        summary["notes"]["pilot"] = pilot
    return {"grid.parquet": schema.to_bytes(grid_table(grid))}


def _discard_others(folder: SweepStore, made: Mapping[str, bytes]) -> None:
    """Deletes what an earlier summary had beside the files of this one."""
    stale = {
        folder.key("summary", name)
        for name in {PROGRESS_FILE, PROBLEMS_FILE, *PAPER_FILES} - made.keys()
    }
    there = folder.files.entries(folder.key("summary"))
    folder.files.discard(entry.key for entry in there if entry.key in stale)
