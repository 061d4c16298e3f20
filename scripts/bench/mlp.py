"""Points per second of the batched MLP trainer, and its ratio to what a user would write instead.

All programs train the same nets on the same data. Ours trains every point to its end, in as many
processes as the local backend would start. The others' time per step does not depend on what
happens at a point, so they are timed over fewer steps or points and scaled up; both are printed.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_k8s.backends.local import available_cores
from fractal_k8s.environ import prepare_environment
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.load import parse_text, preset_text, resolve
from fractal_k8s.sweep.training import MLPTraining
from fractal_k8s.train.determinism import cpu_name

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What every program is given: data (n, w), (n, 1), weights (w, w), (w, 1), rates (p, 2)."""

    inputs: Floats
    targets: Floats
    first: Floats
    second: Floats
    rates: Floats
    steps: int


def problem_of(sweep: Sweep) -> Problem:
    from fractal_k8s.data.gaussian import regression_data
    from fractal_k8s.models.mlp import initial_weights

    training = sweep.training
    assert isinstance(training, MLPTraining)
    inputs, targets = regression_data(sweep.spec.seed, training.num_examples, training.width)
    first, second = initial_weights(sweep.spec.seed, training.width)
    order = Dealt(sweep, Deal()).order
    rates = np.array([[sweep.point(int(p)).x, sweep.point(int(p)).y] for p in order])
    return Problem(inputs, targets, first, second, rates, training.steps)


# --- ours ---


def _train_share(sweep: Sweep, shard: int, workers: int, barrier: Any, results: Any) -> None:
    prepare_environment()
    from fractal_k8s.train import no_beat, open_trainer

    size = -(-sweep.num_points // workers)
    points = [
        sweep.point(p) for p in Dealt(sweep, Deal(points_per_shard=size)).shard(shard).trained
    ]
    trainer = open_trainer(sweep)
    list(trainer.train(points[:64], no_beat))
    barrier.wait()
    began = time.perf_counter()
    outcomes = list(trainer.train(points, no_beat))
    seconds = time.perf_counter() - began
    results.put((shard, seconds, trainer.environment.numerics_class, outcomes[0].losses[:20]))


def ours(sweep: Sweep, workers: int) -> tuple[float, str, Floats]:
    """Seconds for all points, the numerics class, and the first point's first losses."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_train_share, args=(sweep, shard, workers, barrier, results))
        for shard in range(workers)
    ]
    for process in processes:
        process.start()
    answers = sorted((results.get() for _ in processes), key=lambda answer: int(answer[0]))
    for process in processes:
        process.join()
    return max(answer[1] for answer in answers), answers[0][2], answers[0][3]


# --- a loop over points ---


def loop(problem: Problem, points: int) -> tuple[float, Floats]:
    """Seconds for `points` points one after another with torch's autograd, and their losses."""
    import torch

    inputs, targets = torch.tensor(problem.inputs), torch.tensor(problem.targets)
    width = inputs.shape[1]
    losses = np.empty((points, problem.steps))
    began = time.perf_counter()
    for number in range(points):
        first = torch.tensor(problem.first, requires_grad=True)
        second = torch.tensor(problem.second, requires_grad=True)
        for step in range(problem.steps):
            hidden = torch.tanh(math.sqrt(2) * (inputs @ first) / math.sqrt(width))
            out = hidden @ second / width
            loss = ((out - targets) ** 2).mean()
            grads = torch.autograd.grad(loss, (first, second))
            with torch.no_grad():
                first -= problem.rates[number, 0] * grads[0]
                second -= problem.rates[number, 1] * grads[1]
            losses[number, step] = loss.item()
    return time.perf_counter() - began, losses


# --- jax ---


def jax_program(problem: Problem, batch: int, steps: int) -> tuple[float, Floats]:
    """Seconds of `steps` vmapped jitted steps of `batch` nets, and the losses (steps, batch)."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call,unused-ignore]
    inputs, targets = jnp.array(problem.inputs), jnp.array(problem.targets)
    width = inputs.shape[1]

    def loss_of(weights: Any) -> Any:
        hidden = jnp.tanh(math.sqrt(2) * (inputs @ weights[0]) / math.sqrt(width))
        return jnp.mean((hidden @ weights[1] / width - targets) ** 2)

    def one_step(weights: Any, rates: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(weights)
        return [w - r * g for w, r, g in zip(weights, rates, grads, strict=True)], loss

    step = jax.jit(jax.vmap(one_step), donate_argnums=0)
    rates = jnp.array(problem.rates[:batch])
    weights = [jnp.tile(jnp.array(w), (batch, 1, 1)) for w in (problem.first, problem.second)]
    weights, first_loss = step(weights, rates)
    losses = [np.asarray(first_loss)]
    began = time.perf_counter()
    for _ in range(steps):
        weights, loss = step(weights, rates)
        losses.append(np.asarray(loss))
    return time.perf_counter() - began, np.array(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="tanh", help="an mlp preset with tanh, full batch")
    parser.add_argument("--res", type=int, default=128)
    parser.add_argument("--workers", type=int, default=available_cores())
    options = parser.parse_args()
    text = preset_text(options.preset)
    sweep = resolve(
        parse_text(text, source=options.preset), resolution=options.res, source=options.preset
    )
    problem = problem_of(sweep)
    points = sweep.num_points
    print(f"{options.preset}: {points:,} points, {problem.steps} steps, float64")
    print(f"{cpu_name()}, {options.workers} processes of ours, numpy {np.__version__}")

    seconds, numerics, reference = ours(sweep, options.workers)
    speed = points / seconds
    print(f"ours: {numerics}")
    rows = [("ours", speed, "")]

    sample = min(32, points)
    taken, losses = loop(problem, sample)
    rows.append(("loop over points (torch)", sample / taken, f"{sample} points timed"))
    print(f"largest difference of the first losses, ours to loop: {_difference(reference, losses)}")

    try:
        import jax
    except ImportError:
        print("jax is not installed: pip install jax, to compare with it")
    else:
        for batch, name in (
            (min(points, 32_768), "as published"),
            (256, "batches that fit a cache"),
        ):
            steps = max(3, min(problem.steps - 1, 200_000 // batch))
            taken, losses = jax_program(problem, batch, steps)
            rate = batch * steps / taken / problem.steps
            note = f"batch {batch}, {steps} steps timed"
            rows.append((f"jax {jax.__version__}, {name}", rate, note))
            print(f"largest difference, ours to jax: {_difference(reference, losses[:, :1].T)}")

    print(f"\n{'program':<36} {'points/s':>10} {'ours is':>9}")
    for name, rate, note in rows:
        print(f"{name:<36} {rate:>10.1f} {speed / rate:>8.2f}x  {note}")


def _difference(reference: Floats, losses: Floats) -> str:
    count = min(len(reference), losses.shape[1])
    ratio = np.abs(losses[0, :count] / reference[:count] - 1).max()
    return f"{ratio:.1e} relative over {count} steps of the first point"


if __name__ == "__main__":
    main()
