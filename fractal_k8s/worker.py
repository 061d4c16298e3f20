"""A shard in a pod, a child process or a test: points not done -> train -> store -> exit code.

It gets a store, a sweep and an index, and nothing else.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc

from fractal_k8s.errors import (
    EXIT_COMPLETE,
    EXIT_INTERRUPTED,
    EXIT_RETRY,
    EXIT_TERMINATED,
    ConflictError,
)
from fractal_k8s.results.attempt import Attempt
from fractal_k8s.results.files import LocalFiles
from fractal_k8s.results.grid import DIVERGED, FAILED, NOT_TRAINABLE, STATE_NAMES, TRAINABLE
from fractal_k8s.results.outcome import Outcome, State
from fractal_k8s.results.store import Outcomes, Plan, SweepStore
from fractal_k8s.results.verdict import is_stable, is_trainable
from fractal_k8s.sweep.deal import Dealt, Shard
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.determinism import prepare_environment
from fractal_k8s.watchdog import Watchdog

# An attempt rewrites its object this often: a request costs nothing on a disk and a little in S3.
FLUSH_SECONDS_LOCAL: Final = 2.0
FLUSH_SECONDS_REMOTE: Final = 30.0

Emit = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PointEvent:
    """A point has an outcome. What a launcher's progress display is told."""

    index: int
    state: int  # code of results.grid


Listener = Callable[[PointEvent], None]


class _Stopped(BaseException):
    """SIGTERM or SIGINT arrived between two writes."""

    def __init__(self, number: int) -> None:
        self.number = number


class Worker:
    """Trains what is missing of one shard."""

    def __init__(
        self,
        folder: SweepStore,
        plan: Plan,
        index: int,
        *,
        emit: Emit = print,
        listener: Listener | None = None,
        allow_mixed: bool = False,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.sweep = plan.sweep
        self.shard = Dealt(plan.sweep, plan.deal).shard(index)
        self.emit = emit
        self.listener = listener
        self.allow_mixed = allow_mixed
        is_local = isinstance(folder.files, LocalFiles)
        self.flush_seconds = FLUSH_SECONDS_LOCAL if is_local else FLUSH_SECONDS_REMOTE
        self.failed = 0
        self._guard = _SignalGuard()

    def run(self) -> int:
        """Trains the shard and returns the exit code: complete, try again, or stopped.

        Raises:
            FractalError: nothing could be trained; see its `worker_code`.
        """
        self.folder.write_plan(self.plan)
        stored = self._stored()
        todo = self._missing(stored)
        done = len(self.shard.trained) - len(todo)
        if not todo:
            self.emit(f"shard {self.shard.name}: all {done} points are stored, nothing to train")
            return EXIT_COMPLETE
        prepare_environment()
        from fractal_k8s.train import open_trainer

        trainer = open_trainer(self.sweep)
        self._check_class(stored, trainer.environment.numerics_class)
        attempt = Attempt(self.folder, self.sweep, self.shard.name, trainer.environment)
        self.emit(
            f"shard {self.shard.name} of {self.sweep.id}: {len(todo)} points to train, "
            f"{done} stored; {trainer.environment.numerics_class}"
        )
        with self._guard, Watchdog(attempt.flush) as watchdog:
            try:
                points = [self.sweep.point(p) for p in todo]
                self._collect(trainer.train(points, watchdog.beat), attempt, done)
            except _Stopped as stop:
                self._flush(attempt)
                self.emit(f"stopped after {len(attempt.outcomes)} points, which are stored")
                return EXIT_INTERRUPTED if stop.number == signal.SIGINT else EXIT_TERMINATED
        return EXIT_RETRY if self.failed else EXIT_COMPLETE

    # --- what is there ---

    def _stored(self) -> Outcomes:
        entries = self.folder.shard_entries(self.plan.deal, self.shard.name)
        outcomes = self.folder.read_outcomes(self.sweep, entries)
        for problem in outcomes.problems:
            self.emit(f"ignored: {problem}")
        return outcomes

    def _missing(self, stored: Outcomes) -> list[int]:
        """Points of the shard to train: those with no result for some point they stand for."""
        table = stored.table.filter(pc.field("state") != State.FAILED.value)
        i, j = (table.column(name).to_numpy().astype(np.int64) for name in ("i", "j"))
        results = set((i * self.sweep.columns + j).tolist())
        return [p for p in self.shard.trained if not results.issuperset(self.shard.shared[p])]

    def _check_class(self, stored: Outcomes, own: str) -> None:
        classes = set(pc.unique(stored.table.column("numerics_class")).to_pylist()) - {own}
        if classes and not self.allow_mixed:
            raise ConflictError(
                f"{self.sweep.id} has points of numerics class {min(classes)!r}, this machine "
                f"would add {own!r}, and the two are not one map; give --allow-mixed to accept that"
            )

    # --- training ---

    def _collect(self, outcomes: Iterator[Outcome], attempt: Attempt, done: int) -> None:
        began = flushed = time.monotonic()
        total = len(self.shard.trained)
        for outcome in outcomes:
            done += 1
            state = judge(self.sweep, outcome)
            self.failed += state == FAILED
            rate = len(attempt.outcomes) / max(time.monotonic() - began, 1e-9)
            for member in members(self.sweep, self.shard, outcome):
                attempt.add(member, log_line(self.sweep, member, state))
                if self.listener is not None:
                    self.listener(PointEvent(member.index, state))
            self.emit(
                readable(self.sweep, log_line(self.sweep, outcome, state))
                + f"  {rate:.3g} points/s  {done}/{total}"
            )
            if time.monotonic() - flushed >= self.flush_seconds:
                self._flush(attempt)
                flushed = time.monotonic()
        self._flush(attempt)

    def _flush(self, attempt: Attempt) -> None:
        with self._guard.postponed():
            attempt.flush()


class _SignalGuard:
    """Turns SIGTERM and SIGINT into `_Stopped`, but not while an object is being written."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._busy = False
        self._pending: int | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._busy:
            self._pending = number
        else:
            raise _Stopped(number)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self._pending is not None:
            number, self._pending = self._pending, None
            raise _Stopped(number)


def judge(sweep: Sweep, outcome: Outcome) -> int:
    """Code of the outcome's state under the sweep's own rule."""
    if outcome.state is State.FAILED:
        return FAILED
    trained = np.array(outcome.state is State.TRAINED)
    final, ratio = np.array(outcome.final_loss), np.array(outcome.ratio)
    stable = is_stable(trained, final)
    if not stable:
        return DIVERGED
    return TRAINABLE if is_trainable(sweep.verdict, stable, ratio, final) else NOT_TRAINABLE


def members(sweep: Sweep, shard: Shard, outcome: Outcome) -> Iterator[Outcome]:
    """The outcome for every point that the trained one stands for, itself included."""
    for index in shard.shared[outcome.index]:
        point = sweep.point(index)
        yield replace(outcome, index=index, i=point.i, j=point.j, y=point.y, x=point.x)


def log_line(sweep: Sweep, outcome: Outcome, state: int) -> dict[str, Any]:
    """One point of one attempt as plain data, for the stored log."""
    return {
        "i": outcome.i,
        "j": outcome.j,
        sweep.y_knob.name: outcome.y,
        sweep.x_knob.name: outcome.x,
        "steps": outcome.steps,
        "first_loss": outcome.first_loss,
        "final_loss": outcome.final_loss,
        "ratio": outcome.ratio,
        "state": STATE_NAMES[state],
        "seconds": round(outcome.seconds, 6),
        "error": outcome.error,
    }


def readable(sweep: Sweep, line: dict[str, Any]) -> str:
    """A log line for people: what `kubectl logs` and `fractal-k8s logs` show."""
    clock = str(line.get("time", ""))[11:19] or time.strftime("%H:%M:%S", time.gmtime())
    y, x = sweep.y_knob.name, sweep.x_knob.name
    first, final = float(line["first_loss"]), float(line["final_loss"])
    text = (
        f"{clock} ({line['i']:>3},{line['j']:>3})  {y}={line[y]:<9.4g} {x}={line[x]:<9.4g} "
        f"steps {line['steps']:<4} loss {first:.4g} -> {final:.4g}  {line['state']}"
    )
    return f"{text}: {line['error']}" if line.get("error") else text


def flush_stdout(text: str) -> None:
    """Prints a line so that a log reader sees it at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
