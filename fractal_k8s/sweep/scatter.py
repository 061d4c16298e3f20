"""Points that are not the product of two axes: random pairs, and chosen cells of a plane.

The points of a scattered sweep still have rows and columns, so that everything that deals, stores
and resumes a grid works unchanged; only their values follow another rule.

`pairs`  row i is a base point, drawn uniformly over the plane of the two axes; column 0 is the base
         itself and column k a partner at distance k from it, in a random direction.
`cells`  row i is a point of a plane (another sweep's, usually); column j is the same point with its
         rates moved by some representable numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator

from fractal_k8s.sweep.axes import Axis, Knob
from fractal_k8s.sweep.base import Spec
from fractal_k8s.sweep.intervals import format_intervals, parse_intervals

Position = tuple[float, float]

# Two decades below a seventh of the plane: a smooth edge cuts closer pairs too rarely to be worth
# their runs, and wider ones show the plane's own size.
PAIR_DISTANCES: Final = (0.0015, 0.003, 0.0055, 0.011, 0.02, 0.04, 0.08, 0.15)
# A direction inwards exists at any distance up to this.
_LARGEST_DISTANCE: Final = 0.5
_PAIRS_STREAM: Final = 3


class Pairs(Spec):
    """Bases drawn from the sweep's seed, each with one partner at every distance.

    Distances are shares of the plane: 1 is the whole range of an axis, on a log axis in decades.
    """

    kind: Literal["pairs"]
    distances: tuple[float, ...] = PAIR_DISTANCES

    @field_validator("distances")
    @classmethod
    def _distances_rise(cls, distances: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(a < b for a, b in pairwise(distances))
        if (
            not distances
            or not rising
            or not 0 < distances[0] <= distances[-1] <= _LARGEST_DISTANCE
        ):
            raise ValueError("must be rising shares of the plane, above 0 and at most 0.5")
        return distances

    @property
    def columns(self) -> int:
        return 1 + len(self.distances)


class Cells(Spec):
    """Points of a plane, in groups, and what is done to each."""

    kind: Literal["cells"]
    # rows and columns of the plane that the axes span
    plane: tuple[PositiveInt, PositiveInt]
    # group -> point indexes i * columns + j in that plane, as "0-3,7"
    cells: dict[str, str]
    # how many representable numbers the rates are moved by, one column each
    ulps: tuple[int, ...] = (0,)

    @field_validator("cells")
    @classmethod
    def _cells_can_be_read(cls, cells: dict[str, str]) -> dict[str, str]:
        if not cells or any(not len(parse_intervals(text)) for text in cells.values()):
            raise ValueError("must name at least one point in each group, as in edge = '0-3,7'")
        # one spelling, so that the same cells are the same sweep
        return {group: format_intervals(parse_intervals(text)) for group, text in cells.items()}

    @field_validator("ulps")
    @classmethod
    def _ulps_differ(cls, ulps: tuple[int, ...]) -> tuple[int, ...]:
        if not ulps or len(set(ulps)) < len(ulps):
            raise ValueError("must be at least one number, none of them twice")
        return ulps

    @property
    def rows(self) -> list[tuple[str, int]]:
        """(group, point index in the plane) of each row, groups in order of their names."""
        return [
            (group, int(index))
            for group in sorted(self.cells)
            for index in parse_intervals(self.cells[group])
        ]


Scatter = Annotated[Pairs | Cells, Field(discriminator="kind")]


# --- values ---


def pair_shares(seed: int, count: int, distances: tuple[float, ...]) -> Iterator[list[Position]]:
    """Shares of the plane of each row's points: the base, then its partners.

    Row i is the same for every count. A partner that would lie outside is mirrored at its base.
    NumPy's RandomState streams are frozen (NEP 19), and nothing but +, -, *, / and sqrt, which
    IEEE 754 rounds alike everywhere, turns them into shares.
    """
    random = np.random.RandomState([seed, _PAIRS_STREAM])
    for _ in range(count):
        y, x = float(random.random_sample()), float(random.random_sample())
        row = [(y, x)]
        for distance in distances:
            up, right = _direction(random)
            row.append((_inside(y, distance * up), _inside(x, distance * right)))
        yield row


def _direction(random: np.random.RandomState) -> Position:
    """A unit vector of uniform angle: a point of the disc, put on its rim."""
    while True:
        a = 2.0 * float(random.random_sample()) - 1.0
        b = 2.0 * float(random.random_sample()) - 1.0
        length = math.sqrt(a * a + b * b)
        if 0.0 < length <= 1.0:
            return a / length, b / length


def _inside(base: float, step: float) -> float:
    moved = base + step
    return moved if 0.0 <= moved <= 1.0 else base - step


def pair_positions(
    pairs: Pairs, axes: tuple[tuple[Axis, Knob], tuple[Axis, Knob]], seed: int, rows: int
) -> list[Position]:
    """(y, x) of every point, by index."""
    (y_axis, y_knob), (x_axis, x_knob) = axes
    return [
        (y_axis.value_at(y_knob, y), x_axis.value_at(x_knob, x))
        for row in pair_shares(seed, rows, pairs.distances)
        for y, x in row
    ]


def cell_positions(
    cells: Cells, axes: tuple[tuple[Axis, Knob], tuple[Axis, Knob]], dtype: str
) -> list[Position]:
    """(y, x) of every point, by index."""
    values = [
        axis.points(knob, count) for (axis, knob), count in zip(axes, cells.plane, strict=True)
    ]
    knobs = [knob for _, knob in axes]
    return [
        (
            _moved(values[0][index // cells.plane[1]], ulps, knobs[0], dtype),
            _moved(values[1][index % cells.plane[1]], ulps, knobs[1], dtype),
        )
        for _, index in cells.rows
        for ulps in cells.ulps
    ]


def can_be_moved(knob: Knob) -> bool:
    """Whether a representable number next to a value is another experiment."""
    return knob.kind in ("rate", "amount", "offset")


def _moved(value: float, ulps: int, knob: Knob, dtype: str) -> float:
    """The value `ulps` representable numbers of the trainer's dtype further up."""
    if not ulps or not can_be_moved(knob):
        return value
    number = np.dtype(dtype).type(value)
    for _ in range(abs(ulps)):
        number = np.nextafter(number, np.dtype(dtype).type(math.copysign(math.inf, ulps)))
    return float(number)
