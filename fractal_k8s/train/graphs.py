"""Steps as CUDA graphs: recorded once for each shape of batch, then launched as a whole.

A graph is a list of kernels with their addresses. So whatever changes from step to step lies in a
tensor that is filled before the launch: the ids, the labels, their number, the learning rates. A
fill carries its number in the launch itself, so that no later one can overtake it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from fractal_k8s.models.attention import Layout
from fractal_k8s.models.gpt import GPT
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.batches import Batch
from fractal_k8s.train.optimizers import Directions
from fractal_k8s.train.packing import MicroBatch
from fractal_k8s.train.step import Stepper, signature

_WARM_UPS: Final = 3  # runs before a capture: kernels are loaded and workspaces made by then


@dataclasses.dataclass(frozen=True)
class _Program:
    """A captured gradient: copy a part into `inputs`, replay, and read `loss` before the next."""

    inputs: MicroBatch
    graph: torch.cuda.CUDAGraph
    loss: Tensor


class GraphedStepper(Stepper):
    """Steps on a GPU with one launch for each part's gradient and one for the update.

    The graphs share one pool of memory, are replayed one after another on one stream, and are kept
    as long as the worker lives: freeing one may free a workspace that another uses. The weight
    decay is a constant of the update's graph.
    """

    takes_directions = False
    pooled = True

    def __init__(self, model: GPT, training: GPTTraining) -> None:
        super().__init__(model, training)
        self._gradients = [torch.zeros_like(parameter) for parameter in self.trained]
        self._attach()
        self._begin()

    def _begin(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._programs: dict[Hashable, _Program] = {}
        self._updating: torch.cuda.CUDAGraph | None = None

    def _attach(self) -> None:
        """Gradients of zero at the addresses that the graphs know."""
        torch._foreach_zero_(self._gradients)
        for parameter, gradient in zip(self.trained, self._gradients, strict=True):
            parameter.grad = gradient

    def prepare(self, batch: Batch) -> None:
        """Captures the graphs that the batch needs; moves the weights, so reset after it."""
        missing = {signature(part): part for part in batch.parts}
        missing = {key: part for key, part in missing.items() if key not in self._programs}
        if missing:
            self._attach()
            self._num_labels.fill_(batch.num_labels)
        for key, part in missing.items():
            self._programs[key] = self._capture_gradient(part)
        if self._updating is None:
            self._updating = self._capture_update()

    def _capture_gradient(self, part: MicroBatch) -> _Program:
        inputs = _copied(part)
        self._warm_up(lambda: self._gradients_of(inputs))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            loss = self._gradients_of(inputs)
        return _Program(inputs, graph, loss)

    def _capture_update(self) -> torch.cuda.CUDAGraph:
        def update() -> None:
            self.optimizers.update()
            torch._foreach_zero_(self._gradients)

        self._warm_up(update)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            update()
        return graph

    def _warm_up(self, work: Callable[[], object]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def reset(self, training: GPTTraining) -> None:
        super().reset(training)
        self._attach()

    def gradients(self, batch: Batch) -> Tensor:
        self._num_labels.fill_(batch.num_labels)
        total = torch.zeros((), device=self.device)
        for part in batch.parts:
            program = self._programs[signature(part)]
            _copy(part, program.inputs)
            program.graph.replay()
            total += program.loss
        return total

    def update(self, multiplier: float, directions: Directions | None = None) -> None:
        assert self._updating is not None  # captured while preparing
        self.optimizers.set_rates(multiplier)
        self._updating.replay()

    def keep_gradients(self) -> list[Tensor]:
        return [gradient.clone() for gradient in self._gradients]

    def take_gradients(self, gradients: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self._gradients, list(gradients))

    def recover(self) -> None:
        """Drops all graphs at once, with the state whose addresses they hold."""
        super().recover()
        self._begin()


def _copied(part: MicroBatch) -> MicroBatch:
    """The part with tensors of its own."""
    layout = dataclasses.replace(part.layout, **_clones(part.layout))
    return dataclasses.replace(part, layout=layout, **_clones(part))


def _clones(holder: MicroBatch | Layout) -> dict[str, Any]:
    values = {field.name: getattr(holder, field.name) for field in dataclasses.fields(holder)}
    return {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}


def _copy(source: MicroBatch, target: MicroBatch) -> None:
    """Writes a part's tensors over those of another of the same signature."""
    for old, new in ((target, source), (target.layout, source.layout)):
        for field in dataclasses.fields(old):
            if isinstance(place := getattr(old, field.name), Tensor):
                place.copy_(getattr(new, field.name))
