"""Box-counting dimension of the edge of a map.

The default counts boxes at every offset of the grid, not at one. Of all m x m boxes of edge cells
centred in the map, a share p(m) holds an edge; per box size that is N(m) = p(m) * cells / m**2
boxes, and D = -d ln N / d ln m = 2 - d ln p / d ln m.

- A box of m edge cells spans m pitches of the lattice of points, so a straight edge gives p ~ m
  without a correction for its thickness.
- Boxes that reach over the frame see the map mirrored there. Without that, boxes near the frame
  are missing or half empty, which costs a straight line 0.05 and a centred closed curve 0.1.
- Sizes are sqrt(2) apart, over at least 1.5 decades, which are reported with the number.
- With holes in the map every size is judged at the same places, those where the largest box holds
  no hole; otherwise large boxes would be judged where there is less edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.analysis.boundary import Mask, find_edge, published_boundary

Counts = npt.NDArray[np.float64]

MIN_SIZES: Final = 4
# A slope over fewer decades of box sizes is no dimension; maps from 64 points a side have 1.505.
MIN_DECADES: Final = 1.5
MIN_SIDE: Final = 64
# With holes: the largest sizes are given up until this share of the places can be judged.
_MIN_JUDGED: Final = 0.5
# Box positions per box side that are looked at: every position of small boxes, 8 x 8 of large ones,
# and 4 x 4 on maps so large that their boxes are many anyway.
_STEPS_PER_BOX: Final = 8
_STEPS_PER_BOX_OF_LARGE_MAP: Final = 4
_LARGE_MAP: Final = 2**21


@dataclass(frozen=True)
class BoxDimension:
    """The slope of box counts, with everything it was read from."""

    method: str
    # least-squares slope of -ln count on ln size; None where too few sizes could be counted
    slope: float | None
    # why the slope is no dimension, or there is none
    refused: str | None
    # boundary pixels: edge cells, or the published code's pixels
    boundary_pixels: int
    # share of the map that was judged
    coverage: float
    # box side in pitches of the lattice, and number of boxes (averaged over offsets)
    sizes: tuple[int, ...] = ()
    counts: tuple[float, ...] = ()
    # slope between neighbouring sizes, and over the smaller and the larger half of them
    local_slopes: tuple[float, ...] = ()
    half_slopes: tuple[float, float] | None = None
    # ln count minus the fitted line, per size
    residuals: tuple[float, ...] = ()

    @property
    def dimension(self) -> float | None:
        return None if self.refused else self.slope

    @property
    def decades(self) -> float:
        """Length of the scaling range."""
        return math.log10(self.sizes[-1] / self.sizes[0]) if self.sizes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the keys of `analyze --json`."""
        return {
            "method": self.method,
            "dimension": self.dimension,
            "interval": None,
            "refused": self.refused,
            "coverage": self.coverage,
            "boundary_pixels": self.boundary_pixels,
            "raw_slope": self.slope,
            "box_sizes": list(self.sizes),
            "box_counts": list(self.counts),
            "decades": self.decades,
            "slopes": list(self.local_slopes),
            "half_slopes": list(self.half_slopes) if self.half_slopes else None,
            "fit": {"residuals": list(self.residuals)},
        }


_HOLES: Final = "the method counts every cell, and the map has holes"


def windows(labels: Mask, known: Mask | None = None) -> BoxDimension:
    """Slope of the edge's box counts from boxes at every offset; the default method.

    The slope is refused as a dimension where it spans less than 1.5 decades, and still reported.

    Args:
        labels: shape (rows, columns).
        known: where the label is known; None = everywhere. Boxes with an unknown label are left
            out, and `coverage` says how much was judged.
    """
    edge = find_edge(labels, known)
    common = _Common("windows", edge.count, edge.coverage)
    if not edge.count:
        return common.refuse(_no_edge(labels, known, edge.coverage))
    sizes, places = _judged_places(edge.valid, scaling_range(min(labels.shape)))
    if len(sizes) < MIN_SIZES:
        return common.refuse(_too_few(len(sizes), edge.valid))
    shares = _box_shares(edge.cells, sizes, places)
    counts = shares * edge.cells.size / np.square(np.array(sizes, dtype=float))
    found = _fitted(common, sizes, counts)
    if found.refused or found.decades >= MIN_DECADES:
        return found
    return replace(found, refused=_too_short(found, edge.valid))


def published(labels: Mask, known: Mask | None = None) -> BoxDimension:
    """The public fractal-llm code's number (src/grid_sweep_summary.py), for comparison only.

    Its boundary includes the map's frame, the logarithm is of count + 1, and the sizes are those of
    2..64 below the resolution: an edgeless 64 x 64 map measures 1.152.
    """
    if known is not None and not known.all():
        return _Common("published", 0, _share(known)).refuse(_HOLES)
    boundary = published_boundary(labels)
    sizes = [size for size in (2, 4, 8, 16, 32, 64) if size < min(labels.shape)]
    common = _Common("published", int(boundary.sum()), _share(known))
    if len(sizes) < 2:
        return common.refuse("the published method needs at least 5 points per side")
    counts = aligned_counts(boundary, sizes)
    slope = -float(np.polyfit(np.log(sizes), np.log(counts + 1), 1)[0])
    return replace(
        common.refuse(None),
        slope=slope,
        sizes=tuple(sizes),
        counts=tuple(counts.tolist()),
        local_slopes=_local_slopes(sizes, counts + 1),
    )


def notebook(labels: Mask, known: Mask | None = None) -> BoxDimension:
    """The original study's number (arXiv:2402.06184, notebook cell 16), for comparison only.

    Its sizes are ten, log-spaced from 10 points to the whole map; a box counts where it is partly,
    not wholly, covered by edge cells; the dimension is the median of the slopes at the sizes. The
    study pools the slopes of about fifty zooms before it takes the median.
    """
    edge = find_edge(labels, known)
    common = _Common("notebook", edge.count, edge.coverage)
    if not edge.count:
        return common.refuse(_no_edge(labels, known, edge.coverage))
    side = min(edge.cells.shape)
    spaced = np.logspace(1, math.log10(side), 10) if side > 10 else np.arange(0)
    sizes = sorted({int(size + 1e-6) for size in spaced})  # whole sides stay whole
    if len(sizes) < MIN_SIZES:
        return common.refuse("the notebook's method needs at least 14 points per side")
    counts = aligned_counts(edge.cells, sizes) - aligned_counts(edge.cells, sizes, whole=True)
    if not counts.all():
        return common.refuse("the notebook's method found no partly covered box at some size")
    slopes = -np.gradient(np.log(counts), np.log(sizes))
    return replace(
        common.refuse(None),
        slope=float(np.median(slopes)),
        sizes=tuple(sizes),
        counts=tuple(counts.tolist()),
        local_slopes=tuple(slopes.tolist()),
    )


def aligned(labels: Mask, known: Mask | None = None) -> BoxDimension:
    """Dimension of the set of True cells itself, from boxes aligned with the map.

    For sets that are exactly self-similar on the map's own grid: sizes are the divisors of the
    side, so that no box is cut, and the counts of an aligned Sierpinski set are exact.
    """
    side = min(labels.shape)
    sizes = [size for size in range(1, side) if all(n % size == 0 for n in labels.shape)]
    common = _Common("aligned", int(labels.sum()), _share(known))
    if known is not None and not known.all():
        return common.refuse(_HOLES)
    if not labels.any():
        return common.refuse("the set is empty")
    return _fitted(common, sizes, aligned_counts(labels, sizes))


METHODS: Final[dict[str, Callable[[Mask, Mask | None], BoxDimension]]] = {
    "windows": windows,
    "published": published,
    "notebook": notebook,
    "aligned": aligned,
}


def scaling_range(side: int) -> list[int]:
    """Box sizes for a map of `side` points: about sqrt(2) apart, 1.5 decades from 64 points on.

    Small boxes see the lattice and not the set, large ones see too little of it: the largest is an
    eighth of the side (32 points on maps below 256), the smallest 1 to 4 points, as far up as 1.5
    decades allow.
    """
    largest = min(max(side // 8, 32), side // 2)
    return sqrt2_steps(max(1, min(4, largest // 32)), largest)


def sqrt2_steps(smallest: int, largest: int) -> list[int]:
    """Whole numbers from smallest to largest, about a factor of sqrt(2) apart."""
    numbers: list[int] = []
    step = 0
    while (number := round(smallest * 2 ** (step / 2))) <= largest:
        if not numbers or number > numbers[-1]:
            numbers.append(number)
        step += 1
    return numbers


def aligned_counts(cells: Mask, sizes: Sequence[int], *, whole: bool = False) -> Counts:
    """How many boxes of a grid from the origin hold a cell, shape (sizes,).

    Boxes that the frame cuts count like whole ones.

    Args:
        whole: count the boxes that hold nothing but cells.
    """
    combine = np.logical_and if whole else np.logical_or
    counts = []
    for size in sizes:
        rows = combine.reduceat(cells, np.arange(0, cells.shape[0], size), axis=0)
        boxes = combine.reduceat(rows, np.arange(0, cells.shape[1], size), axis=1)
        counts.append(boxes.sum())
    return np.array(counts, dtype=np.float64)


def _judged_places(valid: Mask, sizes: list[int]) -> tuple[list[int], Mask | None]:
    """The box sizes that can be used, and the cells around which a box of any of them has no hole.

    Without holes that is every size and every cell (None).
    """
    if valid.all():
        return sizes, None
    unknown = _SummedArea(~valid, max(sizes, default=0))
    for count in range(len(sizes), 0, -1):
        places = unknown.box_sums(sizes[count - 1], stride=1) == 0
        if places.mean() >= _MIN_JUDGED:
            return sizes[:count], places
    return [], None


def _box_shares(cells: Mask, sizes: Sequence[int], places: Mask | None) -> Counts:
    """Share of the boxes of each size, around the given cells, that hold an edge. (sizes,)"""
    edges = _SummedArea(cells, max(sizes))
    shares = []
    steps = _STEPS_PER_BOX if cells.size < _LARGE_MAP else _STEPS_PER_BOX_OF_LARGE_MAP
    for size in sizes:
        stride = max(1, size // steps) if places is None else 1
        hit = edges.box_sums(size, stride) > 0
        shares.append(hit.mean() if places is None else hit[places].mean())
    return np.array(shares, dtype=np.float64)


class _SummedArea:
    """Sums over boxes in constant time each, of cells that are mirrored at the frame."""

    def __init__(self, cells: Mask, margin: int) -> None:
        self.shape = cells.shape
        self.margin = margin
        mirrored = np.pad(cells, margin, mode="symmetric")
        self.table = np.zeros((mirrored.shape[0] + 1, mirrored.shape[1] + 1), dtype=np.int32)
        self.table[1:, 1:] = mirrored
        for row in range(1, len(self.table)):  # ten times as fast as cumsum over columns
            self.table[row] += self.table[row - 1]
        np.cumsum(self.table, axis=1, out=self.table)

    def box_sums(self, size: int, stride: int) -> npt.NDArray[np.int32]:
        """Sums over size x size boxes centred on every `stride`-th cell of the map."""
        first = self.margin - size // 2
        low, high = (
            tuple(slice(start, start + length, stride) for length in self.shape)
            for start in (first, first + size)
        )
        table = self.table
        sums: npt.NDArray[np.int32] = (
            table[high[0], high[1]]
            - table[low[0], high[1]]
            - table[high[0], low[1]]
            + table[low[0], low[1]]
        )
        return sums


@dataclass(frozen=True)
class _Common:
    """What every answer of a method says."""

    method: str
    boundary_pixels: int
    coverage: float

    def refuse(self, reason: str | None) -> BoxDimension:
        return BoxDimension(self.method, None, reason, self.boundary_pixels, self.coverage)


def _fitted(common: _Common, sizes: Sequence[int], counts: Counts) -> BoxDimension:
    """Least squares of ln counts on ln sizes, with the slopes that show whether it is a line."""
    usable = np.isfinite(counts) & (counts > 0)
    chosen, used = np.array(sizes)[usable], counts[usable]
    if len(chosen) < MIN_SIZES:
        return common.refuse(
            f"only {len(chosen)} box sizes could be counted, a slope needs {MIN_SIZES}; "
            "use a finer or more complete map"
        )
    x, y = np.log(chosen), np.log(used)
    slope, intercept = np.polyfit(x, y, 1)
    half = len(chosen) // 2
    return replace(
        common.refuse(None),
        slope=-float(slope),
        sizes=tuple(int(size) for size in chosen),
        counts=tuple(float(count) for count in used),
        local_slopes=_local_slopes(chosen, used),
        half_slopes=(_slope(x[:half], y[:half]), _slope(x[-half:], y[-half:])),
        residuals=tuple((y - slope * x - intercept).tolist()),
    )


def _slope(x: Counts, y: Counts) -> float:
    return -float(np.polyfit(x, y, 1)[0])


def _local_slopes(sizes: npt.ArrayLike, counts: Counts) -> tuple[float, ...]:
    slopes = -np.diff(np.log(counts)) / np.diff(np.log(np.asarray(sizes, dtype=float)))
    return tuple(float(slope) for slope in slopes)


def _share(known: Mask | None) -> float:
    if known is None:
        return 1.0
    return float(known.mean()) if known.size else 0.0


def _too_few(count: int, valid: Mask) -> str:
    if not valid.all():
        return f"only {count} box sizes fit between the holes of the map"
    return f"box sizes that fit: {count}, a slope needs {MIN_SIZES}; use a finer map"


def _too_short(found: BoxDimension, valid: Mask) -> str:
    cause = "between the holes of the map" if not valid.all() else "in a map of this size"
    cure = "train the missing points" if not valid.all() else f"use {MIN_SIDE} points a side"
    return (
        f"too short a range: boxes of {found.sizes[0]} to {found.sizes[-1]} points, all that fit "
        f"{cause}, are {found.decades:.2f} decades; a dimension needs {MIN_DECADES}: {cure}"
    )


def _no_edge(
    labels: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_] | None, coverage: float
) -> str:
    """Why no window has an edge, where `coverage` of all windows are known."""
    if known is not None:
        labels = labels[known]
    if not labels.size:
        return "no point is known"
    if labels.all():
        return "no edge: every known point is trainable"
    if not labels.any():
        return "no edge: no known point is trainable"
    if not coverage:
        return (
            "not measured: no 2 x 2 points are all known, and an edge is looked for in such squares"
        )
    return "no edge in any 2 x 2 points that are all known"
