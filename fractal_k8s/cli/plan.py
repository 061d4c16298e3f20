"""`fractal-k8s plan`: what a sweep would take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fractal_k8s.cli.common import (
    Command,
    duration,
    echo_json,
    json_option,
    open_store,
    read_sweep,
    store_option,
    sweep_options,
)

if TYPE_CHECKING:
    from fractal_k8s.sweep.plan import Forecast


@click.command(cls=Command)
@sweep_options
@click.option(
    "--seconds-per-point", type=click.FloatRange(min=0), metavar="S", help="Time of one point."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Workers (GPUs or cores) at once. Default: the cores or GPUs of this machine.",
)
@click.option(
    "--price",
    type=click.FloatRange(min=0),
    metavar="USD",
    help="Price of a worker per hour.",
)
@store_option
@json_option
def command(
    sweep_file: Path | None,
    preset: str | None,
    resolution: int | tuple[int, int] | None,
    settings: tuple[str, ...],
    checkpoint: str | None,
    dataset: str | None,
    name: str | None,
    seconds_per_point: float | None,
    workers: int | None,
    price: float | None,
    store_uri: str,
    as_json: bool,
) -> None:
    """Say what a sweep would take, before anything is spent.

    Time comes from --seconds-per-point, or from finished sweeps in the store that trained the same
    steps on this machine.
    """
    from fractal_k8s.results.timings import seconds_per_step
    from fractal_k8s.sweep.plan import forecast

    sweep = read_sweep(
        sweep_file,
        preset,
        resolution=resolution,
        settings=settings,
        checkpoint=checkpoint,
        dataset=dataset,
        name=name,
    )
    known = (
        None if seconds_per_point is not None else seconds_per_step(open_store(store_uri), sweep)
    )
    made = forecast(
        sweep,
        seconds_per_point=seconds_per_point,
        seconds_per_step=known.seconds if known else None,
        workers=workers or _local_workers(),
        price_per_hour=price,
    )
    if as_json:
        echo_json({**made.to_dict(), "timing_source": known.source if known else None})
    else:
        click.echo("\n".join(_lines(made, known.source if known else None)))


def _local_workers() -> int:
    from fractal_k8s.backends.local import LocalBackend

    return LocalBackend().workers


def _lines(made: Forecast, source: str | None) -> list[str]:
    sweep = made.sweep
    lines = [
        sweep.name,
        f"  y {sweep.y_knob.name}: {_span(sweep.y_values)}",
        f"  x {sweep.x_knob.name}: {_span(sweep.x_values)}",
        f"  {made.points:,} points, {made.distinct:,} distinct experiments",
    ]
    if made.steps is None:
        lines.append("  steps per point: follow from the data (supervised token accounting)")
    else:
        low, high = made.steps
        lines.append(f"  steps per point: {low:,}" + (f" to {high:,}" if high > low else ""))
        lines.append(f"  steps in all: {made.total_steps:,}")
    lines += [f"  note: {note}" for note in made.notes]
    lines += _cost_lines(made, source)
    return lines


def _span(values: tuple[float, ...]) -> str:
    return f"{len(values)} values, {values[0]!r} to {values[-1]!r}"


def _cost_lines(made: Forecast, source: str | None) -> list[str]:
    if made.worker_seconds is None:
        hint = "give --seconds-per-point, or launch a small --res first: its timing is used here"
        return [f"  time: unknown; {hint}"]
    origin = f" (from {source})" if source else ""
    lines = [
        f"  training time: {duration(made.worker_seconds)} of one worker{origin}",
        f"  wall time: about {duration(made.worker_seconds / made.workers)} on {made.workers} "
        + ("worker" if made.workers == 1 else "workers"),
    ]
    if made.cost is not None:
        lines.append(f"  cost: about {made.cost:,.2f} USD")
    return lines
