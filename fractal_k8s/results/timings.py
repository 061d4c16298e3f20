"""How long training took before: what a forecast takes from the sweeps of the same store."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fractal_k8s.errors import FractalError
from fractal_k8s.results.files import Entry
from fractal_k8s.results.outcome import State
from fractal_k8s.results.store import Store, SweepStore, is_copy
from fractal_k8s.sweep.deal import representatives
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.pace import Measured, Pace, fit, lanes_of
from fractal_k8s.sweep.plan import planned_steps
from fractal_k8s.sweep.runs import batching
from fractal_k8s.sweep.training import GPTTraining, MLPTraining, Training

# A forecast reads the most recent sweeps until it has seen this many points.
_ENOUGH_POINTS: Final = 50_000


def stored_pace(store: Store, sweep: Sweep) -> Pace | None:
    """The timing model of what this store holds of the same step, or None.

    A step is the same when model, weights and everything that decides its work are the same; rates,
    schedule and the number of steps do not matter. Attempts on this machine count before attempts
    elsewhere, of which only those of the largest sweep are taken.
    """
    found: dict[str, list[tuple[bool, Measured]]] = {}
    points = 0
    for folder, timed_sweep, entries in _candidates(store, sweep):
        if points >= _ENOUGH_POINTS:
            break
        with contextlib.suppress(FractalError):  # a damaged neighbour must not stop a forecast
            found[folder.sweep_id] = read_attempts(folder, timed_sweep, entries)
            points += _num_points([timed for _, timed in found[folder.sweep_id]])
    here = {name: [timed for own, timed in rows if own] for name, rows in found.items()}
    here = {name: rows for name, rows in here.items() if rows}
    if here:
        # the program size decides what a step costs: attempts of one size only
        largest = max(here.values(), key=_num_points)
        lanes = largest[0].lanes
        names = [name for name, rows in here.items() if rows[0].lanes == lanes]
        attempts = [timed for name in names for timed in here[name] if timed.lanes == lanes]
        return fit(attempts, ", ".join(sorted(names)))
    elsewhere = {name: [timed for _, timed in rows] for name, rows in found.items() if rows}
    if not elsewhere:
        return None
    name = max(elsewhere, key=lambda name: _num_points(elsewhere[name]))
    return fit(elsewhere[name], f"{name}, on another machine")


def _candidates(store: Store, sweep: Sweep) -> list[tuple[SweepStore, Sweep, list[Entry]]]:
    """Sweeps of the same step with their outcome objects, the most recent first."""
    found = []
    for sweep_id in store.sweep_ids():
        with contextlib.suppress(FractalError):
            folder, plan = store.plan(sweep_id)
            same = _work(plan.sweep) == _work(sweep) and _same_files(plan.sweep, sweep)
            if same and (entries := folder.outcome_entries()):
                found.append((folder, plan.sweep, entries))
    return sorted(found, key=lambda one: -max(entry.modified_ns for entry in one[2]))


def _num_points(attempts: list[Measured]) -> int:
    return sum(len(attempt.made) for attempt in attempts)


def read_attempts(
    folder: SweepStore, sweep: Sweep, entries: Iterable[Entry]
) -> list[tuple[bool, Measured]]:
    """Attempts at a sweep's points, and whether each was made on this machine.

    Args:
        entries: their outcome objects; what cannot be read, or holds no result, is left out.
    """
    distinct = representatives(sweep) == np.arange(sweep.num_points)
    planned = planned_steps(sweep)
    attempts = []
    for entry in entries:
        if is_copy(entry):  # another sweep's attempt
            continue
        table = folder.read_outcomes(sweep, [entry]).table
        table = table.filter(pc.field("state") != State.FAILED.value)
        index = _indexes(sweep, table)
        table, index = table.filter(pa.array(distinct[index])), index[distinct[index]]
        if not len(index):
            continue
        measured = Measured(
            sweep,
            index,
            planned[index],
            table.column("steps").to_numpy().astype(np.int64),
            table.column("seconds").to_numpy().astype(np.float64),
            lanes_of(str(table.column("numerics_class")[0].as_py())),
            _start_seconds(folder, entry),
            float(np.ptp(table.column("time").to_numpy().astype(np.int64))) / 1000,
        )
        attempts.append((table.column("node")[0].as_py() == platform.node(), measured))
    return attempts


def _indexes(sweep: Sweep, table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    i, j = (table.column(name).to_numpy().astype(np.int64) for name in ("i", "j"))
    index: np.ndarray[tuple[int], np.dtype[np.int64]] = i * sweep.columns + j
    return index


def _start_seconds(folder: SweepStore, entry: Entry) -> float | None:
    """How long the attempt took to start, from the first line of its log; None if not recorded."""
    name = entry.key.rpartition("/")[2].removesuffix(".parquet")
    data = folder.files.get(folder.key("logs", f"{name}.jsonl")) or b""
    try:
        return float(json.loads(data.partition(b"\n")[0])["start_seconds"])
    except (ValueError, KeyError, TypeError):
        return None


def _same_files(one: Sweep, other: Sweep) -> bool:
    """Whether weights and data are the same: by content where both are known, else by name."""
    for name in ("checkpoint", "dataset"):
        digests = [getattr(sweep.spec, f"{name}_digest") for sweep in (one, other)]
        names = [getattr(sweep.spec, name) for sweep in (one, other)]
        first, second = digests if None not in digests else names
        if first != second:
            return False
    return True


def _work(sweep: Sweep) -> tuple[object, ...]:
    """What decides the work of one step."""
    training: Training = sweep.training
    if isinstance(training, GPTTraining):
        counted = training.num_steps() is None
        made_of = batching(sweep, None)
        return (
            sweep.model,
            made_of and made_of.rows,
            training.device_batch_size,
            training.gradient_checkpointing,
            training.max_seq_len,
            training.optimizer,
            training.trainable_param_groups,
            training.dtype,
            # steps that depend on the data are known for these tokens only
            (training.tokens, sweep.y_knob.name, sweep.x_knob.name) if counted else None,
        )
    if isinstance(training, MLPTraining):
        return (
            sweep.model,
            training.width,
            training.num_examples,
            training.nonlinearity,
            training.minibatch,
            training.dtype,
        )
    return (sweep.model, training.ripple, training.dtype)
