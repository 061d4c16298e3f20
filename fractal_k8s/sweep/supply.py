"""What the rows of a data set give, and what the runs of a sweep ask of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.errors import UsageError
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.training import GPTTraining, Training

Indexes = npt.NDArray[np.int64]

# Padding above this share of the positions is worth a sentence.
_MUCH_PADDING: Final = 0.25


@dataclass(frozen=True)
class DataFacts:
    """A data set under a sweep's settings: rows cut to max_seq_len, in the order of its seed.

    With a seed per point and shuffled rows the order is that of the sweep's own seed, which stands
    for the others.
    """

    max_seq_len: int
    # of the rows to train on, probe rows apart: positions and labels, shape (rows,)
    positions: Indexes = field(repr=False)
    labels: Indexes = field(repr=False)
    probe_rows: int
    # of all conversations: those whose answers begin behind max_seq_len and those without any are
    # left out, those that are cut inside an answer are kept
    conversations: int
    lost: int
    unanswered: int
    cut: int

    @property
    def rows(self) -> int:
        return len(self.labels)

    def first_labels(self, batch_size: int) -> int:
        """Labels of the first batch, what supervised token accounting counts in."""
        return int(self.labels[np.arange(batch_size) % self.rows].sum())

    def fewest_labels(self, batch_size: int) -> int:
        """Labels that a first batch has at least, in whatever order the rows come."""
        repeated = np.arange(batch_size) % self.rows
        return int(np.sort(self.labels)[np.sort(repeated)].sum())

    def padding(self, batch_size: int, part_size: int) -> float:
        """Share of the positions of an epoch's batches that is padding, side by side in parts."""
        batches = max(1, self.rows // batch_size)
        order = np.arange(batches * batch_size).reshape(batches, batch_size) % self.rows
        lengths = self.positions[order]
        parts = np.split(lengths, range(part_size, batch_size, part_size), axis=1)
        made = sum(int(part.max(axis=1).sum()) * part.shape[1] for part in parts)
        return float(1 - lengths.sum() / made)

    def sentences(self) -> list[str]:
        """What a person must know about the data before training on them."""
        texts = []
        if self.lost:
            texts.append(
                f"{self.lost:,} of {self.conversations:,} rows lose their answer at max_seq_len "
                f"{self.max_seq_len} and are left out"
            )
        if self.cut:
            texts.append(f"{self.cut:,} rows are cut inside the answer")
        if self.unanswered:
            texts.append(f"{self.unanswered:,} rows have no answer and are left out")
        return texts

    def notes(self, training: Training) -> list[str]:
        """The sentences, and whether the batches of a training config would be much padding."""
        texts = self.sentences()
        if isinstance(training, GPTTraining) and training.packing == "padded":
            part = training.device_batch_size or training.batch_size
            share = self.padding(training.batch_size, part)
            if share > _MUCH_PADDING:
                remedy = 'training.packing = "packed" has none'
                texts.append(f"{share:.0%} of the positions are padding; {remedy}")
        return texts

    def to_dict(self) -> dict[str, Any]:
        """What is kept of it beside a sweep's outcomes, and printed by `plan --json`."""
        return {
            "conversations": self.conversations,
            "rows": self.rows,
            "probe_rows": self.probe_rows,
            "lost": self.lost,
            "unanswered": self.unanswered,
            "cut": self.cut,
            "labels": int(self.labels.sum()),
            "positions": int(self.positions.sum()),
            "sentences": self.sentences(),
        }


def steps_of(training: Training, data: DataFacts | None) -> int | None:
    """Steps of a run; None while they are not known."""
    if isinstance(training, GPTTraining) and data is not None:
        return training.num_steps(data.first_labels(training.batch_size))
    return training.num_steps()


def most_rows(sweep: Sweep, data: DataFacts) -> tuple[int, int] | None:
    """Steps and rows a step of the run that asks for most rows; None while unknown.

    More tokens are never fewer steps, so only the ends of an axis are looked at; but a larger batch
    may ask for fewer rows or for more.
    """
    chosen = []
    for knob, values in ((sweep.y_knob, sweep.y_values), (sweep.x_knob, sweep.x_values)):
        chosen.append(values if "batch_size" in knob.writes else (values[0], values[-1]))
    asked = []
    for y, x in product(*chosen):
        training = sweep.x_knob.turn(sweep.y_knob.turn(sweep.training, y), x)
        if not isinstance(training, GPTTraining):
            return None
        steps = steps_of(training, data)
        if sweep.spec.seed_policy == "per-point":  # every seed has a first batch of its own
            steps = training.num_steps(data.fewest_labels(training.batch_size))
        if steps is None:
            return None
        asked.append((steps, training.batch_size))
    return max(asked, key=math.prod)


def refuse_repeats(sweep: Sweep, data: DataFacts) -> None:
    """Refuses a sweep some of whose runs would see rows again, unless it says that they may.

    Raises:
        UsageError: with how often the rows would be seen.
    """
    most = most_rows(sweep, data)
    assert isinstance(sweep.training, GPTTraining)  # no other model reads data
    if most is None or sweep.training.allow_repeats:
        return
    asked = math.prod(most)
    if asked > data.rows:
        raise UsageError(
            f"{sweep.name} asks for {most[0]:,} steps of {most[1]:,} rows = {asked:,} rows, its "
            f"data hold {data.rows:,}: rows would be seen up to {-(-asked // data.rows)} times; "
            "accept that with --allow-repeats (training.allow_repeats = true), or ask for fewer "
            "tokens"
        )
