"""One pass over the store: outcomes -> grid, analyses, figures, page. worker.py's twin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fractal_k8s.analysis.distance import signed_distance
from fractal_k8s.analysis.summary import summarise
from fractal_k8s.results import schema
from fractal_k8s.results.grid import STATE_NAMES, TRAINABLE, Grid, build_grid
from fractal_k8s.results.store import SUMMARY_FILE, Plan, SweepStore
from fractal_k8s.sweep.rule import VerdictRule


@dataclass(frozen=True)
class Aggregation:
    """What a pass found, and where it put it."""

    grid: Grid
    summary: dict[str, Any]
    # name of the file -> path or URI
    written: dict[str, str]


def read_grid(
    folder: SweepStore, plan: Plan, *, rule: VerdictRule | None = None, allow_mixed: bool = False
) -> Grid:
    """The grid of everything that is stored about a sweep; see `build_grid`."""
    outcomes = folder.read_outcomes(plan.sweep)
    return build_grid(plan.sweep, outcomes, rule=rule, allow_mixed=allow_mixed)


def aggregate(folder: SweepStore, plan: Plan, *, allow_mixed: bool = False) -> Aggregation:
    """Writes the summary of a sweep: figures, page, grid and, last, the numbers.

    The same outcomes give the same bytes, whatever the attempts they came from.
    """
    from fractal_k8s.report.figures import png, study_picture, three_panels
    from fractal_k8s.report.page import render_page

    grid = read_grid(folder, plan, allow_mixed=allow_mixed)
    summary = summarise(grid, notes=folder.notes())
    written = {
        "map.png": folder.put_summary("map.png", png(three_panels(grid, summary))),
        "measure.png": folder.put_summary("measure.png", png(study_picture(grid))),
        "report.html": folder.put_summary("report.html", render_page(grid, summary).encode()),
        "grid.parquet": folder.put_summary("grid.parquet", schema.to_bytes(grid_table(grid))),
    }
    text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    written[SUMMARY_FILE] = folder.put_summary(SUMMARY_FILE, text.encode())
    return Aggregation(grid, summary, written)


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
