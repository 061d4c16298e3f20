"""`fractal-k8s status`: how far a sweep is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from fractal_k8s.cli.common import (
    Command,
    duration,
    echo_json,
    given_store,
    json_option,
    open_store,
    per_second,
    store_option,
)
from fractal_k8s.cli.where import Where, cluster_options

if TYPE_CHECKING:
    from fractal_k8s.results.store import SweepStore
    from fractal_k8s.results.tally import Tally, TallyReader
    from fractal_k8s.sweep.assignment import Plan

_WATCH_EVERY_S: Final = 2.0
_RECENT_S: Final = 60.0


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@click.option("--watch", is_flag=True, help="Keep showing it, with the map, until it ends.")
@store_option
@cluster_options
@json_option
@click.pass_context
def command(
    ctx: click.Context, sweep_id: str, watch: bool, store_uri: str, where: Where, as_json: bool
) -> None:
    """Show how far a sweep is.

    With --context it is asked from a cluster, and the store is the one that its Job writes to.
    """
    if where.is_named:
        from fractal_k8s.cli.cluster_status import show

        show(where, sweep_id, given_store(ctx), watch=watch, as_json=as_json)
        return
    store = open_store(store_uri)
    folder, plan = store.plan(sweep_id)
    reader = tally_reader(folder, plan)
    if watch and not as_json:
        _watch(folder, reader)
        return
    facts = _facts(folder, reader.refresh())
    reader.keep()
    if as_json:
        echo_json(facts)
    else:
        click.echo("\n".join(_lines(facts)))


def tally_reader(folder: SweepStore, plan: Plan) -> TallyReader:
    """A reader of a sweep's outcomes that goes on from where the last command stopped."""
    from fractal_k8s.checkpoints.cache import cache_folder
    from fractal_k8s.results.tally import TallyReader

    return TallyReader(folder, plan.sweep, keep_in=cache_folder() / "tally")


def _facts(folder: SweepStore, tally: Tally) -> dict[str, Any]:
    from fractal_k8s.analysis.ledger import Spent, account
    from fractal_k8s.results.lock import is_locked

    known = tally.known
    rate = tally.rate(_RECENT_S)
    missing = int((~known).sum())
    running = is_locked(folder)
    problems = list(tally.problems)
    notes = folder.notes(problems)
    return {
        "sweep": tally.sweep.id,
        "where": folder.where(),
        "resume": folder.command("resume"),
        "points": tally.sweep.num_points,
        "counts": tally.counts(),
        "running": running,
        "points_per_s": rate,
        "seconds_left": missing / rate if rate and missing and running is not False else None,
        "numerics_classes": list(tally.classes),
        "problems": problems,
        "ledger": account(Spent.of_tally(tally), notes, float(known.mean())),
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    from fractal_k8s.results.problems import in_summary, shown

    counts = facts["counts"]
    known = facts["points"] - counts["missing"] - counts["failed"]
    running = {True: "running", False: "not running", None: "in object storage"}[facts["running"]]
    lines = [
        f"{facts['sweep']}  {running}",
        f"  {known:,} of {facts['points']:,} points ({known / facts['points']:.1%})",
        f"  {counts_text(counts)}",
    ]
    if facts["seconds_left"] is not None:
        lines.append(
            f"  {per_second(facts['points_per_s'])}, {duration(facts['seconds_left'])} left"
        )
    if known < facts["points"] and facts["running"] is False:
        lines.append(f"  continue with: {facts['resume']}")
    lines += [f"  problem: {problem}" for problem in shown(in_summary(facts["problems"]))]
    lines.append(f"  {facts['where']}")
    return lines


def counts_text(counts: dict[str, int]) -> str:
    """Points by state, the best first."""
    return ", ".join(f"{count:,} {name}" for name, count in reversed(counts.items()))


def _watch(folder: SweepStore, reader: TallyReader) -> None:
    from rich.console import Console

    from fractal_k8s.cli.display import LiveDisplay
    from fractal_k8s.results.lock import is_locked

    console = Console()
    tally = reader.refresh()
    if console.is_terminal:
        display = LiveDisplay(console)
        display.begin(tally.sweep, tally.states, 0)
        try:
            while not tally.known.all() and is_locked(folder) is not False:
                time.sleep(_WATCH_EVERY_S)
                tally = reader.refresh()
                display.update(tally.states)
        finally:
            display.end()
    else:
        while not tally.known.all() and is_locked(folder) is not False:
            click.echo(
                f"{time.strftime('%H:%M:%S')}  {tally.known.sum():,}/{tally.states.size:,} points"
            )
            time.sleep(_WATCH_EVERY_S)
            tally = reader.refresh()
    reader.keep()
    click.echo("\n".join(_lines(_facts(folder, tally))))
