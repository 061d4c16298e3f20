"""Rows of a matrix by index, without additions in the backward pass.

torch's own adds gradients up at their rows, which on a GPU takes atomic additions, whose order is
chance, or in deterministic mode a sort that waits for the device. Where at most one gradient of a
row is not zero, it can be fetched instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        return rows.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        nothing = gradient.new_zeros(1, *gradient.shape[1:])
        return torch.cat([gradient, nothing]).index_select(0, inverse), None, None


def gather(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """rows[index], with gradients that are fetched by `inverse`.

    Args:
        rows: (M, ...).
        index: (N,), int64.
        inverse: for each of the M rows where in the result its gradient is, N = it has none;
            (M,), int64. All other places in the result must have a gradient of zero.
    """
    out: Tensor = _Gather.apply(rows, index, inverse)  # type: ignore[no-untyped-call]
    return out


def gather_at(rows: Tensor, places: Tensor) -> Tensor:
    """Some rows of a matrix: (M, n), rising places (N,) -> (N, n).

    Of a place that occurs several times only the first receives a gradient: the others must have
    none to give, as labels of -1 have not.
    """
    number = places.size(0)
    every = torch.arange(rows.size(0), device=rows.device)
    first = torch.searchsorted(places, every)
    taken = places[first.clamp(max=number - 1)] == every
    return gather(rows, places, torch.where(taken, first, number))
