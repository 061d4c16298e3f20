"""`fractal-k8s analyze`: the numbers of a map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fractal_k8s.cli.common import (
    Command,
    analysis_lines,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    store_option,
    summary_lines,
)
from fractal_k8s.errors import IncompleteError, UsageError

# the keys of analysis.box_dimension.METHODS, which a test compares
_METHODS = ("windows", "published", "aligned")


@click.command(cls=Command)
@click.argument("sweep_id", metavar="[ID]", required=False)
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A picture instead of a sweep: .npy (boolean, or 0 and 1), or an image of two colours "
    "(blue against red, else the brighter one, is trainable).",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="windows",
    show_default=True,
    help="How the dimension is measured. published: as the public code does, for comparison only; "
    "aligned: of the trainable cells themselves, not of their edge.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Only this analysis, such as dimension. Repeatable.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="verdict.KEY=VALUE",
    help="Judge by another rule, such as verdict.threshold=0.9. Needs no training.",
)
@click.option("--partial", is_flag=True, help="Accept a map with missing or failed points.")
@mixed_option
@store_option
@json_option
def command(
    sweep_id: str | None,
    mask: Path | None,
    method: str,
    only: tuple[str, ...],
    settings: tuple[str, ...],
    partial: bool,
    allow_mixed: bool,
    store_uri: str,
    as_json: bool,
) -> None:
    """Measure a map: dimension of its edge, shares, states.

    \b
        fractal-k8s analyze tanh --json
        fractal-k8s analyze --mask map.npy --method published
    """
    if (sweep_id is None) == (mask is None):
        raise click.UsageError("give the ID of a sweep or --mask FILE, one of the two")
    if mask is not None:
        if settings:
            raise click.UsageError("--set needs a sweep: a mask has its verdicts already")
        summary = _of_mask(mask, method, only)
    else:
        assert sweep_id is not None  # one of the two was given
        summary = _of_sweep(sweep_id, store_uri, method, only, settings, allow_mixed)
    if as_json:
        echo_json(summary)
    else:
        click.echo(str(summary.get("sweep", mask)))
        click.echo("\n".join([*summary_lines(summary), *analysis_lines(summary)]))
    if summary["coverage"] < 1 and not partial:
        train = "" if mask is not None else "train the rest with fractal-k8s resume, or "
        raise IncompleteError(
            f"only {summary['coverage']:.1%} of the points have a verdict, and the numbers above "
            f"are of those; {train}accept them with --partial"
        )


def _of_mask(path: Path, method: str, only: tuple[str, ...]) -> dict[str, Any]:
    from fractal_k8s.analysis.summary import summarise_mask
    from fractal_k8s.report.picture import read_mask

    labels, known = read_mask(path)
    return {"mask": str(path), **summarise_mask(labels, known, method=method, only=only)}


def _of_sweep(
    sweep_id: str,
    store_uri: str,
    method: str,
    only: tuple[str, ...],
    settings: tuple[str, ...],
    allow_mixed: bool,
) -> dict[str, Any]:
    from fractal_k8s.aggregate import read_grid
    from fractal_k8s.analysis.summary import summarise
    from fractal_k8s.sweep.load import resolve

    folder, plan = open_store(store_uri).plan(sweep_id)
    if foreign := [text for text in settings if not text.startswith("verdict.")]:
        raise UsageError(
            f"{foreign[0]!r} would need new training; analyze can only change verdict.* keys"
        )
    raw = plan.sweep.to_dict()
    if any(text.startswith("verdict.rule") for text in settings):
        raw["verdict"] = {}  # another rule starts from its own defaults
    rule = resolve(raw, settings=settings, source=plan.sweep.id).verdict
    grid = read_grid(folder, plan, rule=rule, allow_mixed=allow_mixed)
    return summarise(grid, notes=folder.notes(), method=method, only=only)
