"""`fractal-k8s aggregate`: a sweep's summary from what is stored; what the aggregator runs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from fractal_k8s.cli.common import (
    Command,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    store_option,
    summary_lines,
)
from fractal_k8s.cli.where import Where, cluster_options, store_at, stored_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from fractal_k8s.aggregate import Aggregation
    from fractal_k8s.aggregate.until import JobsState

# A failed sweep of a store that holds many is worth more than a failed request.
_WORST: Final = (65, 75, 2, 1, 0)


@click.command(
    cls=Command,
    interrupted="the last whole summary stays; run the same command to go on",
)
@click.argument("sweep_id", metavar="[ID]", required=False)
@click.option("--all", "is_all", is_flag=True, help="Every sweep of the store that has changed.")
@click.option(
    "--until-complete",
    is_flag=True,
    help="Again and again until every point is known, every index of its Job has ended, or nothing "
    "new comes for --patience.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for anything new, and for a store that does not answer.",
)
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@cluster_options
@mixed_option
@store_option
@json_option
def command(
    sweep_id: str | None,
    is_all: bool,
    until_complete: bool,
    patience: float,
    every: float,
    allow_mixed: bool,
    store_uri: str,
    where: Where,
    as_json: bool,
) -> None:
    """Put a sweep's outcomes together: map, numbers, page and table.

    Reads only what is new since the last time. Exit code: 0 every point has a verdict; 1 points are
    missing or failed; 65 objects of the store are damaged or contradict each other, each of which
    is named and costs no other point; 2 the store cannot be read or written. With --all, holes are
    no error and 75 says that a sweep could not be read. With --context the store is the one that a
    cluster's sweep writes to, and the cluster says when the sweep has ended.

    \b
        fractal-k8s aggregate tanh
        fractal-k8s aggregate docvqa-d20 --context cks-wb3
        fractal-k8s aggregate docvqa-d20 --store s3://bucket/fractal --until-complete
        fractal-k8s aggregate --all --store s3://bucket/fractal
    """
    if is_all == (sweep_id is not None):
        raise click.UsageError("name one sweep, or give --all")
    if is_all and until_complete:
        raise click.UsageError("--until-complete waits for one sweep; leave --all out")
    if sweep_id is None:
        sys.exit(_every_sweep(store_at(where, store_uri), where, allow_mixed, as_json))
    uri, found = stored_at(where, sweep_id, store_uri)
    began = time.monotonic()
    if until_complete:
        done = _until(found, uri, where, (patience, every), allow_mixed, as_json)
    else:
        done = _once(found, uri, allow_mixed, as_json)
    _say(done, time.monotonic() - began, as_json)
    sys.exit(done.exit_code)


def _line(as_json: bool) -> Callable[[str], None]:
    """Prints a line with the time; beside JSON to the error output."""

    def say(text: str) -> None:
        click.echo(f"{time.strftime('%H:%M:%S')}  {text}", err=as_json)

    return say


def _once(sweep_id: str, store_uri: str, allow_mixed: bool, as_json: bool) -> Aggregation:
    from fractal_k8s.aggregate.announce import publish
    from fractal_k8s.aggregate.passes import Passes

    folder, plan = open_store(store_uri).plan(sweep_id)
    say = _line(as_json)
    done = Passes(folder, plan, allow_mixed=allow_mixed, say=say).whole()
    publish(folder, plan, say, has_ended=False)
    return done


def _until(
    sweep_id: str,
    store_uri: str,
    where: Where,
    times: tuple[float, float],
    allow_mixed: bool,
    as_json: bool,
) -> Aggregation:
    from fractal_k8s.aggregate.until import Watch, aggregate_until

    patience, every = times
    watch = Watch(every, patience, _asking(where))
    store, say = open_store(store_uri), _line(as_json)
    return aggregate_until(store, sweep_id, watch, allow_mixed=allow_mixed, say=say)[1]


def _asking(where: Where) -> Callable[[str], JobsState] | None:
    """What asks the cluster that is named about a sweep's Jobs; None if none is."""
    if not where.is_named:
        return None
    from fractal_k8s.aggregate.until import JobsState
    from fractal_k8s.backends.kube.jobs import ended_jobs

    cluster = where.connect()
    return lambda sweep_id: JobsState(*ended_jobs(cluster, sweep_id))


def _every_sweep(store_uri: str, where: Where, allow_mixed: bool, as_json: bool) -> int:
    """All sweeps of a store; returns the exit code."""
    from fractal_k8s.aggregate.every import aggregate_all

    store = open_store(store_uri)
    visits = []
    for visit in aggregate_all(
        store, allow_mixed=allow_mixed, say=_line(as_json), jobs=_asking(where)
    ):
        visits.append(visit)
        if not as_json:
            known = "" if visit.coverage is None else f", {visit.coverage:.1%} with a verdict"
            click.echo(f"{visit.sweep_id}  {visit.state}{known}")
            for problem in visit.problems:
                click.echo(f"  problem: {problem}")
    if as_json:
        echo_json([visit.to_dict() for visit in visits])
    elif not visits:
        click.echo(f"no sweeps in {store.files.place}")
    codes = {visit.exit_code for visit in visits}
    return next(code for code in _WORST if code in codes or code == 0)


def _say(done: Aggregation, seconds: float, as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {
            "sweep": done.grid.sweep.id,
            "complete": done.summary["complete"],
            "coverage": done.summary["coverage"],
            "counts": done.summary["counts"],
            "problems": done.summary["problems"],
            "num_problems": done.summary["num_problems"],
            "objects": done.objects,
            "read": done.num_read,
            "reading_seconds": round(done.reading_seconds, 3),
            "seconds": round(seconds, 3),
            "written": done.written,
        }
        echo_json(facts)
        return
    for line in summary_lines(done.summary):
        click.echo(line)
    others = ", the others were known" if done.num_read < done.objects else ""
    click.echo(f"  {done.num_read:,} of {done.objects:,} objects read{others}")
    if not done.summary["complete"]:
        counts = done.summary["counts"]
        click.echo(f"  PARTIAL: {counts['missing']:,} points missing, {counts['failed']:,} failed")
    for name, place in done.written.items():
        click.echo(f"{name:<14} {place}")
