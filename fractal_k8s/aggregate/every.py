"""A pass over every sweep of a store; those of which nothing has changed are left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from fractal_k8s.aggregate.announce import Patience, announce_failed, publish
from fractal_k8s.aggregate.passes import Look, Passes, accepts_mixed
from fractal_k8s.aggregate.record import read_record
from fractal_k8s.aggregate.until import JobsState
from fractal_k8s.errors import EXIT_CORRUPT, EXIT_RETRY, FractalError, StoreError
from fractal_k8s.results.lineage import Family, read_families
from fractal_k8s.results.store import Store, SweepStore

Say = Callable[[str], None]

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
    visits = _Visits(store, allow_mixed, say, jobs, read_families(store.files))
    for sweep_id in store.files.folders():
        try:
            visit = visits.visit(sweep_id)
        except FractalError as error:
            code = EXIT_RETRY if type(error) is StoreError else EXIT_CORRUPT
            visit = Visit(sweep_id, "problem", problems=(str(error),), exit_code=code)
        if visit is not None:
            yield visit


@dataclass
class _Visits:
    """What the visits to all sweeps of a store have in common."""

    store: Store
    allow_mixed: bool
    say: Say
    jobs: Callable[[str], JobsState] | None
    families: Family
    patience: Patience = field(default_factory=lambda: Patience(_TRACKING_S))

    def visit(self, sweep_id: str) -> Visit | None:
        """A pass over one sweep; None if the folder is none of a sweep."""
        folder = self.store.sweep(sweep_id)
        plan = folder.read_plan()
        if plan is None:
            return None
        # asked before the store is read: what comes later is not missed
        state = None if read_record(folder).get("complete") else self._jobs_state(sweep_id)
        failed = {} if state is None else state.failed
        announce_failed(folder, failed, self.say)
        if not folder.outcome_entries():
            return Visit(sweep_id, "nothing stored")
        # a launch that accepts them tells its own aggregator only
        allow_mixed = self.allow_mixed or accepts_mixed(folder)
        made = Passes(folder, plan, allow_mixed=allow_mixed, families=self.families).next()
        if isinstance(made, Look):
            return _visited(sweep_id, "partial, pictures follow", made.coverage, made.problems)
        # Without a failed index Jobs may be gone because the sweep is trained elsewhere.
        has_ended = bool(failed) and state is not None and state.is_over
        # also where nothing has changed: indexes fail after the last outcome, and servers come back
        if made is not None or has_ended or _is_fresh(folder):
            publish(folder, plan, self.say, has_ended=has_ended, patience=self.patience)
        if made is None:
            # what was wrong when the same was drawn is wrong now
            last = folder.read_summary() or {}
            problems = tuple(last.get("problems", ()))
            return _visited(sweep_id, "unchanged", last.get("coverage"), problems)
        name = "complete" if made.summary["complete"] else "partial"
        return _visited(sweep_id, name, made.summary["coverage"], tuple(made.summary["problems"]))

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


def _is_fresh(folder: SweepStore) -> bool:
    entries = folder.files.entries(folder.key("summary"))
    written = max((entry.modified_ns for entry in entries), default=0) / 1e9
    return time.time() - written < _FRESH_S
