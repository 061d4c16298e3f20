"""Points in, outcomes out. `open_trainer` finds the trainer of a sweep's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from fractal_k8s.results.outcome import Environment, Outcome
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.points import Point

Beat = Callable[[], None]


def no_beat() -> None:
    """For callers without a watchdog."""


class Trainer(Protocol):
    """Trains points of one sweep. A point's numbers depend on nothing but the point."""

    environment: Environment

    def train(self, points: Sequence[Point], beat: Beat) -> Iterator[Outcome]:
        """Outcomes of the points, each as soon as it is known, in any order.

        Args:
            beat: called at every step, for the watchdog.
        """
        ...


def open_trainer(sweep: Sweep) -> Trainer:
    """The trainer of the sweep's model, with data and weights loaded and checked.

    Raises:
        CorruptError: weights, tokenizer or data are damaged or are not the sweep's.
        UsageError: they are missing, or cannot be used together.
    """
    if sweep.model == "mlp":
        from fractal_k8s.train.mlp import MLPTrainer

        return MLPTrainer(sweep)
    if sweep.model == "quadratic":
        from fractal_k8s.train.quadratic import QuadraticTrainer

        return QuadraticTrainer(sweep)
    from fractal_k8s.train.gpt import GPTTrainer

    return GPTTrainer(sweep)
