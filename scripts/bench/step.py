"""One training step at DocVQA's row lengths: what each way to lay out and run it costs.

Every line is what the trainer runs its steps with, on the same rows and weights, in a process of
its own: forward and backward pass and update, the losses left on the device. The best of several
runs of a few steps counts.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from fractal_k8s.environ import prepare_environment

prepare_environment()

import torch
from measure import machine_line, matmul_rate, seconds_of, step_flops
from rows import LONGEST, sample_rows
from tables import line, rule
from torch import Tensor

from fractal_k8s.data.conversations import Row, Rows
from fractal_k8s.errors import FractalError
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.batches import Batch, Batches, MicroBatch, pad
from fractal_k8s.train.determinism import make_deterministic
from fractal_k8s.train.environment import training_device
from fractal_k8s.train.gpt import GPTTrainer
from fractal_k8s.train.materials import Materials, gpt_training
from fractal_k8s.train.memory import PeakMemory
from fractal_k8s.train.packing import pack
from fractal_k8s.train.step import Stepper
from fractal_k8s.train.trial import random_materials

# of a timed run
STEPS = 3


@dataclass(frozen=True)
class Variant:
    """A way to make a step."""

    # rows side by side, or end to end
    packing: str
    # logits at every position, or where a label is
    logits: str
    # eager, compiled or graphs
    execution: str = "eager"

    def __str__(self) -> str:
        return f"{self.packing}, {self.logits} logits, {self.execution}"


# The first is how nanochat and fractal-llm make a step, the last ones are ours.
EAGER = (
    Variant("padded", "full"),
    Variant("padded", "sparse"),
    Variant("packed", "full"),
    Variant("packed", "sparse"),
)
COMPILED = (Variant("padded", "full", "compiled"), Variant("packed", "sparse", "compiled"))
GRAPHS = (Variant("packed", "sparse", "graphs"),)


@dataclass(frozen=True)
class Problem:
    """What is trained: a model of random weights, and how many rows."""

    depth: int
    rows: int
    longest: int
    dtype: str
    repeats: int


@dataclass(frozen=True)
class StepTime:
    """What a step took, and what it computed."""

    seconds: float
    # until the first step is done, compiling included
    first_seconds: float
    # positions that are no padding, and labels
    tokens: int
    labels: int
    positions: int
    flops: dict[str, float]
    peak_bytes: int
    first_loss: float
    # sha256 of the losses of all steps
    digest: str

    @property
    def flop_rate(self) -> float:
        return sum(self.flops.values()) / self.seconds


def sweep_of(problem: Problem, variant: Variant) -> Sweep:
    """A sweep that asks for such steps, as far as a sweep can."""
    return Sweep.parse(
        {
            "name": "bench-step",
            "model": "gpt",
            "dataset": "conversations:sampled",
            "resolution": [1, 1],
            "axes": {
                "y": {"knob": "matrix_lr", "values": [1e-3]},
                "x": {"knob": "unembedding_lr", "values": [1e-4]},
            },
            "training": {
                "batch_size": problem.rows,
                "max_seq_len": problem.longest,
                "dtype": problem.dtype,
                "packing": variant.packing,
                "execution": variant.execution,
            },
        }
    )


def measure(problem: Problem, variant: Variant, make: Callable[[Sweep], Materials]) -> StepTime:
    """Times a variant's step in this process.

    Raises:
        RuntimeError: it cannot be run here, or memory was full.
        UsageError: the machine lacks what it needs.
    """
    gc.collect()  # another variant's model holds on to itself in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    sweep = sweep_of(problem, variant)
    rows = sample_rows(problem.rows, problem.longest)
    trainer = GPTTrainer(sweep, materials=replace(make(sweep), rows=Rows(rows, 0)))
    stepper, device = trainer.stepper, trainer.device
    batch = trainer.batches[0]
    part = part_of(variant, rows, trainer.batches)
    batch = replace(batch, parts=(part,))
    began = time.perf_counter()
    stepper.prepare(batch)
    stepper.reset(gpt_training(sweep))
    losses = [run(stepper, batch)]  # kernels are loaded and memory is taken from the system
    first_seconds = time.perf_counter() - began
    peak = PeakMemory(device, pooled=stepper.pooled)
    peak.restart()
    taken = seconds_of(
        lambda: losses.extend(run(stepper, batch) for _ in range(STEPS)),
        device,
        repeats=problem.repeats,
    )
    width = part.ids.size(1)
    lengths = [len(row.ids) - 1 for row in rows]
    series = torch.stack(losses).cpu()
    return StepTime(
        seconds=min(taken) / STEPS,
        first_seconds=first_seconds,
        tokens=batch.num_tokens,
        labels=batch.num_labels,
        positions=part.ids.numel(),
        flops=step_flops(
            trainer.model.config,
            part.ids.numel(),
            lengths if variant.packing == "packed" else [width] * len(rows),
            part.ids.numel() if part.places is None else len(part.places),
        ),
        peak_bytes=peak.bytes(),
        first_loss=float(series[0]),
        digest=hashlib.sha256(series.numpy().tobytes()).hexdigest(),
    )


def run(stepper: Stepper, batch: Batch) -> Tensor:
    """One step; its loss, still on the device."""
    loss = stepper.gradients(batch).clone()
    stepper.update(1.0)
    return loss


def part_of(variant: Variant, rows: list[Row], batches: Batches) -> MicroBatch:
    """The rows laid out as the variant says, which no sweep can ask for in all combinations."""
    pad_id, device = batches.pad_id, batches.device
    if variant.packing == "packed":
        return pack(rows, pad_id, device, at_labels=variant.logits == "sparse")
    part = pad(rows, pad_id, device)
    if variant.logits == "full":
        return part
    places = (part.labels >= 0).nonzero().squeeze(1)
    return replace(part, labels=part.labels[places], places=places)


def random_maker(depth: int) -> Callable[[Sweep], Materials]:
    return lambda sweep: random_materials(sweep, depth)


def _measure_alone(problem: Problem, variant: Variant) -> StepTime | str:
    try:
        return measure(problem, variant, random_maker(problem.depth))
    except (RuntimeError, MemoryError, FractalError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def measure_all(
    problem: Problem, variants: list[Variant]
) -> Iterator[tuple[Variant, StepTime | str]]:
    """Each variant in a fresh process; a text says why one could not be measured."""
    context = multiprocessing.get_context("spawn")
    for variant in variants:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                yield variant, pool.submit(_measure_alone, problem, variant).result()
            except BrokenProcessPool:
                yield variant, "its process was killed, most likely for memory"


# column -> its width
COLUMNS = {
    "layout": 6,
    "logits": 6,
    "execution": 9,
    "step": 8,
    "tokens/s": 8,
    "labels/s": 8,
    "FLOP/step": 9,
    "FLOP/s": 8,
    "of matmul": 9,
    "peak": 8,
    "speed-up": 8,
}


def table_row(variant: Variant, found: StepTime, rate: float, base: StepTime) -> list[str]:
    return [
        variant.packing,
        variant.logits,
        variant.execution,
        f"{found.seconds:.3g} s",
        f"{found.tokens / found.seconds:,.0f}",
        f"{found.labels / found.seconds:,.0f}",
        f"{sum(found.flops.values()):.3g}",
        f"{found.flop_rate:.3g}",
        f"{found.flop_rate / rate:.0%}",
        f"{found.peak_bytes / 1e9:.1f} GB",
        f"{base.seconds / found.seconds:.2f}x",
    ]


def main() -> None:
    device = training_device()
    on_gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--depth", type=int, default=20 if on_gpu else 4)
    parser.add_argument("--random-weights", action="store_true", help="always so here")
    parser.add_argument("--rows", type=int, default=48 if on_gpu else 4)
    parser.add_argument("--longest", type=int, default=LONGEST, help="ids of the longest row")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="only what runs eagerly")
    options = parser.parse_args()
    make_deterministic()
    problem = Problem(options.depth, options.rows, options.longest, options.dtype, options.repeats)
    dtype: torch.dtype = getattr(torch, options.dtype)
    rate = matmul_rate(device, 8192 if on_gpu else 1024, dtype)
    print(f"d{problem.depth}, {problem.rows} rows of at most {problem.longest} ids")
    print(machine_line(device))
    print(f"matrix product: {rate:.3g} FLOP/s in {options.dtype}; best of {options.repeats} runs\n")
    variants = [*EAGER]
    if not options.no_compile:
        variants += [*COMPILED, *(GRAPHS if on_gpu else ())]
    notes, base = [], None
    widths = COLUMNS.values()
    print(line(COLUMNS, widths), line(rule(widths), widths), sep="\n", flush=True)
    for variant, found in measure_all(problem, variants):
        if isinstance(found, str):
            notes.append(f"{variant}: {found}")
            continue
        base = base or found
        print(line(table_row(variant, found, rate, base), widths), flush=True)
        notes.append(
            f"{variant}: {found.positions:,} positions for {found.tokens:,} tokens, first loss "
            f"{found.first_loss:.5f}, first step after {found.first_seconds:.1f} s"
        )
    print("", *notes, sep="\n")


if __name__ == "__main__":
    main()
