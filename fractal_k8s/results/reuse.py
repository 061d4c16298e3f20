"""Outcomes that a sweep's family has already: copied, never trained again.

Lattices of a family nest, so a zoom holds points that another member has trained at values equal in
every bit. Where all else that decides a run is equal too, the stored outcome is the point's own.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fractal_k8s.errors import FractalError
from fractal_k8s.results import schema
from fractal_k8s.results.attempt import jsonable
from fractal_k8s.results.grid import STATE_NAMES, Grid, build_grid, row_indexes
from fractal_k8s.results.lineage import read_families, relatives
from fractal_k8s.results.store import COPIED, Outcomes, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, representatives
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.intervals import format_intervals
from fractal_k8s.sweep.zoom import same_experiments


@dataclass(frozen=True)
class Found:
    """Rows of one other sweep that are a sweep's own points, in the sweep's own numbering."""

    source: str
    table: pa.Table


def find_outcomes(
    folder: SweepStore,
    sweep: Sweep,
    missing: npt.NDArray[np.bool_],
    numerics: str | None = None,
) -> list[Found]:
    """What the family of a sweep has stored of its missing points. Writes nothing.

    All rows are of one numerics class: the one that the sweep belongs to already, else the given
    one, else that of the first row found.

    Args:
        missing: shape (rows, columns), True where an outcome is wanted.
        numerics: the class in which the other points would be trained.
    """
    wanted = missing.copy()
    found: list[Found] = []
    numerics = folder.claimed_class() or numerics
    for source, table in _family_rows(folder, sweep, wanted):
        numerics = numerics or table.column("numerics_class")[0].as_py()
        rows = table.filter(pc.field("numerics_class").cast(pa.string()) == numerics)
        if len(rows):
            rows = _for_all_members(rows, sweep, wanted)
            wanted[rows.column("i").to_numpy(), rows.column("j").to_numpy()] = False
            found.append(Found(source, rows))
    return found


def _for_all_members(table: pa.Table, sweep: Sweep, wanted: npt.NDArray[np.bool_]) -> pa.Table:
    """The rows, for every wanted point that is the same experiment as one of them.

    A copied point whose partners stayed missing would be trained again with them.
    """
    owners = representatives(sweep)
    index = row_indexes(sweep, table)
    row_of: dict[int, int] = {}
    for row, owner in enumerate(owners[index].tolist()):
        row_of.setdefault(owner, row)
    own = dict(zip(index.tolist(), range(len(table)), strict=True))
    points = [p for p in np.flatnonzero(wanted).tolist() if int(owners[p]) in row_of]
    rows = table.take([own.get(p, row_of[int(owners[p])]) for p in points])
    y, x = sweep.values_of(np.array(points, dtype=np.int64))
    i, j = np.divmod(np.array(points, dtype=np.int64), sweep.columns)
    new = {
        "i": pa.array(i, pa.int32()),
        "j": pa.array(j, pa.int32()),
        sweep.y_knob.name: pa.array(y, pa.float64()),
        sweep.x_knob.name: pa.array(x, pa.float64()),
    }
    return _with_columns(rows, new)


def _with_columns(table: pa.Table, new: dict[str, pa.Array]) -> pa.Table:
    for name, column in new.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def adopt_outcomes(
    folder: SweepStore,
    plan: Plan,
    missing: npt.NDArray[np.bool_],
    ask: Callable[[], str | None] = lambda: None,
) -> int:
    """Copies what `find_outcomes` finds into the sweep's own folder; returns how many points.

    Copies keep their numbers, numerics class, machine and time, and the id of the sweep that
    trained them. They count as a deal of their own, so that every worker looks for them.

    Args:
        ask: says the numerics class in which the other points would be trained; None = unknown.
    """
    found = find_outcomes(folder, plan.sweep, missing)
    rest = int(missing.sum()) - sum(len(part.table) for part in found)
    # where points remain to be trained, only rows of their class are one map with them
    if found and rest and folder.claimed_class() is None and (own := ask()) is not None:
        found = find_outcomes(folder, plan.sweep, missing, own)
    if not found:
        return 0
    table = pa.concat_tables([part.table for part in found]).unify_dictionaries()
    folder.claim_class(table.column("numerics_class")[0].as_py())
    grid = build_grid(plan.sweep, Outcomes(table), allow_mixed=True)
    points = format_intervals(grid.point_indexes())
    deal = Deal(order="row-major", points_per_shard=plan.sweep.num_points, only=points)
    folder.record_deal(deal)
    shard = f"{COPIED}-{deal.tag}"
    attempt = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    lines = (json.dumps({"shard": shard, "attempt": attempt, **line}) for line in _log(grid, found))
    folder.files.put(folder.log_key(shard, attempt), ("\n".join(lines) + "\n").encode())
    folder.put_outcomes(shard, attempt, table)
    return len(table)


def _family_rows(
    folder: SweepStore, sweep: Sweep, wanted: npt.NDArray[np.bool_]
) -> Iterator[tuple[str, pa.Table]]:
    """Rows of each relative for points that are wanted when its turn comes."""
    origin = sweep.spec.origin
    families = read_families(folder.files)
    for member in relatives(families, sweep.id, origin.parent if origin else None):
        other_folder = SweepStore(folder.files, member)
        try:
            plan = other_folder.read_plan()
        except FractalError:  # a damaged relative has nothing to give
            continue
        if plan is None or not same_experiments(sweep, plan.sweep):
            continue
        places = _shared_points(plan.sweep, sweep)
        places[places >= 0] = np.where(wanted.ravel()[places[places >= 0]], places[places >= 0], -1)
        if (places < 0).all():
            continue
        grid = build_grid(plan.sweep, other_folder.read_outcomes(plan.sweep), allow_mixed=True)
        if grid.problems:  # results that contradict each other are not passed on
            continue
        table = _renumbered(grid, sweep, places)
        if len(table):
            yield member, table


def _shared_points(other: Sweep, sweep: Sweep) -> npt.NDArray[np.int64]:
    """For each point of the other sweep the index of the sweep's point that it is, or -1."""
    rows = {value: i for i, value in enumerate(sweep.y_values)}
    columns = {value: j for j, value in enumerate(sweep.x_values)}
    i = np.array([rows.get(value, -1) for value in other.y_values])[:, None]
    j = np.array([columns.get(value, -1) for value in other.x_values])[None, :]
    places: npt.NDArray[np.int64] = np.where((i < 0) | (j < 0), -1, i * sweep.columns + j).ravel()
    return places


def _renumbered(grid: Grid, sweep: Sweep, places: npt.NDArray[np.int64]) -> pa.Table:
    """The rows with a verdict that have a place in the sweep, as rows of that sweep."""
    index = grid.point_indexes()
    keep = (places[index] >= 0) & grid.known.ravel()[index]
    table = grid.table.filter(pa.array(keep))
    i, j = np.divmod(places[index[keep]], sweep.columns)
    new = {
        "i": pa.array(i, pa.int32()),
        "j": pa.array(j, pa.int32()),
    }
    return _with_columns(table, new).cast(schema.outcome_schema(sweep))


def _log(grid: Grid, found: list[Found]) -> Iterator[dict[str, Any]]:
    """A log line for each copied point, as an attempt writes them, with where it came from."""
    sweep = grid.sweep
    numbers = ("steps", "first_loss", "final_loss", "ratio", "seconds", "error", "time")
    names = ("i", "j", sweep.y_knob.name, sweep.x_knob.name, *numbers)
    for part in found:
        for row in part.table.select(names).to_pylist():
            row["time"] = row["time"].isoformat(timespec="milliseconds")
            row["state"] = STATE_NAMES[grid.states[row["i"], row["j"]]]
            yield jsonable({**row, "copied_from": part.source})
