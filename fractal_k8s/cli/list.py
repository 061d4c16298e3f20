"""`fractal-k8s list`: the sweeps of a store, or of a cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.common import (
    Command,
    duration,
    echo_json,
    json_option,
    open_store,
    store_option,
)
from fractal_k8s.cli.where import Where, cluster_options, store_at
from fractal_k8s.errors import FractalError

if TYPE_CHECKING:
    from fractal_k8s.results.store import Store


@click.command(cls=Command)
@click.option(
    "--stored",
    is_flag=True,
    help="With --context: those of the store that its sweeps write to, also when Jobs have gone.",
)
@store_option
@cluster_options
@json_option
def command(stored: bool, store_uri: str, where: Where, as_json: bool) -> None:
    """List the sweeps of a store.

    With --context, those that have Jobs on a cluster.
    """
    if stored and not where.is_named:
        raise click.UsageError("--stored is about a cluster's store; give --context NAME")
    if where.is_named and not stored:
        _list_cluster(where, as_json)
        return
    store = open_store(store_at(where, store_uri))
    rows = [_row(store, sweep_id) for sweep_id in store.sweep_ids()]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo(f"no sweeps in {store.uri}; start one with: fractal-k8s launch --preset tanh")
        return
    width = max(len(row["sweep"]) for row in rows)
    for row in rows:
        if "problem" in row:
            click.echo(f"{row['sweep']:<{width}}  {row['state']}: {row['problem']}")
            continue
        dimension = "" if row["dimension"] is None else f"D {row['dimension']:.3f}"
        size = "{} x {}".format(*row["resolution"])
        click.echo(
            f"{row['sweep']:<{width}}  {size:>11}  {row['state']:<11} {row['known']:>9,} points  "
            f"{row['y']} x {row['x']}  {row['kind']:<8}  {dimension}".rstrip()
        )


def _row(store: Store, sweep_id: str) -> dict[str, Any]:
    """What the list says of one sweep; a damaged one is said to be so and stops nothing."""
    from fractal_k8s.cli.status import tally_reader
    from fractal_k8s.results.lock import is_locked

    try:
        folder, plan = store.plan(sweep_id)
        summary = folder.read_summary()
        reader = tally_reader(folder, plan)
        known = int(reader.refresh().known.sum())
        reader.keep()
    except FractalError as error:
        return {"sweep": sweep_id, "state": "unreadable", "problem": str(error)}
    sweep = plan.sweep
    scatter, origin = sweep.spec.scatter, sweep.spec.origin
    kind = scatter.kind if scatter else "zoom" if origin else "map"
    running = is_locked(folder)
    state = "complete" if known == sweep.num_points else "running" if running else "partial"
    return {
        "sweep": sweep_id,
        # map; zoom: a map cut out of another; pairs: a pilot; cells: points of controls
        "kind": kind,
        "resolution": [sweep.rows, sweep.columns],
        "y": sweep.y_knob.name,
        "x": sweep.x_knob.name,
        "state": state,
        "known": known,
        "dimension": summary["dimension"] if summary else None,
    }


def _list_cluster(where: Where, as_json: bool) -> None:
    """One request, whatever the size of the sweeps."""
    from fractal_k8s.backends.kube.progress import sweeps_on

    cluster = where.connect()
    rows: list[dict[str, Any]] = [
        {
            "sweep": sweep_id,
            "state": jobs[-1].state,
            "reason": jobs[-1].reason,
            "indexes": jobs[-1].indexes,
            "done": jobs[-1].done,
            "active": jobs[-1].active,
            "failed": jobs[-1].failed,
            "jobs": [job.name for job in jobs],
            "age_seconds": max(0.0, time.time() - jobs[0].created),
        }
        for sweep_id, jobs in sweeps_on(cluster).items()
    ]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo(
            f"no sweeps on {cluster.context}, namespace {cluster.namespace}; those whose Jobs have "
            f"gone: fractal-k8s list --stored {where.options}"
        )
    width = max((len(row["sweep"]) for row in rows), default=0)
    for row in rows:
        failed = f", {row['failed']:,} failed" if row["failed"] else ""
        several = f"  {len(row['jobs'])} Jobs" if len(row["jobs"]) > 1 else ""
        click.echo(
            f"{row['sweep']:<{width}}  {row['state']:<8}  {row['done']:,} of {row['indexes']:,} "
            f"indexes{failed}, {row['active']:,} pods  {duration(row['age_seconds'])} old{several}"
        )
