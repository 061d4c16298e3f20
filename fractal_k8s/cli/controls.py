"""`fractal-k8s controls`: is the map's edge a property of the hyperparameters?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.common import (
    Command,
    analysis_lines,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    relocated,
    relocation_options,
    store_option,
)
from fractal_k8s.cli.job_options import JobOptions, job_options
from fractal_k8s.cli.sending import Sending, refuse_mixture, refuse_relocation, typed
from fractal_k8s.cli.training import pods_option, training_options
from fractal_k8s.cli.where import Where, cluster_options
from fractal_k8s.errors import UnrepeatableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fractal_k8s.results.grid import Grid
    from fractal_k8s.results.store import SweepStore
    from fractal_k8s.sweep.assignment import Plan
    from fractal_k8s.sweep.definition import Sweep


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Cells at the edge, and as many random ones, that are trained again.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    metavar="N",
    help="Other seeds (for a fine-tune: orders of the data) that the cells are trained with.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="R",
    help="Whole maps with other seeds.",
)
@relocation_options
@store_option
@training_options
@pods_option
@mixed_option
@cluster_options
@job_options
@json_option
def command(
    sweep_id: str,
    sample: int,
    seeds: int,
    replicas: int,
    checkpoint: str | None,
    dataset: str | None,
    store_uri: str,
    allow_mixed: bool,
    where: Where,
    job: JobOptions,
    as_json: bool,
    **training: Any,
) -> None:
    """Train parts of a map again: unchanged, nudged, and with other seeds.

    Cells at the edge and random ones are trained unchanged (none may flip), with rates one
    representable number up, and with other seeds. All of it is stored as sweeps of its own, so a
    second run trains nothing; the results appear in analyze and on the map's page. Ends with 1 if
    a cell that was trained unchanged did anything else than the first time.

    With --context Jobs of these sweeps train them on the cluster, all at once and with the settings
    of the map's last one. Ctrl-C leaves them running, and the same command goes on.

    \b
        fractal-k8s controls tanh --replicas 4
        fractal-k8s controls docvqa-d20 --context cks-wb3
    """
    refuse_mixture(where, job)
    asked = _Asked(sample, seeds, replicas)
    if where.is_named:
        refuse_relocation(checkpoint, dataset)
        uri = store_uri if typed("store_uri") else None
        _on_cluster(sweep_id, asked, Sending(where, job, uri, allow_mixed, as_json, training))
        return
    from fractal_k8s.aggregate import read_grid
    from fractal_k8s.cli.training import train_missing

    training |= job.local
    store = open_store(store_uri)
    folder, plan = store.plan(sweep_id)
    grid = read_grid(folder, plan, allow_mixed=allow_mixed)
    _check_map(folder, grid)
    sweep = relocated(plan.sweep, checkpoint=checkpoint, dataset=dataset)

    def train(derived: Sequence[Sweep]) -> list[Grid]:
        options = {"allow_mixed": allow_mixed, "as_json": as_json, **training}
        return [train_missing(each, store, **options).grid for each in derived]

    notes = asked.notes(sweep, grid, train)
    _conclude(folder, plan, notes, allow_mixed=allow_mixed, as_json=as_json)


def _on_cluster(text: str, asked: _Asked, sending: Sending) -> None:
    from fractal_k8s import dispatch
    from fractal_k8s.cli.cluster_controls import train_on_cluster

    found = dispatch.find(sending.where.connect(), text, sending.settings)
    folder, grid = dispatch.read_map(found)
    _check_map(folder, grid)
    notes = asked.notes(
        found.plan.sweep,
        grid,
        lambda derived: train_on_cluster(derived, found, folder, sending.job.points_per_shard),
    )
    plan = folder.read_plan() or found.plan
    allow_mixed = found.settings.allow_mixed
    _conclude(folder, plan, notes, allow_mixed=allow_mixed, as_json=sending.as_json)


def _check_map(folder: SweepStore, grid: Grid) -> None:
    """Refuses what is no whole map.

    Raises:
        UsageError: points are missing, all have failed, or they are scattered.
    """
    from fractal_k8s.results.grid import MISSING
    from fractal_k8s.sweep.derive import refuse_scattered

    refuse_scattered(grid.sweep)
    if missing := int((grid.states == MISSING).sum()):
        raise UsageError(
            f"{grid.sweep.id} lacks {missing:,} points, and controls are of a whole map; "
            f"train them first: {folder.command('resume')}"
        )
    if not grid.known.any():
        raise UsageError(f"{grid.sweep.id}: every point failed, and none can be compared")


@dataclass(frozen=True)
class _Asked:
    """How many cells, other seeds and whole maps are trained."""

    sample: int
    seeds: int
    replicas: int

    def notes(
        self, sweep: Sweep, grid: Grid, train: Callable[[Sequence[Sweep]], list[Grid]]
    ) -> dict[str, dict[str, Any]]:
        """Trains it all; the notes of kinds "controls" and, if there are any, "replicas"."""
        from fractal_k8s.analysis.controls import note_of_controls, note_of_replicas, sample_cells
        from fractal_k8s.sweep.derive import cells_of, reseeded, ulps_of

        groups = sample_cells(grid, self.sample)
        repeat = cells_of(sweep, groups, ulps=ulps_of(sweep))
        plain = cells_of(sweep, groups, ulps=(0,))
        others = [reseeded(plain, number) for number in range(1, self.seeds + 1)]
        maps = [reseeded(sweep, number) for number in range(1, self.replicas + 1)]
        again, *trained = train([repeat, *others, *maps])
        cells, whole = trained[: self.seeds], trained[self.seeds :]
        notes = {"controls": note_of_controls(grid, again, cells)}
        if whole:
            notes["replicas"] = note_of_replicas([grid, *whole])
        return notes


def _conclude(
    folder: SweepStore,
    plan: Plan,
    notes: dict[str, dict[str, Any]],
    *,
    allow_mixed: bool,
    as_json: bool,
) -> None:
    """Keeps the notes, draws the map's page anew, and says what came of it.

    Raises:
        UnrepeatableError: a cell that was trained unchanged did something else.
    """
    from fractal_k8s.aggregate import aggregate
    from fractal_k8s.analysis.controls import fault_of

    for kind, note in notes.items():
        folder.put_note(kind, note)
    summary = aggregate(folder, plan, allow_mixed=allow_mixed).summary
    if as_json:
        echo_json(notes)
    else:
        only = {"analyses": {"controls": summary["analyses"]["controls"]}}
        click.echo("\n".join([plan.sweep.id, *analysis_lines(only)]))
    if fault := fault_of(notes["controls"]):
        raise UnrepeatableError(fault)
