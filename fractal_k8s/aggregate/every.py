"""A pass over every sweep of a store; those of which nothing has changed are left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from fractal_k8s.aggregate.announce import Patience, announce_failed, is_wanted, publish
from fractal_k8s.aggregate.passes import Look, Passes, accepts_mixed
from fractal_k8s.aggregate.record import inputs_of, is_unchanged, read_record
from fractal_k8s.aggregate.until import JobsState
from fractal_k8s.errors import EXIT_CORRUPT, EXIT_RETRY, FractalError, StoreError
from fractal_k8s.results.lineage import Kin, Relative, as_relative, read_relative
from fractal_k8s.results.listing import Listing, list_sweep
from fractal_k8s.results.problems import in_summary, shown
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan

Say = Callable[[str], None]

_READERS: Final = 32
# of a pass, on summaries that W&B does not take: the other sweeps' come with a later pass
_TRACKING_S: Final = 300.0
# A summary that is older is left alone: who first names a webhook or W&B is not told of all that
# the store holds, and what cannot be told is not tried for ever.
_FRESH_S: Final = 86_400.0


@dataclass(frozen=True)
class Visit:
    """What a pass did to one sweep."""

    sweep_id: str
    # unchanged, partial, partial with only the counts made anew, complete, nothing stored, problem
    state: str
    coverage: float | None = None
    problems: tuple[str, ...] = ()
    exit_code: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "sweep": self.sweep_id,
            "state": self.state,
            "coverage": self.coverage,
            "problems": list(self.problems),
        }


def aggregate_all(
    store: Store,
    *,
    allow_mixed: bool,
    say: Say,
    jobs: Callable[[str], JobsState] | None = None,
) -> Iterator[Visit]:
    """Makes the summaries of all sweeps that have changed; one that cannot be read stops no other.

    Args:
        jobs: asks a cluster about a sweep's Jobs; None = there is none to be asked.

    Raises:
        StoreError: the store cannot be listed.
    """
    names = store.files.folders()
    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        firsts = dict(zip(names, readers.map(partial(_first_look, store), names), strict=True))
    members = {name: one.member for name, one in firsts.items() if one.member is not None}
    visits = _Visits(store, allow_mixed, say, jobs, Kin(store.files, members))
    for sweep_id, first in firsts.items():
        try:
            visit = visits.visit(sweep_id, first)
        except FractalError as error:
            code = EXIT_RETRY if type(error) is StoreError else EXIT_CORRUPT
            visit = Visit(sweep_id, "problem", problems=(str(error),), exit_code=code)
        if visit is not None:
            yield visit


@dataclass(frozen=True)
class _First:
    """What is read of every sweep before any is visited."""

    record: dict[str, Any]
    # what families know of it; None where it is no sweep, or damaged
    member: Relative | None
    # why neither could be read
    error: StoreError | None = None


def _first_look(store: Store, sweep_id: str) -> _First:
    """The aggregator's own record tells all; without one the sweep's definition is read."""
    try:
        record = read_record(store.sweep(sweep_id))
        member = as_relative(sweep_id, record.get("member"))
        return _First(record, member or read_relative(store.files, sweep_id))
    except StoreError as error:
        return _First({}, None, error)


@dataclass
class _Visits:
    """What the visits to all sweeps of a store have in common."""

    store: Store
    allow_mixed: bool
    say: Say
    jobs: Callable[[str], JobsState] | None
    kin: Kin
    patience: Patience = field(default_factory=lambda: Patience(_TRACKING_S))

    def visit(self, sweep_id: str, first: _First) -> Visit | None:
        """A pass over one sweep; None if the folder is none of a sweep."""
        if first.error is not None:
            raise first.error
        folder, record = self.store.sweep(sweep_id), first.record
        # a launch that accepts them tells its own aggregator only
        allow_mixed = self.allow_mixed or accepts_mixed(record)
        if record.get("complete") is True:
            listing = list_sweep(folder)
            if is_unchanged(listing, record, inputs_of(listing, allow_mixed, self.kin)):
                return self._left_alone(listing, record, has_ended=False)
        plan = folder.read_plan()
        if plan is None:
            return None
        # asked before the store is read: what comes later is not missed
        state = None if record.get("complete") else self._jobs_state(sweep_id)
        failed = {} if state is None else state.failed
        announce_failed(folder, failed, self.say)
        listing = list_sweep(folder)
        if not listing.outcomes:
            return _nothing(sweep_id, record)
        passes = Passes(folder, plan, allow_mixed=allow_mixed, say=self.say, kin=self.kin)
        made = passes.next(listing)
        if isinstance(made, Look):
            return _visited(
                sweep_id,
                "partial, pictures follow",
                made.coverage,
                shown(in_summary(made.problems)),
            )
        # Without a failed index Jobs may be gone because the sweep is trained elsewhere.
        has_ended = bool(failed) and state is not None and state.is_over
        if made is None:
            return self._left_alone(listing, record, has_ended=has_ended, plan=plan)
        publish(folder, plan, self.say, has_ended=has_ended, patience=self.patience)
        name = "complete" if made.summary["complete"] else "partial"
        return _visited(sweep_id, name, made.summary["coverage"], shown(made.summary))

    def _left_alone(
        self,
        listing: Listing,
        record: Mapping[str, Any],
        *,
        has_ended: bool,
        plan: Plan | None = None,
    ) -> Visit:
        """A sweep of which nothing has changed, of which something may still have to be told."""
        folder = listing.folder
        # indexes fail after the last outcome, and servers come back
        if (has_ended or _is_fresh(listing)) and is_wanted():
            plan = folder.read_plan() if plan is None else plan
            if plan is not None:
                publish(folder, plan, self.say, has_ended=has_ended, patience=self.patience)
        # what was wrong when the same was drawn is wrong now
        return _visited(folder.sweep_id, "unchanged", record.get("coverage"), shown(record))

    def _jobs_state(self, sweep_id: str) -> JobsState | None:
        if self.jobs is None:
            return None
        try:
            return self.jobs(sweep_id)
        except FractalError as error:
            self.say(f"{sweep_id}: the cluster does not say how its Jobs stand: {error}")
            return None


def _visited(sweep_id: str, state: str, coverage: float | None, problems: tuple[str, ...]) -> Visit:
    return Visit(sweep_id, state, coverage, problems, EXIT_CORRUPT if problems else 0)


def _nothing(sweep_id: str, record: Mapping[str, Any]) -> Visit:
    """A sweep without outcomes; the summary of those that were there stays as it is."""
    before = record.get("objects")
    if not isinstance(before, int) or not before:
        return Visit(sweep_id, "nothing stored")
    gone = f"all {before:,} outcome objects that the last pass saw are gone"
    return _visited(sweep_id, "nothing stored", None, (gone,))


def _is_fresh(listing: Listing) -> bool:
    written = max((entry.modified_ns for entry in listing.below("summary")), default=0) / 1e9
    return time.time() - written < _FRESH_S
