"""A pass over every sweep of a store; those of which nothing has changed are left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fractal_k8s.aggregate.announce import announce_failed, publish
from fractal_k8s.aggregate.passes import Look, Passes
from fractal_k8s.aggregate.until import JobsState
from fractal_k8s.errors import EXIT_CORRUPT, FractalError, StoreError
from fractal_k8s.results.store import Store

Say = Callable[[str], None]


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
    for sweep_id in store.files.folders():
        try:
            visit = _visit(store, sweep_id, allow_mixed, say, jobs)
        except FractalError as error:
            code = 75 if type(error) is StoreError else EXIT_CORRUPT
            visit = Visit(sweep_id, "problem", problems=(str(error),), exit_code=code)
        if visit is not None:
            yield visit


def _visit(
    store: Store,
    sweep_id: str,
    allow_mixed: bool,
    say: Say,
    jobs: Callable[[str], JobsState] | None,
) -> Visit | None:
    """A pass over one sweep; None if the folder is none of a sweep."""
    folder = store.sweep(sweep_id)
    plan = folder.read_plan()
    if plan is None:
        return None
    if not folder.outcome_entries():
        return Visit(sweep_id, "nothing stored")
    made = Passes(folder, plan, allow_mixed=allow_mixed).next()
    if made is None:
        return Visit(sweep_id, "unchanged")
    state = _jobs_state(sweep_id, jobs, say)
    if state is not None and state.failed:
        announce_failed(folder, state.failed, say)
    if isinstance(made, Look):
        return _visited(sweep_id, "partial, pictures follow", made.coverage, made.problems)
    publish(folder, plan, made, say, has_ended=False)
    name = "complete" if made.summary["complete"] else "partial"
    return _visited(sweep_id, name, made.summary["coverage"], tuple(made.summary["problems"]))


def _visited(sweep_id: str, state: str, coverage: float, problems: tuple[str, ...]) -> Visit:
    return Visit(sweep_id, state, coverage, problems, EXIT_CORRUPT if problems else 0)


def _jobs_state(
    sweep_id: str, jobs: Callable[[str], JobsState] | None, say: Say
) -> JobsState | None:
    if jobs is None:
        return None
    try:
        return jobs(sweep_id)
    except FractalError as error:
        say(f"{sweep_id}: the cluster does not say how its Jobs stand: {error}")
        return None
