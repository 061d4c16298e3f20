"""`fractal-k8s probe-batch`: the largest batch that fits."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from fractal_k8s.cli.common import (
    Asked,
    Command,
    echo_json,
    json_option,
    open_store,
    read_sweep,
    size_text,
    store_option,
    sweep_options,
)
from fractal_k8s.cli.filled import cache_option
from fractal_k8s.errors import EXIT_INTERRUPTED, UsageError

if TYPE_CHECKING:
    from fractal_k8s.results.capacity import Capacity
    from fractal_k8s.results.store import Store
    from fractal_k8s.sweep.definition import Sweep
    from fractal_k8s.train.probe import Trial

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS_OF_TWO: Final = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class _Bytes(click.ParamType[int]):
    """A size: 8000000000, 8G or 8Gi."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]i?|)b?", str(value).lower())
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a size, such as 8000000000, 8G or 8Gi", param, ctx)
        return int(float(match[1]) * (_UNITS | _UNITS_OF_TWO)[match[2]])


@click.command(cls=Command)
@sweep_options
@cache_option
@click.option(
    "--depth",
    type=click.IntRange(min=1, max=200),
    metavar="N",
    help="Layers of the nanochat model that --random-weights makes.",
)
@click.option("--random-weights", is_flag=True, help="Needs no checkpoint and no data.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Training steps that a size must survive, at each of two points.",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="ROWS",
    help="Only multiples of it are tried.",
)
@click.option(
    "--max",
    "most",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="ROWS",
    help="The largest size to try.",
)
@click.option(
    "--headroom",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="Share of the memory that stays free.",
)
@click.option(
    "--memory-limit",
    type=_Bytes(),
    metavar="BYTES",
    help="Memory to use, of the GPU or of a CPU process. Default: what is free.",
)
@store_option
@json_option
def command(
    asked: Asked,
    depth: int | None,
    random_weights: bool,
    steps: int,
    stride: int,
    most: int,
    headroom: float,
    memory_limit: int | None,
    store_uri: str,
    as_json: bool,
) -> None:
    """Find the largest batch that survives real training steps.

    Sizes are doubled until one does not fit, then bisected. Every size is trained in a process of
    its own, with rows of the full training.max_seq_len and as many labels as the data's richest
    row. Only running out of memory counts as not fitting. The result is kept in the store, where
    `plan` reads it.

    \b
        fractal-k8s probe-batch --depth 20 --random-weights
        fractal-k8s probe-batch sweep.toml --stride 4 --memory-limit 40Gi
    """
    from fractal_k8s.train.probe import search, try_rows

    if random_weights != (depth is not None):
        raise click.UsageError("--depth and --random-weights go together")
    for option, value in (("--checkpoint", asked.checkpoint), ("--cache", asked.cache)):
        if random_weights and value is not None:
            raise click.UsageError(f"give {option} or --random-weights, not both")
    if stride > most:
        raise click.UsageError(f"--stride {stride} is more than --max {most}")
    sweep = read_sweep(asked)
    store = open_store(store_uri)
    attempt = partial(
        try_rows,
        sweep,
        steps=steps,
        depth=depth,
        memory_limit=memory_limit,
        headroom=headroom,
    )
    trials: list[Trial] = []
    stopped = False
    try:
        for trial in search(attempt, stride=stride, most=most):
            trials.append(trial)
            if not as_json:
                click.echo(_line(trial))
    except KeyboardInterrupt:
        stopped = True
    found = _capacity(sweep, trials, steps, headroom)
    where = None if stopped or found is None else _keep(store, found)
    if as_json:
        echo_json(_plain(sweep, trials, found, where))
    else:
        click.echo("\n".join(_lines(sweep, trials, found, stopped=stopped, where=where)))
    if stopped:
        sys.exit(EXIT_INTERRUPTED)
    if found is None:
        raise UsageError(
            f"not even {stride} rows of {_row_length(sweep)} ids fit; give a smaller --stride, "
            "a smaller training.max_seq_len, or training.gradient_checkpointing=true"
        )


def _row_length(sweep: Sweep) -> int:
    return int(sweep.to_dict()["training"]["max_seq_len"])


def _capacity(sweep: Sweep, trials: list[Trial], steps: int, headroom: float) -> Capacity | None:
    """What the trials tell; None if nothing has fitted."""
    from fractal_k8s.results.capacity import Capacity, decisive
    from fractal_k8s.sweep.training import GPTTraining

    fitting = [trial for trial in trials if trial.fits]
    if not fitting:
        return None
    best = max(fitting, key=lambda trial: trial.rows)
    assert isinstance(sweep.training, GPTTraining)  # others are refused before the first trial
    assert best.answer.shape is not None  # known once a model was made
    return Capacity(
        device=best.answer.device,
        shape=best.answer.shape,
        training=decisive(sweep.training),
        rows=best.rows,
        too_many=min((trial.rows for trial in trials if not trial.fits), default=None),
        steps=steps,
        labels=best.answer.labels,
        peak_bytes=best.answer.peak_bytes,
        allowed_bytes=best.answer.allowed_bytes,
        headroom=headroom,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _keep(store: Store, found: Capacity) -> str:
    from fractal_k8s.results.capacity import record_capacity

    return record_capacity(store, found)


# --- text ---


def _line(trial: Trial) -> str:
    answer = trial.answer
    if not trial.fits:
        return f"{trial.rows:>6,} rows  does not fit: out of memory"
    return (
        f"{trial.rows:>6,} rows  fits  {size_text(answer.peak_bytes):>8} at most, "
        f"{answer.seconds_per_step:.3g} s a step"
    )


def _lines(
    sweep: Sweep,
    trials: list[Trial],
    found: Capacity | None,
    *,
    stopped: bool,
    where: str | None,
) -> list[str]:
    head = ["stopped; what is known so far:"] if stopped else []
    if found is None:
        return [*head, "no size is known to fit"] if stopped else []
    bound = "no larger size was tried"
    if found.too_many is not None:
        bound = f"{found.too_many} do not fit"
    facts = f"{bound}, {found.headroom:.0%} kept free"
    rows = f"{found.rows} rows of {_row_length(sweep)} ids on {found.device}"
    peak = f"{size_text(found.peak_bytes)} of the {size_text(found.allowed_bytes)} allowed"
    lines = [*head, f"largest batch: {rows} ({facts})", f"peak memory:   {peak}"]
    return lines if where is None else [*lines, f"kept in:       {where}"]


def _plain(
    sweep: Sweep, trials: list[Trial], found: Capacity | None, where: str | None
) -> dict[str, Any]:
    """The keys of `probe-batch --json`; what is not known is None."""
    return {
        "largest_rows": None if found is None else found.rows,
        "too_many_rows": None if found is None else found.too_many,
        "max_seq_len": _row_length(sweep),
        "device": trials[-1].answer.device if trials else None,
        "shape": None if found is None else found.shape,
        "labels_per_row": None if found is None else found.labels,
        "peak_bytes": None if found is None else found.peak_bytes,
        "allowed_bytes": None if found is None else found.allowed_bytes,
        "headroom": None if found is None else found.headroom,
        "trials": [
            {
                "rows": trial.rows,
                "fits": trial.fits,
                "peak_bytes": trial.answer.peak_bytes or None,
                "seconds_per_step": trial.answer.seconds_per_step or None,
                "error": trial.answer.error,
            }
            for trial in trials
        ],
        "kept_in": where,
    }
