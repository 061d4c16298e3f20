"""`fractal-k8s repro`: are a map's numbers the same when they are made again?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.common import (
    Command,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    relocated,
    relocation_options,
    store_option,
)
from fractal_k8s.cli.job_options import JobOptions, job_options
from fractal_k8s.cli.logs import PointParam
from fractal_k8s.cli.sending import Sending, refuse_mixture, refuse_relocation, typed
from fractal_k8s.cli.training import Stop, backend_option, workers_option
from fractal_k8s.cli.where import Where, cluster_options
from fractal_k8s.errors import FractalError
from fractal_k8s.stopping import exit_code

if TYPE_CHECKING:
    from fractal_k8s.repro import Retraining
    from fractal_k8s.results.certificate import Repeat
    from fractal_k8s.results.store import SweepStore


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="How many random points are trained again.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Which sample; 0 unless given.",
)
@click.option(
    "--points",
    "places",
    type=PointParam(),
    multiple=True,
    metavar="I,J",
    help="This point instead of random ones. Repeatable.",
)
@click.option("--cold", is_flag=True, help="Train each point alone in a fresh process besides.")
@workers_option
@backend_option
@relocation_options
@store_option
@mixed_option
@cluster_options
@job_options
@json_option
def command(
    sweep_id: str,
    sample: int,
    seed: int,
    places: tuple[tuple[int, int], ...],
    cold: bool,
    workers: int | None,
    backend: str,
    checkpoint: str | None,
    dataset: str | None,
    store_uri: str,
    allow_mixed: bool,
    where: Where,
    job: JobOptions,
    as_json: bool,
) -> None:
    """Train random points of a map again elsewhere and compare every bit.

    The points are trained in shards of other sizes, at other places and beside other points than
    the first time, by worker processes of this machine. Every loss and every number of theirs must
    have the same bits. The result is noted, and report shows it. Ends with 1 if anything differs.

    With --context a Job of its own trains them on the cluster, with the settings of the sweep's
    last one, on other nodes if there are any. Ctrl-C leaves it running, and the same command goes
    on waiting for it.

    A machine of another numerics class is refused; with --allow-mixed the classes are compared,
    which is no certificate.

    \b
        fractal-k8s repro tanh --sample 64
        fractal-k8s repro tuned --points 3,7 --points 0,0 --cold
        fractal-k8s repro docvqa-d20 --sample 64 --context cks-wb3
    """
    refuse_mixture(where, job)
    if where.is_named:
        _refuse_of_this_machine(cold, checkpoint, dataset)
        uri = store_uri if typed("store_uri") else None
        # it is not tracked in W&B, and its price is not told
        training = dict.fromkeys(("price_per_hour", "wandb_project", "wandb_mode"))
        sending = Sending(where, job, uri, allow_mixed, as_json, training)
        _on_cluster(sweep_id, sending, sample, seed, places)
        return
    if given := [name for name in ("gpus", "points_per_index") if typed(name)]:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(
            f"{options} {'say' if len(given) > 1 else 'says'} how a Job trains: "
            "give --context NAME too, or --workers N for this machine"
        )
    from fractal_k8s import repro
    from fractal_k8s.aggregate import read_grid

    folder, plan = open_store(store_uri).plan(sweep_id)
    grid = read_grid(folder, plan, allow_mixed=allow_mixed)
    sweep = relocated(plan.sweep, checkpoint=checkpoint, dataset=dataset)
    points = (
        repro.chosen_points(grid, places) if places else repro.sample_points(grid, sample, seed)
    )
    first = repro.first_places(folder, sweep, points)
    batches = repro.compose(sweep, points, first, seed=seed, cold=cold)
    repeats = _on_this_machine(
        repro.Retraining(
            grid, sweep, batches, backend=backend, workers=workers, allow_mixed=allow_mixed
        ),
        f"{sweep.id}: {len(points)} points again, {len(batches)} shards",
    )
    _tell(folder, repeats, _noted(folder, repeats, seed), as_json)


def _on_this_machine(run: Retraining, introduction: str) -> list[Repeat]:
    from rich.console import Console

    console = Console(stderr=True)
    run.tell = lambda text: console.print(text, highlight=False)
    console.print(introduction, highlight=False)
    return _interruptible(run)


def _on_cluster(
    text: str,
    sending: Sending,
    sample: int,
    seed: int,
    places: tuple[tuple[int, int], ...],
) -> None:
    from fractal_k8s.cli.cluster_repro import delete_job, repeat_on_cluster

    cluster = sending.where.connect()
    rerun, repeats = repeat_on_cluster(
        cluster, text, sending, sample=sample, seed=seed, places=places
    )
    note = _noted(rerun.folder, repeats, seed)
    delete_job(cluster, rerun)
    facts = {"job": rerun.job.name, "outcomes": rerun.place.where()}
    _tell(rerun.folder, repeats, note, sending.as_json, facts)


def _refuse_of_this_machine(cold: bool, checkpoint: str | None, dataset: str | None) -> None:
    """Refuses options of training on this machine where a cluster is to train.

    Raises:
        click.UsageError: there are some.
    """
    refuse_relocation(checkpoint, dataset)
    if cold:
        raise click.UsageError(
            "--cold trains alone on this machine; with --context, --points-per-index 1 has every "
            "point trained alone in a pod of its own"
        )


def _noted(folder: SweepStore, repeats: list[Repeat], seed: int) -> dict[str, Any]:
    """The result as a note of the sweep.

    Kept, if machines of one class were compared, and no earlier one says more.
    """
    from fractal_k8s.results.certificate import NOTE, certificate, counts_more

    note = certificate(repeats, seed=seed)
    kept = folder.notes([]).get(NOTE)
    if note["is_certificate"] and counts_more(note, kept):
        folder.put_note(NOTE, note)
    elif kept is not None:
        click.echo(f"the page keeps an earlier one: {kept.get('line')}", err=True)
    return note


def _tell(
    folder: SweepStore,
    repeats: list[Repeat],
    note: dict[str, Any],
    as_json: bool,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Says what came of it.

    Args:
        facts: what else --json tells.

    Raises:
        UnrepeatableError: points are not equal.
    """
    from fractal_k8s.results.certificate import fault_of

    if as_json:
        echo_json({"sweep": folder.sweep_id, **(facts or {}), **note})
    else:
        click.echo("\n".join([folder.sweep_id, *_table(repeats), note["line"]]))
        if note["is_certificate"]:
            click.echo(f"shown on the map's page by: {folder.command('report')}")
    if fault := fault_of(note):
        raise fault


def _interruptible(run: Retraining) -> list[Repeat]:
    """Ctrl-C and SIGTERM end the workers and leave nothing behind."""
    stop = Stop()
    stop.watch(run)
    with stop.on_signals():
        try:
            return run.run()
        except FractalError:
            if stop.number is None:
                raise
    click.echo("stopped; nothing was noted", err=True)
    sys.exit(exit_code(stop.number))


def _table(repeats: list[Repeat]) -> list[str]:
    head = ("point", "shard", "place", "steps", "first -> final loss", "bits")
    rows = [
        head,
        *(
            (
                f"({repeat.i}, {repeat.j})",
                "alone" if repeat.cold else str(repeat.shard),
                f"{repeat.place + 1} of {repeat.size}",
                str(repeat.steps),
                f"{_loss(repeat.first_loss)} -> {_loss(repeat.final_loss)}",
                repeat.difference or "equal",
            )
            for repeat in repeats
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return [
        "  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"
