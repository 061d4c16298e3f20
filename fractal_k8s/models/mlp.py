"""The original study's net (arXiv:2402.06184), many copies of it trained as one tensor program.

One hidden layer without biases, mean-field scaling, one output, mean squared error:

    h = f(x W / sqrt(width)),  out = h v / width,  f = tanh(sqrt(2) z), sqrt(2) max(z, 0) or z

All copies ("lanes") share the data, so the two large products are single matrix products over all
lanes at once, and the lane number is the innermost dimension of everything else: a lane never
meets another lane's numbers. The gradient is written out by hand, which saves the passes over
memory that automatic differentiation needs:

    e = 2 (out - y) / (examples * width),  dL/dv = h' e,  dL/dW = s x' (e f'(h)) v

What is bit-exact: a lane's numbers depend on the number of lanes, never on the lane's place or on
the other lanes. Matrix libraries treat the last columns of an odd width differently, so the
constructor tries the number of lanes it would like on this machine, and where no number passes it
does without matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from fractal_k8s.errors import RetryError

Nonlinearity = Literal["tanh", "relu", "identity"]

_INIT_STREAM: Final = 0
# Columns are worked off in tiles; 48 float64 or 96 float32 lanes fill every tile size seen.
_LANE_UNIT: Final = {torch.float64: 48, torch.float32: 96}
# The hidden layer of all lanes should stay in a core's cache.
_CACHE_BYTES: Final = 1 << 20
_GPU_LANES: Final = 4032


def initial_weights(
    seed: int, width: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Standard normal weights: input layer (width, width), output layer (width, 1)."""
    random = np.random.RandomState([seed, _INIT_STREAM])
    return random.standard_normal((width, width)), random.standard_normal((width, 1))


@dataclass
class Lanes:
    """State of a set of nets. The last dimension is the net.

    Shapes: input_weights (width * width, nets), output_weights (width, nets), rates and offset
    (nets,).
    """

    input_weights: torch.Tensor
    output_weights: torch.Tensor
    input_lr: torch.Tensor
    output_lr: torch.Tensor
    init_offset: torch.Tensor

    def take(self, index: torch.Tensor) -> Lanes:
        """Copies of the chosen nets."""
        return Lanes(
            self.input_weights.index_select(1, index),
            self.output_weights.index_select(1, index),
            self.input_lr.index_select(0, index),
            self.output_lr.index_select(0, index),
            self.init_offset.index_select(0, index),
        )

    def put(self, index: torch.Tensor, lanes: Lanes) -> None:
        """Writes the first len(index) nets of `lanes` back to their places."""
        count = len(index)
        self.input_weights[:, index] = lanes.input_weights[:, :count]
        self.output_weights[:, index] = lanes.output_weights[:, :count]

    def are_dead(self) -> torch.Tensor:
        """Nets whose every output weight is NaN: all later losses are NaN. Shape (nets,)."""
        return self.output_weights.isnan().all(0)


class BatchedMLP:
    """A training step for `num_lanes` nets at once, on fixed data, with fixed buffers."""

    def __init__(
        self,
        inputs: npt.NDArray[np.float64],
        targets: npt.NDArray[np.float64],
        *,
        nonlinearity: Nonlinearity,
        dtype: torch.dtype,
        device: torch.device,
        minibatch: int | None = None,
    ) -> None:
        self.nonlinearity = nonlinearity
        self.minibatch = minibatch
        self.dtype = dtype
        self.device = device
        self.num_examples, self.width = inputs.shape
        gain = 1.0 if nonlinearity == "identity" else math.sqrt(2.0)
        self._slope = gain / math.sqrt(self.width)
        self._inputs = torch.tensor(inputs, dtype=dtype, device=device)
        self._scaled = self._inputs * self._slope
        self._targets = torch.tensor(targets, dtype=dtype, device=device)
        self._ones = torch.ones(1, self.num_examples, dtype=dtype, device=device)
        # numpy's vectorised tanh is several times faster than torch's on a CPU, and as accurate
        self._numpy_tanh = device.type == "cpu"
        self.uses_gemm = True
        self._find_lanes()

    @property
    def mode(self) -> str:
        """Part of the numerics class."""
        return f"batched-{self.num_lanes}-{'gemm' if self.uses_gemm else 'lanes'}"

    # --- number of lanes ---

    def _find_lanes(self) -> None:
        unit = _LANE_UNIT[self.dtype]
        hidden = self.num_examples * self.width * self._inputs.element_size()
        wanted = _GPU_LANES if self.device.type == "cuda" else _CACHE_BYTES // hidden
        lanes = unit * max(1, round(wanted / unit))
        for self.uses_gemm in (True, False):
            for factor in (1, 2, 4):
                self._allocate(lanes * factor)
                if self._place_does_not_matter():
                    return
        raise RetryError(
            f"{self.device}: equal nets in one batch train to different bits; "
            "the batched trainer cannot be trusted on this machine"
        )

    def _place_does_not_matter(self, steps: int = 3) -> bool:
        """Trains the same net in every lane and compares all lanes bit for bit."""
        weights = initial_weights(0, self.width)
        lanes = self.replicate(*weights, self.num_lanes)
        lanes.input_lr.fill_(3.0)
        lanes.output_lr.fill_(2.0)
        rows = None
        if self.minibatch is not None:
            rows = torch.arange(self.minibatch, device=self.device) % self.num_examples
        losses = torch.stack([self.step(lanes, rows).clone() for _ in range(steps)])
        return all(
            bool((part == part[:, :1]).all())
            for part in (losses, lanes.input_weights, lanes.output_weights)
        )

    def _allocate(self, lanes: int) -> None:
        self.num_lanes = lanes
        shape = (self.num_examples, self.width, lanes)
        self._hidden = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._work = torch.empty_like(self._hidden)
        self._error = torch.empty(self.num_examples, lanes, dtype=self.dtype, device=self.device)
        self._loss = torch.empty(lanes, dtype=self.dtype, device=self.device)

    def replicate(
        self,
        input_weights: npt.NDArray[np.float64],
        output_weights: npt.NDArray[np.float64],
        nets: int,
    ) -> Lanes:
        """`nets` copies of one initialisation, with rates of 0 to be filled in."""

        def zeros() -> torch.Tensor:
            return torch.zeros(nets, dtype=self.dtype, device=self.device)

        def copies(weights: npt.NDArray[np.float64]) -> torch.Tensor:
            column = torch.tensor(weights, dtype=self.dtype, device=self.device).reshape(-1, 1)
            return column.repeat(1, nets)

        return Lanes(copies(input_weights), copies(output_weights), zeros(), zeros(), zeros())

    # --- one step ---

    @torch.no_grad()
    def step(self, lanes: Lanes, rows: torch.Tensor | None = None) -> torch.Tensor:
        """One gradient step of every lane, in place.

        Args:
            lanes: exactly `num_lanes` nets.
            rows: the minibatch's row numbers, shape (size,); None = full batch.

        Returns:
            the full batch's mean squared error before the step, shape (num_lanes,); the buffer is
            reused by the next step.
        """
        if bool(lanes.init_offset.any()):
            lanes.input_weights.add_(lanes.init_offset)
        self._forward(lanes)
        torch.mul(self._error, self._error, out=self._work_rows)
        torch.mean(self._work_rows, 0, out=self._loss)
        self._backward(lanes, rows)
        return self._loss

    @property
    def _work_rows(self) -> torch.Tensor:
        """A (examples, lanes) corner of the work buffer."""
        flat = self._work.view(-1)
        return flat[: self.num_examples * self.num_lanes].view(self.num_examples, self.num_lanes)

    def _forward(self, lanes: Lanes) -> None:
        """Fills `_hidden` with f(x W) and `_error` with out - y."""
        self._project(self._scaled, lanes.input_weights, self._hidden)
        if self.nonlinearity == "tanh":
            if self._numpy_tanh:
                array = self._hidden.numpy()
                with np.errstate(all="ignore"):
                    np.tanh(array, out=array)
            else:
                self._hidden.tanh_()
        elif self.nonlinearity == "relu":
            self._hidden.clamp_(min=0)
        torch.mul(self._hidden, lanes.output_weights, out=self._work)
        torch.sum(self._work, 1, out=self._error)
        self._error.mul_(1.0 / self.width).sub_(self._targets)

    def _backward(self, lanes: Lanes, rows: torch.Tensor | None) -> None:
        """Gradient of the mean squared error over `rows` and the update of both layers."""
        if rows is None:
            inputs, hidden, error, work = self._inputs, self._hidden, self._error, self._work
        else:
            inputs = self._inputs.index_select(0, rows)
            hidden = self._hidden.index_select(0, rows)
            error = self._error.index_select(0, rows)
            work = self._work[: len(rows)]
        error.mul_(2.0 / (len(inputs) * self.width))
        torch.mul(hidden, error[:, None, :], out=work)
        output_grad = self._column_sums(work)
        self._through_nonlinearity(hidden, error, work)
        grad = self._project_back(inputs, work)
        scale = lanes.output_weights * (lanes.input_lr * self._slope)
        grad.mul_(scale)
        lanes.input_weights.sub_(grad.view_as(lanes.input_weights))
        lanes.output_weights.sub_(output_grad.mul_(lanes.output_lr))

    def _through_nonlinearity(
        self, hidden: torch.Tensor, error: torch.Tensor, work: torch.Tensor
    ) -> None:
        """work <- error * f'(hidden), where work holds hidden * error on entry."""
        spread = error[:, None, :].expand_as(work)
        if self.nonlinearity == "tanh":
            torch.addcmul(spread, work, hidden, value=-1, out=work)
        elif self.nonlinearity == "relu":
            torch.mul(spread, hidden > 0, out=work)
        else:
            work.copy_(spread)

    # --- products over the examples ---

    def _project(self, inputs: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> None:
        """out[n, h, lane] = sum_i inputs[n, i] weights[(i, h), lane]."""
        flat = out.view(len(inputs), -1)
        columns = weights.view(self.width, -1)
        if self.uses_gemm:
            torch.mm(inputs, columns, out=flat)
            return
        torch.mul(inputs[:, :1], columns[0], out=flat)
        for i in range(1, self.width):
            flat.addcmul_(inputs[:, i : i + 1], columns[i])

    def _project_back(self, inputs: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
        """sum_n inputs[n, i] work[n, h, lane], shape (width, width, lanes)."""
        flat = work.view(len(inputs), -1)
        if self.uses_gemm:
            product = torch.mm(inputs.t(), flat)
        else:
            product = torch.stack([(inputs[:, i : i + 1] * flat).sum(0) for i in range(self.width)])
        return product.view(self.width, self.width, self.num_lanes)

    def _column_sums(self, work: torch.Tensor) -> torch.Tensor:
        """sum_n work[n, h, lane], shape (width, lanes)."""
        flat = work.view(len(work), -1)
        total = torch.mm(self._ones[:, : len(work)], flat) if self.uses_gemm else flat.sum(0)
        return total.view(self.width, self.num_lanes)
