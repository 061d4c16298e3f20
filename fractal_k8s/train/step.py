"""One training step after another on a model that stays loaded: gradients, update, reset in place.

Everything lies where it lay at the point before: the weights are copied back, the optimizers'
state is cleared, the rates are filled in. So there is nothing to compile, to capture or to allocate
anew between two points, and nothing of a point is left for the next one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from fractal_k8s.models.attention import Layout
from fractal_k8s.models.gpt import GPT
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.batches import Batch
from fractal_k8s.train.optimizers import (
    Directions,
    Optimizers,
    build_optimizers,
    is_trained,
)
from fractal_k8s.train.packing import MicroBatch


class Stepper:
    """Makes the steps of runs that all start from the weights the model has now."""

    # whether update directions can be taken over from an earlier step
    takes_directions = True
    # whether it works in memory that is reserved for it, which counts as free
    pooled = False

    def __init__(self, model: GPT, training: GPTTraining) -> None:
        self.model = model.train()
        self.training = training
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(is_trained(name, training))
        self.trained = [part for part in self.parameters.values() if part.requires_grad]
        self._pristine = [parameter.detach().clone() for parameter in self.trained]
        self.device = self.trained[0].device
        self._num_labels = torch.ones((), device=self.device)
        self.optimizers = self._new_optimizers()

    def _new_optimizers(self) -> Optimizers:
        return build_optimizers(self.parameters, self.training, self.model.config.n_embd)

    def prepare(self, batch: Batch) -> None:
        """Makes what steps over batches of this shape need; may move weights, so reset after it."""

    def reset(self, training: GPTTraining) -> None:
        """The weights as they were loaded and the optimizers as new, for a run of this config."""
        self.training = training
        with torch.no_grad():
            for parameter, tensor in zip(self.trained, self._pristine, strict=True):
                parameter.copy_(tensor)
        self.optimizers.reset(training)

    def gradients(self, batch: Batch) -> Tensor:
        """The mean loss over the batch's labels, a scalar on the device; leaves its gradient."""
        self._num_labels.fill_(batch.num_labels)
        total = torch.zeros((), device=self.device)
        for part in batch.parts:
            total += self._gradients_of(part)
        return total

    def _gradients_of(self, part: MicroBatch) -> Tensor:
        """A part's share of the mean loss; adds its gradient to the parameters'."""
        loss = self.model.loss_sum(
            part.ids,
            part.labels,
            part.places,
            part.layout,
            label_smoothing=self.training.label_smoothing,
        )
        share = loss / self._num_labels
        share.backward()  # type: ignore[no-untyped-call]
        return share.detach()

    def update(self, multiplier: float, directions: Directions | None = None) -> None:
        """Moves the weights; the gradients are gone afterwards. See `Optimizers.step`."""
        self.optimizers.step(multiplier, directions)

    def keep_gradients(self) -> list[Tensor]:
        """The gradients of now, safe from what follows."""
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        clipped = self.training.clip_norm is not None  # which happens in place
        return [gradient.clone() for gradient in gradients] if clipped else gradients

    def take_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Puts kept gradients in the place of new ones, and leaves the kept ones as they are."""
        clipped = self.training.clip_norm is not None
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient.clone() if clipped else gradient

    def recover(self) -> None:
        """Drops what a step that broke left half done."""
        self.model.zero_grad(set_to_none=True)
        self.optimizers = self._new_optimizers()


def signature(part: MicroBatch) -> Hashable:
    """Equal for parts that run the same program: shapes, layout, and numbers the host decides."""
    tensors = (part.ids, part.labels, part.places)
    return (*(None if each is None else each.shape for each in tensors), *_traits(part.layout))


def _traits(layout: Layout) -> tuple[Hashable, ...]:
    values = (getattr(layout, field.name) for field in dataclasses.fields(layout))
    shapes = (each.shape if isinstance(each, Tensor) else each for each in values)
    return (type(layout).__name__, *shapes)


def open_stepper(model: GPT, training: GPTTraining) -> Stepper:
    """What runs the steps of a model, as `training.execution` says."""
    if training.execution == "compiled":
        from fractal_k8s.train.compiling import CompiledStepper

        return CompiledStepper(model, training)
    if training.execution == "graphs":
        from fractal_k8s.train.graphs import GraphedStepper

        return GraphedStepper(model, training)
    return Stepper(model, training)
