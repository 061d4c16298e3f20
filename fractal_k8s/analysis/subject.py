"""What every analysis reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.results.grid import Grid


@dataclass(frozen=True)
class Subject:
    """A map of labels, and the grid behind it unless it is a bare picture."""

    # trainable or not, and whether that is known; shape (rows, columns)
    labels: Mask
    known: Mask
    grid: Grid | None = None
    # what other commands have found out about the sweep, by kind; see SweepStore.put_note
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, grid: Grid, notes: Mapping[str, Any] | None = None) -> Subject:
        return cls(grid.trainable, grid.known, grid, notes or {})

    @property
    def coverage(self) -> float:
        """Share of the points whose label is known."""
        return float(self.known.mean()) if self.known.size else 0.0
