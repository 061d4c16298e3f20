"""How long training took before: what a forecast takes from finished sweeps of the same store."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from fractal_k8s.errors import FractalError
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.training import GPTTraining, Training


@dataclass(frozen=True)
class Timing:
    """Seconds of one step of one point on one worker, and the sweep that was timed."""

    seconds: float
    source: str


def seconds_per_step(store: Store, sweep: Sweep) -> Timing | None:
    """The timing of the largest sweep of the same step on this machine, or None.

    A step is the same when model, weights and everything that decides its work are the same;
    rates, schedule and the number of steps do not matter.
    """
    best: tuple[int, Timing] | None = None
    for sweep_id in store.sweep_ids():
        try:
            folder, plan = store.plan(sweep_id)
            timing = (folder.read_summary() or {}).get("timing")
        except FractalError:  # a damaged neighbour must not stop a forecast
            continue
        if timing is None or _work(plan.sweep) != _work(sweep):
            continue
        if platform.node() not in timing["nodes"] or not timing["steps"]:
            continue
        if best is None or timing["steps"] > best[0]:
            best = (timing["steps"], Timing(timing["seconds"] / timing["steps"], sweep_id))
    return best[1] if best else None


def _work(sweep: Sweep) -> tuple[object, ...]:
    """What decides the work of one step."""
    training: Training = sweep.training
    if isinstance(training, GPTTraining):
        return (
            sweep.model,
            sweep.spec.checkpoint,
            training.batch_size,
            training.max_seq_len,
            training.optimizer,
            training.trainable_param_groups,
            training.dtype,
        )
    return (
        sweep.model,
        training.width,
        training.num_examples,
        training.nonlinearity,
        training.minibatch,
        training.dtype,
    )
