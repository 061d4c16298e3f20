"""`fractal-k8s repro --context NAME`: a Job on a cluster trains the points again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.sending import Lines, Sending, leaving, typed_command
from fractal_k8s.errors import ClusterError, CorruptError, IncompleteError, UsageError
from fractal_k8s.stopping import exit_code

if TYPE_CHECKING:
    from rich.console import Console

    from fractal_k8s.backends import Status
    from fractal_k8s.backends.kube.client import Cluster
    from fractal_k8s.backends.kube.jobs import SweepJob
    from fractal_k8s.repro_job import Rerun
    from fractal_k8s.results.certificate import Repeat


def options_of(sending: Sending) -> dict[str, Any]:
    """What options say of the Job, which is another one where they say something else."""
    given: dict[str, Any] = {"allow_mixed": sending.allow_mixed}
    for _, values in sending.job.layers(None, store=sending.store_uri):
        given |= values
    return given


def repeat_on_cluster(
    cluster: Cluster,
    text: str,
    sending: Sending,
    *,
    sample: int,
    seed: int,
    places: tuple[tuple[int, int], ...],
) -> tuple[Rerun, list[Repeat]]:
    """Sends the Job or finds it, waits for its end, and compares.

    Raises:
        FractalError: see `repro_job.take_up` and `repro_job.compared`.
        IncompleteError: the Job has failed, or was deleted.
    """
    from rich.console import Console

    from fractal_k8s import dispatch, repro_job

    console = Console(stderr=True)
    found = dispatch.find(cluster, text, sending.settings)
    wish = repro_job.Wish(sample, seed, places, sending.job.points_per_shard, options_of(sending))
    rerun = repro_job.take_up(found, wish)
    _say_sent(console, cluster, rerun)
    _wait(console, cluster, rerun)
    return rerun, repro_job.compared(rerun)


def _say_sent(console: Console, cluster: Cluster, rerun: Rerun) -> None:
    from fractal_k8s import dispatch
    from fractal_k8s.backends.kube.send import kubectl

    job = rerun.job
    head = f"{job.sweep_id}: {len(rerun.points)} points again by the Job {job.name}"
    if rerun.is_new:
        indexes = f"{job.completions} index{'es' * (job.completions > 1)}"
        pods = f"{job.parallelism} pod{'s' * (job.parallelism > 1)} at once"
        lines = [f"{head}, {indexes}, {pods}"]
    else:
        lines = [f"{head}, sent at {job.created} ({dispatch.how_it_stands(job)})"]
    lines += [f"note: {note}" for note in rerun.notes]
    lines.append(f"one pod     {kubectl(cluster)} logs -f job/{job.name}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _wait(console: Console, cluster: Cluster, rerun: Rerun) -> None:
    """Waits until the Job has ended; Ctrl-C leaves it alone.

    Raises:
        IncompleteError: it has failed, or was deleted.
        FractalError: a worker said that it is wrong for every shard.
    """
    from fractal_k8s import dispatch
    from fractal_k8s.backends.kube.send import kubectl
    from fractal_k8s.results.grid import DIVERGED

    done: set[int] = set()
    attached = dispatch.attach(
        cluster, rerun.job, rerun.plan, rerun.place, lambda event: done.add(event.index)
    )
    states = attached.states().ravel()
    done.update(point for point in rerun.points if states[point] >= DIVERGED)
    run = attached.run

    def progress() -> str:
        count = len(done.intersection(rerun.points))
        return f"{dispatch.how_it_stands(run.job)}, {count} of {len(rerun.points)} points"

    run.looked = Lines(run, console, progress).show
    with leaving(run) as stopped:
        try:
            status = run.wait()
        except (UsageError, CorruptError) as error:
            raise type(error)(f"the points cannot be trained again there: {error}") from None
    name = rerun.job.name
    if stopped:
        text = f"not waited for any more; the Job {name} goes on\ngo on       {typed_command()}\n"
        text += f"stop it     {kubectl(cluster)} delete job {name}"
        console.print(text, highlight=False, soft_wrap=True)
        sys.exit(exit_code(stopped[0]))
    if run.is_gone:
        raise IncompleteError(f"the Job {name} was deleted; send another with: {typed_command()}")
    if run.job.condition("Failed") is not None:
        raise _failed(run.job, status, kubectl(cluster))


def _failed(job: SweepJob, status: Status, kubectl: str) -> IncompleteError:
    reasons = sorted(set(status.failed.values()))
    ended = job.condition("Failed") or {}
    why = "; ".join(reasons) or f"{ended.get('reason')}: {ended.get('message')}"
    return IncompleteError(
        f"the Job {job.name} has failed ({why}); look at: {kubectl} logs job/{job.name}; then "
        f"train what is left with: {typed_command()}"
    )


def delete_job(cluster: Cluster, rerun: Rerun) -> None:
    """Deletes a Job that nobody needs any more; where that fails it goes by itself in time."""
    from fractal_k8s.backends.kube.steer import cancel

    try:
        cancel(cluster, [rerun.job])
    except ClusterError as error:
        click.echo(f"note: the Job {rerun.job.name} stays for a while: {error}", err=True)
