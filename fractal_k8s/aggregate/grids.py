"""A sweep's grid as it is stored, and as the table that is stored with its summary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fractal_k8s.analysis.distance import signed_distance
from fractal_k8s.results.collect import collect
from fractal_k8s.results.grid import STATE_NAMES, TRAINABLE, Grid, build_grid
from fractal_k8s.results.store import SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.rule import VerdictRule


def read_grid(
    folder: SweepStore, plan: Plan, *, rule: VerdictRule | None = None, allow_mixed: bool = False
) -> Grid:
    """The grid of everything that is stored about a sweep; see `build_grid`."""
    outcomes = collect(folder, plan.sweep, keep=False)
    return build_grid(plan.sweep, outcomes, rule=rule, allow_mixed=allow_mixed)


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
