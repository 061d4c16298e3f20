"""What the rows of an outcomes file must be: points of the sweep, with numbers that can be numbers.

A file may be whole, name this sweep and have every column, and still say what no worker writes: a
point without a state, a time that is not finite. One such row would stop the analysis of all, or be
drawn as something that it is not, so its file is refused.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fractal_k8s.errors import CorruptError
from fractal_k8s.results.outcome import RESULT_COLUMNS, State
from fractal_k8s.sweep.definition import Sweep

# Columns that every row fills in; a number that was not measured is NaN there, not empty.
_FILLED: Final = ("sweep", *RESULT_COLUMNS, "seconds", "numerics_class", "time")
_STATES: Final = frozenset(state.value for state in State)
# Counts up to here are exact as float64, and their sum over a map does not overflow.
_MOST: Final = 2**40
# name -> most that it can be; the least is 0
_LIMITS: Final[dict[str, float]] = {
    "steps": _MOST,
    "tokens_seen": _MOST,
    "supervised_tokens": _MOST,
    "peak_bytes": 2**60,
    "seconds": 1e9,
    "time": 253_402_300_799_999,  # ms since 1970: the end of the year 9999
}


def check_rows(sweep: Sweep, table: pa.Table, source: str) -> None:
    """Refuses rows that no worker of this release, or of an earlier one, writes.

    Args:
        table: columns of `schema.outcome_schema`, all of them or some; i, j and the axes always.

    Raises:
        CorruptError: names the first thing that is wrong.
    """
    _check_points(sweep, table, source)
    for name in _FILLED:
        if name in table.column_names and table.column(name).null_count:
            raise CorruptError(f"{source}: holds a point without {name}")
    if "state" in table.column_names:
        unknown = sorted(_different(table.column("state")) - _STATES)
        if unknown:
            raise CorruptError(
                f"{source}: holds the state {unknown[0]!r}, which this release does not know; "
                "upgrade fractal-k8s"
            )
    for name, most in _LIMITS.items():
        if name in table.column_names and not _all_within(table.column(name), most):
            raise CorruptError(f"{source}: holds a point whose {name} cannot be")
    if "losses" in table.column_names:
        _check_losses(table, source)


def _check_points(sweep: Sweep, table: pa.Table, source: str) -> None:
    """Refuses rows of points that the sweep does not have, or has at other values."""
    i, j = (table.column(name).to_numpy() for name in ("i", "j"))
    inside = (i >= 0) & (i < sweep.rows) & (j >= 0) & (j < sweep.columns)
    if not inside.all():
        raise CorruptError(f"{source}: holds a point outside {sweep.rows} x {sweep.columns}")
    expected = sweep.values_of(i.astype(np.int64) * sweep.columns + j)
    for knob, values in zip((sweep.y_knob, sweep.x_knob), expected, strict=True):
        if not np.array_equal(table.column(knob.name).to_numpy(), values):
            raise CorruptError(f"{source}: its {knob.name} are not those of {sweep.id}")


def _check_losses(table: pa.Table, source: str) -> None:
    if any(chunk.values.null_count for chunk in table.column("losses").chunks):
        raise CorruptError(f"{source}: holds a point without one of its losses")


def _different(column: pa.ChunkedArray) -> set[str]:
    """The different texts of a column of labels."""
    return {text for chunk in column.chunks for text in pc.unique(chunk).to_pylist()}


def _all_within(column: pa.ChunkedArray, most: float) -> bool:
    """Whether all numbers that are there lie in 0..most; NaN lies nowhere."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    numbers = column.drop_null().to_numpy()
    return bool(np.all((numbers >= 0) & (numbers <= most)))
