"""What `launch` and `resume` share: where to train, how to stop, what to print at the end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import click

from fractal_k8s.cli.common import analysis_lines, echo_json, summary_lines
from fractal_k8s.errors import IncompleteError
from fractal_k8s.stopping import exit_code

if TYPE_CHECKING:
    from fractal_k8s.aggregate import Aggregation
    from fractal_k8s.results.store import Store
    from fractal_k8s.sweep.definition import Sweep

F = TypeVar("F", bound=Callable[..., Any])

# those of tracking.modes, which a test compares
WANDB_MODES: Final = ("off", "summary", "shard", "point")

_PLACES: Final = (("picture", "map.png"), ("colours", "measure.png"), ("page", "report.html"))


workers_option: Final = click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes at once. Default: one per GPU, else one per core.",
)
backend_option: Final = click.option(
    "--backend",
    type=click.Choice(["local", "inline"]),
    default="local",
    show_default=True,
    help="Child processes, or this process (for debugging).",
)


pods_option: Final = click.option(
    "--beside-pods",
    is_flag=True,
    help="Train here although a cluster's pod has just stored points of the sweep.",
)


def training_options(function: F) -> F:
    """How this machine trains; GPUs and points per shard have options of their own."""
    decorators = [
        workers_option,
        click.option(
            "--price",
            "price_per_hour",
            type=click.FloatRange(min=0),
            metavar="USD",
            help="Price of a worker, on a cluster of a GPU, per hour, for forecast and ledger.",
        ),
        backend_option,
        click.option(
            "--wandb",
            "wandb_project",
            metavar="PROJECT",
            help="Track the workers in a W&B project, in a group named as the sweep.",
        ),
        click.option(
            "--wandb-mode",
            type=click.Choice(WANDB_MODES),
            help="A W&B run per shard, which is the default, or per point; or none by workers.",
        ),
    ]
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def train_and_report(
    sweep: Sweep, store: Store, *, allow_mixed: bool, as_json: bool, **training: Any
) -> None:
    """Trains what is missing of a sweep, writes its summary and prints where it is."""
    done = train_missing(sweep, store, allow_mixed=allow_mixed, as_json=as_json, **training)
    print_result(done, as_json)


def train_missing(
    sweep: Sweep,
    store: Store,
    *,
    allow_mixed: bool,
    as_json: bool,
    workers: int | None,
    gpus: str | None,
    points_per_shard: int | None,
    price_per_hour: float | None,
    backend: str,
    wandb_project: str | None = None,
    wandb_mode: str | None = None,
    beside_pods: bool = False,
    reuse: bool = True,
    new: bool = False,
    launched: Sweep | None = None,
) -> Aggregation:
    """Trains what is missing of a sweep and writes its summary.

    Args:
        beside_pods: also if pods of a cluster seem to train it.
        reuse: take over what the sweep's family has stored of it.
        new: the sweep was described just now, so that its demand is checked.
        launched: the stored sweep that this one is, with its files where they lie here.

    Raises:
        IncompleteError: points are missing or failed; the summary was written all the same.
    """
    from rich.console import Console

    from fractal_k8s import controller
    from fractal_k8s.backends import open_backend
    from fractal_k8s.cli.display import make_display

    _check_tracking(sweep, wandb_project, wandb_mode)
    chosen = tuple(part.strip() for part in (gpus or "").split(",") if part.strip())
    place = open_backend(backend, workers=workers, gpus=chosen)
    count = int(getattr(place, "workers", 1))
    launch = controller.prepare(
        sweep,
        store,
        workers=count,
        points_per_shard=points_per_shard,
        allow_mixed=allow_mixed,
        launched=launched,
    )
    launch = replace(launch, reuse=reuse, beside_pods=beside_pods)
    if new:
        controller.check_supply(launch)
    console = Console(stderr=as_json)
    if launch.missing and getattr(sweep.training, "execution", "") == "compiled":
        console.print("every worker compiles first, for a minute or more", highlight=False)
    if not launch.missing:
        console.print(
            f"{launch.sweep.id}: every point is stored, nothing to train", highlight=False
        )
        with _tracked(wandb_project, wandb_mode):
            return _published(launch, lambda: _summarise(launch), console)
    for text in [] if launch.data is None else launch.data.notes(launch.sweep.training):
        console.print(f"note: {text}", highlight=False, soft_wrap=True)
    launch = controller.foretell(launch, store, price_per_hour)
    stop = Stop()
    with stop.on_signals(), _tracked(wandb_project, wandb_mode):
        status = controller.train(launch, place, make_display(console), started=stop.watch)
    for text in status.repeated:
        console.print(f"{text}; its points were trained again", highlight=False, soft_wrap=True)
    if stop.number is not None:
        _stopped(launch, stop.number, console)
    with _tracked(wandb_project, wandb_mode):
        return _published(launch, lambda: controller.finish(launch, status), console)


def _check_tracking(sweep: Sweep, project: str | None, mode: str | None) -> None:
    """Refuses what says how to track, but not where, too many W&B runs, and W&B where it is not.

    Raises:
        UsageError: it was asked for.
    """
    from fractal_k8s.tracking import modes, require_wandb

    if mode is not None and project is None:
        raise click.UsageError("--wandb-mode needs --wandb PROJECT")
    if project is not None:
        require_wandb()
        modes.check_mode(mode or modes.DEFAULT_MODE, sweep.num_points, force=modes.is_forced())


@contextmanager
def _tracked(project: str | None, mode: str | None) -> Iterator[None]:
    """Has the workers that are started in here track what they do."""
    from fractal_k8s.tracking import modes

    given = {modes.PROJECT: project, modes.MODE: mode}
    wanted = {name: value for name, value in given.items() if value is not None}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _summarise(launch: Any) -> Aggregation:
    from fractal_k8s.aggregate import aggregate

    return aggregate(launch.folder, launch.plan, allow_mixed=launch.allow_mixed)


def _published(launch: Any, finish: Callable[[], Aggregation], console: Any) -> Aggregation:
    """What `finish` makes, with whoever wants to know told of it."""
    from fractal_k8s.aggregate.announce import publish

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    try:
        done = finish()
    except IncompleteError:  # its summary was written all the same
        publish(launch.folder, launch.plan, say, has_ended=True)
        raise
    publish(launch.folder, launch.plan, say, has_ended=True)
    return done


def _stopped(launch: Any, number: int, console: Any) -> None:
    from fractal_k8s.aggregate import read_grid

    grid = read_grid(launch.folder, launch.plan, allow_mixed=True)
    kept = int(grid.known.sum())
    console.print(
        f"stopped: {kept:,} of {grid.states.size:,} points are kept in {launch.folder.where()}\n"
        f"continue with: {launch.folder.command('resume')}",
        highlight=False,
        soft_wrap=True,
    )
    sys.exit(exit_code(number))


def print_result(done: Aggregation, as_json: bool) -> None:
    if as_json:
        echo_json({**done.summary, "files": done.written})
    else:
        click.echo(done.summary["sweep"])
        click.echo("\n".join(summary_lines(done.summary)))
        if done.grid.sweep.is_scattered:
            click.echo("\n".join(analysis_lines(done.summary)))
        for label, name in _PLACES:
            if name in done.written:
                click.echo(f"{label:<8} {done.written[name]}")
    if not done.summary["complete"]:
        raise IncompleteError(f"{done.summary['sweep']} is not complete")


class Cancellable(Protocol):
    """Something that a signal may stop."""

    def cancel(self) -> None: ...


class Stop:
    """Ctrl-C and SIGTERM: the first cancels the run cleanly, the second kills its workers."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._run: Cancellable | None = None

    def watch(self, run: Cancellable) -> None:
        self._run = run
        if self.number is not None:  # the signal came before there was a run
            run.cancel()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._run is not None:
            self._run.cancel()
