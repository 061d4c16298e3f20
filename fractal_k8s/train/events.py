"""What a run tells while it trains: each event as a line for people and as metrics for a tracker.

Metrics are named as fractal-llm's src/finetune.py names them, so that its charts show these runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fractal_k8s.train.finetune import Sample

_GIB = 1024**3
_SHOWN_CHARACTERS = 300


class Event(Protocol):
    """Something that happened after `step` updates."""

    @property
    def step(self) -> int: ...

    def lines(self) -> list[str]:
        """For a terminal and a log."""
        ...

    def metrics(self) -> dict[str, Any]:
        """For a tracker: numbers, and tables as lists of rows."""
        ...


@dataclass(frozen=True)
class Begun:
    """The run is loaded and about to make its first step, or the first since it was resumed."""

    step: int
    run: str
    steps: int
    rows: int
    held_out: int
    ranks: int
    parameters: Mapping[str, int]
    numerics_class: str

    def lines(self) -> list[str]:
        held = f", {self.held_out:,} held out" if self.held_out else ""
        shared = f" on {self.ranks} processes" if self.ranks > 1 else ""
        trained = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        what = f"{self.run}: {self.steps:,} steps{shared} over {self.rows:,} rows{held}"
        return [f"{what}; {self.numerics_class}", f"trained parameters: {trained}"]

    def metrics(self) -> dict[str, Any]:
        counts = {f"model/params_trainable_{name}": n for name, n in self.parameters.items()}
        return {"model/params_trainable": sum(self.parameters.values()), **counts}


@dataclass(frozen=True)
class Stepped:
    """An update was made, or was not because the loss was not finite."""

    step: int
    steps: int
    loss: float
    multiplier: float
    rates: Mapping[str, float]
    tokens_seen: int
    tokens_per_s: float
    # most bytes held so far: of the GPU, else of the process
    peak_bytes: int

    def lines(self) -> list[str]:
        width = len(str(self.steps))
        parts = (
            f"step {self.step + 1:>{width}}/{self.steps}",
            f"loss {self.loss:.4f}",
            f"lr x {self.multiplier:.3f}",
            f"{self.tokens_per_s:,.0f} tokens/s",
            f"{self.peak_bytes / _GIB:.2f} GiB",
        )
        return ["  ".join(parts)]

    def metrics(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "train/loss": self.loss,
            "train/lr_mult": self.multiplier,
            **{f"train/lr_{name}": rate for name, rate in self.rates.items()},
            "train/tokens_seen": self.tokens_seen,
            "train/tokens_per_s": self.tokens_per_s,
            "memory/max_allocated_gb": self.peak_bytes / _GIB,
        }


@dataclass(frozen=True)
class Evaluated:
    """The held-out rows were evaluated."""

    step: int
    loss: float
    rows: int

    def lines(self) -> list[str]:
        return [f"after {self.step} updates: loss {self.loss:.4f} over {self.rows:,} held-out rows"]

    def metrics(self) -> dict[str, Any]:
        return {"val/loss": self.loss}


@dataclass(frozen=True)
class Sampled:
    """Prompts were answered."""

    step: int
    samples: Sequence[Sample]
    # whether their rows are trained on
    seen: bool

    def lines(self) -> list[str]:
        rows = "rows of the training data" if self.seen else "held-out rows"
        lines = [f"after {self.step} updates, answers to {rows}:"]
        for sample in self.samples:
            lines += [
                f"  {_short(_question(sample.prompt))}",
                f"    expected: {_short(sample.expected)}",
                f"    answered: {_short(sample.answer)}",
            ]
        return lines

    def metrics(self) -> dict[str, Any]:
        rows = [{"step": self.step, **vars(sample)} for sample in self.samples]
        return {"samples/generations": rows}


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    step: int
    model: Path

    def lines(self) -> list[str]:
        return [f"saved {self.model}"]

    def metrics(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Noted:
    """Something that a person should know."""

    step: int
    text: str

    def lines(self) -> list[str]:
        return [self.text]

    def metrics(self) -> dict[str, Any]:
        return {}


def _question(prompt: str) -> str:
    """The last line of a prompt, without the special tokens around it."""
    lines = re.sub(r"<\|\w+\|>", "\n", prompt).strip().splitlines()
    return lines[-1] if lines else ""


def _short(text: str) -> str:
    """A text on one line, cut where it is long, with control characters spelled out."""
    line = text.strip().replace("\n", " / ")
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 3] + "..."
