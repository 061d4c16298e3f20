"""Passes over a sweep until it has ended: the aggregator Job, or a person's `--until-complete`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fractal_k8s.aggregate.announce import Beside, announce_failed, publish
from fractal_k8s.aggregate.one_pass import Aggregation
from fractal_k8s.aggregate.passes import Look, Passes
from fractal_k8s.errors import (
    ConflictError,
    FractalError,
    IncompleteError,
    StoreError,
    UsageError,
)
from fractal_k8s.results.lease import forget_job
from fractal_k8s.results.listing import list_sweep
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan

Say = Callable[[str], None]

# of drawing, at most this share of the time
_DRAWING_SHARE: Final = 0.25


@dataclass(frozen=True)
class JobsState:
    """What a cluster says of a sweep's Jobs."""

    # every index has succeeded or failed for good, or the Jobs are gone
    is_over: bool
    # sentences, one a Job of which indexes have failed for good, by the Job's name
    failed: dict[str, str]


@dataclass(frozen=True)
class Watch:
    """How long a sweep is waited for."""

    # how often the store is looked at
    every_s: float = 30.0
    # without a word of the cluster, a sweep of which nothing new comes for so long has ended
    patience_s: float = 3600.0
    # asks the cluster about a sweep by its whole id; None = there is none to be asked
    jobs: Callable[[str], JobsState] | None = None


def aggregate_until(
    store: Store, sweep_id: str, watch: Watch, *, allow_mixed: bool, say: Say
) -> tuple[Plan, Aggregation]:
    """Makes the summary again and again until the sweep has ended; the last one counts.

    A store or a cluster that does not answer for a while is asked again.

    Args:
        sweep_id: whole, where the sweep's first worker has not started yet.

    Raises:
        ConflictError: its points are not one map, which more of them would not change.
        IncompleteError: it has ended, or patience has, before anything was stored.
        StoreError: the store has not answered for as long as patience lasts.
    """
    waiting = _Waiting(store, sweep_id, watch, allow_mixed, say)
    while True:
        over = waiting.is_over()  # asked before the store is read: what comes later is not missed
        finished = waiting.look(is_last=over)
        if finished and waiting.plan and waiting.done:
            break
        if (over and waiting.is_answered) or waiting.is_out_of_patience():
            waiting.check_anything()
            break
        time.sleep(waiting.pause_s)
    plan, done = waiting.result()
    if over or finished:
        forget_job(store.sweep(plan.sweep.id))
    waiting.beside.wait()  # who is still telling of an earlier one would keep the last from it
    publish(store.sweep(plan.sweep.id), plan, say, has_ended=True)
    return plan, done


class _Waiting:
    """What is known of a sweep that is waited for."""

    def __init__(
        self, store: Store, sweep_id: str, watch: Watch, allow_mixed: bool, say: Say
    ) -> None:
        self.store = store
        self.sweep_id = sweep_id
        self.watch = watch
        self.allow_mixed = allow_mixed
        self.say = say
        self.plan: Plan | None = None
        self._passes: Passes | None = None
        # tells W&B of summaries on the way
        self.beside = Beside(say)
        self.done: Aggregation | None = None
        self.pause_s = watch.every_s
        # when something new came last, or the cluster said that something will
        self._hoped_at = self._answered_at = time.monotonic()
        self._seen: object = None
        # of a map that changes little the counts may be ahead of what was drawn
        self._is_behind = False
        self._asks = watch.jobs is not None
        self._problem: FractalError | None = None

    def is_over(self) -> bool:
        """Whether the cluster says that nothing more will come."""
        if self.watch.jobs is None:
            return False
        # a part of an id, which a person may type, has no Jobs
        with contextlib.suppress(StoreError):
            self._find()
        sweep_id = self.sweep_id if self.plan is None else self.plan.sweep.id
        try:
            state = self.watch.jobs(sweep_id)
        except FractalError as error:
            if self._asks:
                self.say(f"the cluster does not say how the Job stands: {error}")
            self._asks = False
            return False
        self._asks, self._hoped_at = True, time.monotonic()
        announce_failed(self.store.sweep(sweep_id), state.failed, self.say)
        return state.is_over

    @property
    def is_answered(self) -> bool:
        """Whether the store could be read and written at the last look."""
        return self._problem is None

    def look(self, *, is_last: bool) -> bool:
        """Looks at the store, draws what is new; True when every point has a verdict.

        Args:
            is_last: nothing more will come: what may have been written unseen is read again.
        """
        began = time.monotonic()
        try:
            complete = self._look(is_last)
        except ConflictError:
            raise
        except StoreError as error:
            if self._problem is None:
                self.say(f"{error}; trying again")
            self._problem = error
            return False
        self._problem, self._answered_at = None, time.monotonic()
        taken = self._answered_at - began
        self.pause_s = max(self.watch.every_s, taken * (1 / _DRAWING_SHARE - 1))
        return complete

    def _look(self, is_last: bool) -> bool:
        self._find()
        if self.plan is None:
            return False
        folder = self.store.sweep(self.plan.sweep.id)
        if self._passes is None:
            self._passes = Passes(folder, self.plan, allow_mixed=self.allow_mixed, say=self.say)
        listing = list_sweep(folder)
        seen = listing.outcomes
        if seen != self._seen:
            self._seen, self._hoped_at = seen, time.monotonic()
        elif self.done is not None and not self._is_behind and not is_last:
            return bool(self.done.summary["complete"])
        if self.done is None:
            self.done = self._passes.whole(listing)
            return self._drawn(self.done)
        made = self._passes.next(listing, may_look=not is_last)
        if isinstance(made, Look):
            self._is_behind = True
            text = f"{made.known:,} of {made.points:,} points, {made.num_read:,} objects read"
            self.say(f"{text}; the pictures follow")
            return False
        if made is not None:
            self.done = made
            return self._drawn(made)
        self._is_behind = False
        return bool(self.done.summary["complete"])

    def _drawn(self, done: Aggregation) -> bool:
        """Says what was drawn; True when every point has a verdict."""
        self._is_behind = False
        assert self.plan is not None  # it was drawn
        self.beside.publish(self.store.sweep(self.plan.sweep.id), self.plan)
        known, whole = int(done.grid.known.sum()), done.grid.known.size
        self.say(f"{known:,} of {whole:,} points, {done.num_read:,} objects read")
        return bool(done.summary["complete"])

    def _find(self) -> None:
        """Reads the sweep, unless its first worker has not written it down yet."""
        if self.plan is None:
            with contextlib.suppress(UsageError):
                self.plan = self.store.plan(self.sweep_id)[1]

    def is_out_of_patience(self) -> bool:
        """Whether nothing new came for too long, and no cluster says that something will."""
        silent = time.monotonic() - self._hoped_at > self.watch.patience_s
        if self._problem is not None:
            return time.monotonic() - self._answered_at > self.watch.patience_s
        return silent and not self._asks

    def check_anything(self) -> None:
        """Raises:
        StoreError: the store does not answer.
        IncompleteError: it has nothing of the sweep.
        """
        if self._problem is not None:
            raise self._problem
        if self.plan is None or self.done is None:
            raise IncompleteError(
                f"{self.sweep_id}: no worker has stored anything in {self.store.files.place}; see "
                "its pods' logs, or name the sweep's whole id and its own --store"
            )

    def result(self) -> tuple[Plan, Aggregation]:
        """The sweep and its last summary."""
        assert self.plan is not None  # checked before
        assert self.done is not None
        return self.plan, self.done
