"""The forecast: what is trained, which columns cannot tell, and what it costs."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from conftest import SMALL, Run, mlp_sweep
from fractal_k8s import controller
from fractal_k8s.data.conversations import Row
from fractal_k8s.models.gpt import GPT, GPTConfig
from fractal_k8s.results import schema
from fractal_k8s.results.outcome import Environment, Outcome, State
from fractal_k8s.results.store import Store
from fractal_k8s.results.timings import stored_pace
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt, representatives
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.load import parse_text, preset_text, resolve
from fractal_k8s.sweep.memory import Shape, gpt_memory
from fractal_k8s.sweep.pace import CHUNKS_PER_GROUP, REPACK_STEPS, Pace, chunk_steps
from fractal_k8s.sweep.plan import Terms, forecast, planned_steps
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.sweep.walltime import makespan, shard_seconds, wall
from fractal_k8s.train.batches import pad
from fractal_k8s.train.optimizers import build_optimizers, is_trained
from fractal_k8s.train.packing import MicroBatch, pack


def preset(name: str, *settings: str, resolution: int | None = None) -> Sweep:
    raw = parse_text(preset_text(name), source=name)
    return resolve(raw, settings=settings, resolution=resolution, source=name)


@pytest.mark.parametrize(
    ("settings", "steps", "distinct", "one_step", "few"),
    [
        # reference/features.md E: 128 levels, "few" there means fewer than 20 steps, here at most
        pytest.param(
            ("training.batch_size=8", "training.max_seq_len=128"), (1, 977), 92, 1, 55, id="8x128"
        ),
        pytest.param(("training.batch_size=8",), (1, 123), 54, 39, 93, id="8x1024"),
        pytest.param((), (1, 21), 21, 72, 126, id="48x1024"),
        pytest.param(("axes.x.low=5e3", "axes.x.high=5e5"), (1, 11), 11, 64, 128, id="5K-500K"),
    ],
)
def test_degenerate_token_columns_are_counted(
    settings: tuple[str, ...], steps: tuple[int, int], distinct: int, one_step: int, few: int
) -> None:
    sweep = preset("docvqa-d20-lr-tokens", *settings, "verdict.window=19")
    made = forecast(sweep)
    assert made.steps == steps
    assert made.distinct == distinct * 128
    assert len(made.one_step_columns) == one_step
    assert len(made.few_step_columns) == few
    assert f"{one_step} of 128 columns make a single step" in made.notes[0]


def test_a_sweep_whose_every_run_is_shorter_than_the_window_is_called_out() -> None:
    made = forecast(preset("docvqa-d20"))
    expected = (
        "128 of 128 columns make at most 20 steps, so the verdict's window of 20 losses holds the "
        "first loss; give more tokens or a smaller verdict.window"
    )
    assert made.notes == [expected]


def test_long_runs_need_no_note() -> None:
    assert forecast(preset("tanh")).notes == []


def test_the_values_that_the_trainer_can_separate_are_counted() -> None:
    made = forecast(preset("tanh", "training.dtype=float32", "axes.y.low=1", "axes.y.high=2"))
    assert made.to_dict()["separable_values"]["y"] == 2**23 + 1
    tokens = forecast(preset("docvqa-d20-lr-tokens")).to_dict()["separable_values"]
    assert tokens["x"] == 1_000_000 - 1_000 + 1


def test_time_and_cost_follow_from_seconds_per_point() -> None:
    pace = Pace("given", per_point=36.0, per_step=0.0)
    made = forecast(preset("tanh", resolution=10), pace, Terms(workers=4, price_per_hour=2.5))
    assert made.worker_seconds == 3600.0
    assert made.cost == 2.5
    assert made.to_dict()["wall_seconds"] == 900.0


def test_time_follows_from_seconds_per_step_of_the_distinct_points() -> None:
    sweep = preset("docvqa-d20-lr-tokens")
    made = forecast(sweep, Pace("given", per_point=0.0, per_step=0.5))
    # distinct step counts 1..21, each at 128 learning rates
    assert made.total_steps == 128 * sum(range(1, 22))
    assert made.worker_seconds == 0.5 * made.total_steps


def test_steps_that_depend_on_the_data_are_not_guessed() -> None:
    sweep = preset("docvqa-d20", "training.token_accounting=supervised")
    made = forecast(sweep, Pace("given", per_point=0.0, per_step=1.0))
    assert made.steps is None
    assert made.worker_seconds is None
    assert made.distinct == 16_384


def test_a_token_axis_over_the_rows_names_rows() -> None:
    raw = preset("docvqa-d20-lr-tokens").to_dict()
    raw["axes"]["y"], raw["axes"]["x"] = raw["axes"]["x"], raw["axes"]["y"]
    made = forecast(Sweep.parse(raw))
    assert (len(made.one_step_rows), len(made.one_step_columns)) == (72, 0)


# --- a planted timing model ---

START, PER_POINT, PER_STEP = 40.0, 0.8, 0.11
BEGAN = datetime(2026, 5, 1, tzinfo=UTC)


def token_sweep(resolution: tuple[int, int], low: float, high: float) -> Sweep:
    return Sweep.parse(
        {
            "name": "planted",
            "model": "gpt",
            "dataset": "conversations:x.jsonl",
            "resolution": list(resolution),
            "axes": {
                "y": {"knob": "matrix_lr", "low": 1e-4, "high": 1.0},
                "x": {"knob": "tokens", "low": low, "high": high},
            },
            "training": {"batch_size": 8, "max_seq_len": 128},
        }
    )


def planted_steps(sweep: Sweep) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Steps that the planted runs make: above a rate they diverge, the earlier the higher."""
    rates = np.repeat(np.log10(sweep.y_values), sweep.columns)
    last = np.where(rates > -1.0, np.round(30 * (0.3 - rates)), 10**9).astype(np.int64)
    return np.minimum(planned_steps(sweep), np.maximum(last, 1))


def plant(store: Store, sweep: Sweep, *, shards: int, noise: float, node: str) -> None:
    """Stores outcomes whose times follow the planted model, with lognormal noise."""
    random = np.random.default_rng(5)
    folder = store.sweep(sweep.id)
    folder.write_plan(Plan(sweep, Deal()))
    made, planned = planted_steps(sweep), planned_steps(sweep)
    owners = representatives(sweep)
    order = Dealt(sweep, Deal()).order
    here = Environment(numerics_class="planted padded", node=node)
    for number, block in enumerate(np.array_split(order, shards)):
        outcomes, times = [], []
        clock = BEGAN
        for index in block:
            seconds = (PER_POINT + PER_STEP * made[index]) * random.lognormal(
                -(noise**2) / 2, noise
            )
            clock += timedelta(seconds=seconds)
            for member in np.flatnonzero(owners == index):
                outcomes.append(planted_outcome(sweep, int(member), made, planned, seconds))
                times.append(clock)
        name = f"planted-{number:05d}"
        table = schema.to_table(sweep, outcomes, times, here)
        folder.files.put(folder.outcome_key(name, "a"), schema.to_bytes(table))
        log = json.dumps({"start_seconds": START}) + "\n"
        folder.files.put(folder.log_key(name, "a"), log.encode())


def planted_outcome(sweep: Sweep, index: int, made: Any, planned: Any, seconds: float) -> Outcome:
    point, steps = sweep.point(index), int(made[index])
    state = State.TRAINED if steps == planned[index] else State.DIVERGED
    return Outcome(
        index=index,
        i=point.i,
        j=point.j,
        y=point.y,
        x=point.x,
        state=state,
        run_seed=0,
        steps=steps,
        seconds=seconds,
        losses=np.ones(2, np.float32),
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param((12, 9, 1e4, 3e5), (40, 30, 1e4, 3e5), id="the same plane, finer"),
        pytest.param((12, 9, 1e4, 3e5), (24, 16, 1e4, 2e6), id="runs seven times as long"),
        pytest.param((12, 9, 1e4, 3e5), (20, 20, 1e3, 3e4), id="short runs"),
    ],
)
@pytest.mark.parametrize("node", [platform.node(), "another"])
def test_a_planted_timing_model_is_forecast_within_ten_percent(
    tmp_path: Path, old: Any, new: Any, node: str
) -> None:
    store = Store(str(tmp_path))
    plant(store, token_sweep(old[:2], *old[2:]), shards=4, noise=0.15, node=node)
    sweep = token_sweep(new[:2], *new[2:])
    pace = stored_pace(store, sweep)
    assert pace is not None
    assert ("another machine" in pace.source) == (node == "another")
    made = forecast(sweep, pace, Terms(workers=6))
    distinct = representatives(sweep) == np.arange(sweep.num_points)
    training = (PER_POINT + PER_STEP * planted_steps(sweep)[distinct]).sum()
    actual = training + made.shards * START
    assert made.worker_seconds == pytest.approx(actual, rel=0.1)
    assert made.worker_seconds - made.shards * pace.start_seconds == pytest.approx(
        training, rel=0.1
    )
    assert pace.start_seconds == pytest.approx(START, rel=0.1)
    assert made.interval is not None
    assert made.interval[0] < actual < made.interval[1]
    assert made.expected_steps == pytest.approx(planted_steps(sweep)[distinct].sum(), rel=0.1)


def test_stragglers_do_not_carry_the_forecast_away(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    sweep = token_sweep((12, 9), 1e4, 3e5)
    plant(store, sweep, shards=1, noise=0.05, node=platform.node())
    [entry] = store.sweep(sweep.id).outcome_entries()
    table = store.sweep(sweep.id).read_outcomes(sweep).table
    seconds = table.column("seconds").to_numpy().copy()
    seconds[[20, 60]] *= 20  # a machine that slept twice
    place = table.schema.get_field_index("seconds")
    store.files.put(entry.key, schema.to_bytes(table.set_column(place, "seconds", [seconds])))
    pace = stored_pace(store, sweep)
    assert pace is not None
    assert pace.per_step == pytest.approx(PER_STEP, rel=0.1)


def test_sweeps_of_other_work_say_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    plant(store, token_sweep((4, 4), 1e4, 3e5), shards=1, noise=0.0, node=platform.node())
    raw = token_sweep((4, 4), 1e4, 3e5).to_dict()
    raw["training"]["batch_size"] = 4
    assert stored_pace(store, Sweep.parse(raw)) is None


# --- batched training ---


def packed_steps(made: list[int], lanes: int) -> int:
    """Lane steps of the batched trainer, played through net by net."""
    work = 0
    for start in range(0, len(made), lanes * CHUNKS_PER_GROUP):
        alive = list(made[start : start + lanes * CHUNKS_PER_GROUP])
        for begin in range(0, max(made), REPACK_STEPS):
            alive = [steps for steps in alive if steps > begin]
            while_packed = min(REPACK_STEPS, max(made) - begin)
            work += math.ceil(len(alive) / lanes) * lanes * while_packed
    return work


@settings(max_examples=60)
@given(
    made=st.lists(st.integers(1, 75), min_size=1, max_size=120),
    lanes=st.integers(2, 9),
    size=st.integers(1, 50),
)
def test_unfilled_chunks_count_as_full_ones(made: list[int], lanes: int, size: int) -> None:
    longest = max(made)
    blocks = [made[start : start + size] for start in range(0, len(made), size)]
    counted = chunk_steps(np.array(made), np.arange(0, len(made), size), lanes)
    # the trainer runs every block to the same number of steps
    expected = [packed_steps([*block, longest], lanes) for block in blocks]
    without = [packed_steps(block, lanes) if max(block) == longest else None for block in blocks]
    for found, most, exact in zip(counted, expected, without, strict=True):
        assert found == exact if exact is not None else found <= most
        assert found % lanes == 0


def test_a_lone_point_of_a_shard_pays_for_the_whole_chunk() -> None:
    pace = Pace("given", per_point=0.0, per_step=1e-3, lanes=240)
    made = np.full(480, 100)
    assert shard_seconds(pace, made, 480).sum() == pytest.approx(48.0)
    assert shard_seconds(pace, made, 1).sum() == pytest.approx(48.0 * 240)


# --- workers ---


@settings(max_examples=80)
@given(
    ticks=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    workers=st.integers(1, 12),
)
def test_wall_time_is_that_of_a_scheduler_played_through(ticks: list[int], workers: int) -> None:
    waiting, running, clock = list(ticks), [0] * workers, 0
    while waiting or any(running):
        for slot in range(workers):
            if running[slot] == 0 and waiting:
                running[slot] = waiting.pop(0)
        running = [max(0, left - 1) for left in running]
        clock += 1
    assert makespan(np.array(ticks, dtype=float), workers) == clock


def test_starts_and_the_last_incomplete_round_lengthen_the_wall() -> None:
    pace = Pace("given", per_point=10.0, per_step=0.0, start_seconds=60.0)
    made = np.ones(100, dtype=np.int64)
    alone = wall(pace, made, 1, 10)
    assert (alone.shards, alone.rounds, alone.wall_seconds) == (10, 10, 1600.0)
    many = wall(pace, made, 8, 10)  # two rounds, the second with two of eight workers
    assert (many.rounds, many.wall_seconds, many.worker_seconds) == (2, 320.0, 1600.0)
    assert many.busy_share == pytest.approx(10 / 16)
    assert many.start_share == pytest.approx(600 / 1600)
    spread = wall(pace, made, 8, None)  # 13 points each, the last nine
    assert (spread.shards, spread.wall_seconds) == (8, 190.0)


def test_the_table_compares_workers_as_far_as_there_are_points() -> None:
    pace = Pace("given", per_point=10.0, per_step=0.0)
    made = forecast(preset("tanh", resolution=10), pace, Terms(workers=3))
    assert [entry["workers"] for entry in made.to_dict()["by_workers"]] == [1, 3, 8, 64]


# --- memory ---


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"packing": "padded"}, id="padded float32"),
        pytest.param({"packing": "padded", "optimizer": "adamw"}, id="adamw"),
        pytest.param({"packing": "padded", "dtype": "bfloat16"}, id="padded bfloat16"),
        pytest.param({}, id="packed"),
        pytest.param({"dtype": "bfloat16"}, id="packed bfloat16"),
        pytest.param({"device_batch_size": 2}, id="in parts"),
    ],
)
def test_the_memory_formula_is_what_torch_holds(settings: dict[str, Any]) -> None:
    training = GPTTraining(batch_size=4, max_seq_len=97, **settings)
    model, batch, estimate = memory_of(training)
    parameters = dict(model.named_parameters())
    own = {parameter.data_ptr() for parameter in parameters.values()}
    saved: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.append(tensor)
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss_sum(batch.ids, batch.labels, batch.places, batch.layout)
    loss.backward()
    optimizers = build_optimizers(parameters, training, 64)
    for entry in optimizers.members:
        entry.step()
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    assert estimate["weights"] == sum(p.nbytes for p in parameters.values())
    assert estimate["pristine"] == sum(p.nbytes for p in trained)
    assert estimate["gradients"] == sum(p.grad.nbytes for p in trained if p.grad is not None)
    state = sum(
        value.nbytes
        for entry in optimizers.members
        for values in entry.state.values()
        for value in values.values()
        if value.dim() == 2
    )
    assert estimate["optimizer"] == state
    # of the logits half is saved, the rest is the peak
    item = 2 if training.dtype == "bfloat16" else 4
    kept = estimate["activations"] + estimate["cast"] + estimate["logits"] * 8 / (16 + item)
    assert kept == pytest.approx(sum(saved.values()), rel=0.15)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_checkpointing_lowers_the_peak_as_the_formula_says(
    dtype: Literal["float32", "bfloat16"], checkpointing: bool
) -> None:
    training = GPTTraining(
        batch_size=4, max_seq_len=97, dtype=dtype, gradient_checkpointing=checkpointing
    )
    model, batch, estimate = memory_of(training)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        model.loss_sum(batch.ids, batch.labels, batch.places, batch.layout).backward()
    events = [event for event in record.profiler.kineto_results.events() if event.nbytes()]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    kinds = ("gradients", "cast", "activations", "logits")
    peak = np.cumsum(changes).max()
    assert sum(estimate[kind] for kind in kinds) == pytest.approx(peak, rel=0.25)


def memory_of(training: GPTTraining) -> tuple[GPT, MicroBatch, dict[str, int]]:
    """A small model, one part of a step with rows of 96 positions, and the estimate for both."""
    sizes = {"vocab_size": 250, "n_layer": 6, "n_head": 4, "n_kv_head": 2, "n_embd": 64}
    model = GPT(
        GPTConfig(sequence_len=96, **sizes),
        compute_dtype=getattr(torch, training.dtype),
        gradient_checkpointing=training.gradient_checkpointing,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, training))
    row = Row(tuple(range(97)), (False,) * 85 + (True,) * 12)
    rows, device = [row] * (training.device_batch_size or 4), torch.device("cpu")
    batch = pack(rows, 0, device) if training.packing == "packed" else pad(rows, 0, device)
    known = {"row_positions": 96.0, "row_labels": 12.0}
    return model, batch, gpt_memory(Shape(**sizes), training, **known)


def test_a_packed_batch_needs_less_memory_the_shorter_its_rows() -> None:
    shape, packed = Shape.of_depth(20), GPTTraining(dtype="bfloat16")
    padded = gpt_memory(shape, packed.model_copy(update={"packing": "padded"}))
    unknown = gpt_memory(shape, packed)
    known = gpt_memory(shape, packed, row_positions=393, row_labels=6)
    assert padded["total"] > unknown["total"] > known["total"]
    assert padded["activations"] == unknown["activations"]
    assert known["activations"] / padded["activations"] == pytest.approx(393 / 1024, rel=1e-3)
    assert known["logits"] < 0.01 * padded["logits"]


def test_the_parameters_of_d20_are_known_without_its_file() -> None:
    # nanochat's d20 has 560,988,160 parameters
    assert sum(Shape.of_depth(20).parameters().values()) == 560_988_160


# --- commands ---


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """Runs a command in a folder that holds nothing but small.toml."""
    (tmp_path / "small.toml").write_text(SMALL)
    return run


def files_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_storage_and_ledger_of_a_real_sweep(run: Run, tmp_path: Path) -> None:
    first = json.loads(run("launch", "small.toml", "--backend", "inline", "--json").stdout)
    ledger = first["analyses"]["ledger"]
    assert ledger["refused"] == "there was no forecast when it was launched"
    assert ledger["actual"]["experiments"] == 256
    arguments = ("small.toml", "--res", "24")
    plan = json.loads(run("plan", *arguments, "--workers", "1", "--json").stdout)
    assert plan["timing"]["source"] == first["sweep"]
    launched = run("launch", *arguments, "--backend", "inline", "--price", "2", "--json")
    second = json.loads(launched.stdout)
    stored = tmp_path / "runs" / second["sweep"]
    for kind, folder in (("outcomes", "outcomes"), ("logs", "logs"), ("total", "")):
        real = files_under(stored / folder)
        assert plan["storage_bytes"][kind] == pytest.approx(real, rel=0.25), kind
    ledger = second["analyses"]["ledger"]
    assert ledger["refused"] is None
    assert ledger["predicted"]["worker_seconds"] == pytest.approx(plan["worker_seconds"])
    assert ledger["predicted"]["cost_usd"] == pytest.approx(plan["worker_seconds"] / 1800)
    assert ledger["ratio"]["training_seconds"] == pytest.approx(
        ledger["actual"]["training_seconds"] / ledger["predicted"]["training_seconds"]
    )
    assert ledger["actual"]["cost_usd"] == pytest.approx(ledger["actual"]["worker_seconds"] / 1800)
    text = run("analyze", second["sweep"], "--only", "ledger").output
    assert f"forecast from  {first['sweep']}" in text
    status = json.loads(run("status", second["sweep"], "--json").stdout)
    assert status["ledger"]["predicted"] == ledger["predicted"]
    page = (stored / "summary" / "report.html").read_text()
    assert ">Ledger</h3>" in page


def test_a_probe_fills_a_chunk_and_can_keep_it(run: Run) -> None:
    arguments = ("plan", "small.toml", "--res", "32", "--probe", "--keep", "--json")
    facts = json.loads(run(*arguments).stdout)
    timing = facts["timing"]
    assert timing["source"] == "a probe of this machine"
    assert timing["points_at_once"] > 1
    assert timing["points"] == min(1024 - 9, timing["points_at_once"])
    assert timing["start_seconds"] > 0.2  # imports of a new process
    assert facts["worker_seconds"] > facts["shards"] * timing["start_seconds"]
    counts = json.loads(run("status", "small", "--json").stdout)["counts"]
    assert counts["missing"] == 1024 - 9 - timing["points"]
    assert counts["failed"] == 0


def test_a_gpt_is_probed_point_by_point_and_nothing_is_kept(
    gpt_sweep: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pace = controller.probe(gpt_sweep("training.tokens=1200"), None, 5)
    # the 2 x 2 grid has no more than four
    assert (pace.lanes, pace.points) == (1, 4)
    assert pace.per_step + pace.per_point > 0
    assert pace.start_seconds > 0.2
    assert not list(tmp_path.glob("runs"))


@pytest.mark.parametrize("resolution", [(2, 2), (3, 5), (16, 16), (7, 40)])
def test_probe_points_are_spread_and_distinct(resolution: tuple[int, int]) -> None:
    sweep = mlp_sweep(resolution=list(resolution))
    order = controller.probe_points(sweep)
    assert sorted(order.tolist()) == list(range(sweep.num_points))
    if min(resolution) > 2:
        rows, columns = np.divmod(order[:9], sweep.columns)
        assert {*zip(rows.tolist(), columns.tolist(), strict=True)} >= {
            (0, 0),
            (0, sweep.columns - 1),
            (sweep.rows - 1, 0),
            (sweep.rows - 1, sweep.columns - 1),
            ((sweep.rows - 1) // 2, (sweep.columns - 1) // 2),
        }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(
            ["--preset", "docvqa-d20", "--probe"], 2, "needs weights: give --checkpoint", id="gpt"
        ),
        pytest.param(["--preset", "tanh", "--keep"], 2, "--keep needs --probe", id="keep alone"),
        pytest.param(["--probe", "small.toml"], 2, "put --probe after the sweep file", id="order"),
        pytest.param(
            ["--preset", "tanh", "--probe", "3", "--seconds-per-point", "1"],
            2,
            "not both",
            id="two",
        ),
        pytest.param(["--preset", "tanh", "--depth", "4"], 2, "of a gpt sweep", id="depth"),
        pytest.param(
            ["--preset", "docvqa-d20", "--checkpoint", "none"], 2, "no such folder", id="folder"
        ),
    ],
)
def test_mistakes(run: Run, arguments: list[str], code: int, message: str) -> None:
    assert message in run("plan", *arguments, code=code).output


def test_the_text_names_every_resource(run: Run, golden: Path) -> None:
    text = run(
        *("plan", "--preset", "docvqa-d20", "--checkpoint", str(golden), "--workers", "64"),
        *("--seconds-per-point", "4", "--points-per-index", "16", "--start-seconds", "90"),
        *("--price", "3.5"),
    ).output
    # 16,384 points of 4 s and 1,024 starts of 90 s; 16 rounds of 16 * 4 + 90 s
    assert "43.8 core-hours" in text or "43.8 GPU-hours" in text
    assert "41 min 4 s on 64 workers, 1,024 shards" in text
    assert "153.32 USD" in text
    for label in ("memory", "pods", "API calls", "W&B calls", "store", "storage"):
        assert f"  {label} " in text
