"""A zoom: a box of a sweep's map as a sweep of its own, on the same exact lattice.

The child keeps its parent's range and narrows the window on it, by exact fractions. Its points are
therefore bit for bit those of every ancestor wherever the lattices coincide: all of the parent's
points in the box if the box's number of intervals divides the child's, some of them otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from fractal_k8s.errors import SweepError, UsageError
from fractal_k8s.sweep.axes import Axis
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.derive import refuse_scattered
from fractal_k8s.sweep.points import range_share

Ends = tuple[Fraction, Fraction]

_SUFFIX: Final = "-zoom"
# Names up to this length stay below the limit with the suffix, whatever the resolution.
_LONGEST_NAME: Final = 30
# A box given by values begins and ends on a lattice that has at least this many steps across it.
_STEPS_ACROSS: Final = 32
# How far an automatic box may differ from the wanted width so that its lattice nests in full.
_SNAP: Final = Fraction(7, 5)


@dataclass(frozen=True)
class Box:
    """A part of a map in cells: first and last row, first and last column, all included.

    Whole numbers, except where the box was given by values.
    """

    rows: Ends
    columns: Ends

    @classmethod
    def of(cls, i0: int, i1: int, j0: int, j1: int) -> Box:
        return cls((Fraction(i0), Fraction(i1)), (Fraction(j0), Fraction(j1)))

    def to_list(self) -> list[list[int | float]]:
        """`[[i0, i1], [j0, j1]]` for a file; the exact ends are in the child's windows."""
        return [[_plain(end) for end in ends] for ends in (self.rows, self.columns)]

    def __str__(self) -> str:
        return box_text(self.to_list())


def box_text(box: Sequence[Sequence[float]]) -> str:
    """`[[48, 63], [0, 15]]` as "48:63,0:15"."""
    return ",".join(f"{first:g}:{last:g}" for first, last in box)


def parse_box(text: str) -> Box:
    """The box of "48:63,0:15": rows first.

    Raises:
        UsageError: the text does not say two ranges of cells.
    """
    match = re.fullmatch(r"\s*(\d+):(\d+)\s*,\s*(\d+):(\d+)\s*", text)
    if match is None:
        raise UsageError(f"box {text!r} is not ROWS,COLUMNS as in 48:63,0:15")
    return Box.of(*(int(number) for number in match.groups()))


def parse_range(text: str, name: str) -> tuple[float, float]:
    """The two values of "1e-3:2e-3".

    Raises:
        UsageError: the text is not two numbers.
    """
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise UsageError(f"--{name} {text!r} is not LOW:HIGH as in 1e-3:2e-3") from None
    return low, high


def box_of_values(
    sweep: Sweep, *, y: tuple[float, float] | None, x: tuple[float, float] | None
) -> Box:
    """The box between values of the two knobs; None = the whole axis.

    Ends are moved to a nearby point of the map's lattice or of one that is a power of two finer, by
    at most a sixty-fourth of the box, so that the child's lattice still meets its parent's.

    Raises:
        SweepError: values that are swapped or outside the map.
    """
    problems: list[str] = []
    ends = []
    for name, axis, values, wanted in (
        ("y", sweep.spec.axes.y, sweep.y_values, y),
        ("x", sweep.spec.axes.x, sweep.x_values, x),
    ):
        whole = (Fraction(0), Fraction(len(values) - 1))
        low, high = wanted or (values[0], values[-1])
        if not values[0] <= low < high <= values[-1]:
            problems.append(
                f"--{name} {low!r}:{high!r} must rise within {values[0]!r} to {values[-1]!r}, "
                "the values of the map"
            )
        elif wanted is None:
            ends.append(whole)
        elif axis.values is not None:
            ends.append(_listed(axis.values, low, high))
        else:
            ends.append(_snapped(*(_cell(sweep, name, value) for value in (low, high))))
    if problems:
        raise SweepError(problems, source="box")
    return Box(*ends)


def auto_intervals(parent: int, child: int, factor: float) -> int:
    """How many of the parent's intervals an automatic box spans along one axis, at least 1.

    Close to a `factor`-th of the map. Where a divisor of the child's intervals lies near, it is
    taken, because the child then contains all of the parent's points in the box.

    Args:
        parent: points of the parent along the axis.
        child: points of the child along it.
        factor: magnification that is wanted, above 1.
    """
    wanted = Fraction(parent - 1) / Fraction(factor)
    near = [
        width
        for width in range(1, parent - 1)
        if (child - 1) % width == 0 and 1 / _SNAP <= width / wanted <= _SNAP
    ]
    if near:
        return min(near, key=lambda width: (max(width / wanted, wanted / width), width))
    return min(max(1, round(wanted)), parent - 1)


def zoom_into(
    sweep: Sweep,
    box: Box,
    *,
    resolution: int | tuple[int, int] | None = None,
    name: str | None = None,
) -> Sweep:
    """The sweep over a box of another one's map, with where it comes from.

    Whole-number knobs (tokens) take the nearest whole number at every point, and an axis that lists
    its values keeps those in the box.

    Args:
        box: cells of the sweep's map.
        resolution: points per axis, or rows and columns; None = as many as the parent has.
        name: the child's; None = the parent's with "-zoom".

    Raises:
        SweepError: every problem with the box, or a box that is finer than the trainer separates.
        UsageError: the sweep is no map, or lists values and a finer axis is asked for.
    """
    refuse_scattered(sweep)
    problems = _box_problems("rows", box.rows, sweep.rows)
    problems += _box_problems("columns", box.columns, sweep.columns)
    if problems:
        raise SweepError(problems, source=f"box {box} of {sweep.id}")
    raw: dict[str, Any] = sweep.to_dict()
    counts = []
    given = (resolution, resolution) if isinstance(resolution, int) else resolution
    for index, (key, ends) in enumerate((("y", box.rows), ("x", box.columns))):
        axis: Axis = getattr(sweep.spec.axes, key)
        raw["axes"][key].update(_narrowed(axis, ends, sweep.spec.resolution[index]))
        count = given[index] if given else sweep.spec.resolution[index]
        counts.append(_points(axis, ends, count, key, bool(given)))
    raw["resolution"] = counts
    raw["name"] = name or _child_name(sweep.name)
    raw["origin"] = {"parent": sweep.id, "box": box.to_list()}
    return Sweep.parse(raw, source=f"box {box} of {sweep.id}", version=sweep.version)


def same_experiments(one: Sweep, other: Sweep) -> bool:
    """Whether points of two sweeps that have the same values are the same experiment.

    All that decides a stored outcome must be equal: model, training, data, seed, knobs and the
    verdict's window of losses. A seed per point belongs to the cell and not to the values, and
    points that are scattered over the plane have no lattice to compare.
    """
    if one.spec.seed_policy == "per-point" or one.is_scattered:
        return False
    return _experiment(one) == _experiment(other)


def _experiment(sweep: Sweep) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(sweep.canonical_json())
    for key in ("name", "resolution", "axes", "verdict"):
        content.pop(key, None)
    knobs = [sweep.y_knob.name, sweep.x_knob.name]
    return {**content, "knobs": knobs, "window": sweep.verdict.window}


def _box_problems(word: str, ends: Ends, count: int) -> list[str]:
    first, last = ends
    shown = f"{word} {_plain(first):g}:{_plain(last):g}"
    if first > last:
        return [f"{shown} are swapped; write {_plain(last):g}:{_plain(first):g}"]
    if first < 0 or last > count - 1:
        return [f"{shown} reach outside the map, whose {word} are 0:{count - 1}"]
    if first == last:
        return [f"{shown} is one of the {word}; a box spans at least two"]
    return []


def _narrowed(axis: Axis, ends: Ends, count: int) -> dict[str, Any]:
    """What the child's axis says otherwise than its parent's."""
    if axis.values is not None:
        return {"values": list(axis.values[int(ends[0]) : int(ends[1]) + 1])}
    start, end = axis.shares
    window = [start + (end - start) * cell / (count - 1) for cell in ends]
    return {"window": [str(share) for share in window]}


def _points(axis: Axis, ends: Ends, wanted: int, name: str, given: bool) -> int:
    if axis.values is None:
        return wanted
    listed = int(ends[1] - ends[0]) + 1
    if given and wanted > listed:
        raise UsageError(
            f"axes.{name} lists its values, {listed} of them in the box; there are none between "
            f"them to make {wanted} points of: give --res {listed} for this axis, or a sweep "
            "with low and high"
        )
    return listed


def _child_name(name: str) -> str:
    if name.endswith(_SUFFIX) or len(name) > _LONGEST_NAME:
        return name
    return name + _SUFFIX


def _cell(sweep: Sweep, name: str, value: float) -> Fraction:
    """Position of a value on an axis over a range, in cells of the map."""
    axis: Axis = getattr(sweep.spec.axes, name)
    knob, count = (sweep.y_knob, sweep.rows) if name == "y" else (sweep.x_knob, sweep.columns)
    assert axis.low is not None  # not a list
    assert axis.high is not None
    start, end = axis.shares
    share = range_share(axis.low, axis.high, axis.spacing(knob), value)
    cell = (share - start) / (end - start) * (count - 1)
    return min(max(cell, Fraction(0)), Fraction(count - 1))


def _snapped(first: Fraction, last: Fraction) -> Ends:
    finer = 1
    while (last - first) * finer < _STEPS_ACROSS:
        finer *= 2
    return Fraction(round(first * finer), finer), Fraction(round(last * finer), finer)


def _listed(values: tuple[float, ...], low: float, high: float) -> Ends:
    inside = [k for k, value in enumerate(values) if low <= value <= high]
    if len(inside) < 2:
        raise UsageError(f"fewer than two of the listed values lie in {low!r}:{high!r}")
    return Fraction(inside[0]), Fraction(inside[-1])


def _plain(number: Fraction) -> int | float:
    return int(number) if number.denominator == 1 else float(number)
