"""What a map that is not complete says of its edge already: on a coarser lattice of its points.

Points are dealt coarse to fine, so that long before a map has all of them every second or fourth
row and column does. Such a lattice is the map that a coarser sweep would have made. Its dimension
is measured as that of any map of its size, with that size's interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.box_dimension import MIN_SIDE

_MEASURED: Final = ("dimension", "interval", "refused", "coverage", "boundary_pixels", "raw_slope")


@dataclass(frozen=True)
class Lattice:
    """Every so many rows and columns of a map, from the first of both on."""

    row_step: int
    column_step: int

    def of(self, mask: Mask) -> Mask:
        """Its part of an array of shape (rows, columns)."""
        return mask[:: self.row_step, :: self.column_step]


def finest_complete(open_points: Mask) -> Lattice | None:
    """The lattice of most points none of which is still to come, on 64 points a side or more.

    Of two of as many points the one with the longer shorter side, then the one of fewer rows, which
    is dealt first. None if there is none but the map itself, or not even that.

    Args:
        open_points: where an outcome is still to come, shape (rows, columns).
    """
    rows, columns = open_points.shape
    candidates = [Lattice(a, b) for a in _steps(rows) for b in _steps(columns)]

    def rank(lattice: Lattice) -> tuple[int, int, int]:
        shape = lattice.of(open_points).shape
        return shape[0] * shape[1], min(shape), lattice.row_step

    for lattice in sorted(candidates, key=rank, reverse=True):
        if not lattice.of(open_points).any():
            return None if lattice == Lattice(1, 1) else lattice
    return None


def _steps(length: int) -> Iterator[int]:
    """Powers of two that leave so many points of an axis that a dimension can be measured."""
    step = 1
    while -(-length // step) >= MIN_SIDE:
        yield step
        step *= 2


def as_plain_data(
    lattice: Lattice, of_map: tuple[int, ...], measured: dict[str, Any]
) -> dict[str, Any]:
    """What is told of a lattice. Keys: lattice (rows, columns), of (those of the map), steps, and
    dimension, interval, refused, coverage, boundary_pixels, raw_slope as of a map.
    """
    shape = lattice.of(np.zeros(of_map, dtype=bool)).shape
    return {
        "lattice": list(shape),
        "of": list(of_map),
        "steps": [lattice.row_step, lattice.column_step],
        **{key: measured[key] for key in _MEASURED},
    }


def text(found: dict[str, Any] | None) -> str | None:
    """A provisional dimension in words; None if there is none.

    Args:
        found: what `as_plain_data` gave.
    """
    if found is None or found["dimension"] is None:
        return None
    low, high = found["interval"]
    lattice, of_map = (f"{rows} x {columns}" for rows, columns in (found["lattice"], found["of"]))
    return (
        f"{found['dimension']:.3f}, 95 % from {low:.3f} to {high:.3f} (provisional: {lattice} "
        f"lattice of {of_map})"
    )
