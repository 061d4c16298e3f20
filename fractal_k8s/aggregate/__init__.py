"""From a store to pictures: one pass (`one_pass`), a pass until a sweep ends (`until`), and a pass
over every sweep of a store (`every`). worker.py's twin."""

from __future__ import annotations

from fractal_k8s.aggregate.grids import grid_table, read_grid
from fractal_k8s.aggregate.one_pass import Aggregation, aggregate

__all__ = ["Aggregation", "aggregate", "grid_table", "read_grid"]
