"""Trains points of a GPT sweep one after another on one model that stays loaded.

Between two points the weights are copied back in place and the optimizers are made anew, so a point
leaves nothing behind for the next one: its losses are the same bits alone, in a shard, or after a
restart.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from fractal_k8s.checkpoints.files import CheckpointFiles, find_checkpoint
from fractal_k8s.checkpoints.nanochat import load_weights
from fractal_k8s.checkpoints.tokenizer import Tokenizer, load_tokenizer
from fractal_k8s.data.conversations import Rows, file_digest, read_rows
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.models.gpt import GPT, config_from_dict
from fractal_k8s.results.outcome import Outcome, State, failure, loss_facts, storable
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.points import Point
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train import Beat, no_beat
from fractal_k8s.train.batches import Batches
from fractal_k8s.train.determinism import make_deterministic
from fractal_k8s.train.environment import describe, training_device
from fractal_k8s.train.optimizers import build_optimizers, is_trained
from fractal_k8s.train.schedule import multiplier

_ORDER_STREAM: Final = 4


@dataclass(frozen=True)
class Materials:
    """What a sweep trains with, loaded, and checked against each other."""

    files: CheckpointFiles
    model: GPT
    tokenizer: Tokenizer
    rows: Rows
    checkpoint_digest: str
    dataset_digest: str


def load_materials(sweep: Sweep) -> Materials:
    """Finds, loads and checks the checkpoint and the data of a sweep.

    Raises:
        UsageError: something is missing, or tokenizer and weights do not fit together.
        CorruptError: something is damaged, or is not what the sweep was launched with.
    """
    training = _training(sweep)
    files = find_checkpoint(_checkpoint_folder(sweep))
    data = _dataset_file(sweep)
    digest = files.digest()
    _check_digest("checkpoint", files.model, sweep.spec.checkpoint_digest, digest)
    weights = load_weights(files)
    try:
        config = config_from_dict(weights.model_config)
    except ValueError as error:
        raise CorruptError(
            f"{files.meta}: model_config {error}; this release reads nanochat 8f979a8's"
        ) from None
    try:
        model = GPT.from_weights(
            config, _masters(weights.tensors, files), compute_dtype=getattr(torch, training.dtype)
        )
    except ValueError as error:
        raise CorruptError(f"{files.model}: does not fit {files.meta.name}: {error}") from None
    tokenizer = load_tokenizer(files.tokenizer.parent)
    if tokenizer.vocab_size != config.vocab_size:
        raise CorruptError(
            f"{files.tokenizer}: has {tokenizer.vocab_size:,} tokens, the weights in {files.model} "
            f"have {config.vocab_size:,}; use the tokenizer that was trained with them"
        )
    if training.max_seq_len > config.max_positions:
        raise UsageError(
            f"training.max_seq_len {training.max_seq_len} is more than the checkpoint's "
            f"{config.max_positions} positions"
        )
    rows = read_rows(data, tokenizer, training.max_seq_len)
    data_digest = file_digest(data)
    _check_digest("data set", data, sweep.spec.dataset_digest, data_digest)
    return Materials(files, model, tokenizer, rows, digest, data_digest)


def _training(sweep: Sweep) -> GPTTraining:
    assert isinstance(sweep.training, GPTTraining)  # a gpt sweep has a gpt config
    return sweep.training


def _checkpoint_folder(sweep: Sweep) -> Path:
    reference = sweep.spec.checkpoint
    if reference is None:
        raise UsageError(f"{sweep.name} needs weights: give --checkpoint FOLDER")
    return Path(reference).expanduser()


def _dataset_file(sweep: Sweep) -> Path:
    kind, _, file = sweep.spec.dataset.partition(":")
    if kind != "conversations":
        raise UsageError(
            f"data set {sweep.spec.dataset!r} cannot be read by this release; "
            "give --dataset conversations:FILE.jsonl or conversations:FILE.parquet"
        )
    if not file:
        raise UsageError(f"{sweep.name} needs data: give --dataset conversations:FILE")
    return Path(file).expanduser()


def _check_digest(what: str, path: Path, expected: str | None, found: str) -> None:
    if expected is not None and expected != found:
        raise CorruptError(
            f"{what} {path}: its sha256 is {found[:12]}..., the sweep was launched with "
            f"{expected[:12]}...; give the original files, or launch a new sweep"
        )


def _masters(tensors: dict[str, Tensor], files: CheckpointFiles) -> dict[str, Tensor]:
    """The weights in float32, whatever the file has: small updates must not be rounded away."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CorruptError(f"{files.model}: {name} holds {tensor.dtype}, not weights")
        if not bool(tensor.isfinite().all()):
            raise CorruptError(f"{files.model}: {name} holds values that are not finite")
    return {name: tensor.float() for name, tensor in tensors.items()}


class GPTTrainer:
    """Fine-tunes a checkpoint at many points, one after another."""

    def __init__(self, sweep: Sweep, device: torch.device | None = None) -> None:
        make_deterministic()
        self.sweep = sweep
        self.training = _training(sweep)
        self.device = device or training_device()
        materials = load_materials(sweep)
        self.model = materials.model.to(self.device)
        self.model.train()
        self.parameters: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(is_trained(name, self.training))
        self._pristine = {
            name: parameter.detach().clone()
            for name, parameter in self.parameters.items()
            if parameter.requires_grad
        }
        self._rows = materials.rows.rows
        self._pad_id = materials.tokenizer.special["<|assistant_end|>"]
        self.batches = self._batches(sweep.spec.seed)
        self._batches_seed = sweep.spec.seed
        self.environment = describe(self.device, dtype=self.training.dtype, mode="padded")

    def train(self, points: Sequence[Point], beat: Beat = no_beat) -> Iterator[Outcome]:
        """One outcome after another; a run that breaks is a failed point, not the end."""
        for point in points:
            began = time.perf_counter()
            try:
                outcome = self._train_point(point, began, beat)
            except (RuntimeError, MemoryError) as error:  # out of memory, a lost device
                outcome = self._failed(point, error, time.perf_counter() - began)
            yield outcome

    def _batches(self, seed: int) -> Batches:
        """The batches of a run: in the file's order, or in the order that its seed draws."""
        rows = self._rows
        if self.training.data_order == "shuffled":
            order = np.random.RandomState([seed, _ORDER_STREAM]).permutation(len(rows))
            rows = [rows[k] for k in order]
        return Batches(rows, self.training.batch_size, self._pad_id, self.device)

    def _take_order(self, seed: int) -> None:
        """Makes `batches` those of a run's seed; seeds differ between points only if asked to."""
        if self.training.data_order == "shuffled" and seed != self._batches_seed:
            self.batches, self._batches_seed = self._batches(seed), seed

    def num_steps(self, training: GPTTraining) -> int:
        steps = training.num_steps()
        if steps is None:  # supervised accounting: the first batch's labels are the unit
            steps = max(1, math.ceil(training.tokens / self.batches[0].num_labels))
        return steps

    def _reset(self) -> None:
        """The model as it was loaded, in place."""
        with torch.no_grad():
            for name, tensor in self._pristine.items():
                self.parameters[name].copy_(tensor)
        self.model.zero_grad(set_to_none=True)

    def _train_point(self, point: Point, began: float, beat: Beat) -> Outcome:
        training = self.sweep.training_at(point)
        assert isinstance(training, GPTTraining)  # knobs of a gpt sweep turn a gpt config
        self._take_order(self.sweep.run_seed(point))
        steps = self.num_steps(training)
        self._reset()
        optimizers = build_optimizers(self.parameters, training, self.model.config.n_embd)
        losses: list[float] = []
        for step in range(steps):
            batch = self.batches[step]
            loss = self.model.loss(batch.ids, batch.labels)
            losses.append(float(loss.detach()))
            beat()
            if not math.isfinite(losses[-1]):
                break
            loss.backward()  # type: ignore[no-untyped-call]
            self._update(optimizers, training, multiplier(training, step, steps))
        return self._outcome(point, np.array(losses), time.perf_counter() - began)

    def _update(
        self, optimizers: list[torch.optim.Optimizer], training: GPTTraining, factor: float
    ) -> None:
        if training.clip_norm is not None:
            trained = [self.parameters[name] for name in self._pristine]
            nn.utils.clip_grad_norm_(trained, training.clip_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _outcome(
        self, point: Point, losses: np.ndarray[tuple[int], np.dtype[np.float64]], seconds: float
    ) -> Outcome:
        facts = loss_facts(losses, self.sweep.verdict.window)
        finite = bool(np.isfinite(losses[-1]))
        steps = len(losses) if finite else len(losses) - 1
        seen = [self.batches[step] for step in range(len(losses))]
        return Outcome(
            index=point.index,
            i=point.i,
            j=point.j,
            y=point.y,
            x=point.x,
            state=State.TRAINED if finite else State.DIVERGED,
            run_seed=self.sweep.run_seed(point),
            steps=steps,
            first_loss=facts.first,
            last_mean_loss=facts.last_mean,
            ratio=facts.ratio,
            final_loss=facts.final,
            mean_loss=facts.mean,
            tokens_seen=sum(batch.num_tokens for batch in seen),
            supervised_tokens=sum(batch.num_labels for batch in seen),
            seconds=seconds,
            data_hash=self.batches.data_hash(len(losses)),
            losses=storable(losses),
        )

    def _failed(self, point: Point, error: Exception, seconds: float) -> Outcome:
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # a device that is lost cannot be tidied
                torch.cuda.empty_cache()
        return failure(point, self.sweep.run_seed(point), error, seconds)
