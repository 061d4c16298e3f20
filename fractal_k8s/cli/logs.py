"""`fractal-k8s logs`: what was logged about a sweep's points."""

from __future__ import annotations

import re
from typing import Any

import click

from fractal_k8s.cli.common import Command, echo_json, json_option, open_store, store_option


class PointParam(click.ParamType[Any]):
    """`3,7`: row and column."""

    name = "point"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"\(?\s*(\d+)\s*,\s*(\d+)\s*\)?", str(value))
        if match is None:
            self.fail(f"{value!r} is not ROW,COLUMN, such as 3,7", param, ctx)
        return int(match[1]), int(match[2])


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@click.option("--point", type=PointParam(), metavar="I,J", help="Only this point, with its losses.")
@click.option("--tail", type=click.IntRange(min=1), metavar="N", help="Only the last N lines.")
@store_option
@json_option
def command(
    sweep_id: str, point: tuple[int, int] | None, tail: int | None, store_uri: str, as_json: bool
) -> None:
    """Show what was logged about a sweep's points.

    The log is stored with the outcomes, so it is there when the process or pod is gone.
    """
    from fractal_k8s.worker import readable

    folder, plan = open_store(store_uri).plan(sweep_id)
    sweep = plan.sweep
    if point is not None and not (point[0] < sweep.rows and point[1] < sweep.columns):
        raise click.UsageError(
            f"point {point[0]},{point[1]} is outside the map of {sweep.rows} x {sweep.columns}"
        )
    lines = [line for line in folder.read_logs() if point in (None, (line["i"], line["j"]))]
    lines = lines[-tail:] if tail else lines
    losses = _losses(folder, plan, point) if point is not None and lines else None
    if as_json:
        echo_json({"sweep": sweep.id, "lines": lines, "losses": losses})
        return
    if not lines:
        click.echo(f"no log of {'point {},{}'.format(*point) if point else sweep.id} yet")
        return
    for line in lines:
        click.echo(f"{readable(sweep, line)}  [{line['shard']} {line['attempt']}]")
    if losses:
        click.echo("losses " + " ".join(f"{loss:.6g}" for loss in losses))


def _losses(folder: Any, plan: Any, point: tuple[int, int]) -> list[Any] | None:
    from fractal_k8s.aggregate import read_grid

    record = read_grid(folder, plan, allow_mixed=True).record(*point)
    if record is None:
        return None
    return [loss if loss - loss == 0 else repr(loss) for loss in record["losses"]]
