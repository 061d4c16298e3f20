"""`fractal-k8s controls --context NAME`: sweeps of a map's cells are trained on a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from fractal_k8s.cli.sending import Lines, leaving, typed_command
from fractal_k8s.errors import IncompleteError
from fractal_k8s.stopping import exit_code

if TYPE_CHECKING:
    from fractal_k8s.backends.kube.jobs import SweepJob
    from fractal_k8s.dispatch import Attached, Found, Order
    from fractal_k8s.results.grid import Grid
    from fractal_k8s.results.store import SweepStore
    from fractal_k8s.sweep.assignment import Plan
    from fractal_k8s.sweep.definition import Sweep


def train_on_cluster(
    derived: Sequence[Sweep], found: Found, folder: SweepStore, points_per_index: int | None
) -> list[Grid]:
    """Has a cluster train what is missing of some sweeps of a map, all at once; waits for it.

    Args:
        found: the map, whose settings the Jobs have.
        folder: the map's; those of the others lie beside it.
        points_per_index: None = chosen.

    Raises:
        FractalError: a Job cannot be as asked; then none was sent.
        IncompleteError: points are missing or failed.
    """
    from fractal_k8s.aggregate import read_grid
    from fractal_k8s.sweep.assignment import Plan
    from fractal_k8s.sweep.deal import Deal

    console = Console(stderr=True)
    attached: list[Attached] = []
    orders: list[Order] = []
    for sweep in derived:
        job = _running(found, sweep)
        if job is not None:
            attached.append(_taken_up(found, job, beside(folder, sweep), console))
        elif (made := _order(found, sweep, points_per_index)) is not None:
            orders.append(made)
    attached += [_sent(found, made, folder, console) for made in orders]
    allow_mixed = found.settings.allow_mixed
    _wait(attached, console, allow_mixed)
    return [
        read_grid(beside(folder, sweep), Plan(sweep, Deal()), allow_mixed=allow_mixed)
        for sweep in derived
    ]


def beside(folder: SweepStore, sweep: Sweep) -> SweepStore:
    """The folder of another sweep in the same store."""
    return type(folder)(folder.files, sweep.id)


# --- the Jobs ---


def _running(found: Found, sweep: Sweep) -> SweepJob | None:
    """The Job of an earlier call that has not ended."""
    from fractal_k8s import dispatch

    jobs = dispatch.standing_jobs(found.cluster, sweep)
    going = [job for job in jobs if not job.is_finished and not job.is_going]
    return going[-1] if going else None


def _order(found: Found, sweep: Sweep, points_per_index: int | None) -> Order | None:
    """A Job over what is missing of a sweep; None if nothing is."""
    from fractal_k8s import dispatch
    from fractal_k8s.backends.kube.jobs import free_name

    known = dispatch.known_points(sweep, found.settings)
    if known.points is not None and known.points.all():
        return None
    name = free_name(dispatch.standing_jobs(found.cluster, sweep), sweep.id)
    return dispatch.order(
        found.cluster, sweep, found.settings, known, points_per_index=points_per_index, name=name
    )


def _sent(found: Found, made: Order, folder: SweepStore, console: Console) -> Attached:
    from fractal_k8s import dispatch

    place = beside(folder, made.plan.sweep)
    if claimed := folder.claimed_files():  # of a map that was launched without knowing its files
        place.claim_files(claimed)
    sent = dispatch.dispatch(made)
    if not sent.is_new:
        return _taken_up(found, sent.job, place, console)
    job = sent.job
    text = f"{job.sweep_id}: {made.experiments:,} experiments by the Job {job.name}"
    pods = f"{job.parallelism:,} pod{'s' * (job.parallelism > 1)} at once"
    console.print(f"{text}, {pods}", highlight=False, soft_wrap=True)
    for note in (*made.notes, *sent.notes):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    return _attached(found, job, made.plan, place)


def _taken_up(found: Found, job: SweepJob, place: SweepStore, console: Console) -> Attached:
    from fractal_k8s import dispatch
    from fractal_k8s.backends.kube.jobs import plan_of

    text = f"{job.sweep_id}: by the Job {job.name}, sent at {job.created}"
    how = dispatch.how_it_stands(job)
    console.print(f"{text} ({how})", highlight=False, soft_wrap=True)
    return _attached(found, job, plan_of(found.cluster, job), place)


def _attached(found: Found, job: SweepJob, plan: Plan, place: SweepStore) -> Attached:
    from fractal_k8s import dispatch

    return dispatch.attach(found.cluster, job, plan, place, lambda event: None)


# --- waiting ---


@dataclass(frozen=True)
class _Several:
    """Jobs that are waited for together."""

    attached: Sequence[Attached]

    def leave(self) -> None:
        for each in self.attached:
            each.run.leave()


def _wait(attached: Sequence[Attached], console: Console, allow_mixed: bool) -> None:
    """Waits until all Jobs have ended; Ctrl-C leaves them alone.

    Raises:
        IncompleteError: points of some sweep are missing or failed.
        FractalError: a worker said that it is wrong for every shard.
    """
    problems = []
    with leaving(_Several(attached)) as stopped:
        for each in attached:
            each.run.looked = _lines(each, console).show
            status = each.run.wait()
            if stopped:
                break
            try:
                each.finish(status, allow_mixed=allow_mixed)
            except IncompleteError as error:
                problems.append(str(error))
    if stopped:
        names = ", ".join(each.run.job.name for each in attached)
        text = f"not waited for any more, and going on: {names}\ngo on       {typed_command()}"
        console.print(text, highlight=False, soft_wrap=True)
        sys.exit(exit_code(stopped[0]))
    if problems:
        raise IncompleteError(f"{'; '.join(problems)}; train what is left: {typed_command()}")


def _lines(attached: Attached, console: Console) -> Lines:
    from fractal_k8s.dispatch import how_it_stands

    run = attached.run
    return Lines(run, console, lambda: f"{run.job.name}: {how_it_stands(run.job)}")
