"""Outcomes through parquet and the store, and the grid that is built from them."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run, mlp_sweep
from fractal_k8s.errors import ConflictError, CorruptError, StoreError, UsageError
from fractal_k8s.results import schema
from fractal_k8s.results.attempt import Attempt
from fractal_k8s.results.files import LocalFiles, open_files
from fractal_k8s.results.grid import (
    DIVERGED,
    FAILED,
    MISSING,
    NOT_TRAINABLE,
    TRAINABLE,
    Grid,
    build_grid,
)
from fractal_k8s.results.lock import SweepLock, is_locked
from fractal_k8s.results.outcome import Environment, Outcome, State, loss_facts, storable
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.rule import VerdictRule

HERE = Environment(numerics_class="cpu float64", node="laptop", versions="{}")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def outcome_of(sweep: Sweep, index: int, losses: list[float], **changes: Any) -> Outcome:
    """An outcome with the given losses, as a trainer would report it."""
    point = sweep.point(index)
    series = np.array(losses)
    facts = loss_facts(series, sweep.verdict.window)
    finite = math.isfinite(losses[-1])
    made = Outcome(
        index=index,
        i=point.i,
        j=point.j,
        y=point.y,
        x=point.x,
        state=State.TRAINED if finite else State.DIVERGED,
        run_seed=sweep.run_seed(point),
        steps=len(losses),
        first_loss=facts.first,
        last_mean_loss=facts.last_mean,
        ratio=facts.ratio,
        final_loss=facts.final,
        mean_loss=facts.mean,
        losses=storable(series),
    )
    return replace(made, **changes)


def stored(
    folder: SweepStore,
    sweep: Sweep,
    outcomes: list[Outcome],
    shard: str = "aaaaaa-00000",
    **where: Any,
) -> Attempt:
    attempt = Attempt(folder, sweep, shard, replace(HERE, **where))
    for outcome in outcomes:
        attempt.add(outcome, {"i": outcome.i, "j": outcome.j, "state": "trainable"})
    attempt.flush()
    return attempt


def grid_of(folder: SweepStore, sweep: Sweep, **options: Any) -> Grid:
    return build_grid(sweep, folder.read_outcomes(sweep), **options)


@pytest.fixture
def sweep() -> Sweep:
    return mlp_sweep(resolution=[2, 3], verdict={"window": 2})


@pytest.fixture
def folder(tmp_path: Path, sweep: Sweep) -> SweepStore:
    return Store(str(tmp_path / "runs")).sweep(sweep.id)


# --- outcome and schema ---


def test_loss_facts_of_a_series() -> None:
    facts = loss_facts(np.array([4.0, 3.0, 2.0, 1.0]), window=2)
    assert (facts.first, facts.last_mean, facts.ratio) == (4.0, 1.5, 0.375)
    assert (facts.final, facts.mean) == (1.0, 2.5)


@pytest.mark.parametrize(
    ("losses", "window", "ratio"),
    [
        pytest.param([2.0], 20, 1.0, id="one step: the ratio is 1"),
        pytest.param([2.0, 1.0], 20, 0.75, id="shorter than the window: all of it"),
        pytest.param([0.0, 1.0], 1, math.inf, id="first loss of zero"),
        pytest.param([1.0, math.inf], 1, math.inf, id="infinity spreads"),
    ],
)
def test_ratio_at_the_edges(losses: list[float], window: int, ratio: float) -> None:
    assert loss_facts(np.array(losses), window).ratio == ratio


def test_only_what_is_not_finite_becomes_not_finite_in_float32() -> None:
    kept = storable(np.array([1.0, 1e300, -1e300, math.inf, math.nan]))
    assert kept.dtype == np.float32
    assert np.isfinite(kept).tolist() == [True, True, True, False, False]
    assert kept[3] == math.inf


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(
    st.lists(st.lists(finite | st.just(math.inf), min_size=1, max_size=5), min_size=1, max_size=6)
)
def test_outcomes_survive_parquet_bit_for_bit(series: list[list[float]]) -> None:
    sweep = mlp_sweep(resolution=[2, 3])
    outcomes = [outcome_of(sweep, index, losses) for index, losses in enumerate(series)]
    table = schema.to_table(sweep, outcomes, [NOON] * len(outcomes), HERE)
    again = schema.from_bytes(schema.to_bytes(table), sweep=sweep, source="test")
    assert again.schema.equals(table.schema)
    for row, outcome in zip(again.to_pylist(), outcomes, strict=True):
        assert (row["i"], row["j"]) == (outcome.i, outcome.j)
        assert (row["output_lr"], row["input_lr"]) == (outcome.y, outcome.x)
        assert np.array(row["losses"], np.float32).tobytes() == outcome.losses.tobytes()
        assert row["state"] == outcome.state.value


def test_the_schema_has_every_column_of_the_design(sweep: Sweep) -> None:
    expected = (
        "sweep i j output_lr input_lr state first_loss last_mean_loss ratio final_loss mean_loss "
        "steps tokens_seen supervised_tokens seconds tokens_per_s run_seed data_hash error losses "
        "numerics_class fingerprint gpu node pod image git_commit versions time "
        "probe_before probe_after peak_bytes"
    )
    assert set(schema.outcome_schema(sweep).names) == set(expected.split())


def test_a_newer_schema_is_refused_with_the_next_step(sweep: Sweep) -> None:
    table = schema.to_table(sweep, [outcome_of(sweep, 0, [1.0])], [NOON], HERE)
    metadata = {**table.schema.metadata, b"fractal_k8s.schema": b"99"}
    data = schema.to_bytes(table.replace_schema_metadata(metadata))
    with pytest.raises(CorruptError, match=r"schema version 99, .* upgrade fractal-k8s"):
        schema.from_bytes(data, sweep=sweep, source="object")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda data: data[: len(data) // 2], "not a readable", id="truncated"),
        pytest.param(lambda data: b"hello", "not a readable", id="not parquet"),
        pytest.param(lambda data: b"", "not a readable", id="empty"),
    ],
)
def test_a_damaged_object_is_refused(sweep: Sweep, damage: Any, message: str) -> None:
    table = schema.to_table(sweep, [outcome_of(sweep, 0, [1.0])], [NOON], HERE)
    with pytest.raises(CorruptError, match=message):
        schema.from_bytes(damage(schema.to_bytes(table)), sweep=sweep, source="object")


def test_columns_of_a_later_release_are_empty_in_older_files(sweep: Sweep) -> None:
    table = schema.to_table(sweep, [outcome_of(sweep, 0, [1.0])], [NOON], HERE)
    older = schema.to_bytes(table.drop_columns(["image", "tokens_per_s"]))
    again = schema.from_bytes(older, sweep=sweep, source="object")
    assert again.schema.equals(table.schema)
    assert again.column("image").to_pylist() == [None]
    with pytest.raises(CorruptError, match="lacks the columns ratio"):
        schema.from_bytes(schema.to_bytes(table.drop_columns(["ratio"])), sweep=sweep, source="x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"y": 123.0}, "its output_lr are not those of", id="value"),
        pytest.param({"j": 3}, "holds a point outside 2 x 3", id="column"),
        pytest.param({"i": -1}, "holds a point outside 2 x 3", id="row"),
    ],
)
def test_a_row_of_no_point_of_the_sweep_is_refused(
    sweep: Sweep, changes: dict[str, Any], message: str
) -> None:
    wrong = outcome_of(sweep, 0, [1.0], **changes)
    data = schema.to_bytes(schema.to_table(sweep, [wrong], [NOON], HERE))
    with pytest.raises(CorruptError, match=message):
        schema.from_bytes(data, sweep=sweep, source="object")


def test_a_foreign_parquet_file_is_refused(sweep: Sweep) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(CorruptError, match="no schema version"):
        schema.from_bytes(sink.getvalue().to_pybytes(), sweep=sweep, source="object")


def test_an_object_of_another_sweep_is_refused(sweep: Sweep) -> None:
    table = schema.to_table(sweep, [outcome_of(sweep, 0, [1.0])], [NOON], HERE)
    other = mlp_sweep(resolution=[2, 3], seed=1)
    with pytest.raises(CorruptError, match=f"holds outcomes of {sweep.id}, not of {other.id}"):
        schema.from_bytes(schema.to_bytes(table), sweep=other, source="object")


# --- files ---


def test_a_local_write_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    files = LocalFiles(tmp_path)
    files.put("a/b.txt", b"old")

    def crash(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(StoreError, match="the disk is full; free some space"):
        files.put("a/b.txt", b"new")
    assert files.get("a/b.txt") == b"old"
    assert [entry.key for entry in files.entries("a")] == ["a/b.txt"]
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_failed_first_write_leaves_no_folder_behind(tmp_path: Path, monkeypatch: Any) -> None:
    def crash(*arguments: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(StoreError, match="read-only; choose another --store"):
        LocalFiles(tmp_path / "deep" / "store").put("id/sweep.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_reads_as_none(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "nothing")
    assert files.get("a") is None
    assert files.entries("a") == []
    assert files.folders() == []


def test_a_file_in_the_way_of_the_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StoreError, match="a part of the path is a file"):
        LocalFiles(tmp_path / "runs").put("id/sweep.json", b"{}")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        pytest.param("ftp://host/x", "unknown scheme 'ftp'", id="scheme"),
        pytest.param("s3:///x", "names no bucket", id="bucket"),
        pytest.param("s3://bucket/x?endpont=y", "unknown option endpont", id="option"),
        pytest.param("s3://bucket/x?addressing=odd", "must be path or virtual", id="addressing"),
    ],
)
def test_a_wrong_store_uri_is_refused(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_files(uri)


# --- sweep.json ---


def test_a_plan_is_written_once(folder: SweepStore, sweep: Sweep) -> None:
    plan = Plan(sweep, Deal(points_per_shard=2))
    assert folder.write_plan(plan)
    assert not folder.write_plan(Plan(sweep, Deal(points_per_shard=3)))
    assert folder.read_plan() == plan


def test_another_sweep_under_the_same_id_is_a_conflict(folder: SweepStore, sweep: Sweep) -> None:
    folder.write_plan(Plan(sweep, Deal()))
    impostor = SweepStore(folder.files, sweep.id)
    other = mlp_sweep(resolution=[2, 3], seed=9)
    with pytest.raises((ConflictError, CorruptError)):
        impostor.write_plan(Plan(other, Deal()))


def test_a_tampered_sweep_is_noticed(folder: SweepStore, sweep: Sweep) -> None:
    folder.write_plan(Plan(sweep, Deal()))
    key = folder.key("sweep.json")
    text = (folder.files.get(key) or b"").decode()
    folder.files.put(key, text.replace('"seed": 42', '"seed": 43').encode())
    with pytest.raises(CorruptError, match=f"says {sweep.id}, but its content is"):
        folder.read_plan()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "null"])
def test_a_damaged_plan_is_corrupt(text: str) -> None:
    with pytest.raises(CorruptError, match="not a sweep written by fractal-k8s"):
        Plan.from_json(text, source="sweep.json")


def test_a_plan_of_a_newer_format_is_refused(sweep: Sweep) -> None:
    text = Plan(sweep, Deal()).to_json().replace('"format": 1', '"format": 2', 1)
    with pytest.raises(CorruptError, match="sweep format 2, this release reads up to 1"):
        Plan.from_json(text, source="sweep.json")


def test_a_sweep_is_found_by_the_start_of_its_id(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first, second = mlp_sweep(name="one"), mlp_sweep(name="one", seed=3)
    for sweep in (first, second):
        store.sweep(sweep.id).write_plan(Plan(sweep, Deal()))
    assert store.find(first.id).sweep_id == first.id
    assert store.find(second.id[:8]).sweep_id == second.id
    with pytest.raises(UsageError, match="stands for several sweeps"):
        store.find("one")
    store.sweep(mlp_sweep(name="one-more").id).write_plan(Plan(mlp_sweep(name="one-more"), Deal()))
    with pytest.raises(
        UsageError, match=f"sweeps: {first.id}, {second.id};|{second.id}, {first.id};"
    ):
        store.find("one")  # a whole name stands for the sweeps of that name only
    assert store.find("one-m").sweep_id == mlp_sweep(name="one-more").id
    with pytest.raises(UsageError, match="no sweep 'two'"):
        store.find("two")


# --- grid ---


def test_a_sweep_without_a_definition_is_damaged_and_not_gone(tmp_path: Path, run: Run) -> None:
    store = Store(str(tmp_path / "runs"))
    store.files.put("small-0123456789/sweep.json", b"")
    assert store.sweep_ids() == ["small-0123456789"]
    with pytest.raises(CorruptError, match=r"small-0123456789/sweep\.json"):
        store.plan("small")
    assert "unreadable" in run("list").output


def test_states_follow_from_outcomes_and_rule(folder: SweepStore, sweep: Sweep) -> None:
    stored(
        folder,
        sweep,
        [
            outcome_of(sweep, 0, [4.0, 1.0, 1.0]),
            outcome_of(sweep, 1, [4.0, 5.0, 5.0]),
            outcome_of(sweep, 2, [4.0, math.nan]),
            outcome_of(sweep, 3, [1.0], state=State.FAILED, error="out of memory"),
        ],
    )
    grid = grid_of(folder, sweep)
    assert grid.states.tolist() == [
        [TRAINABLE, NOT_TRAINABLE, DIVERGED],
        [FAILED, MISSING, MISSING],
    ]
    assert grid.coverage == 0.5
    assert grid.counts() == {
        "missing": 2,
        "failed": 1,
        "diverged": 1,
        "not trainable": 1,
        "trainable": 1,
    }
    assert np.isnan(grid.final_loss[1, 1])
    record = grid.record(1, 0)
    assert record is not None
    assert record["error"] == "out of memory"
    assert grid.record(1, 1) is None


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        pytest.param(VerdictRule(window=2), TRAINABLE, id="own rule"),
        pytest.param(VerdictRule(window=2, threshold=0.2), NOT_TRAINABLE, id="threshold"),
        pytest.param(VerdictRule(window=4), NOT_TRAINABLE, id="window"),
        pytest.param(VerdictRule(rule="bound", bound=1.5), TRAINABLE, id="bound above"),
        pytest.param(VerdictRule(rule="bound", bound=0.5), NOT_TRAINABLE, id="bound below"),
    ],
)
def test_another_rule_judges_without_training(
    folder: SweepStore, sweep: Sweep, rule: VerdictRule, state: int
) -> None:
    stored(folder, sweep, [outcome_of(sweep, 0, [4.0, 13.0, 1.0, 1.0])])
    assert grid_of(folder, sweep, rule=rule).states[0, 0] == state


def test_the_threshold_itself_is_not_trainable(folder: SweepStore, sweep: Sweep) -> None:
    stored(folder, sweep, [outcome_of(sweep, 0, [4.0])])
    assert grid_of(folder, sweep).states[0, 0] == NOT_TRAINABLE


def test_a_later_result_replaces_a_failure_and_never_the_other_way(
    folder: SweepStore, sweep: Sweep
) -> None:
    result = outcome_of(sweep, 0, [4.0, 1.0])
    stored(folder, sweep, [result])
    stored(folder, sweep, [replace(result, state=State.FAILED)])
    assert grid_of(folder, sweep).states[0, 0] == TRAINABLE


def test_equal_duplicates_are_one_point(folder: SweepStore, sweep: Sweep) -> None:
    result = outcome_of(sweep, 0, [4.0, 1.0])
    stored(folder, sweep, [result], node="here")
    stored(folder, sweep, [replace(result, seconds=9.0)], node="there")
    grid = grid_of(folder, sweep)
    assert grid.table.num_rows == 1
    assert grid.problems == []


def test_duplicates_that_differ_are_reported(folder: SweepStore, sweep: Sweep) -> None:
    stored(folder, sweep, [outcome_of(sweep, 4, [4.0, 1.0])])
    stored(folder, sweep, [outcome_of(sweep, 4, [4.0, 1.0 + 1e-6])])
    assert grid_of(folder, sweep).problems == [
        "point (1, 1) has 2 results that differ; the first counts"
    ]


def test_points_of_two_numerics_classes_are_not_one_map(folder: SweepStore, sweep: Sweep) -> None:
    stored(folder, sweep, [outcome_of(sweep, 0, [4.0, 1.0])], numerics_class="cpu")
    stored(folder, sweep, [outcome_of(sweep, 1, [4.0, 1.0])], numerics_class="gpu")
    with pytest.raises(ConflictError, match="2 numerics classes"):
        grid_of(folder, sweep)
    assert grid_of(folder, sweep, allow_mixed=True).classes == ["cpu", "gpu"]


def test_an_unreadable_object_costs_no_other_point(folder: SweepStore, sweep: Sweep) -> None:
    stored(folder, sweep, [outcome_of(sweep, 0, [4.0, 1.0])])
    folder.files.put(folder.outcome_key("bbbbbb-00001", "x"), b"rubbish")
    grid = grid_of(folder, sweep)
    assert grid.states[0, 0] == TRAINABLE
    assert len(grid.problems) == 1
    assert "bbbbbb-00001-x.parquet: not a readable outcomes file" in grid.problems[0]


def test_the_grid_does_not_depend_on_the_order_of_attempts(tmp_path: Path, sweep: Sweep) -> None:
    outcomes = [outcome_of(sweep, index, [4.0, 4.0 - index]) for index in range(6)]
    grids = []
    for number, order in enumerate(([0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 3, 1])):
        folder = Store(str(tmp_path / str(number))).sweep(sweep.id)
        for position in order:
            stored(folder, sweep, [outcomes[position]], shard=f"aaaaaa-{position:05d}")
        grids.append(grid_of(folder, sweep))
    assert grids[0].states.tolist() == grids[1].states.tolist()
    first, second = (repr(grid.table.drop_columns(["time"]).to_pylist()) for grid in grids)
    assert first == second


# --- attempts ---


def test_an_attempt_rewrites_its_own_object_whole(folder: SweepStore, sweep: Sweep) -> None:
    attempt = stored(folder, sweep, [outcome_of(sweep, 0, [4.0, 1.0])])
    attempt.add(outcome_of(sweep, 1, [4.0, 1.0]), {"i": 0, "j": 1, "state": "x"})
    attempt.flush()
    attempt.flush()
    assert len(folder.outcome_entries()) == 1
    assert grid_of(folder, sweep).known.sum() == 2
    assert [(line["i"], line["j"]) for line in folder.read_logs()] == [(0, 0), (0, 1)]


def test_an_outcome_keeps_its_time_when_its_attempt_writes_again(
    folder: SweepStore, sweep: Sweep, monkeypatch: Any
) -> None:
    class Clock(datetime):
        moment = NOON

        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return cls.moment

    monkeypatch.setattr("fractal_k8s.results.attempt.datetime", Clock)
    attempt = stored(folder, sweep, [outcome_of(sweep, 0, [4.0, 1.0])])
    Clock.moment = NOON + timedelta(minutes=1)
    attempt.add(outcome_of(sweep, 1, [4.0, 1.0]), {})
    attempt.flush()
    times = folder.read_outcomes(sweep).table.column("time").to_pylist()
    assert times == [NOON, NOON + timedelta(minutes=1)]


def test_a_shard_reads_its_own_objects_and_those_of_other_deals(
    folder: SweepStore, sweep: Sweep
) -> None:
    mine, other = Deal(points_per_shard=2), Deal(points_per_shard=3)
    shards = [
        Dealt(sweep, mine).shard(0),
        Dealt(sweep, mine).shard(1),
        Dealt(sweep, other).shard(0),
    ]
    folder.record_deal(mine)
    folder.record_deal(other)
    for number, shard in enumerate(shards):
        stored(folder, sweep, [outcome_of(sweep, number, [1.0])], shard=shard.name)
    found = {entry.key.split("/")[-1][:12] for entry in folder.shard_entries(mine, shards[0].name)}
    assert found == {shards[0].name, shards[2].name}
    only = Deal(points_per_shard=2, only="0-3")
    assert folder.shard_entries(only, Dealt(sweep, only).shard(0).name) == []


# --- lock ---


def test_a_lock_that_cannot_be_written_is_still_a_lock(
    folder: SweepStore, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's lock file in a shared store: readable only."""
    folder.write_plan(Plan(sweep, Deal()))
    with SweepLock(folder):
        pass
    honest = os.open

    def refusing(path: Any, flags: int, *mode: Any, **options: Any) -> int:
        if flags & os.O_RDWR and str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied")
        return honest(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refusing)
    with SweepLock(folder):
        assert is_locked(folder) is True


def test_a_place_where_no_lock_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StoreError, match="cannot lock"):
        SweepLock(Store(str(tmp_path / "runs")).sweep("x")).__enter__()


def test_of_two_classes_the_first_one_claimed_counts(folder: SweepStore) -> None:
    assert folder.claim_class("cpu") == "cpu"
    assert folder.claim_class("gpu") == "cpu"
    assert folder.claim_class("cpu") == "cpu"


def test_of_workers_that_claim_at_once_all_are_told_the_same(folder: SweepStore) -> None:
    for turn in range(20):
        place, names = folder.key(f"claims-{turn}"), [f"worker {k}".encode() for k in range(4)]
        with ThreadPoolExecutor(4) as pool:
            told = set(pool.map(lambda name, place=place: folder.files.claim(place, name), names))
        assert len(told) == 1
        assert folder.files.claimed(place) in told
        assert len(folder.files.entries(place)) == 1


def test_a_damaged_log_is_named(folder: SweepStore, sweep: Sweep) -> None:
    folder.files.put(folder.log_key("aaaaaa-00000", "x"), b'{"time": 1}\n')
    with pytest.raises(CorruptError, match=r"x\.jsonl line 1: damaged log"):
        folder.read_logs()


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    files.put("a/b/c.txt", b"x")
    (tmp_path / "a" / "b" / ".writing-abc").write_text("half")
    files.remove_leftovers("a")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["c.txt"]


def test_a_sweep_has_one_launcher_at_a_time(
    folder: SweepStore, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal_k8s.results.lock._PATIENCE_S", 0.2)
    folder.write_plan(Plan(sweep, Deal()))
    assert is_locked(folder) is False
    with SweepLock(folder):
        assert is_locked(folder) is True
        with pytest.raises(ConflictError, match=f"trained by process {os.getpid()}; watch it with"):
            SweepLock(folder).__enter__()
    assert is_locked(folder) is False
    with SweepLock(folder):
        pass
