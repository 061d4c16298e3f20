"""What the benchmarks of fine-tuning share: the machine, its speed, and FLOPs by formula."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fractal_k8s.models.gpt import GPTConfig
from fractal_k8s.train.determinism import cpu_name


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock_of(device: torch.device) -> Callable[[], float]:
    """A clock in seconds: of the wall for a GPU, else of this process, which trains on one thread.

    What other programs take of a processor does not count then.
    """
    return time.perf_counter if device.type == "cuda" else time.process_time


def seconds_of(work: Callable[[], Any], device: torch.device, *, repeats: int) -> list[float]:
    """Times of `work`, each until the device is done, see `clock_of`."""
    clock, taken = clock_of(device), []
    for _ in range(repeats):
        synchronize(device)
        began = clock()
        work()
        synchronize(device)
        taken.append(clock() - began)
    return taken


def machine_line(device: torch.device) -> str:
    """What ran the benchmark."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return (
            f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
            f"{properties.total_memory / 1e9:.0f} GB, torch {torch.__version__}, "
            f"CUDA {torch.version.cuda}"
        )
    load = os.getloadavg()[0]
    return (
        f"{cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores, "
        f"torch {torch.__version__}, load {load:.1f}"
    )


def matmul_rate(device: torch.device, size: int, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of the best of several products of two random (size, size) matrices."""
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds_of(lambda: one @ other, device, repeats=2)
    return 2 * size**3 / min(seconds_of(lambda: one @ other, device, repeats=repeats))


def trunk_parameters(config: GPTConfig) -> int:
    """Weights of the matrices between embedding and head."""
    kv = config.n_embd * config.n_kv_head // config.n_head
    return config.n_layer * (10 * config.n_embd**2 + 2 * config.n_embd * kv)


def step_flops(
    config: GPTConfig, positions: int, lengths: Sequence[int], logits: int
) -> dict[str, float]:
    """FLOPs of forward and backward pass, and of Muon's five Newton-Schulz iterations.

    A weight costs 2 forward and 4 backward for each position it meets. Attention is counted as
    causal: 2 l^2 n a layer forward for a row of l positions, twice that backward. An iteration on
    an m x n matrix, m <= n, costs 4 m^2 n + 2 m^3.

    Args:
        positions: that go through the layers, padding included.
        lengths: positions of each row, as attention sees them.
        logits: positions at which the head is computed.
    """
    n = config.n_embd
    short = config.n_embd * config.n_kv_head // config.n_head
    shapes = [(n, n), (n, n), (short, n), (short, n), (n, 4 * n), (n, 4 * n)]
    iterations = 5 * config.n_layer
    return {
        "layers": 6.0 * trunk_parameters(config) * positions,
        "attention": 6.0 * config.n_layer * n * sum(length**2 for length in lengths),
        "head": 6.0 * n * config.padded_vocab_size * logits,
        "muon": float(iterations * sum(4 * a * a * b + 2 * a**3 for a, b in shapes)),
    }
