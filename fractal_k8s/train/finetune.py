"""One fine-tune, a step at a time: the numbers, and nothing of files, screens or signals.

In one process its losses are those of the point of a sweep, bit for bit. Several processes share
the rows of every step; their sums are rounded in another order, so their losses are close to those,
and the same bits on every run of as many processes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fractal_k8s.data.loader import Loader
from fractal_k8s.errors import FractalError, UsageError
from fractal_k8s.models.gpt import GPT
from fractal_k8s.models.sample import GREEDY, Choice, generate
from fractal_k8s.results.outcome import loss_facts
from fractal_k8s.results.verdict import (
    is_marginal,
    is_stable,
    is_trainable,
    judged_number,
    probe_ratio,
)
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.supply import refuse_repeats
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.batches import Batch, Batches, digest_of
from fractal_k8s.train.determinism import make_deterministic
from fractal_k8s.train.environment import describe
from fractal_k8s.train.gpt import check_execution, mode_of
from fractal_k8s.train.materials import data_facts, in_order, load_materials, pinned
from fractal_k8s.train.optimizers import Optimizers
from fractal_k8s.train.packing import BUCKET_RULE
from fractal_k8s.train.parallel import Ranks
from fractal_k8s.train.schedule import multiplier
from fractal_k8s.train.step import open_stepper

# As long as the public code lets an answer grow.
_MAX_ANSWER = 250
_ANSWER_SLACK = 20


@dataclass(frozen=True)
class Update:
    """A step that was made: its loss before the update, and what it took."""

    # 0..steps-1
    step: int
    loss: float
    # what the rates were multiplied with
    multiplier: float
    # positions that are not padding, of all ranks
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    """What the model answers to a prompt, and what the data say."""

    prompt: str
    expected: str
    answer: str


class FineTune:
    """A fine-tune of a checkpoint, from its first step on.

    Args:
        sweep: of one point, from `sweep.single`. Its probe rows are held out for evaluation.

    Raises:
        UsageError: files are missing, or rows and ranks do not fit together.
        CorruptError: files are damaged or are not the run's.
    """

    def __init__(self, sweep: Sweep, ranks: Ranks) -> None:
        make_deterministic()
        point = sweep.point(0)
        asked = sweep.training_at(point)
        assert isinstance(asked, GPTTraining)  # `single` takes no other model
        part_size = _part_size(asked, ranks.size)
        check_execution(sweep, ranks.device)
        materials = load_materials(sweep)
        self.sweep = pinned(sweep, materials)
        refuse_repeats(self.sweep, data_facts(self.sweep, materials.rows, materials.probe))
        training = self.sweep.training_at(point)
        assert isinstance(training, GPTTraining)  # as asked, and with what its model takes
        self.training = training
        self.run_seed = sweep.run_seed(point)
        self.ranks = ranks
        self.tokenizer = materials.tokenizer
        self.tokenizer_folder = materials.files.tokenizer.parent
        self.left_out = materials.rows.left_out
        self.stepper = open_stepper(materials.model.to(ranks.device), training)
        self._pad_id = materials.tokenizer.special["<|assistant_end|>"]
        self.held_out = materials.probe
        self.loader = Loader(
            in_order(materials.rows.rows, training, self.run_seed),
            training.batch_size,
            rank=ranks.rank,
            ranks=ranks.size,
        )
        self.batches = self._batches(self.loader.share, self.loader.share_size, part_size)
        steps = training.num_steps(self.loader.num_labels(0))
        assert steps is not None  # the first batch and the model are known here
        self.steps = steps
        if training.execution != "eager":  # what is compiled is compiled before the first step
            for step in range(min(steps, self.batches.period)):
                self.stepper.prepare(self.batches[step])
        self.stepper.reset(training)
        self.environment = describe(
            ranks.device,
            dtype=training.dtype,
            mode=mode_of(training),
            bucket_rule=BUCKET_RULE if training.packing == "packed" else None,
        )
        self.losses: list[float] = []
        # loss on the held-out rows before the first and after the last update, where measured
        self.probe_losses = (math.nan, math.nan)
        self.tokens_seen = self.supervised_tokens = 0
        self.seconds = 0.0
        self._data = hashlib.sha256()

    # --- where it is ---

    @property
    def model(self) -> GPT:
        return self.stepper.model

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return self.stepper.parameters

    @property
    def optimizers(self) -> Optimizers:
        return self.stepper.optimizers

    @property
    def step(self) -> int:
        """How many losses were computed; the step that comes next."""
        return len(self.losses)

    @property
    def has_diverged(self) -> bool:
        return bool(self.losses) and not math.isfinite(self.losses[-1])

    @property
    def is_over(self) -> bool:
        return self.step == self.steps or self.has_diverged

    @property
    def updates(self) -> int:
        """How many updates the weights have had."""
        return self.step - self.has_diverged

    @property
    def data_hash(self) -> str:
        """sha256 over the rows of the steps so far, as a point's outcome has it."""
        return self._data.copy().hexdigest()

    def weights_digest(self) -> bytes:
        """sha256 over all weights, in the model's order."""
        total = hashlib.sha256()
        for parameter in self.parameters.values():
            total.update(parameter.detach().cpu().contiguous().numpy().data)
        return total.digest()

    def check_ranks(self) -> bytes:
        """Makes sure that all ranks hold the same weights and have seen the same rows.

        Returns:
            the digest of the weights.

        Raises:
            FractalError: they do not.
        """
        seen = f"{self.data_hash} {self.sweep.id} {self.steps} {self.losses!r}"
        self.ranks.check_same(f"step {self.step}", hashlib.sha256(seen.encode()).digest())
        digest = self.weights_digest()
        self.ranks.check_same(f"weights at step {self.step}", digest)
        return digest

    # --- steps ---

    def update(self) -> Update:
        """Makes the next step. A loss that is not finite ends the run without an update.

        Raises:
            FractalError: there is not enough memory.
        """
        began = time.perf_counter()
        step = self.step
        rate = multiplier(self.training, step, self.steps)
        try:
            loss = self._global_loss(self.batches[step], self.loader.num_labels(step))
            if math.isfinite(loss):
                self.ranks.add_up(
                    part.grad for part in self.stepper.trained if part.grad is not None
                )
                self.stepper.update(rate)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise FractalError(
                f"out of memory at step {step} ({str(error).splitlines()[0]}); give a smaller "
                "training.device_batch_size, which leaves the step what it is"
            ) from None
        tokens = self._note(step, loss)
        seconds = time.perf_counter() - began
        self.seconds += seconds
        return Update(step, loss, rate, tokens, seconds)

    def _global_loss(self, batch: Batch, num_labels: int) -> float:
        """The mean loss over the step's labels on all ranks; leaves this rank's gradients."""
        loss = self.stepper.gradients(replace(batch, num_labels=num_labels)).clone()
        self.ranks.add_up([loss])
        return float(loss)

    def _note(self, step: int, loss: float) -> int:
        """Counts a step's rows; returns its tokens."""
        self.losses.append(loss)
        rows = self.loader.rows_of(step)
        tokens = sum(len(row.ids) - 1 for row in rows)
        self._data.update(digest_of(rows))
        self.tokens_seen += tokens
        self.supervised_tokens += self.loader.num_labels(step)
        return tokens

    def _batches(self, rows: Any, size: int, part_size: int | None = None) -> Batches:
        return Batches(
            rows,
            size,
            self._pad_id,
            self.ranks.device,
            part_size=part_size,
            packing=self.training.packing,
        )

    # --- looking at it ---

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over the labels of the held-out rows, in nats, without label smoothing."""
        size = self.training.device_batch_size or self.training.batch_size
        sums = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)
        for number, start in enumerate(range(0, len(self.held_out), size)):
            if number % self.ranks.size == self.ranks.rank:
                rows = self.held_out[start : start + size]
                for part in self._batches(rows, len(rows))[0].parts:
                    sums[0] += self.model.loss_sum(part.ids, part.labels, part.places, part.layout)
                    sums[1] += part.num_labels
        self.ranks.add_up([sums])
        loss, labels = sums.tolist()
        return float(loss / labels)

    def samples(self, count: int, choice: Choice = GREEDY) -> list[Sample]:
        """Answers to the prompts of the first held-out rows, else of the file's last rows."""
        rows = self.held_out[:count] if self.held_out else self.loader.last_rows(count)
        start = self.tokenizer.special["<|assistant_start|>"]
        begins = [len(row.ids) - row.ids[::-1].index(start) for row in rows]
        prompts = [row.ids[:begin] for row, begin in zip(rows, begins, strict=True)]
        expected = [row.ids[begin:] for row, begin in zip(rows, begins, strict=True)]
        answers = generate(
            self.model,
            prompts,
            limits=[min(_MAX_ANSWER, len(ids) + _ANSWER_SLACK) for ids in expected],
            stop_ids=(self._pad_id, self.tokenizer.special["<|bos|>"]),
            choice=choice,
        )
        return [
            Sample(self._text(prompt), self._text(wanted), self._text(answer))
            for prompt, wanted, answer in zip(prompts, expected, answers, strict=True)
        ]

    def _text(self, ids: Any) -> str:
        return self.tokenizer.decode([number for number in ids if number != self._pad_id])

    def rates(self) -> dict[str, float]:
        """The learning rate of each trained group at the last update.

        Attention and MLP stand as `matrix` where they have one rate.
        """
        groups = (group for member in self.optimizers.members for group in member.param_groups)
        rates = {str(group["name"]): float(group["lr"]) for group in groups}
        if "mlp" in rates and rates["mlp"] == rates.get("attention"):
            rates["matrix"] = rates.pop("mlp")
            del rates["attention"]
        return rates

    def facts(self) -> dict[str, Any]:
        """The numbers of an outcome and the verdict, as plain data."""
        rule = self.sweep.verdict
        facts = loss_facts(np.array(self.losses), rule.window)
        final = np.array(facts.final)
        stable = is_stable(np.array(self.is_over), final)
        number = judged_number(
            rule,
            ratio=np.array(facts.ratio),
            final_loss=final,
            probe_ratio=probe_ratio(*self.probe_losses),
        )
        return {
            "state": "diverged" if self.has_diverged else "trained",
            "stable": bool(stable),
            "trainable": bool(is_trainable(rule, stable, number)),
            "marginal": bool(is_marginal(rule, stable, number)),
            "probe_before": self.probe_losses[0],
            "probe_after": self.probe_losses[1],
            "steps": self.updates,
            "first_loss": facts.first,
            "last_mean_loss": facts.last_mean,
            "ratio": facts.ratio,
            "final_loss": facts.final,
            "mean_loss": facts.mean,
            "tokens_seen": self.tokens_seen,
            "supervised_tokens": self.supervised_tokens,
            "seconds": self.seconds,
            "run_seed": self.run_seed,
            "data_hash": self.data_hash,
        }

    # --- going on where it was left ---

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and optimizer state, as plain data."""
        return {
            "losses": self.losses,
            "tokens_seen": self.tokens_seen,
            "supervised_tokens": self.supervised_tokens,
            "seconds": self.seconds,
            "loader": {**self.loader.state(self.step), "data_hash": self.data_hash},
        }

    def restore(
        self,
        weights: Mapping[str, Tensor],
        optimizers: list[dict[str, Any]],
        progress: Mapping[str, Any],
    ) -> None:
        """Takes up a run where a checkpoint left it; the next step is the one after its last.

        Raises:
            UsageError: the rows so far would be others than those that the checkpoint has seen.
        """
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        self.optimizers.load_state_dict(optimizers)
        self.losses, self._data = [], hashlib.sha256()
        self.tokens_seen = self.supervised_tokens = 0
        for step, loss in enumerate(progress["losses"]):
            self._note(step, loss)
        if self.data_hash != progress["loader"]["data_hash"]:
            raise UsageError(
                f"the rows of the first {self.step} steps are not those that the run was trained "
                "on; this release orders them otherwise, start a new run with another --out"
            )
        self.seconds = float(progress["seconds"])


def _part_size(training: GPTTraining, ranks: int) -> int:
    """Rows that go through the model together on one rank.

    Raises:
        UsageError: the rows of a step cannot be shared out evenly.
    """
    size = training.batch_size
    if size % ranks:
        raise UsageError(
            f"training.batch_size {size} cannot be shared by {ranks} processes: choose a multiple "
            f"of {ranks}, or as many processes as divide {size}"
        )
    share = size // ranks
    part = min(training.device_batch_size or share, share)
    if share % part:
        raise UsageError(
            f"training.device_batch_size {part} does not divide the {share} rows of a process "
            f"({size} over {ranks})"
        )
    return part
