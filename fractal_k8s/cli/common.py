"""What several commands share: options, the way a sweep is named, and output."""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from fractal_k8s.errors import EXIT_INTERRUPTED
from fractal_k8s.results import DEFAULT_STORE

if TYPE_CHECKING:
    from fractal_k8s.results.store import Store
    from fractal_k8s.sweep.definition import Sweep

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_PRESET: Final = "docvqa-d20"


class Command(click.Command):
    """A command of ours: every one takes --debug, and Ctrl-C ends it with one sentence.

    Args:
        interrupted: what Ctrl-C leaves behind and how to go on; None = nothing is promised.
    """

    def __init__(self, *args: Any, interrupted: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.interrupted = interrupted
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=_remember_debug,
                is_eager=True,
                help="Show tracebacks.",
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            text = f"stopped; {self.interrupted}" if self.interrupted else "stopped"
            click.echo(f"\n{text}", err=True)  # the terminal has just shown ^C
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def _remember_debug(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["debug"] = True


def near_command(name: str, known: list[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(known)}"


# --- options ---


def store_option(function: F) -> F:
    return click.option(
        "--store",
        "store_uri",
        default=DEFAULT_STORE,
        show_default=True,
        envvar="FRACTAL_K8S_STORE",
        show_envvar=True,
        metavar="URI",
        help="Where outcomes are kept: a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.",
    )(function)


def given_store(ctx: click.Context) -> str | None:
    """The store that was named on the command line; None where a cluster's Jobs name it."""
    from click.core import ParameterSource

    source = ctx.get_parameter_source("store_uri")
    return ctx.params["store_uri"] if source is ParameterSource.COMMANDLINE else None


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def mixed_option(function: F) -> F:
    return click.option(
        "--allow-mixed",
        is_flag=True,
        help="Accept points that were trained in different numerics classes as one map.",
    )(function)


class Resolution(click.ParamType[Any]):
    """`128`, or rows and columns as `64x128`."""

    name = "resolution"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        match = re.fullmatch(r"(\d+)(?:[x,](\d+))?", str(value))
        if match is None:
            self.fail(f"{value!r} is neither a number nor ROWSxCOLUMNS, such as 64x128", param, ctx)
        rows, columns = match.groups()
        return int(rows) if columns is None else (int(rows), int(columns))


@dataclass(frozen=True)
class Asked:
    """What the options of `sweep_options` say: which sweep, and what to change about it."""

    sweep_file: Path | None
    preset: str | None
    resolution: int | tuple[int, int] | None
    settings: tuple[str, ...]
    checkpoint: str | None
    dataset: str | None
    name: str | None
    # with weights and data, where they are not named
    cache: Path | None = None

    def overrides(self) -> dict[str, str | None]:
        """The top-level keys that have options of their own; None = as the sweep says.

        Raises:
            FractalError: see `cli.filled.taken`.
        """
        given = {"checkpoint": self.checkpoint, "dataset": self.dataset, "name": self.name}
        if self.cache is not None:
            from fractal_k8s.cli.filled import taken

            given |= taken(self.cache, given)
        return given

    def with_settings(self, *texts: str) -> Asked:
        return replace(self, settings=(*self.settings, *texts))

    def raw(self) -> tuple[dict[str, Any], str]:
        """The file or preset as plain data, and what to call it."""
        from fractal_k8s.sweep.load import parse_text, preset_text, read_raw

        if self.sweep_file is not None and self.preset is not None:
            raise click.UsageError("give a sweep file or --preset, not both")
        if self.sweep_file is not None:
            return read_raw(self.sweep_file), str(self.sweep_file)
        preset = self.preset or DEFAULT_PRESET
        return parse_text(preset_text(preset), source=preset), f"preset {preset}"


def sweep_options(function: F) -> F:
    """A sweep file or a preset, and what to change about it: the argument `asked`, an `Asked`.

    `repeats_option` and `filled.cache_option` below it are such changes.
    """

    @functools.wraps(function)
    def gathered(*arguments: Any, **options: Any) -> Any:
        names = [field.name for field in fields(Asked) if field.name in options]
        asked = Asked(**{name: options.pop(name) for name in names})
        if options.pop("allow_repeats", False):
            asked = asked.with_settings("training.allow_repeats=true")
        return function(*arguments, asked=asked, **options)

    decorators = [
        click.argument(
            "sweep_file", required=False, type=click.Path(path_type=Path), metavar="[SWEEP.toml]"
        ),
        click.option("--preset", metavar="NAME", help="A sweep that comes with fractal-k8s."),
        click.option(
            "--res", "resolution", type=Resolution(), metavar="N|RxC", help="Points per axis."
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a key of the sweep, such as training.tokens=4000. Repeatable.",
        ),
        click.option(
            "--checkpoint",
            metavar="REF",
            help="Weights to start from: a folder, one a depth as in models/d{depth}, "
            "wandb:ENTITY/PROJECT/NAME:VERSION, hf:REPO@REVISION, s3://BUCKET/PREFIX, or "
            "pretrained:tiny.",
        ),
        click.option(
            "--dataset",
            metavar="REF",
            help="Data, as in conversations:FILE.jsonl, docvqa (see `data download`), or forms, "
            "which are made up.",
        ),
        click.option("--name", metavar="NAME", help="Another name for the sweep."),
    ]
    command: Any = gathered
    for decorator in reversed(decorators):
        command = decorator(command)
    return cast("F", command)


def repeats_option(function: F) -> F:
    return click.option(
        "--allow-repeats",
        is_flag=True,
        help="Accept runs that see rows again: they ask for more tokens than the data hold.",
    )(function)


def read_sweep(asked: Asked) -> Sweep:
    """The sweep that the options describe."""
    from fractal_k8s.sweep.load import resolve

    raw, source = asked.raw()
    return resolve(
        raw,
        settings=asked.settings,
        resolution=asked.resolution,
        overrides=asked.overrides(),
        source=source,
    )


def relocation_options(function: F) -> F:
    """Where the files of a stored sweep lie on this machine, for `relocated`."""
    for decorator in (
        click.option("--dataset", metavar="REF", help="Where the same data are on this machine."),
        click.option(
            "--checkpoint", metavar="DIR", help="Where the same weights are on this machine."
        ),
    ):
        function = decorator(function)
    return function


def relocated(sweep: Sweep, *, checkpoint: str | None, dataset: str | None) -> Sweep:
    """A stored sweep with its files where they lie on this machine; None = where they lay."""
    from fractal_k8s.sweep.definition import Sweep
    from fractal_k8s.sweep.load import whole_checkpoint, whole_dataset

    raw = sweep.to_dict()
    if checkpoint is not None:
        raw["checkpoint"] = whole_checkpoint(checkpoint)
    if dataset is not None:
        raw["dataset"] = whole_dataset(dataset)
    return Sweep.parse(raw, source=sweep.id, version=sweep.version)


def open_store(store_uri: str) -> Store:
    from fractal_k8s.results.store import Store

    return Store(store_uri)


# --- output ---


def echo_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2, allow_nan=False))


def duration(seconds: float) -> str:
    """A time span to two units: "4.2 s", "3 min 20 s", "5 h 2 min", "3 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    for large, small, size, unit in (("min", "s", 60, 1), ("h", "min", 3600, 60)):
        if seconds < size * (60 if size == 60 else 24):
            whole, rest = divmod(seconds, size)
            return f"{int(whole)} {large} {int(rest // unit)} {small}"
    days, rest = divmod(seconds, 86400)
    return f"{int(days)} d {int(rest // 3600)} h"


def per_second(rate: float) -> str:
    """A speed in points per second: "0.42", "17.3", "3,850"."""
    return f"{rate:,.0f} points/s" if rate >= 100 else f"{rate:.3g} points/s"


def size_text(size: float) -> str:
    """A size in decimal units: "512 B", "3.2 MB", "58 GB"."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, int(math.log10(max(size, 1)) // 3)))
    return f"{size / 1000**power:.3g} {units[power]}"


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """A map's numbers for a terminal."""
    from fractal_k8s.results import holes, problems

    counts = summary.get("counts", {})
    rows, columns = summary["resolution"]
    lines = [f"{rows} x {columns} points, {summary['coverage']:.1%} with a verdict"]
    if counts:
        parts = [f"{count:,} {name}" for name, count in reversed(counts.items()) if count]
        lines.append("  " + ", ".join(parts))
    if "holes" in summary:  # unlike that of a bare picture
        lines += [f"  {text}" for text in holes.lines(summary["holes"])]
    if summary["trainable_fraction"] is not None:
        lines.append(f"  trainable fraction {summary['trainable_fraction']:.4f}")
    lines += _dimension_lines(summary)
    if summary.get("biased_points"):
        lines.append(
            f"  {summary['biased_points']:,} points have so few steps that the verdict's window of "
            f"{summary['verdict']['window']} losses holds the first loss"
        )
    if note := summary.get("notes", {}).get("certificate"):
        lines.append(f"  {note['line']}")
    lines += [f"  problem: {problem}" for problem in problems.shown(summary)]
    lines += [
        f"  data: {text}" for text in summary.get("notes", {}).get("data", {}).get("sentences", [])
    ]
    return lines


def _dimension_lines(summary: dict[str, Any]) -> list[str]:
    from fractal_k8s.analysis import lattice

    if "boundary_pixels" not in summary:
        return []  # another analysis was asked for, or there is no map
    what = "cells of the set" if summary["method"] == "aligned" else "boundary pixels"
    is_looked_for = summary["boundary_pixels"] or summary["coverage"] == 1
    lines = [f"  {what} {summary['boundary_pixels']:,}"] if is_looked_for else []
    if summary["dimension"] is None:
        lines.append(f"  edge dimension: none ({summary['refused']})")
        if (so_far := lattice.text(summary.get("provisional"))) is not None:
            lines.append(f"  so far {so_far}")
        if summary["raw_slope"] is not None:
            lines.append(f"  slope of its boxes {summary['raw_slope']:.3f}, before any calibration")
        return lines
    sizes = f"{min(summary['box_sizes'])}..{max(summary['box_sizes'])}"
    whose = "dimension of the set" if summary["method"] == "aligned" else "edge dimension"
    text = f"  {whose} {summary['dimension']:.3f}"
    if summary["interval"]:
        low, high = summary["interval"]
        text += f", 95 % from {low:.3f} to {high:.3f}"
    text += f"  (boxes of {sizes}, {summary['method']}"
    if summary["half_slopes"]:
        small, large = summary["half_slopes"]
        text += f"; smaller boxes {small:.3f}, larger {large:.3f}"
    return [*lines, text + ")"]


def analysis_lines(summary: dict[str, Any]) -> list[str]:
    """Every analysis as a small table for a terminal."""
    from fractal_k8s.analysis.registry import load

    lines: list[str] = []
    for name, result in summary["analyses"].items():
        analysis = load(name)
        rows = analysis.lines(result)
        width = max((len(label) for label, _ in rows), default=0)
        lines += ["", f"{analysis.TITLE} ({name})"]
        lines += [f"  {label:<{width}}  {text}" for label, text in rows]
    return lines
