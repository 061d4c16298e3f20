"""How far a sweep on a cluster is: the text, the facts and the live view of `Progress`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from fractal_k8s.backends.kube.progress import JobProgress, Progress, ProgressReader
from fractal_k8s.cli.cluster_store import see_it, store_of, sweep_of
from fractal_k8s.cli.common import duration, echo_json, open_store, per_second
from fractal_k8s.cli.polling import Poller
from fractal_k8s.cli.status import counts_text, tally_reader
from fractal_k8s.errors import (
    EXIT_INTERRUPTED,
    ClusterError,
    ForbiddenError,
    StoreError,
    UsageError,
)
from fractal_k8s.manifest import labels
from fractal_k8s.results.tally import Tally

if TYPE_CHECKING:
    from rich.console import Console

    from fractal_k8s.backends.kube.client import Cluster
    from fractal_k8s.backends.kube.jobs import SweepJob
    from fractal_k8s.backends.kube.trouble import Trouble
    from fractal_k8s.cli.where import Where
    from fractal_k8s.results.tally import TallyReader
    from fractal_k8s.sweep.assignment import Plan

# of one look at the store, so that a command answers soon; the next look goes on from there
_STORE_BUDGET_S: Final = 1.0
_LATER_BUDGET_S: Final = 5.0
# how much longer than the first one a store may take before the command goes on without it
_STORE_PATIENCE_S: Final = 1.5
_STORE_EVERY_S: Final = 2.0
_CLUSTER_EVERY_S: Final = 3.0
_DRAW_EVERY_S: Final = 0.5
_LINE_EVERY_S: Final = 5.0
# No answer for so long is worth a word.
_SILENT_S: Final = 8.0
# A Job has ended: how long the store's last objects are waited for.
_LAST_LOOK_S: Final = 20.0
_MOST_TROUBLES: Final = 6


class _NothingYetError(StoreError):
    """The store holds nothing of the sweep."""


class View:
    """A sweep on a cluster and its store, both looked at as often as asked."""

    def __init__(
        self,
        cluster: Cluster,
        sweep_id: str,
        store_uri: str | None = None,
        *,
        options: str | None = None,
    ) -> None:
        """
        Args:
            sweep_id: the whole id.
            store_uri: of the store as this machine reaches it; None = as its Job says.
            options: what names the cluster in another command; None = its context alone.
        """
        self.options = options or f"--context {cluster.context}"
        self.cluster = cluster
        self.sweep_id = sweep_id
        self.reader = ProgressReader(cluster, sweep_id)
        self.asked_store = store_uri
        self.store_uri: str | None = None
        # that pods write to
        self.pods_store = ""
        # looks at the store after which it must hold outcomes; None = no index is done yet
        self._due: int | None = None
        self.plan: Plan | None = None
        self.store: Poller[Tally] | None = None
        self._unreadable: str | None = None
        self._budget_s = _STORE_BUDGET_S
        self._keep: Callable[[], None] = lambda: None

    def open(self) -> list[SweepJob]:
        """Asks for the Jobs and begins to read the store in the background.

        Raises:
            FractalError: the sweep has no Job, or the cluster does not answer.
        """
        jobs = self.reader.jobs()
        self.plan = self.reader.plan(jobs[-1])
        self.store_uri = self.asked_store or store_of(jobs[-1])
        self.pods_store = jobs[-1].annotation(labels.STORE) or ""
        if self.store_uri is None:
            self._unreadable = "its Job names no store that this machine can read; give --store URI"
        else:
            self.store = Poller(self._store_look(self.plan, self.store_uri), _STORE_EVERY_S).start()
        if any(job.completed for job in jobs):
            self._due = 1
        return jobs

    def close(self) -> None:
        """Ends the reading of the store and keeps what was read for the next command."""
        if self.store is not None:
            self.store.stop()
        self._keep()

    def look(self, jobs: list[SweepJob] | None = None) -> Progress:
        """How far the sweep is, with what has been read of the store by now.

        Raises:
            FractalError: as `ProgressReader.read`.
        """
        progress = self.reader.read(None if self.store is None else self.store.value, jobs)
        if self._due is None and self.store is not None and any(job.done for job in progress.jobs):
            self._due = self.store.calls + 2  # the look that is under way may have been too early
        return progress

    def fresh(self, progress: Progress) -> Progress:
        """A look with what has been read of the store since."""
        tally = None if self.store is None else self.store.value
        return progress if tally is None else progress.with_tally(tally)

    def store_note(self) -> str | None:
        """What keeps the store's outcomes from being shown; None = nothing."""
        if self.store is None:
            return self._unreadable
        if self.store.error is not None:
            return str(self.store.error)
        if self.store.value is None:
            return f"the store does not answer yet: {self.store_uri}"
        return None

    def has_nothing(self) -> bool:
        """Whether the store holds no outcome of the sweep though an index was done before."""
        if self.store is None or self._due is None or self.store.calls < self._due:
            return False
        if isinstance(self.store.error, _NothingYetError):
            return True
        return self.store.value is not None and not self.store.value.objects

    def _store_look(self, plan: Plan, uri: str) -> Callable[[], Tally]:
        reader: TallyReader | None = None

        def look() -> Tally:
            nonlocal reader
            if reader is None:  # here and not before: a store may take its time to be opened
                reader = tally_reader(open_store(uri).sweep(plan.sweep.id), plan)
                self._keep = reader.keep
            folder = reader.folder
            if folder.files.get(folder.key("sweep.json")) is None:
                raise _NothingYetError(f"nothing of {plan.sweep.id} is in {uri} yet")
            # who waits for the first look waits for no second
            budget, self._budget_s = self._budget_s, _LATER_BUDGET_S
            return reader.refresh(budget)

        return look


def show(where: Where, text: str, store_uri: str | None, *, watch: bool, as_json: bool) -> None:
    """What `status ID --context NAME` prints."""
    from rich.console import Console

    cluster = where.connect()
    sweep_id = sweep_of(cluster, text, store_uri, command="status")
    view = View(cluster, sweep_id, store_uri, options=where.options)
    try:
        progress = follow(view, Console()) if watch and not as_json else look_once(view)
    except KeyboardInterrupt:
        click.echo("stopped looking; the Job goes on", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        echo_json(facts(progress, view))
    else:
        click.echo("\n".join(status_lines(progress, view)))


def look_once(view: View) -> Progress:
    """One look at everything, in about the time of the slower of cluster and store."""
    jobs = view.open()
    view.reader.look_at_pods(jobs)
    if view.store is not None:
        view.store.wait(_STORE_BUDGET_S + _STORE_PATIENCE_S)
    try:
        return view.look(jobs)
    finally:
        view.close()


# --- the live view ---


def follow(view: View, console: Console) -> Progress:
    """Shows a sweep until its Jobs have ended, whatever the cluster's API does meanwhile.

    Returns:
        the last look.

    Raises:
        FractalError: it could not even be begun, a right is missing, or the Jobs are gone.
    """
    jobs = view.open()
    if view.store is not None:
        view.store.wait(_STORE_BUDGET_S + _STORE_PATIENCE_S)
    progress = view.look(jobs)
    view.cluster.tell = lambda text: None  # the view says it itself, below its map
    looks, begun = Poller(view.look, _CLUSTER_EVERY_S), time.monotonic()
    show_one = _Live(view, progress, console) if console.is_terminal else _Plain()
    try:
        if not progress.is_finished:
            looks.start()
        while not progress.is_finished:
            looks.wait(0.0)
            if isinstance(looks.error, (UsageError, ForbiddenError)):
                raise looks.error
            progress = view.fresh(looks.value or progress)
            show_one(progress, _silence(looks, since=begun))
            time.sleep(_DRAW_EVERY_S)
        looks.stop()
        return _last_look(view, progress, show_one)
    finally:
        looks.stop()
        show_one.end()
        view.close()


def _silence(looks: Poller[Progress], since: float) -> str | None:
    """That the cluster has not answered for a while; its own tries take some seconds, too."""
    silent = time.monotonic() - (looks.good_at or since)
    if silent < _SILENT_S:
        return None
    reason = "" if looks.error is None else f" ({looks.error})"
    return f"no answer from the cluster for {duration(silent)}, still trying{reason}"


def _last_look(view: View, progress: Progress, show_one: Callable[..., None]) -> Progress:
    """Waits until the store's last objects have been read, too."""
    if view.store is None:
        return progress
    deadline = time.monotonic() + _LAST_LOOK_S
    # the call that is under way may have listed the store before the end
    calls = view.store.calls + 2
    while (left := deadline - time.monotonic()) > 0:
        view.store.wait(left, calls=calls)
        if view.store.value is None or not view.store.value.unread:
            break
        calls = view.store.calls + 1
    try:
        progress = view.look()
    except (ClusterError, UsageError):
        return progress  # the cluster is gone, or the Job is
    show_one(progress, None)
    return progress


class _Live:
    """The map on a terminal."""

    def __init__(self, view: View, progress: Progress, console: Console) -> None:
        import numpy as np

        from fractal_k8s.cli.display import LiveDisplay

        self._view = view
        self._display = LiveDisplay(console)
        unknown = np.zeros((progress.sweep.rows, progress.sweep.columns), np.uint8)
        self._display.begin(progress.sweep, unknown, 0)

    def __call__(self, progress: Progress, silence: str | None) -> None:
        states = None if progress.tally is None else progress.tally.states
        below = [silence] if silence else []
        below += status_lines(progress, self._view)[2:]
        # the map comes first; `status` without --watch tells everything
        room = max(4, self._display.console.height // 3)
        self._display.update(states, text=headline(progress), below=below[:room])

    def end(self) -> None:
        self._display.end()


class _Plain:
    """Lines for a log: one now and then, and one for every new trouble."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._told: set[str] = set()

    def __call__(self, progress: Progress, silence: str | None) -> None:
        clock = time.strftime("%H:%M:%S")
        for trouble in progress.troubles:
            if trouble.cause.what not in self._told:
                self._told.add(trouble.cause.what)
                click.echo(f"{clock}  {trouble_text(trouble)}")
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            click.echo(f"{clock}  {headline(progress)}" + (f"  {silence}" if silence else ""))

    def end(self) -> None:
        """Nothing to put back."""


# --- text ---


def headline(progress: Progress) -> str:
    """Points, speed and pods in one line."""
    job = progress.jobs[-1]
    parts = [f"{progress.done:,}/{progress.sweep.num_points:,} points", job.state]
    if not job.is_finished:
        parts.append(f"{job.active:,} pods")
    if progress.points_per_s:
        parts.append(per_second(progress.points_per_s))
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "  ".join(parts)


def status_lines(progress: Progress, view: View) -> list[str]:
    """Everything that is known, for a person."""
    sweep, tally = progress.sweep, progress.tally
    place = f"{progress.context}, namespace {progress.namespace}"
    lines = [f"{sweep.id}  {progress.jobs[-1].state}  on {place}", f"  {_points(progress)}"]
    if tally is not None:
        lines.append(f"  {counts_text(tally.counts())}")
        if tally.unread:
            read = tally.objects - tally.unread
            lines.append(
                f"  {read:,} of {tally.objects:,} outcome objects read so far, the newest first; "
                "the next look goes on"
            )
    lines += [f"  {_job_line(job)}" for job in progress.jobs]
    lines += _aggregator_lines(progress, view)
    if text := _use(progress):
        lines.append(f"  {text}")
    if progress.evicted:
        times = "once" if progress.evicted == 1 else f"{progress.evicted:,} times"
        lines.append(f"  {times} a pod was evicted or preempted, and replaced")
    is_over = progress.is_finished and not progress.missing
    for trouble in progress.troubles[:_MOST_TROUBLES]:
        lines += _trouble_lines(trouble, view, is_over=is_over)
    if len(progress.troubles) > _MOST_TROUBLES:
        lines.append(f"  and {len(progress.troubles) - _MOST_TROUBLES} other causes")
    lines += [f"  note: {note}" for note in progress.notes]
    if tally is not None:
        lines += [f"  problem: {problem}" for problem in tally.problems]
    lines += _next_lines(progress, view)
    if view.store_uri is not None:
        # without the options of the URI
        lines.append(f"  {view.store_uri.partition('?')[0].rstrip('/')}/{sweep.id}")
    return lines


def _next_lines(progress: Progress, view: View) -> list[str]:
    """What keeps outcomes from being shown, and what can be done next."""
    lines = []
    if (note := view.store_note()) is not None:
        lines.append(f"  outcomes not shown: {note}")
    if lost := _lost(progress, view):
        lines.append(f"  problem: {lost}")
    elif progress.missing and (progress.is_finished or progress.state == "paused"):
        lines.append(f"  continue with: {command_line('resume', view)}")
    if progress.is_finished and not progress.missing and view.store_note() is None:
        given = view.asked_store
        words = view.options if given is None else f"--store {shlex.quote(given)}"
        lines.append(f"  see it with: {see_it(view.sweep_id, view.store_uri or '', words)}")
    return lines


def _lost(progress: Progress, view: View) -> str | None:
    """That indexes are done whose outcomes are not where this machine looks for them."""
    done = sum(job.done for job in progress.jobs)
    if not view.has_nothing():
        return None
    here, theirs = (uri.partition("?")[0] for uri in (view.store_uri or "", view.pods_store))
    what = "1 index is" if done == 1 else f"{done:,} indexes are"
    return (
        f"{what} done, and {here} has no outcome of the sweep: pods write to {theirs}; are the two "
        "the same place (client_store, of the chart store.clientUri)? See also --store"
    )


def command_line(name: str, view: View) -> str:
    """The command that does `name` to the sweep on its cluster."""
    return f"fractal-k8s {name} {view.sweep_id} {view.options}"


def _aggregator_lines(progress: Progress, view: View) -> list[str]:
    """How the Job stands that draws the map."""
    aggregator = progress.aggregator
    if aggregator is None:
        return []
    said = f": {aggregator.said}" if aggregator.said else ""
    lines = [f"  job/{aggregator.name}, which draws the map: {aggregator.state}{said}"]
    if aggregator.has_failed:
        lines.append(f"      -> draw it with: {command_line('aggregate', view)}")
    return lines


def _points(progress: Progress) -> str:
    total = progress.sweep.num_points
    text = f"{progress.done:,} of {total:,} points ({progress.done / total:.1%})"
    if progress.tally is None:
        text += " by the indexes that are done"
    if progress.points_per_s:
        text += f", {per_second(progress.points_per_s)}"
    if progress.seconds_left is not None:
        text += f", {duration(progress.seconds_left)} left"
    return text


def _state(job: JobProgress) -> str:
    return job.state if job.reason is None else f"{job.state} ({job.reason})"


def _job_line(job: JobProgress) -> str:
    parts = [f"{job.done:,} done"]
    if job.active:
        starting = job.active - job.ready
        parts.append(f"{job.ready:,} running" + (f", {starting:,} starting" if starting else ""))
    if job.pending:
        parts.append(f"{job.pending:,} pending")
    if job.failed:
        parts.append(f"{job.failed:,} failed for good")
    gpus = job.parallelism * job.gpus_per_pod
    at_once = f"{job.parallelism:,} at once" + (f", {gpus:,} GPUs" if gpus else "")
    indexes = f"{job.indexes:,} {'index' if job.indexes == 1 else 'indexes'}"
    return f"job/{job.name}: {_state(job)}, {indexes} ({at_once}): {', '.join(parts)}"


def _use(progress: Progress) -> str:
    use = progress.use
    if not use.pods:
        return ""
    has_gpus = any(job.gpus_per_pod for job in progress.jobs)
    unit, hours = ("GPU", use.gpu_hours) if has_gpus else ("pod", use.pod_hours)
    text = f"{unit} time {duration(hours * 3600)}"
    if use.usd is not None and has_gpus:
        text += f", {use.usd:,.2f} USD"
    if use.read < use.pods:
        text = f"about {text} (from {use.read:,} of {use.pods:,} pods)"
    return text + ", without that of pods that are gone" * use.is_least


def trouble_text(trouble: Trouble) -> str:
    """A trouble in one line, without examples."""
    noun = "pod" if trouble.pods == 1 else "pods"
    verb = ("waits" if trouble.pods == 1 else "wait") if trouble.cause.waits else "failed"
    count = f"{trouble.pods:,} {noun} {verb}: " if trouble.pods else ""
    return f"{count}{trouble.cause.what}"


def _trouble_lines(trouble: Trouble, view: View, *, is_over: bool) -> list[str]:
    """A trouble with its examples, and what to do about it unless all is over and done."""
    text = trouble_text(trouble)
    if trouble.indexes:
        shown = [_index_text(view, job, index) for job, index in trouble.indexes]
        more = ", ..." if trouble.pods > len(trouble.indexes) else ""
        text += f"  [index {', '.join(shown)}{more}]"
    if len(trouble.nodes) == 1 and trouble.pods > 1:
        text += f" all on {trouble.nodes[0]}"
    lines = [f"  ! {text}"]
    if trouble.cause.said:
        lines.append(f"      {trouble.cause.said}")
    if not is_over:
        lines.append(f"      -> {trouble.cause.advice}")
    return lines


def _index_text(view: View, job: str, index: int) -> str:
    """An index with its first point, such as "17 = (3,7)"."""
    point = view.reader.first_point(job, index)
    own = f"{index}" if job == view.sweep_id else f"{index} of {job}"
    return own if point is None else f"{own} = ({point[0]},{point[1]})"


# --- JSON ---


def facts(progress: Progress, view: View) -> dict[str, Any]:
    """Everything that is known, for a program."""
    tally, use = progress.tally, progress.use
    return {
        "sweep": progress.sweep.id,
        "context": progress.context,
        "namespace": progress.namespace,
        "state": progress.state,
        "points": progress.sweep.num_points,
        "done": progress.done,
        "counts": None if tally is None else tally.counts(),
        "points_per_s": progress.points_per_s,
        "seconds_left": progress.seconds_left,
        "jobs": [
            {
                "name": job.name,
                "state": job.state,
                "reason": job.reason,
                "indexes": job.indexes,
                "done": job.done,
                "active": job.active,
                "running": job.ready,
                "pending": job.pending,
                "failed": job.failed,
                "parallelism": job.parallelism,
                "gpus_per_pod": job.gpus_per_pod,
                "began": job.began,
                "ended": job.ended,
            }
            for job in progress.jobs
        ],
        "pod_hours": use.pod_hours,
        "gpu_hours": use.gpu_hours,
        "cost_usd": use.usd,
        "use_is_exact": use.is_exact,
        "evicted": progress.evicted,
        "aggregator": None if progress.aggregator is None else vars(progress.aggregator),
        "troubles": [
            {
                "cause": trouble.cause.what,
                "said": trouble.cause.said,
                "advice": trouble.cause.advice,
                "waits": trouble.cause.waits,
                "pods": trouble.pods,
                "indexes": [list(place) for place in trouble.indexes],
                "nodes": list(trouble.nodes),
            }
            for trouble in progress.troubles
        ],
        "store": view.store_uri,
        "store_problem": _lost(progress, view) or view.store_note(),
        "outcome_objects": None if tally is None else tally.objects,
        "unread_objects": None if tally is None else tally.unread,
        "numerics_classes": None if tally is None else list(tally.classes),
        "problems": [*([] if tally is None else tally.problems), *progress.notes],
    }
