"""Where to zoom next: boxes around the edge that are mixed and coherent.

Counting edge cells would walk into isolated dust, where every cell is an edge and a zoom shows more
dust. So a box is scored by three factors:

- mixing: min(f, 1 - f), with f the share of trainable points. "rough": in windows a quarter as wide
  as the box, averaged over it, which says how much of the box is near the edge. "balanced": over
  the box as a whole, which is best where one clean edge halves it;
- coherence: agreement of neighbours' labels beyond chance, along columns times along rows: 0 for
  dust whatever its density, near 1 for a clean edge;
- the share of its points that are known.

A box is centred on an edge cell, so that there is something to see in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.analysis.boundary import Mask, find_edge

Indexes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Ends = tuple[int, int]

# what is sought -> windows of mixing across a box
SEEK: Final = {"rough": 4, "balanced": 1}
# Scores that differ by less are ties: what is left of rounding.
_DIGITS: Final = 12


@dataclass(frozen=True)
class Target:
    """A box of points, first and last row and column included, and what speaks for it."""

    rows: Ends
    columns: Ends
    score: float
    # 0 to 0.5
    mixing: float
    # 0 to 1
    coherence: float
    # share of the points whose label is known
    known: float


def best_boxes(
    labels: Mask, known: Mask, intervals: Ends, number: int = 1, seek: str = "rough"
) -> list[Target]:
    """The best boxes that do not overlap, best first; fewer if the map has no more.

    Of boxes with equal scores the one nearest to the map's centre counts, of those the one with the
    lower row, then the lower column.

    Args:
        labels: trainable or not, shape (rows, columns).
        known: where the label is known.
        intervals: pitches of the lattice that a box spans along rows and columns.
        number: how many boxes.
        seek: which kind of place, from SEEK.
    """
    height, width = intervals
    rows, columns = labels.shape
    i, j = np.nonzero(find_edge(labels, known).cells)
    top, left = i - (height - 1) // 2, j - (width - 1) // 2
    inside = (top >= 0) & (left >= 0) & (top + height < rows) & (left + width < columns)
    boxes = _Boxes(top[inside], left[inside], height + 1, width + 1)
    mixing = _mixing(labels & known, known, boxes, SEEK[seek])
    coherence = _coherence(labels, known, boxes)
    share = boxes.sums(known) / (boxes.height * boxes.width)
    scores = np.round(mixing * coherence * share, _DIGITS)
    chosen: list[Target] = []
    for k in np.lexsort((boxes.left, boxes.top, boxes.offsets(rows, columns), -scores)):
        i0, j0 = int(boxes.top[k]), int(boxes.left[k])
        facts = (float(fact[k]) for fact in (scores, mixing, coherence, share))
        target = Target((i0, i0 + height), (j0, j0 + width), *facts)
        if target.score > 0 and not any(_overlap(target, other) for other in chosen):
            chosen.append(target)
        if len(chosen) == number:
            break
    return chosen


@dataclass(frozen=True)
class _Boxes:
    """Boxes of one size by their first cells, shape (boxes,) each."""

    top: Indexes
    left: Indexes
    # cells along rows and columns
    height: int
    width: int

    def sums(self, cells: npt.NDArray[np.generic], fewer: Ends = (0, 0)) -> Floats:
        """Sum of the cells in each box, which may be some rows and columns smaller. (boxes,)"""
        table = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1))
        table[1:, 1:] = cells.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
        bottom, right = self.top + self.height - fewer[0], self.left + self.width - fewer[1]
        sums: Floats = table[bottom, right] - table[self.top, right]
        sums += table[self.top, self.left] - table[bottom, self.left]
        return sums

    def offsets(self, rows: int, columns: int) -> Floats:
        """Distance of each box's centre from the map's, without rounding noise."""
        down = 2 * self.top + self.height - rows
        right = 2 * self.left + self.width - columns
        return np.sqrt((down**2 + right**2).astype(np.float64))


def _mixing(labels: Mask, known: Mask, boxes: _Boxes, across: int) -> Floats:
    """min(f, 1 - f) of every window in a box, averaged; a window without a known point has 0."""
    height, width = max(2, boxes.height // across), max(2, boxes.width // across)
    shape = (labels.shape[0] - height + 1, labels.shape[1] - width + 1)
    if min(shape) < 1:
        return np.zeros(len(boxes.top))
    top, left = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    windows = _Boxes(top, left, height, width)
    share = windows.sums(labels) / np.maximum(windows.sums(known), 1)
    mixed = np.minimum(share, 1 - share).reshape(shape)
    count = (boxes.height - height + 1) * (boxes.width - width + 1)
    return boxes.sums(mixed, (height - 1, width - 1)) / max(count, 1)


def _coherence(labels: Mask, known: Mask, boxes: _Boxes) -> Floats:
    """Agreement of neighbours beyond chance along columns, times the same along rows."""
    share = boxes.sums(labels & known) / np.maximum(boxes.sums(known), 1)
    chance = share**2 + (1 - share) ** 2
    coherence = np.ones(len(boxes.top))
    for axis in (0, 1):
        fewer = (1, 0) if axis == 0 else (0, 1)
        both = _pairs(known, axis, np.logical_and)
        same = both & ~_pairs(labels, axis, np.logical_xor)
        agreement = boxes.sums(same, fewer) / np.maximum(boxes.sums(both, fewer), 1)
        coherence *= np.clip((agreement - chance) / np.maximum(1 - chance, 1e-9), 0, 1)
    return coherence


def _pairs(array: Mask, axis: int, combine: np.ufunc) -> Mask:
    """`combine` of each point and the next one along an axis."""
    first, second = (array[:-1], array[1:]) if axis == 0 else (array[:, :-1], array[:, 1:])
    combined: Mask = combine(first, second)
    return combined


def _overlap(one: Target, other: Target) -> bool:
    """Whether two boxes share more than a border."""
    apart_rows = one.rows[1] <= other.rows[0] or one.rows[0] >= other.rows[1]
    apart_columns = one.columns[1] <= other.columns[0] or one.columns[0] >= other.columns[1]
    return not (apart_rows or apart_columns)
