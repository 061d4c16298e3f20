"""`fractal-k8s launch`: from a sweep to its map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fractal_k8s.cli.common import (
    Command,
    json_option,
    mixed_option,
    open_store,
    read_sweep,
    store_option,
    sweep_options,
)
from fractal_k8s.cli.training import training_options


@click.command(cls=Command)
@sweep_options
@store_option
@training_options
@mixed_option
@json_option
def command(
    sweep_file: Path | None,
    preset: str | None,
    resolution: int | tuple[int, int] | None,
    settings: tuple[str, ...],
    checkpoint: str | None,
    dataset: str | None,
    name: str | None,
    store_uri: str,
    allow_mixed: bool,
    as_json: bool,
    **training: Any,
) -> None:
    """Train every missing point of a sweep and draw its map.

    The sweep is a file, or a preset (docvqa-d20 unless named). Points that are stored already are
    not trained again: launching the same sweep twice trains nothing the second time.

    \b
        fractal-k8s launch --preset tanh --res 128
        fractal-k8s launch sweep.toml --set axes.x.high=3e-2 --workers 2
    """
    from fractal_k8s.cli.training import train_and_report

    sweep = read_sweep(
        sweep_file,
        preset,
        resolution=resolution,
        settings=settings,
        checkpoint=checkpoint,
        dataset=dataset,
        name=name,
    )
    train_and_report(
        sweep, open_store(store_uri), allow_mixed=allow_mixed, as_json=as_json, **training
    )
