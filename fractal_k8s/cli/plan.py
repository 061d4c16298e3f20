"""`fractal-k8s plan`: what a sweep would take."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import click

from fractal_k8s.cli.common import (
    Asked,
    Command,
    duration,
    echo_json,
    json_option,
    open_store,
    read_sweep,
    repeats_option,
    size_text,
    store_option,
    sweep_options,
)
from fractal_k8s.cli.filled import cache_option
from fractal_k8s.errors import UsageError

if TYPE_CHECKING:
    from fractal_k8s.results.capacity import Capacity
    from fractal_k8s.results.store import Store
    from fractal_k8s.sweep.definition import Sweep
    from fractal_k8s.sweep.memory import Shape
    from fractal_k8s.sweep.pace import Pace
    from fractal_k8s.sweep.plan import Forecast, Terms
    from fractal_k8s.sweep.supply import DataFacts

_PROBE_POINTS: Final = 9


class _ProbePoints(click.ParamType[int]):
    """A number after --probe, or nothing."""

    name = "points"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not str(value).isdigit() or int(value) < 1:
            self.fail(
                f"{value!r} is not a number of points; put --probe after the sweep file", param, ctx
            )
        return int(value)


@click.command(cls=Command)
@sweep_options
@cache_option
@repeats_option
@click.option(
    "--probe",
    type=_ProbePoints(),
    is_flag=False,
    flag_value=_PROBE_POINTS,
    metavar="[K]",
    help=f"Train K points here (default {_PROBE_POINTS}) and forecast from their times.",
)
@click.option("--keep", is_flag=True, help="Keep the probe's outcomes in the store.")
@click.option(
    "--seconds-per-point",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Time of one point.",
)
@click.option(
    "--start-seconds",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Time until a worker trains: a pod's start, imports, weights. Default: as measured.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Workers (GPUs or cores) at once. Default: the cores or GPUs of this machine.",
)
@click.option(
    "--points-per-index",
    "points_per_shard",
    type=click.IntRange(min=1),
    metavar="N",
    help="Points per shard, which is a pod. Default: the points spread over the workers.",
)
@click.option(
    "--price",
    type=click.FloatRange(min=0),
    metavar="USD",
    help="Price of a worker per hour.",
)
@click.option(
    "--depth",
    type=click.IntRange(min=1, max=200),
    metavar="N",
    help="Layers of the nanochat model, for its memory, if the checkpoint is not here.",
)
@store_option
@json_option
def command(
    asked: Asked,
    probe: int | None,
    keep: bool,
    seconds_per_point: float | None,
    start_seconds: float | None,
    workers: int | None,
    points_per_shard: int | None,
    price: float | None,
    depth: int | None,
    store_uri: str,
    as_json: bool,
) -> None:
    """Say what a sweep would take, before anything is spent.

    Time comes from --probe, which trains a few points here, from --seconds-per-point, or from the
    sweeps in the store that trained the same steps, on this machine if there are any.

    \b
        fractal-k8s plan --preset tanh --res 512 --probe
        fractal-k8s plan sweep.toml --workers 64 --points-per-index 32 --price 3.5
    """
    from fractal_k8s.sweep.flops import with_flops
    from fractal_k8s.sweep.plan import forecast

    if probe is not None and seconds_per_point is not None:
        raise click.UsageError("give --probe or --seconds-per-point, not both")
    if keep and probe is None:
        raise click.UsageError("--keep needs --probe: nothing else is trained")
    sweep = read_sweep(asked)
    shape = _shape(sweep, depth)
    sweep = with_flops(sweep, shape)
    data = _data(sweep)
    store = open_store(store_uri)
    pace = _pace(sweep, store, probe, keep, seconds_per_point)
    if pace is not None and start_seconds is not None:
        pace = replace(pace, start_seconds=start_seconds)
    terms = _terms(store, workers, points_per_shard, price)
    made = forecast(sweep, pace, terms, shape=shape, data=data)
    batches = _capacities(sweep, store, shape)
    if as_json:
        echo_json({**made.to_dict(), "largest_batches": [asdict(found) for found in batches]})
    else:
        click.echo("\n".join(_lines(made, batches)))


def _pace(
    sweep: Sweep, store: Store, probe: int | None, keep: bool, seconds_per_point: float | None
) -> Pace | None:
    """The timing model from the option that was given, or from the store."""
    from fractal_k8s.results.timings import stored_pace
    from fractal_k8s.sweep.pace import Pace

    if seconds_per_point is not None:
        return Pace("--seconds-per-point", per_point=seconds_per_point, per_step=0.0)
    if probe is None:
        return stored_pace(store, sweep)
    from fractal_k8s import controller

    click.echo(f"probing {sweep.name} on this machine ...", err=True)
    return controller.probe(sweep, store if keep else None, probe)


def _terms(
    store: Store, workers: int | None, points_per_shard: int | None, price: float | None
) -> Terms:
    from fractal_k8s.backends.local import LocalBackend, visible_gpus
    from fractal_k8s.sweep.footprint import FLUSH_SECONDS_LOCAL, FLUSH_SECONDS_REMOTE
    from fractal_k8s.sweep.plan import Terms

    return Terms(
        workers=workers or LocalBackend().workers,
        worker_kind="GPU" if visible_gpus() else "core",
        points_per_shard=points_per_shard,
        price_per_hour=price,
        flush_seconds=FLUSH_SECONDS_LOCAL if store.is_local else FLUSH_SECONDS_REMOTE,
    )


def _shape(sweep: Sweep, depth: int | None) -> Shape | None:
    """Shape of the model that is fine-tuned, as far as it is known here.

    Raises:
        FractalError: the checkpoint that was named is not there or is damaged.
    """
    from fractal_k8s.sweep.memory import Shape

    if sweep.model != "gpt":
        if depth is not None:
            raise UsageError(f"--depth is of a gpt sweep; {sweep.name} trains an {sweep.model}")
        return None
    if depth is not None:
        return Shape.of_depth(depth)
    reference = getattr(sweep.spec, "checkpoint", None)
    if reference is None:
        return None
    from fractal_k8s.checkpoints.files import find_checkpoint, read_config
    from fractal_k8s.references import parse_reference
    from fractal_k8s.train.materials import checkpoint_folder, has_checkpoint
    from fractal_k8s.train.recipe import SCHEME, recipe_named

    if reference.startswith(SCHEME):
        recipe = recipe_named(reference.removeprefix(SCHEME))
        return replace(Shape.of_depth(recipe.depth), vocab_size=recipe.vocab_size)
    if sweep.depths:  # a worker must have room for the deepest
        sweep = sweep.at_depth(sweep.depths[-1])
    if parse_reference(reference) is not None and not has_checkpoint(sweep):
        return None  # launch fetches it
    files = find_checkpoint(checkpoint_folder(sweep))
    return Shape.of_config(read_config(files), source=str(files.meta))


def _data(sweep: Sweep) -> DataFacts | None:
    """What the sweep's data hold; None where they or their tokenizer are not on this machine.

    Raises:
        FractalError: what was named is not there, is damaged, or holds too little.
    """
    if sweep.model != "gpt" or sweep.spec.checkpoint is None:
        return None
    if sweep.spec.dataset == "conversations":  # to be named yet
        return None
    from fractal_k8s.sweep.supply import refuse_repeats
    from fractal_k8s.train.materials import has_checkpoint, is_fetchable, read_facts

    if not has_checkpoint(sweep) or is_fetchable(sweep):
        return None

    data = read_facts(sweep)
    refuse_repeats(sweep, data)
    return data


def _capacities(sweep: Sweep, store: Store, shape: Shape | None) -> list[Capacity]:
    """The largest batches that `probe-batch` found for this model, by machine."""
    from fractal_k8s.results.capacity import stored_capacities
    from fractal_k8s.sweep.training import GPTTraining

    if shape is None or not isinstance(sweep.training, GPTTraining):
        return []
    return stored_capacities(store, asdict(shape), sweep.training)


# --- text ---


def _lines(made: Forecast, batches: list[Capacity]) -> list[str]:
    sweep = made.sweep
    rows = [
        (f"y {sweep.y_knob.name}", _span(sweep.y_values)),
        (f"x {sweep.x_knob.name}", _span(sweep.x_values)),
        ("precision", _precision(sweep)),
        ("points", f"{made.points:,} points, {made.distinct:,} distinct experiments"),
        *_model_rows(sweep),
        *_step_rows(made),
        *_data_rows(made),
        *(("note", note) for note in made.notes),
        *_time_rows(made),
        *_resource_rows(made),
        *_batch_rows(made.sweep, batches),
    ]
    width = max(len(label) for label, _ in rows)
    lines = [sweep.name, *(f"  {label:<{width}}  {text}" for label, text in rows)]
    return lines + _wall_table(made)


def _model_rows(sweep: Sweep) -> list[tuple[str, str]]:
    """What launch has to make first."""
    from fractal_k8s.train.recipe import SCHEME, cached_folder

    reference = sweep.spec.checkpoint or ""
    name = reference.removeprefix(SCHEME)
    if not reference.startswith(SCHEME) or cached_folder(name).is_dir():
        return []
    return [("model", f"{name} is not on this machine yet; launch makes it, once")]


def _precision(sweep: Sweep) -> str:
    """How many values of each axis are different numbers to the trainer."""
    counts = sweep.separable_values()
    grain = sweep.training.rate_dtype
    return f"{grain} separates {counts['y']:.3g} values over y and {counts['x']:.3g} over x"


def _span(values: tuple[float, ...]) -> str:
    return f"{len(values)} values, {values[0]!r} to {values[-1]!r}"


def _step_rows(made: Forecast) -> list[tuple[str, str]]:
    if made.steps is None:
        what = "checkpoint (FLOPs)" if made.sweep.counts_flops else "data (supervised accounting)"
        return [("steps", f"follow from the {what}: give --checkpoint and --dataset")]
    rows = [("steps", f"{_from_to(made.steps)} per point, {made.total_steps:,} in all")]
    if made.expected_steps and made.total_steps and made.expected_steps < made.total_steps:
        share = made.expected_steps / made.total_steps
        rows.append(("", f"{made.expected_steps:,} of them expected: runs end early ({share:.0%})"))
    return rows


def _from_to(numbers: tuple[int, int]) -> str:
    low, high = numbers
    return f"{low:,}" + (f" to {high:,}" if high > low else "")


def _data_rows(made: Forecast) -> list[tuple[str, str]]:
    """Batch and warmup of a fine-tune, and what its data hold."""
    rows = []
    if (batch := made.batching) is not None:
        text = f"{_from_to(batch.rows)} rows"
        text += f" = {_from_to(batch.tokens)} tokens a step"
        if batch.part_rows is not None:
            text += f", in parts of {batch.part_rows:,} rows"
        rows.append(("batch", text))
        if batch.warmup_steps is not None:
            plural = "" if batch.warmup_steps == (1, 1) else "s"
            rows.append(("warmup", f"{_from_to(batch.warmup_steps)} step{plural}"))
    if made.data is not None:
        text = f"{made.data.rows:,} rows to train on"
        if made.data.probe_rows:
            text += f", {made.data.probe_rows:,} probe rows"
        rows.append(("data", text))
    elif hint := _fetch_hint(made.sweep):
        rows.append(("data", hint))
    return rows


def _fetch_hint(sweep: Sweep) -> str | None:
    """How to get data that a sweep of weights on this machine names and this machine lacks."""
    from fractal_k8s.train.materials import has_checkpoint, is_fetchable

    if sweep.model != "gpt" or sweep.spec.checkpoint is None:
        return None
    if not has_checkpoint(sweep) or not is_fetchable(sweep):
        return None
    name = sweep.spec.dataset
    return f"{name} is not on this machine: fractal-k8s data download {name}"


def _time_rows(made: Forecast) -> list[tuple[str, str]]:
    if made.pace is None or made.wall is None:
        hint = "give --probe or --seconds-per-point, or launch a small --res first"
        return [("time", f"unknown; {hint}")]
    wall, kind = made.wall, made.terms.worker_kind
    hours = f"{wall.worker_seconds / 3600:,.3g} {kind}-hours"
    error = ""
    if made.interval is not None:
        low, high = (duration(bound) for bound in made.interval)
        error = f", 95 % interval {low} to {high}"
    place = f"{_count(wall.workers, 'worker')}, {_count(wall.shards, 'shard')}"
    rows = [
        ("worker time", f"{duration(wall.worker_seconds)} of one worker = {hours}{error}"),
        ("from", _origin(made.pace)),
        ("wall time", f"about {duration(wall.wall_seconds)} on {place}"),
    ]
    if made.cost is not None:
        rows.append(("cost", f"about {made.cost:,.2f} USD"))
    return rows


def _origin(pace: Pace) -> str:
    parts = [pace.source]
    if pace.points:
        parts.append(_count(pace.points, "point"))
    if pace.per_point:
        parts.append(f"{pace.per_point:.3g} s a point")
    if pace.per_step:
        whose = f" in a chunk of {pace.lanes}" if pace.lanes > 1 else ""
        parts.append(f"{pace.per_step:.3g} s a step{whose}")
    if pace.between:
        parts.append(f"{pace.between:.2g} s between points")
    if pace.start_seconds:
        parts.append(f"{pace.start_seconds:.2g} s to start")
    return ", ".join(parts)


def _resource_rows(made: Forecast) -> list[tuple[str, str]]:
    if made.memory is None:
        memory = "unknown; give --checkpoint, or --depth of the nanochat model"
    else:
        parts = sorted(made.memory.items(), key=lambda part: -part[1])
        largest = ", ".join(
            f"{name} {size_text(size)}" for name, size in parts if name != "total" and size
        )
        memory = f"about {size_text(made.memory['total'])} a worker ({largest})"
    calls, requests = made.api_calls, made.store_requests
    watched = "" if calls["watch"] is None else f", {calls['watch']:,} to watch"
    rows = [
        ("memory", memory),
        ("pods", f"{made.shards:,} on a cluster, one a shard"),
        (
            "API calls",
            f"{calls['launch']:,} to launch{watched}, {calls['controllers']:,} by the cluster",
        ),
        ("W&B calls", "none per point; a tracked sweep is one run with one summary"),
        ("store", f"{requests['writes']:,} writes, {requests['reads']:,} reads"),
    ]
    if made.storage is not None:
        sizes = ", ".join(
            f"{name} {size_text(size)}" for name, size in made.storage.items() if name != "total"
        )
        rows.append(("storage", f"about {size_text(made.storage['total'])} ({sizes})"))
    return rows


def _batch_rows(sweep: Sweep, batches: list[Capacity]) -> list[tuple[str, str]]:
    training = sweep.to_dict()["training"]
    asked = training.get("device_batch_size") or training.get("batch_size", 0)
    rows = []
    for found in batches:
        facts = f"{found.device}, {_count(found.steps, 'step')} of rows with {found.labels} labels"
        facts += f", peak {size_text(found.peak_bytes)}"
        rows.append(("largest batch", f"{found.rows} rows measured ({facts})"))
        if found.too_many is not None and asked > found.rows:
            whole = training["batch_size"]
            part = max(size for size in range(1, found.rows + 1) if whole % size == 0)
            too_many = f"{asked} rows at once are more than fit on {found.device}"
            rows.append(("warning", f"{too_many}; set training.device_batch_size={part}"))
    return rows


def _wall_table(made: Forecast) -> list[str]:
    if len(made.walls) < 2:
        return []
    head = (
        f"  {'workers':>9}{'shards':>11}{'rounds':>11}{'wall time':>15}{'starting':>10}{'busy':>7}"
    )
    rows = [
        f"  {wall.workers:>9,}{wall.shards:>11,}{wall.rounds:>11,}{duration(wall.wall_seconds):>15}"
        f"{wall.start_share:>10.0%}{wall.busy_share:>7.0%}"
        for wall in made.walls
    ]
    return [head, *rows]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
