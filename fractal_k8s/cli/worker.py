"""`fractal-k8s worker`: one shard, or one a GPU, in a pod, a child process or by hand."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from fractal_k8s.cli.common import Command, mixed_option, relocated, relocation_options

if TYPE_CHECKING:
    from fractal_k8s.results.store import Store
    from fractal_k8s.stopping import StopSignals
    from fractal_k8s.sweep.assignment import Plan
    from fractal_k8s.worker import Listener, Worker

_PARENT_CHECK_S: Final = 1.0


@click.command(cls=Command)
@click.option("--store", "store_uri", required=True, metavar="URI", help="Where outcomes are kept.")
@click.option(
    "--sweep",
    "sweep_ref",
    required=True,
    metavar="FILE|ID",
    help="The sweep: a sweep.json, or the id of one in the store.",
)
@click.option(
    "--shard",
    type=click.IntRange(min=0),
    envvar="JOB_COMPLETION_INDEX",
    show_envvar=True,
    required=True,
    metavar="N",
    help="Which shard to train.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="K",
    help="Train K shards at once, the N-th K of them, each on a GPU of its own.",
)
@relocation_options
@click.option(
    "--cache",
    "caches",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder that must hold a file READY before weights and data are read. Repeatable.",
)
@click.option(
    "--cache-wait",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    metavar="S",
    help="Seconds to wait for that before giving up for now.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Open weights and data, print the numerics class of this machine, and train nothing.",
)
@mixed_option
def command(
    store_uri: str,
    sweep_ref: str,
    shard: int,
    processes: int,
    checkpoint: str | None,
    dataset: str | None,
    caches: tuple[Path, ...],
    cache_wait: float,
    dry_run: bool,
    allow_mixed: bool,
) -> None:
    """Train one shard; what a pod and a child process run.

    Exit codes: 0 the shard is complete; 64 the sweep or its settings are wrong; 65 weights or data
    are damaged, or not those of the sweep's first worker; 69 a cache is not filled yet; 70 no step
    for too long; 75 try again; 143 stopped by SIGTERM, with what is done kept.
    """
    from fractal_k8s import termination
    from fractal_k8s.stopping import GracePeriod, Stopped, StopSignals, exit_code

    # the signals come first: a library takes seconds to load, and may be asked to stop meanwhile
    with StopSignals() as stop:
        try:
            environment = dict(os.environ)  # with what a launcher has left in it
            _end_with_parent()
            store, plan = _open(store_uri, sweep_ref)
            if processes > 1 and not dry_run:
                sys.exit(_train_many(plan, shard, processes))
            placed = relocated(plan.sweep, checkpoint=checkpoint, dataset=dataset)
            from fractal_k8s.worker import (
                PATIENT_WAITS_S,
                Worker,
                flush_stdout,
                numerics_class_here,
            )

            if dry_run:
                click.echo(numerics_class_here(placed))
                return
            worker = Worker(
                store.sweep(plan.sweep.id),
                plan,
                shard,
                emit=flush_stdout,
                listener=_pipe_listener(),
                allow_mixed=allow_mixed,
            )
            worker.placed = placed
            if "POD_NAME" in os.environ:
                worker.waits = PATIENT_WAITS_S
            worker.before_training = lambda: _make_ready(worker, caches, cache_wait)
            worker.recycle = lambda: _start_anew(environment, stop)
            with GracePeriod() as grace:
                worker.obey(stop, grace)
                sys.exit(worker.run())
        except Stopped as stopped:
            code = exit_code(stopped.number)
            click.echo("stopped before it began")
            termination.note(code=code, error="stopped before it began")
            sys.exit(code)


def _open(store_uri: str, sweep_ref: str) -> tuple[Store, Plan]:
    """The store, and what is to be trained."""
    from fractal_k8s.environ import prepare_environment

    prepare_environment()
    from fractal_k8s.cli.common import open_store

    store = open_store(store_uri)
    return store, _read_plan(store, sweep_ref)


def _make_ready(worker: Worker, caches: tuple[Path, ...], seconds: float) -> None:
    """Waits for weights and data; makes or stages the weights where that is wished."""
    from fractal_k8s.checkpoints.mounted import STAGE, refuse_mixed_in, refuse_other_model, staged
    from fractal_k8s.checkpoints.ready import wait_until_ready
    from fractal_k8s.data.docvqa import refuse_other_data
    from fractal_k8s.sealed import contents

    wait_until_ready(caches, seconds, worker.emit)
    for line in contents(caches):
        worker.emit(line)
    refuse_mixed_in(caches)
    spec = worker.sweep.spec
    if spec.checkpoint_digest is None:
        refuse_other_model(caches, spec.checkpoint)
    if spec.dataset_digest is None:
        refuse_other_data(caches, spec.dataset)
    if spec.model == "gpt":  # for others it would only be slow to load
        from fractal_k8s.train.pretrained import provide_for

        worker.placed = provide_for(worker.placed, worker.emit)
    place, target = worker.placed.spec.checkpoint, os.environ.get(STAGE)
    if not target or not place or not Path(place).is_dir():
        return
    worker.placed = worker.placed.from_checkpoint(
        str(staged(Path(place), Path(target), worker.emit))
    )


def _train_many(plan: Plan, number: int, processes: int) -> int:
    """Trains the shards of one pod, each in a worker of its own; the exit code."""
    from fractal_k8s.backends.local import visible_gpus
    from fractal_k8s.environ import given_gpus
    from fractal_k8s.errors import RetryError, UsageError
    from fractal_k8s.fanout import Fanout, Part
    from fractal_k8s.sweep.deal import Dealt
    from fractal_k8s.worker import flush_stdout

    count = Dealt(plan.sweep, plan.deal).num_shards
    shards = range(number * processes, min((number + 1) * processes, count))
    if not shards:
        raise UsageError(
            f"pod {number} of {processes} shards each has none: {plan.sweep.id} has {count} shards"
        )
    gpus = visible_gpus()
    if (gpus or given_gpus()) and len(gpus) < len(shards):
        raise RetryError(
            f"{len(shards)} processes need a GPU each and {len(gpus)} are visible here; another "
            "node may have them all"
        )
    parts = [
        Part(
            f"gpu {k}",
            # of an option that is given twice the last counts
            [*sys.argv[1:], "--shard", str(shard), "--processes", "1"],
            gpus[k] if gpus else None,
        )
        for k, shard in enumerate(shards)
    ]
    return Fanout(parts, flush_stdout).run()


def _read_plan(store: Store, reference: str) -> Plan:
    from fractal_k8s.errors import UsageError
    from fractal_k8s.sweep.assignment import Plan

    path = Path(reference)
    if path.is_file():
        plan = Plan.from_json(path.read_bytes(), source=reference)
        _refuse_other_deal(plan, reference)
        return plan
    if os.sep in reference or path.suffix == ".json":
        raise UsageError(f"sweep {reference}: no such file")
    return store.plan(reference)[1]


def _refuse_other_deal(plan: Plan, source: str) -> None:
    """Refuses, for now, a plan that is not the one this pod's Job was made for.

    A node goes on serving an immutable ConfigMap that was deleted and made anew under its name as
    long as a pod there uses the old one, say of a Job that was cancelled and launched again with
    other blocks. The same index would train other points, and count as done.

    Raises:
        RetryError: it is another plan.
    """
    from fractal_k8s.environ import DEAL_VARIABLE
    from fractal_k8s.errors import RetryError

    wanted = os.environ.get(DEAL_VARIABLE)
    if wanted and wanted != plan.deal.tag:
        raise RetryError(
            f"{source} is the plan of another Job of {plan.sweep.id} (deal {plan.deal.tag}, not "
            f"{wanted}): this node still has an earlier ConfigMap, or it was replaced; this worker "
            "may be tried again"
        )


def _pipe_listener() -> Listener | None:
    """Reports points to the launcher that started this process, if one did."""
    from fractal_k8s.backends.local import EVENTS_FD
    from fractal_k8s.worker import PointEvent

    number = os.environ.pop(EVENTS_FD, None)
    if number is None:
        return None
    handle = int(number)

    def report(event: PointEvent) -> None:
        with contextlib.suppress(OSError):  # a launcher that is gone needs no report
            os.write(handle, f"[{event.index}, {event.state}]\n".encode())

    return report


def _start_anew(environment: dict[str, str], stop: StopSignals) -> NoReturn:
    """Replaces this process by a new one with the same arguments, number and open pipes.

    A SIGTERM that arrives meanwhile waits for the new one.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    stop.check()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _end_with_parent() -> None:
    """Ends this process, cleanly, when the launcher that started it is gone."""
    from fractal_k8s.stopping import PARENT_PID

    parent = os.environ.pop(PARENT_PID, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_PARENT_CHECK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
