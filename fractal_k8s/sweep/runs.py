"""What the runs of a sweep are made of: steps, warmup steps, rows of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fractal_k8s.sweep.axes import STEPS, WARMUP
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.supply import DataFacts, steps_of
from fractal_k8s.sweep.training import GPTTraining, Training

Indexes = npt.NDArray[np.int64]
Span = tuple[int, int]


@dataclass(frozen=True)
class Batching:
    """Fewest and most of what the steps of a fine-tuning sweep are made of."""

    rows: Span
    # positions of a step whose rows are all of full length
    tokens: Span
    # rows that go through the model together; None = all of a step
    part_rows: int | None
    # None while the number of steps is not known
    warmup_steps: Span | None


def run_steps(sweep: Sweep, data: DataFacts | None = None) -> Indexes | None:
    """Steps of each point that does not end early, shape (rows, columns); None if not known.

    Args:
        data: what supervised token accounting counts in.
    """
    if steps_of(sweep.training_at(sweep.point(0)), data) is None:
        return None
    return _per_point(sweep, lambda training: steps_of(training, data) or 0)


def _per_point(sweep: Sweep, count: Callable[[Training], int]) -> Indexes:
    """A number of each point's config that only knobs which affect steps can change."""
    shape = (sweep.rows, sweep.columns)
    by_row, by_column = (knob.affects == STEPS for knob in (sweep.y_knob, sweep.x_knob))
    if sweep.is_scattered or (by_row and by_column):
        points = (sweep.training_at(sweep.point(p)) for p in range(sweep.num_points))
        return np.array([count(training) for training in points], dtype=np.int64).reshape(shape)
    if by_column:
        configs = [sweep.x_knob.turn(sweep.training, value) for value in sweep.x_values]
        columns = np.array([count(training) for training in configs], dtype=np.int64)
        return np.broadcast_to(columns, shape)
    values = sweep.y_values if by_row else sweep.y_values[:1]
    configs = [sweep.y_knob.turn(sweep.training, value) for value in values]
    rows = np.array([count(training) for training in configs], dtype=np.int64)
    return np.broadcast_to(rows[:, None], shape)


def batching(sweep: Sweep, steps: Indexes | None) -> Batching | None:
    """What a fine-tuning sweep's steps are made of; None for other models.

    Args:
        steps: from `run_steps`.
    """
    training = sweep.training
    if not isinstance(training, GPTTraining):
        return None
    sizes = {training.batch_size}
    fractions = {training.warmup_frac}
    for knob, values in ((sweep.y_knob, sweep.y_values), (sweep.x_knob, sweep.x_values)):
        if "batch_size" in knob.writes:
            sizes = {knob.turn(training, value).batch_size for value in values}  # type: ignore[union-attr]
        elif knob.affects == WARMUP:
            fractions = set(values)
    rows = min(sizes), max(sizes)
    return Batching(
        rows=rows,
        tokens=(rows[0] * training.max_seq_len, rows[1] * training.max_seq_len),
        part_rows=training.device_batch_size,
        warmup_steps=None if steps is None else _warmup(training, fractions, steps),
    )


def _warmup(training: GPTTraining, fractions: set[float], steps: Indexes) -> Span:
    """Both ends: a larger fraction and more steps never make a shorter warmup."""
    ends = ((min(fractions), int(steps.min())), (max(fractions), int(steps.max())))
    low, high = (
        training.model_copy(update={"warmup_frac": fraction}).warmup_steps(count)
        for fraction, count in ends
    )
    return low, high
