"""The edge between trainable and not: where it is, and where it cannot be known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Edge:
    """Edge cells of a map of labels. Both arrays have shape (rows - 1, columns - 1).

    Cell (i, j) is the 2 x 2 window of points (i..i+1, j..j+1).
    """

    # windows that hold both labels
    cells: Mask
    # windows whose four labels are all known
    valid: Mask

    @property
    def count(self) -> int:
        return int(self.cells.sum())

    @property
    def coverage(self) -> float:
        """Share of the windows whose labels are all known."""
        return float(self.valid.mean()) if self.valid.size else 0.0


def find_edge(labels: Mask, known: Mask | None = None) -> Edge:
    """Edge cells by label change in 2 x 2 windows (arXiv:2402.06184's definition).

    The frame of the map is never an edge, and a window with an unknown label is not judged.

    Args:
        labels: shape (rows, columns).
        known: where the label is known; None = everywhere.
    """
    if known is None:
        known = np.ones(labels.shape, dtype=bool)
    valid = _corners(known, np.logical_and)
    some, every = _corners(labels, np.logical_or), _corners(labels, np.logical_and)
    return Edge(cells=valid & some & ~every, valid=valid)


def _corners(array: Mask, combine: np.ufunc) -> Mask:
    rows = combine(array[1:], array[:-1])
    combined: Mask = combine(rows[:, 1:], rows[:, :-1])
    return combined


def published_boundary(labels: Mask) -> Mask:
    """The public fractal-llm code's boundary, for comparison with its figures only.

    Dilation XOR erosion with a cross-shaped element, where everything outside the map counts as not
    trainable: the frame becomes boundary wherever trainable points touch it, and an edge is two
    cells thick. Shape (rows, columns).
    """
    padded = np.pad(labels, 1)
    centre = padded[1:-1, 1:-1]
    sides = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    dilated, eroded = centre.copy(), centre.copy()
    for side in sides:
        dilated |= side
        eroded &= side
    return dilated ^ eroded
