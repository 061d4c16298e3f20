"""`fractal-k8s launch`: from a sweep to its map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.common import (
    Asked,
    Command,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    read_sweep,
    repeats_option,
    store_option,
    sweep_options,
)
from fractal_k8s.cli.job_options import JobOptions, job_options
from fractal_k8s.cli.sending import Sending, refuse_mixture, typed, wait_option
from fractal_k8s.cli.training import pods_option, training_options
from fractal_k8s.cli.where import Where, cluster_options

if TYPE_CHECKING:
    from fractal_k8s.results.store import Store
    from fractal_k8s.sweep.definition import Sweep


@click.command(cls=Command)
@sweep_options
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    metavar="N",
    help="A pilot of N random pairs instead of the grid: is the edge fractal, and how much?",
)
@repeats_option
@store_option
@training_options
@pods_option
@mixed_option
@cluster_options
@job_options
@wait_option
@json_option
def command(
    asked: Asked,
    pairs: int | None,
    store_uri: str,
    allow_mixed: bool,
    where: Where,
    job: JobOptions,
    wait: bool,
    as_json: bool,
    **training: Any,
) -> None:
    """Train every missing point of a sweep and draw its map.

    The sweep is a file, or a preset (docvqa-d20 unless named). Points that are stored already are
    not trained again: launching the same sweep twice trains nothing the second time. With --context
    it is sent to a cluster as one Job, and this machine may be switched off.

    \b
        fractal-k8s launch --preset tanh --pairs 2000
        fractal-k8s launch --preset tanh --res 128
        fractal-k8s launch sweep.toml --set axes.x.high=3e-2 --workers 2
        fractal-k8s launch --res 128 --context cks-wb3 --gpus 64
    """
    from fractal_k8s.cli.training import train_and_report

    refuse_mixture(where, job, wait=wait)
    sweep = read_sweep(asked)
    if where.is_named:
        uri = store_uri if typed("store_uri") else None
        _send(sweep, pairs, Sending(where, job, uri, allow_mixed, as_json, training, wait))
        return
    training |= job.local
    store = open_store(store_uri)
    options = {"allow_mixed": allow_mixed, "as_json": as_json, "new": True, **training}
    if pairs is None:
        train_and_report(sweep, store, **options)
    else:
        _pilot(sweep, pairs, store, options)


def _send(sweep: Sweep, pairs: int | None, sending: Sending) -> None:
    from fractal_k8s.cli.sending import launch_on_cluster
    from fractal_k8s.sweep.derive import pilot_of

    facts = launch_on_cluster(sweep if pairs is None else pilot_of(sweep, pairs), sending)
    if sending.as_json:
        echo_json(facts)


def _pilot(sweep: Sweep, pairs: int, store: Store, options: dict[str, Any]) -> None:
    """Trains the pairs, says what they tell, and notes it for the map that may follow."""
    from fractal_k8s.cli.training import print_result, train_missing
    from fractal_k8s.sweep.derive import pilot_of

    done = train_missing(pilot_of(sweep, pairs), store, **options)
    spec = done.grid.sweep.spec
    planned = sweep.pinned(
        checkpoint_digest=spec.checkpoint_digest, dataset_digest=spec.dataset_digest
    )
    note = {**done.summary["notes"]["pilot"], "sweep": done.grid.sweep.id}
    folder = store.sweep(planned.id)
    if note["pairs"] >= folder.notes([]).get("pilot", {}).get("pairs", 0):
        folder.put_note("pilot", note)  # the pilot of most pairs is the one to go by
    print_result(done, options["as_json"])
