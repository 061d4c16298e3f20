"""What points have in common, computed once and replayed bit for bit.

All points start from the same weights and see the same first batch, so its loss, its gradient and,
as the momentum begins at zero, the direction of Muon's first update are the same: only the rates
that multiply them differ. And where points differ in their number of steps alone, and the rates of
the shorter run are those of the longer one's beginning, the shorter run is that beginning.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from fractal_k8s.sweep.points import Point
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.batches import Batch
from fractal_k8s.train.memory import room
from fractal_k8s.train.optimizers import Directions
from fractal_k8s.train.schedule import multiplier
from fractal_k8s.train.step import Stepper

# keys of the config that say nothing but how many steps there are, and how many of them warm up
_LENGTH_KEYS: Final = {"tokens", "flops", "warmup_frac"}
# a first step is no more than half a percent of longer runs
_LONGEST_RUN: Final = 200
# bytes of a trained weight's gradient, and of the state and the direction that follow it
_GRADIENT, _STATE, _DIRECTION = 4, 8, 2
_SPARE: Final = 1 << 30


class FirstStep:
    """The first step of every run on a stepper.

    Keeps one gradient and one direction where memory allows, and otherwise computes them each time:
    the bits are the same.
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self.forget()

    def forget(self) -> None:
        self._batch: Batch | None = None
        self._smoothing = 0.0
        self._loss: Tensor | None = None
        self._gradients: list[Tensor] = []
        self._directions: Directions | None = None

    def gradients(self, batch: Batch, *, keep: bool) -> tuple[Tensor, Directions | None]:
        """As `Stepper.gradients` of a model that was just reset, with directions for its update.

        Args:
            keep: whether a later run can use what this one computes.
        """
        smoothing = self._stepper.training.label_smoothing
        if self._loss is not None and self._batch is batch and self._smoothing == smoothing:
            self._stepper.take_gradients(self._gradients)
            return self._loss, self._directions
        self.forget()
        loss = self._stepper.gradients(batch)
        if keep and self._fits():
            self._batch, self._smoothing, self._loss = batch, smoothing, loss
            self._gradients = self._stepper.keep_gradients()
            self._directions = [] if self._stepper.takes_directions else None
        return loss, self._directions

    def _fits(self) -> bool:
        """Whether there is room for what is kept, beside what the first update will take."""
        elements = sum(parameter.numel() for parameter in self._stepper.trained)
        left = room(self._stepper.device, pooled=self._stepper.pooled)
        return left is None or left > (_GRADIENT + _STATE + _DIRECTION) * elements + _SPARE


@dataclass(frozen=True)
class Trajectory:
    """A run and the points that are read out on its way, by their number of steps, rising."""

    training: GPTTraining
    seed: int
    stops: tuple[tuple[int, Point], ...]

    @property
    def steps(self) -> int:
        return self.stops[-1][0]

    @property
    def points(self) -> list[Point]:
        return [point for _, point in self.stops]

    def is_worth_sharing(self) -> bool:
        return self.steps <= _LONGEST_RUN


@dataclass(frozen=True)
class Run:
    """One point's run: its config, its number of steps, the seed that orders its data."""

    point: Point
    training: GPTTraining
    steps: int
    seed: int

    def experiment(self) -> Hashable:
        """Equal for runs that differ in nothing but their rates over time."""
        return self.seed, self.training.model_dump_json(exclude=_LENGTH_KEYS)

    def rates(self) -> list[float]:
        return [multiplier(self.training, step, self.steps) for step in range(self.steps)]


def alone(runs: Iterable[Run]) -> list[Trajectory]:
    """Every run by itself."""
    return [Trajectory(run.training, run.seed, ((run.steps, run.point),)) for run in runs]


def together(runs: Iterable[Run]) -> list[Trajectory]:
    """The fewest runs on which all of these lie, in the order of their first points.

    A run lies on another if its rates are, float by float, those of the other's first steps.
    """
    kin: dict[Hashable, list[Run]] = {}
    for run in runs:
        kin.setdefault(run.experiment(), []).append(run)
    return [trajectory for family in kin.values() for trajectory in _chains(family)]


def _chains(family: list[Run]) -> list[Trajectory]:
    chains: list[tuple[list[float], list[Run]]] = []
    for run in sorted(family, key=lambda run: -run.steps):
        rates = run.rates()
        for longest, members in chains:
            if longest[: run.steps] == rates:
                members.append(run)
                break
        else:
            chains.append((rates, [run]))
    return [
        Trajectory(
            members[0].training,
            members[0].seed,
            tuple((run.steps, run.point) for run in reversed(members)),
        )
        for _, members in chains
    ]
