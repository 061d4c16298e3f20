"""Weights & Biases, or a quiet stand-in. Tracking never stops training.

`run` tracks one run in this process; `shards` the points of a worker, and `summary` a whole sweep,
each from a process of its own.
"""

from __future__ import annotations

from fractal_k8s.tracking.run import (
    VARIABLE,
    NoTracker,
    Tracked,
    Tracker,
    open_wandb,
    require_wandb,
)

__all__ = ["VARIABLE", "NoTracker", "Tracked", "Tracker", "open_wandb", "require_wandb"]
