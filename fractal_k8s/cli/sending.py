"""What `launch`, `resume` and `zoom` share where a cluster is named: settings, sending, waiting."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

import click
from click.core import ParameterSource

from fractal_k8s.cli.common import duration, echo_json
from fractal_k8s.cli.job_options import JobOptions, Layer
from fractal_k8s.cli.training import print_result
from fractal_k8s.cli.where import Where
from fractal_k8s.errors import IncompleteError, UsageError
from fractal_k8s.stopping import exit_code

if TYPE_CHECKING:
    from fractal_k8s.aggregate import Aggregation
    from fractal_k8s.backends.k8s import K8sRun
    from fractal_k8s.backends.kube.client import Cluster
    from fractal_k8s.backends.kube.jobs import SweepJob
    from fractal_k8s.backends.kube.send import Sent
    from fractal_k8s.dispatch import Found, Order
    from fractal_k8s.manifest.settings import JobSettings
    from fractal_k8s.results.store import Store, SweepStore
    from fractal_k8s.sweep.assignment import Plan
    from fractal_k8s.sweep.definition import Sweep

wait_option: Final = click.option(
    "--wait", is_flag=True, help="On a cluster: show the map until the Job has ended."
)
_LINE_EVERY_S: Final = 5.0
# options that decide about a Job once and for all, by the names of their parameters
_FIXED: Final = {
    "store_uri": "--store",
    "points_per_index": "--points-per-index",
    "gpus_per_pod": "--gpus-per-pod",
    "image": "--image",
    "queue": "--queue",
    "priority_class": "--priority-class",
    "site": "--site",
    "job": "--job",
    "wandb_project": "--wandb",
    "wandb_mode": "--wandb-mode",
    "price_per_hour": "--price",
    "allow_mixed": "--allow-mixed",
}


@dataclass(frozen=True)
class Sending:
    """How a sweep is sent to the cluster that the options name."""

    where: Where
    job: JobOptions
    # as typed; None = as the site says
    store_uri: str | None
    allow_mixed: bool
    as_json: bool
    # what `cli.training.training_options` says
    training: dict[str, Any]
    wait: bool = False

    def settings(self, cluster: Cluster, earlier: Layer | None = None) -> JobSettings:
        """The Job's settings: defaults, the site's, those of an earlier Job, the options."""
        from fractal_k8s.backends.kube.site import read_site
        from fractal_k8s.manifest.settings import make_settings

        layers = [read_site(cluster), *([earlier] if earlier else [])]
        price = self.training["price_per_hour"]
        layers += self.job.layers(None, store=self.store_uri, price=price)
        given = {
            "allow_mixed": self.allow_mixed or None,
            "wandb_project": self.training["wandb_project"],
            "wandb_mode": self.training["wandb_mode"],
        }
        layers.append(("options", {key: value for key, value in given.items() if value}))
        return make_settings(*layers)

    def refuse_changes(self, job: SweepJob) -> None:
        """Refuses options that a Job cannot take any more once it is there.

        Raises:
            click.UsageError: there are some.
        """
        if wrong := [option for name, option in _FIXED.items() if typed(name)]:
            raise click.UsageError(
                f"the Job {job.name} is paused and goes on as it was launched; {', '.join(wrong)} "
                "cannot change it: cancel it first, then resume"
            )

    def client_store(self) -> Store:
        """The store of the site, read from this machine.

        Raises:
            UsageError: it cannot be.
        """
        from fractal_k8s.dispatch import open_client_store

        store, why = open_client_store(self.settings(self.where.connect()))
        if store is None:
            raise UsageError(f"{why}; a map must be read from here to zoom into it")
        return store


def typed(name: str) -> bool:
    """Whether an option of the running command stands on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def typed_command() -> str:
    """The running command with what stands on its command line, to be typed again."""
    context = click.get_current_context()
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in context.params or not typed(name):
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif getattr(parameter, "is_flag", False):
            words.append(parameter.opts[0])
        else:
            for each in value if parameter.multiple else [value]:
                words += [parameter.opts[0], _word(each)]
    return shlex.join(["fractal-k8s", str(context.info_name), *words])


def _word(value: object) -> str:
    """A value of an option as it is typed: a point is I,J."""
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def refuse_mixture(where: Where, job: JobOptions, *, wait: bool = False) -> None:
    """Refuses options of a cluster without one, and options of this machine with one.

    Raises:
        click.UsageError: there are some.
    """
    if not where.is_named:
        job.refuse_on_this_machine()
        if wait:
            raise click.UsageError("--wait needs --context NAME: without a cluster launch waits")
        return
    if wrong := [name for name in ("workers", "backend", "beside_pods") if typed(name)]:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise click.UsageError(
            f"{options} say how this machine trains, and "
            "--context sends the sweep to a cluster; there, say --gpus N"
        )


def refuse_relocation(checkpoint: str | None, dataset: str | None) -> None:
    """Refuses places of files on this machine where pods are to read them.

    Raises:
        click.UsageError: there are some.
    """
    if checkpoint is not None or dataset is not None:
        raise click.UsageError(
            "--checkpoint and --dataset say where files are on this machine; on a cluster say "
            "--job model_path=FOLDER and --job dataset=conversations:FILE"
        )


# --- launch ---


def launch_on_cluster(sweep: Sweep, sending: Sending) -> dict[str, Any]:
    """Sends a sweep, unless a Job of it is there; says what runs and what can be done next.

    Returns:
        the same as plain data.
    """
    from fractal_k8s import dispatch

    cluster = sending.where.connect()
    sweep, notes = dispatch.tie(sweep)
    if standing := dispatch.standing_jobs(cluster, sweep):
        return _say_standing(cluster, standing[-1], sending)
    settings = sending.settings(cluster)
    dispatch.wait_for_last_pods(cluster, sweep.id, settings, _say_waiting)
    known = dispatch.known_points(sweep, settings)
    if known.points is not None and known.points.all():
        return _say_nothing_missing(cluster, sweep, sending)
    known = replace(known, notes=(*notes, *known.notes))
    made = dispatch.order(
        cluster, sweep, settings, known, points_per_index=sending.job.points_per_shard
    )
    return _send(made, sending)


def resume_on_cluster(text: str, sending: Sending) -> dict[str, Any]:
    """Goes on with a sweep: starts a paused Job again, or sends another over what is left.

    Returns:
        what is said of it, as plain data.
    """
    from fractal_k8s import dispatch
    from fractal_k8s.backends.kube import steer

    cluster = sending.where.connect()
    found = dispatch.find(cluster, text, sending.settings)
    for job in found.jobs:
        if job.is_finished or job.is_going:
            continue
        if not job.is_suspended:
            raise UsageError(
                f"{job.sweep_id} is being trained by the Job {job.name} "
                f"({dispatch.how_it_stands(job)}); watch it with: "
                f"{_command('status', job.sweep_id, sending.where)} --watch"
            )
        sending.refuse_changes(job)
        job = steer.unpause(cluster, job).job
        if sending.job.gpus is not None:
            job = steer.scale(cluster, job, found.settings.gpus).job
        return _say_resumed(job, found, sending)
    dispatch.wait_for_last_pods(cluster, found.plan.sweep.id, found.settings, _say_waiting)
    made = dispatch.order_rest(found, points_per_index=sending.job.points_per_shard)
    if made is None:
        return _say_nothing_missing(cluster, found.plan.sweep, sending)
    return _send(made, sending)


def _send(made: Order, sending: Sending) -> dict[str, Any]:
    from fractal_k8s import dispatch

    sent = dispatch.dispatch(made)
    if not sent.is_new:
        return _say_standing(made.cluster, sent.job, sending)
    notes = (*made.notes, *sent.notes)
    facts = {
        **_facts(made.cluster, sent.job),
        "sent": True,
        "points_per_index": made.plan.deal.points_per_shard,
        "experiments": made.experiments,
        "store": made.settings.store,
        "aggregator": sent.aggregator,
        "forecast": made.prediction,
        "notes": list(notes),
    }
    if not sending.as_json:
        click.echo("\n".join(_sent_lines(made, sent, notes, sending.where)))
    if sending.wait:
        _wait(made.cluster, sent.job, made.plan, made.folder, sending, facts)
    return facts


# --- what is said ---


def _say_waiting(text: str) -> None:
    click.echo(text, err=True)


def _sent_lines(made: Order, sent: Sent, notes: tuple[str, ...], where: Where) -> Iterator[str]:
    from fractal_k8s.backends.kube.send import kubectl
    from fractal_k8s.results.store import PAGE_FILE

    job = sent.job
    sweep_id, size = made.plan.sweep.id, made.plan.deal.points_per_shard
    pods = "pod" if job.parallelism == 1 else "pods"
    each = f" of {job.gpus_per_pod} GPU{'s' * (job.gpus_per_pod > 1)}" if job.gpus_per_pod else ""
    shard = f"{size:,} point{'s' * (size > 1)}"
    if made.settings.processes > 1:
        shard = f"{made.settings.processes} x {shard}"
    yield f"{sweep_id}: Job {job.name} in namespace {made.cluster.namespace}"
    indexes = "index" if job.completions == 1 else "indexes"
    yield (
        f"  {job.completions:,} {indexes} of {shard}, {made.experiments:,} experiments, "
        f"{job.parallelism:,} {pods}{each} at once"
    )
    place = (made.settings.store or "").partition("?")[0].rstrip("/")
    yield f"  outcomes in {place}"
    if sent.aggregator is not None:
        yield f"  map by job/{sent.aggregator} in {place}/{sweep_id}/summary/{PAGE_FILE}"
    if made.prediction is not None:
        yield f"  {_forecast(made.prediction, made.settings)}"
    for note in notes:
        yield f"note: {note}"
    yield f"watch it    {_command('status', sweep_id, where)} --watch"
    yield f"one pod     {kubectl(made.cluster)} logs -f job/{job.name}"
    yield f"more GPUs   {_command('scale', sweep_id, where)} --gpus N"
    yield f"stop it     {_command('cancel', sweep_id, where)}"
    if (line := _see_it(job, where)) is not None:
        yield f"the map     {line}"


def _see_it(job: SweepJob, where: Where) -> str | None:
    """The command that shows the map; None where only pods can read the store."""
    from fractal_k8s.cli.cluster_store import see_it, store_of

    uri = store_of(job)
    return None if uri is None else see_it(job.sweep_id, uri, where.options)


def _forecast(prediction: dict[str, Any], settings: JobSettings) -> str:
    text = f"about {duration(prediction['wall_seconds'])} once pods run"
    hours = prediction["worker_seconds"] / 3600
    if settings.gpus_per_pod:
        text += f", {hours:,.1f} GPU-hours"
    if settings.usd_per_gpu_hour is not None:
        text += f", {hours * settings.usd_per_gpu_hour:,.2f} USD"
    return f"{text} (from {prediction['source']})"


def _say_standing(cluster: Cluster, job: SweepJob, sending: Sending) -> dict[str, Any]:
    """Says that the sweep was sent before, and how it goes on."""
    from fractal_k8s import dispatch
    from fractal_k8s.backends.kube.jobs import plan_of

    where, sweep_id = sending.where, job.sweep_id
    facts = {**_facts(cluster, job), "sent": False}
    if not sending.as_json:
        click.echo(
            f"{sweep_id} was launched at {job.created} (Job {job.name}: "
            f"{dispatch.how_it_stands(job)}); nothing was sent"
        )
        if job.condition("Complete") is not None:
            click.echo(f"see it      {_command('status', sweep_id, where)}")
            if (line := _see_it(job, where)) is not None:
                click.echo(f"the map     {line}")
        elif job.is_finished or job.is_paused:
            click.echo(f"go on       {_command('resume', sweep_id, where)}")
        else:
            click.echo(f"watch it    {_command('status', sweep_id, where)} --watch")
    if sending.wait and not job.is_finished:
        plan = plan_of(cluster, job)
        settings = sending.settings(cluster, dispatch.inherited(job))
        folder = dispatch.open_folder(settings, sweep_id)
        _wait(cluster, job, plan, folder, sending, facts)
    return facts


def _say_resumed(job: SweepJob, found: Found, sending: Sending) -> dict[str, Any]:
    from fractal_k8s import dispatch

    facts = {**_facts(found.cluster, job), "sent": False}
    if not sending.as_json:
        click.echo(f"{job.sweep_id}: the Job {job.name} goes on where it was paused")
        click.echo(f"watch it    {_command('status', job.sweep_id, sending.where)} --watch")
    if sending.wait:
        folder = dispatch.open_folder(found.settings, job.sweep_id)
        _wait(found.cluster, job, found.plan, folder, sending, facts)
    return facts


def _say_nothing_missing(cluster: Cluster, sweep: Sweep, sending: Sending) -> dict[str, Any]:
    if not sending.as_json:
        click.echo(f"{sweep.id}: every point is stored, nothing to train; nothing was sent")
    facts = {"sweep": sweep.id, "context": cluster.context, "namespace": cluster.namespace}
    return {**facts, "sent": False, "state": "every point is stored"}


def _facts(cluster: Cluster, job: SweepJob) -> dict[str, Any]:
    from fractal_k8s import dispatch

    return {
        "sweep": job.sweep_id,
        "job": job.name,
        "context": cluster.context,
        "namespace": cluster.namespace,
        "created": job.created,
        "state": dispatch.how_it_stands(job),
        "indexes": job.completions,
        "parallelism": job.parallelism,
        "gpus_per_pod": job.gpus_per_pod,
    }


def _command(name: str, sweep_id: str, where: Where) -> str:
    """The command line that does `name` to a sweep on the same cluster."""
    return f"fractal-k8s {name} {sweep_id} {where.options}"


# --- waiting ---


def _wait(
    cluster: Cluster,
    job: SweepJob,
    plan: Plan,
    folder: SweepStore | None,
    sending: Sending,
    facts: dict[str, Any],
) -> None:
    """Shows a Job until it ends, or until Ctrl-C, which leaves it alone; adds to the facts.

    Raises:
        IncompleteError: it ended with points missing or failed.
        FractalError: a worker said that it is wrong for every shard.
    """
    from rich.console import Console

    from fractal_k8s import dispatch
    from fractal_k8s.cli.display import make_display

    console = Console(stderr=sending.as_json)
    display = make_display(console)
    attached = dispatch.attach(cluster, job, plan, folder, display.point)
    if folder is None:
        run = attached.run
        run.looked = Lines(run, console, lambda: dispatch.how_it_stands(run.job)).show
    workers = job.parallelism * max(1, job.gpus_per_pod)
    with leaving(attached.run) as stopped:
        if folder is not None:
            display.begin(plan.sweep, attached.states(), workers)
        try:
            status = attached.run.wait()
        finally:
            if folder is not None:
                display.end()
    facts["state"] = dispatch.how_it_stands(attached.run.job)
    if stopped:
        text = f"not watched any more; the Job {job.name} goes on\nwatch it    "
        text += f"{_command('status', job.sweep_id, sending.where)} --watch"
        console.print(text, highlight=False, soft_wrap=True)
        sys.exit(exit_code(stopped[0]))
    try:
        done = attached.finish(status, allow_mixed=sending.allow_mixed)
    except IncompleteError as error:
        if sending.as_json:
            echo_json(facts)
        again = _command("resume", job.sweep_id, sending.where)
        raise IncompleteError(f"{error}; train them with: {again}") from None
    facts["summary"] = None if done is None else done.summary
    if not sending.as_json:
        _say_finished(job.sweep_id, done)


def _say_finished(sweep_id: str, done: Aggregation | None) -> None:
    if done is None:
        click.echo(f"{sweep_id}: every shard is done")
    else:
        print_result(done, as_json=False)


class Lines:
    """A line about a Job every few seconds, where no map of it is drawn."""

    def __init__(self, run: K8sRun, console: Any, tell: Callable[[], str]) -> None:
        self.run = run
        self.console = console
        self.tell = tell
        self._last = ""
        self._at = 0.0

    def show(self) -> None:
        text, now = self.tell(), time.monotonic()
        if text != self._last and (now - self._at > _LINE_EVERY_S or self.run.job.is_finished):
            self.console.print(text, highlight=False)
            self._last, self._at = text, now


class Waited(Protocol):
    """Something that is waited for."""

    def leave(self) -> None: ...


@contextmanager
def leaving(run: Waited) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the waiting; the list then holds the signal's number.

    The second one does not wait for an answer of the cluster.
    """
    numbers: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        run.leave()
        numbers.append(number)
        if len(numbers) > 1:
            sys.exit(exit_code(number))

    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handle) for number in caught}
    try:
        yield numbers
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
