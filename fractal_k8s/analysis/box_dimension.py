"""Box-counting dimension of the edge of a map.

The default counts boxes at every offset of the grid, not at one. Of all m x m boxes of edge cells
centred in the map, a share p(m) holds an edge; per box size that is N(m) = p(m) * cells / m**2
boxes, and D = -d ln N / d ln m = 2 - d ln p / d ln m.

- A box of m edge cells spans m pitches of the lattice of points, so a straight edge gives p ~ m
  without a correction for its thickness.
- Boxes that reach over the frame see the map mirrored there. Without that, boxes near the frame
  are missing or half empty, which costs a straight line 0.05 and a centred closed curve 0.1.
- Sizes are sqrt(2) apart, over a range that is reported with the number.
- With holes in the map every size is judged at the same places, those where the largest box holds
  no hole; otherwise large boxes would be judged where there is less edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.analysis.boundary import Mask, find_edge, published_boundary

Counts = npt.NDArray[np.float64]

MIN_SIZES: Final = 4
# With holes: the largest sizes are given up until this share of the places can be judged.
_MIN_JUDGED: Final = 0.5
# Box positions per box side that are looked at: every position of small boxes, 8 x 8 of large ones.
_STEPS_PER_BOX: Final = 8


@dataclass(frozen=True)
class BoxDimension:
    """A dimension with everything it was read from. `dimension` is None where there is none."""

    method: str
    dimension: float | None
    # why there is no dimension
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

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the keys of `analyze --json`."""
        return {
            "method": self.method,
            "dimension": self.dimension,
            "refused": self.refused,
            "boundary_pixels": self.boundary_pixels,
            "coverage": self.coverage,
            "box_sizes": list(self.sizes),
            "box_counts": list(self.counts),
            "slopes": list(self.local_slopes),
            "half_slopes": list(self.half_slopes) if self.half_slopes else None,
        }


def windows(labels: Mask, known: Mask | None = None) -> BoxDimension:
    """Dimension of the edge from boxes at every offset; the default method.

    Args:
        labels: shape (rows, columns).
        known: where the label is known; None = everywhere. Boxes with an unknown label are left
            out, and `coverage` says how much was judged.
    """
    edge = find_edge(labels, known)
    common = {"method": "windows", "boundary_pixels": edge.count, "coverage": edge.coverage}
    if not edge.count:
        judged = labels if known is None else labels[known]
        return BoxDimension(dimension=None, refused=_no_edge(judged), **common)  # type: ignore[arg-type]
    sizes, places = _judged_places(edge.valid, scaling_range(min(labels.shape)))
    if len(sizes) < MIN_SIZES:
        reason = (
            f"only {len(sizes)} box sizes fit between the holes of the map"
            if not edge.valid.all()
            else f"box sizes that fit: {len(sizes)}, a slope needs {MIN_SIZES}; use a finer map"
        )
        return BoxDimension(dimension=None, refused=reason, **common)  # type: ignore[arg-type]
    shares = _box_shares(edge.cells, sizes, places)
    counts = shares * edge.cells.size / np.square(np.array(sizes, dtype=float))
    return _fitted(sizes, counts, **common)  # type: ignore[arg-type]


def published(labels: Mask, known: Mask | None = None) -> BoxDimension:
    """The public fractal-llm code's number (src/grid_sweep_summary.py), for comparison only.

    Its boundary includes the map's frame, the logarithm is of count + 1, and the sizes are those of
    2..64 below the resolution: an edgeless 64 x 64 map measures 1.152.
    """
    boundary = published_boundary(labels)
    sizes = [size for size in (2, 4, 8, 16, 32, 64) if size < min(labels.shape)]
    coverage = 1.0 if known is None else float(known.mean())
    common = {
        "method": "published",
        "boundary_pixels": int(boundary.sum()),
        "coverage": coverage,
    }
    if len(sizes) < 2:
        reason = "the published method needs at least 5 points per side"
        return BoxDimension(dimension=None, refused=reason, **common)  # type: ignore[arg-type]
    counts = aligned_counts(boundary, sizes)
    slope = -float(np.polyfit(np.log(sizes), np.log(counts + 1), 1)[0])
    return BoxDimension(
        dimension=slope,
        refused=None,
        sizes=tuple(sizes),
        counts=tuple(counts.tolist()),
        local_slopes=_local_slopes(sizes, counts + 1),
        **common,  # type: ignore[arg-type]
    )


def aligned(labels: Mask, known: Mask | None = None) -> BoxDimension:
    """Dimension of the set of True cells itself, from boxes aligned with the map.

    For sets that are exactly self-similar on the map's own grid: sizes are the divisors of the
    side, so that no box is cut, and the counts of an aligned Sierpinski set are exact.
    """
    side = min(labels.shape)
    sizes = [size for size in range(1, side) if all(n % size == 0 for n in labels.shape)]
    coverage = 1.0 if known is None else float(known.mean())
    common = {"method": "aligned", "boundary_pixels": int(labels.sum()), "coverage": coverage}
    if not labels.any():
        reason = "the set is empty"
        return BoxDimension(dimension=None, refused=reason, **common)  # type: ignore[arg-type]
    return _fitted(sizes, aligned_counts(labels, sizes), **common)  # type: ignore[arg-type]


METHODS: Final[dict[str, Callable[[Mask, Mask | None], BoxDimension]]] = {
    "windows": windows,
    "published": published,
    "aligned": aligned,
}


def scaling_range(side: int) -> list[int]:
    """Box sizes for a map of `side` points: about sqrt(2) apart, between the two biases.

    Small boxes see the lattice and not the set, large ones see too little of it: from 4 pitches
    (fewer on small maps) to an eighth of the side, or to 32 where that leaves more room.
    """
    largest = max(side // 8, min(side // 4, 32))
    smallest = min(4, max(1, largest // 16))
    sizes: list[int] = []
    step = 0
    while (size := round(smallest * 2 ** (step / 2))) <= largest:
        if not sizes or size > sizes[-1]:
            sizes.append(size)
        step += 1
    return sizes


def aligned_counts(cells: Mask, sizes: Sequence[int]) -> Counts:
    """How many boxes of a grid from the origin hold a cell, shape (sizes,).

    Boxes that the frame cuts count like whole ones.
    """
    counts = []
    for size in sizes:
        rows = np.logical_or.reduceat(cells, np.arange(0, cells.shape[0], size), axis=0)
        boxes = np.logical_or.reduceat(rows, np.arange(0, cells.shape[1], size), axis=1)
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
    for size in sizes:
        stride = max(1, size // _STEPS_PER_BOX) if places is None else 1
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
        np.cumsum(mirrored, axis=0, dtype=np.int32, out=self.table[1:, 1:])
        np.cumsum(self.table[1:, 1:], axis=1, out=self.table[1:, 1:])

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


def _fitted(
    sizes: Sequence[int], counts: Counts, *, method: str, boundary_pixels: int, coverage: float
) -> BoxDimension:
    """Least squares of ln counts on ln sizes, with the slopes that show whether it is a line."""
    common = {"method": method, "boundary_pixels": boundary_pixels, "coverage": coverage}
    usable = np.isfinite(counts) & (counts > 0)
    chosen, used = np.array(sizes)[usable], counts[usable]
    if len(chosen) < MIN_SIZES:
        reason = (
            f"only {len(chosen)} box sizes could be counted, a slope needs {MIN_SIZES}; "
            "use a finer or more complete map"
        )
        return BoxDimension(dimension=None, refused=reason, **common)  # type: ignore[arg-type]
    x, y = np.log(chosen), np.log(used)
    half = len(chosen) // 2
    return BoxDimension(
        dimension=_slope(x, y),
        refused=None,
        sizes=tuple(int(size) for size in chosen),
        counts=tuple(float(count) for count in used),
        local_slopes=_local_slopes(chosen, used),
        half_slopes=(_slope(x[:half], y[:half]), _slope(x[-half:], y[-half:])),
        **common,  # type: ignore[arg-type]
    )


def _slope(x: Counts, y: Counts) -> float:
    return -float(np.polyfit(x, y, 1)[0])


def _local_slopes(sizes: npt.ArrayLike, counts: Counts) -> tuple[float, ...]:
    slopes = -np.diff(np.log(counts)) / np.diff(np.log(np.asarray(sizes, dtype=float)))
    return tuple(float(slope) for slope in slopes)


def _no_edge(labels: npt.NDArray[np.bool_]) -> str:
    if not labels.size:
        return "no point is known"
    if labels.all():
        return "no edge: every known point is trainable"
    if not labels.any():
        return "no edge: no known point is trainable"
    return "no edge between known neighbours"
