"""What happened at a point, and where it happened."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.sweep.points import Point

Losses = npt.NDArray[np.float32]

# What makes two rows of one point the same result; the rest says where and when it was made.
RESULT_COLUMNS: Final = (
    "state",
    "first_loss",
    "last_mean_loss",
    "ratio",
    "final_loss",
    "mean_loss",
    "steps",
    "tokens_seen",
    "supervised_tokens",
    "run_seed",
    "data_hash",
    "losses",
)
# Those that files of earlier releases lack, where they count as not measured.
LATER_RESULT_COLUMNS: Final = ("probe_before", "probe_after")

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


class State(enum.StrEnum):
    """The state of a stored point. A point without an outcome is missing, which is not stored.

    None ever turns into another by reading: a failed point is not "not trainable", a diverged one
    is a result and not a failure.
    """

    TRAINED = "trained"
    DIVERGED = "diverged"  # a loss became non-finite
    FAILED = "failed"  # crash, out of memory, lost device: says nothing about the hyperparameters


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one training run did. Losses are means per supervised token (gpt) or example (mlp), nat.

    `losses[k]` is the loss before update k, so `losses[0]` is the untrained model's; it ends with
    the first non-finite loss that ended the run, if any.
    """

    index: int
    i: int
    j: int
    y: float
    x: float
    state: State
    run_seed: int
    # how many updates were made
    steps: int = 0
    first_loss: float = float("nan")
    # mean of the last `window` losses, and its share of the first loss
    last_mean_loss: float = float("nan")
    ratio: float = float("nan")
    final_loss: float = float("nan")
    mean_loss: float = float("nan")
    # mean loss over the probe rows, before the first and after the last update; NaN = not measured
    probe_before: float = float("nan")
    probe_after: float = float("nan")
    tokens_seen: int = 0
    supervised_tokens: int = 0
    # wall time of this point's training; in a batch, its share of the batch's time
    seconds: float = 0.0
    # most memory that the worker held while it trained the point: of its GPU, else of its process
    peak_bytes: int | None = None
    # sha256 over the data in the order the run saw it
    data_hash: str = ""
    error: str | None = None
    # shape (number of recorded losses,)
    losses: Losses = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    @property
    def tokens_per_s(self) -> float:
        return self.tokens_seen / self.seconds if self.seconds > 0 else float("nan")


def failure(point: Point, run_seed: int, error: BaseException, seconds: float) -> Outcome:
    """The outcome of a run that broke: a failed point, with what was said."""
    words = str(error).splitlines()
    return Outcome(
        index=point.index,
        i=point.i,
        j=point.j,
        y=point.y,
        x=point.x,
        state=State.FAILED,
        run_seed=run_seed,
        seconds=seconds,
        error=f"{type(error).__name__}: {words[0] if words else ''}",
    )


@dataclass(frozen=True, slots=True)
class Environment:
    """Where an attempt ran. Points of different numerics classes are not one map by themselves."""

    # everything that decides the bits: device, library versions, dtype, batching
    numerics_class: str
    # JSON text: everything that is known to decide the bits, part by part
    fingerprint: str | None = None
    # hash of three training steps of a fixed small model, of the device itself; None = not made.
    # Stored as a part of the fingerprint
    golden: str | None = None
    gpu: str | None = None
    node: str | None = None
    pod: str | None = None
    image: str | None = None
    git_commit: str | None = None
    # JSON text: versions of Python and of the libraries that compute
    versions: str = "{}"


@dataclass(frozen=True, slots=True)
class LossFacts:
    """The numbers that verdicts need, taken from a whole loss series in its own precision."""

    first: float
    last_mean: float
    ratio: float
    final: float
    mean: float


def loss_facts(losses: npt.NDArray[np.floating], window: int) -> LossFacts:
    """First, final and mean loss, and the mean over the last `window` with its share of the first.

    Args:
        losses: shape (steps,), at least one; may hold non-finite values, which then spread.
        window: K of the verdict rule; a shorter series is averaged whole.
    """
    series = losses.astype(np.float64)
    with np.errstate(all="ignore"):
        last_mean = series[-window:].mean()
        facts = (series[0], last_mean, last_mean / series[0], series[-1], series.mean())
    return LossFacts(*(math.nan if math.isnan(fact) else float(fact) for fact in facts))


def storable(losses: npt.NDArray[np.floating]) -> Losses:
    """The series as float32, where only what was non-finite becomes non-finite.

    A finite float64 loss beyond float32's range is stored as float32's largest number, and every
    NaN as the same NaN: its sign and payload depend on the place in a vector register.
    """
    finite = np.clip(losses, -_FLOAT32_MAX, _FLOAT32_MAX)
    kept = np.where(np.isfinite(losses), finite, losses)
    return np.where(np.isnan(losses), np.nan, kept).astype(np.float32)
