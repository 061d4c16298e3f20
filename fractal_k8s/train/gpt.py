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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fractal_k8s.data.conversations import Row
from fractal_k8s.results.outcome import Outcome, State, failure, loss_facts, storable
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.points import Point
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train import Beat, no_beat
from fractal_k8s.train.batches import Batch, Batches
from fractal_k8s.train.determinism import make_deterministic
from fractal_k8s.train.environment import describe, training_device
from fractal_k8s.train.golden import gpt_losses
from fractal_k8s.train.materials import (
    Materials,
    gpt_training,
    in_order,
    load_materials,
    pinned,
)
from fractal_k8s.train.optimizers import build_optimizers, is_trained
from fractal_k8s.train.packing import BUCKET_RULE
from fractal_k8s.train.probing import Probe
from fractal_k8s.train.schedule import multiplier


class GPTTrainer:
    """Fine-tunes a checkpoint at many points, one after another.

    Args:
        materials: weights and rows to use instead of the sweep's own, for measurements.
    """

    def __init__(
        self,
        sweep: Sweep,
        device: torch.device | None = None,
        *,
        materials: Materials | None = None,
    ) -> None:
        make_deterministic()
        materials = materials or load_materials(sweep)
        self.sweep = pinned(sweep, materials)
        self.training = gpt_training(self.sweep)
        self.device = device or training_device()
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
        # the batches of the last run and of others in the same order, by rows of a step and a part
        self._prepared: dict[tuple[int, int | None], Batches] = {}
        self._prepared_seed = sweep.spec.seed
        self.batches = self._take_batches(self.training, sweep.spec.seed)
        self.probe = self._probe_of(materials.probe)
        self.probe_before = self._probe()
        packing = self.training.packing
        self.environment = describe(
            self.device,
            dtype=self.training.dtype,
            mode=packing,
            bucket_rule=BUCKET_RULE if packing == "packed" else None,
        )

    def golden_losses(self) -> npt.NDArray[np.float32]:
        """Losses of three steps of a fixed small model, with this sweep's settings."""
        return gpt_losses(self.training, self.device)

    def train(self, points: Sequence[Point], beat: Beat = no_beat) -> Iterator[Outcome]:
        """One outcome after another; a run that breaks is a failed point, not the end."""
        for point in points:
            began = time.perf_counter()
            try:
                outcome = self._train_point(point, began, beat)
            except (RuntimeError, MemoryError) as error:  # out of memory, a lost device
                outcome = self._failed(point, error, time.perf_counter() - began)
            yield outcome

    def _take_batches(self, training: GPTTraining, seed: int) -> Batches:
        """Makes `batches` those of a run: its rows of a step, in the order that its seed draws.

        Sizes and seeds differ between points only if asked to; of several orders one is kept.
        """
        if training.data_order == "shuffled" and seed != self._prepared_seed:
            self._prepared.clear()
        self._prepared_seed = seed
        sizes = training.batch_size, training.device_batch_size
        if sizes not in self._prepared:
            rows = in_order(self._rows, training, seed)
            self._prepared[sizes] = self._lay_out(rows, *sizes)
        self.batches = self._prepared[sizes]
        return self.batches

    def _probe_of(self, rows: list[Row]) -> Probe | None:
        """The probe rows as one batch, in parts of the sweep's size whatever a point's is."""
        if not rows:
            return None
        part = self.training.device_batch_size or self.training.batch_size
        return Probe(self.model, self._lay_out(rows, len(rows), part)[0])

    def _lay_out(self, rows: Sequence[Row], size: int, part_size: int | None) -> Batches:
        return Batches(
            rows,
            size,
            self._pad_id,
            self.device,
            part_size=part_size,
            packing=self.training.packing,
        )

    def _probe(self) -> float:
        """Mean loss on the probe rows under the weights as they are; NaN without such rows."""
        return math.nan if self.probe is None else self.probe.loss()

    def num_steps(self, training: GPTTraining) -> int:
        """Steps of the run whose batches were taken last."""
        steps = training.num_steps(self.batches[0].num_labels)
        assert steps is not None  # the first batch and the model are known here
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
        self._take_batches(training, self.sweep.run_seed(point))
        steps = self.num_steps(training)
        self._reset()
        optimizers = build_optimizers(self.parameters, training, self.model.config.n_embd)
        losses: list[float] = []
        for step in range(steps):
            losses.append(float(self._gradients(self.batches[step], training)))
            beat()
            if not math.isfinite(losses[-1]):
                break
            optimizers.step(multiplier(training, step, steps))
        return self._outcome(point, np.array(losses), time.perf_counter() - began)

    def _gradients(self, batch: Batch, training: GPTTraining) -> Tensor:
        """The mean loss over the batch's labels; adds its gradient to the parameters'."""
        total = torch.zeros((), device=self.device)
        for part in batch.parts:
            loss = self.model.loss_sum(
                part.ids,
                part.labels,
                part.places,
                part.layout,
                label_smoothing=training.label_smoothing,
            )
            mean = loss / batch.num_labels
            mean.backward()  # type: ignore[no-untyped-call]
            total += mean.detach()
        return total

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
            probe_before=self.probe_before,
            probe_after=self._probe() if finite else math.nan,
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
