"""How much computing a position takes: a budget of FLOPs as a number of steps."""

from __future__ import annotations

from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.memory import Shape
from fractal_k8s.sweep.training import GPTTraining

# forward and backward pass: two products each way round, and the gradient of the weights
_PER_WEIGHT = 6
_PER_ATTENDED = 12


def flops_per_token(shape: Shape, positions: int) -> int:
    """FLOPs of one position, forward and backward, in rows of so many positions.

    nanochat's estimate: 6 (N - N_embedding) + 12 layers channels positions. It counts attention as
    if every position saw all others and gradients of all weights, frozen ones included.
    """
    count = shape.parameters()
    products = count["matrix"] + count["unembedding"]
    attended = shape.n_layer * shape.n_embd * positions
    return _PER_WEIGHT * products + _PER_ATTENDED * attended


def with_flops(sweep: Sweep, shape: Shape | None) -> Sweep:
    """The sweep with what its model takes a position, where FLOPs decide its steps.

    Args:
        shape: of the model; None = not known, and then neither are the steps.
    """
    if shape is None or not sweep.counts_flops:
        return sweep
    assert isinstance(sweep.training, GPTTraining)  # no other model counts FLOPs
    return sweep.with_flops_per_token(flops_per_token(shape, sweep.training.max_seq_len))
