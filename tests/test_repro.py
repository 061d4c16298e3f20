"""Points that are trained again elsewhere: equal bits are certified, anything else is found."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.aggregate import read_grid
from fractal_k8s.analysis.summary import summarise
from fractal_k8s.cli.common import summary_lines
from fractal_k8s.errors import UsageError
from fractal_k8s.repro import _plan_of, chosen_points, compose, first_places, sample_points
from fractal_k8s.results import schema
from fractal_k8s.results.certificate import (
    certificate,
    compare,
    counts_more,
    difference_of,
    fault_of,
)
from fractal_k8s.results.outcome import RESULT_COLUMNS
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt, representatives
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.gpt import GPTTrainer
from fractal_k8s.train.optimizers import Optimizers
from fractal_k8s.worker import Worker


def hashes(folder: Path) -> dict[str, str]:
    """Content of every file, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def train(sweep: Sweep, shards: int) -> str:
    """Trains a sweep in this process, into `runs` of the working folder; returns its id."""
    folder = Store("runs").sweep(sweep.id)
    plan = Plan(sweep, Deal(points_per_shard=-(-sweep.num_points // shards)))
    for index in range(shards):
        assert Worker(folder, plan, index, emit=lambda line: None).run() == 0
    return sweep.id


@pytest.fixture
def small(run: Run) -> str:
    """A finished map in two shards; returns its id."""
    return train(mlp_sweep(resolution=[16, 16]), 2)


def stored(sweep_id: str) -> tuple[SweepStore, Plan]:
    return Store("runs").plan(sweep_id)


def folder_of(sweep_id: str) -> Path:
    return Path("runs") / sweep_id


def rewrite(folder: SweepStore, sweep: Sweep, change: Callable[[dict[str, Any]], None]) -> None:
    """Applies a change to every stored row."""
    for entry in folder.outcome_entries():
        table = folder.read_outcomes(sweep, [entry]).table
        rows = table.to_pylist()
        for row in rows:
            change(row)
        target = schema.outcome_schema(sweep)
        plain = pa.schema(
            [
                pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type)
                for f in target
            ]
        )
        changed = pa.Table.from_pylist(rows, schema=plain).cast(target)
        folder.files.put(entry.key, schema.to_bytes(changed))


def one_ulp_up(row: dict[str, Any], step: int) -> None:
    row["losses"][step] = float(np.nextafter(np.float32(row["losses"][step]), np.float32(np.inf)))


# --- the command ---


def test_an_honest_map_gets_a_certificate_and_nothing_else_changes(small: str, run: Run) -> None:
    before = hashes(Path("runs"))
    result = run("repro", small, "--sample", "5", "--workers", "2")
    line = result.stdout.splitlines()[-2]
    assert line.startswith("certificate: 5 of 5 points bit-equal, retrained in 2 shards of 2 and 3")
    assert result.stdout.count("equal\n") == 5
    after = hashes(Path("runs"))
    note = f"{small}/notes/certificate.json"
    assert after.pop(note) != before.get(note)
    assert after == before
    folder, plan = stored(small)
    summary = summarise(read_grid(folder, plan), notes=folder.notes([]), only=("ledger",))
    assert f"  {line}" in summary_lines(summary)


def test_a_loss_that_was_changed_by_one_ulp_is_found_and_named(small: str, run: Run) -> None:
    folder, plan = stored(small)

    def change(row: dict[str, Any]) -> None:
        if (row["i"], row["j"]) == (3, 4):
            one_ulp_up(row, 17)

    rewrite(folder, plan.sweep, change)
    record = read_grid(folder, plan).record(3, 4)
    assert record is not None
    planted = np.float32(record["losses"][17])
    options = ("--points", "3,4", "--points", "0,0", "--cold", "--backend", "inline")
    result = run("repro", small, *options, code=1)
    was = np.nextafter(planted, np.float32(-np.inf))
    assert f"point (3, 4), loss of step 17: {planted!s} then, {was!s} now" in result.stderr
    assert "1 of 2 points gave other numbers than the first time" in result.stderr
    assert "no certificate: 1 of 2 points bit-equal" in result.stdout
    assert "(3, 4) alone" in result.stderr
    assert folder.notes([])["certificate"]["equal"] == 1


def test_a_leak_from_point_to_point_is_caught(
    gpt_sweep: Callable[..., Sweep], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map is trained by a process whose optimizers remember earlier points."""
    points_before: list[int] = []
    honest, step = GPTTrainer.train, Optimizers.step

    def leaking_train(self: GPTTrainer, *arguments: Any) -> Iterator[Any]:
        for outcome in honest(self, *arguments):
            points_before.append(outcome.index)
            yield outcome

    def leaking_step(self: Optimizers, multiplier: float, *arguments: Any) -> None:
        step(self, multiplier * (1 + len(points_before) * 2.0**-12), *arguments)

    with monkeypatch.context() as planted:
        planted.setattr(GPTTrainer, "train", leaking_train)
        planted.setattr(Optimizers, "step", leaking_step)
        sweep_id = train(gpt_sweep("training.tokens=600", resolution=2), 1)
    first, last = (divmod(points_before[k], 2) for k in (0, -1))
    points = [f"--points={i},{j}" for i, j in (first, last)]
    result = run("repro", sweep_id, *points, "--json", code=1)
    note = json.loads(result.stdout)
    told = {(point["i"], point["j"]): point["difference"] for point in note["points"]}
    assert told[first] is None
    assert told[last].startswith("loss of step ")
    assert f"point {last}, loss of step" in result.stderr


def test_another_numerics_class_is_refused_or_compared(small: str, run: Run) -> None:
    folder, plan = stored(small)
    rewrite(folder, plan.sweep, lambda row: row.update(numerics_class="another machine"))
    options = ("repro", small, "--sample", "2", "--backend", "inline")
    refused = run(*options, code=2)
    assert "cannot be trained again here" in refused.output
    assert "is trained in numerics class 'another machine'" in refused.output
    assert len(refused.stderr.strip().splitlines()[-1].split(". ")) == 1
    compared = run(*options, "--allow-mixed")
    assert "comparison of two numerics classes, no certificate: 2 of 2" in compared.stdout
    assert "certificate" not in folder.notes([])


def test_a_machine_of_the_same_class_with_other_bits_is_refused(small: str, run: Run) -> None:
    folder, plan = stored(small)

    def change(row: dict[str, Any]) -> None:
        parts = {**json.loads(row["fingerprint"]), "golden": "0" * 64, "driver": "1.2.3"}
        row["fingerprint"] = json.dumps(parts, sort_keys=True)

    rewrite(folder, plan.sweep, change)
    result = run("repro", small, "--sample", "2", "--backend", "inline", code=2)
    assert "this machine computes other bits than the one that began" in result.output
    assert "driver 1.2.3 there, not set here" in result.output


def test_points_that_cannot_be_compared_are_all_named(small: str, run: Run) -> None:
    folder, plan = stored(small)

    def change(row: dict[str, Any]) -> None:
        if (row["i"], row["j"]) == (1, 2):
            row.update(state="failed", error="out of memory")

    rewrite(folder, plan.sweep, change)
    places = ("--points", "1,2", "--points", "16,0", "--points", "2,2")
    result = run("repro", small, *places, code=2)
    assert "(1, 2) has failed and cannot be compared" in result.output
    assert "(16, 0) is outside 16 x 16 points" in result.output
    assert "(2, 2)" not in result.output
    shutil.rmtree(folder_of(small) / "outcomes")
    assert "no point has a result" in run("repro", small, code=2).output


# --- which points, and where ---


@pytest.fixture
def grid(small: str) -> Any:
    return read_grid(*stored(small))


def test_a_sample_has_results_only_and_every_experiment_once(grid: Any) -> None:
    grid.states[0, :] = 1  # failed
    grid.states[1, :] = 0  # missing
    grid.states[2, :] = 2  # diverged, which is a result
    every = sample_points(grid, 10_000, 0)
    assert sorted(every) == list(range(32, 256))
    assert len(set(every[:8])) == 8
    assert sample_points(grid, 8, 0) == every[:8] != sample_points(grid, 8, 1)
    with pytest.raises(UsageError, match="is missing"):
        chosen_points(grid, [(1, 3)])


def test_points_that_share_an_experiment_count_once() -> None:
    raw = {
        "name": "tokens",
        "model": "gpt",
        "dataset": "docvqa",
        "resolution": [2, 30],
        "axes": {
            "y": {"knob": "lr", "low": 1e-6, "high": 1e-3},
            "x": {"knob": "tokens", "low": 1e3, "high": 1e5},
        },
    }
    sweep = Sweep.parse(raw)

    class Known:
        known = np.ones((2, 30), dtype=bool)

    Known.sweep = sweep  # type: ignore[attr-defined]
    points = sample_points(Known, 60, 0)  # type: ignore[arg-type]
    owners = representatives(sweep)[points]
    assert len(points) == len(set(owners)) == 2 * 3
    batches = compose(sweep, points, {}, seed=0)
    assert sorted(p for batch in batches for p in batch.points) == sorted(points)


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_points_change_shard_place_and_neighbours(number: int, grid: Any, small: str) -> None:
    folder, plan = stored(small)
    points = sample_points(grid, number, 3)
    first = first_places(folder, plan.sweep, points)
    assert set(first) == set(points)
    batches = compose(plan.sweep, points, first, seed=3, cold=True)
    warm = [batch for batch in batches if not batch.is_cold]
    assert sorted(p for batch in warm for p in batch.points) == sorted(points)
    assert [batch.points for batch in batches if batch.is_cold] == [(p,) for p in points]
    assert len(warm) == (1 if number < 3 else 2)
    assert len({len(batch.points) for batch in warm}) == len(warm)
    for batch in warm:
        assert batch.moved == tuple(first[p] != k for k, p in enumerate(batch.points))
    if number == 8:
        assert {batch.order for batch in warm} == {"coarse", "row-major"}
        assert sum(batch.moved.count(True) for batch in warm) >= 6


def test_a_batch_is_trained_in_its_own_order() -> None:
    sweep = mlp_sweep(resolution=[8, 8])
    for batch in compose(sweep, [3, 60, 17, 41, 8], {}, seed=0):
        plan = _plan_of(sweep, batch)
        assert Dealt(sweep, plan.deal).num_shards == 1
        assert Dealt(sweep, plan.deal).shard(0).trained == batch.points


# --- two rows ---


ROW = {
    "losses": [2.0, 1.0, 0.5],
    "state": "trained",
    "numerics_class": "x",
    "probe_before": None,
    "probe_after": None,
    "node": None,
    **{name: 0.5 for name in RESULT_COLUMNS if name not in ("losses", "state")},
}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param({}, None, id="equal"),
        pytest.param({"losses": [2.0, 1.0]}, "number of losses: 3 then, 2 now", id="shorter"),
        pytest.param(
            {"losses": [2.0, NAN, 0.5]}, "loss of step 1: 1.0 then, nan now", id="not a number"
        ),
        pytest.param(
            {"losses": [-0.0, 1.0, 0.5]}, "loss of step 0: 2.0 then, -0.0 now", id="first step"
        ),
        pytest.param({"final_loss": INF}, "final_loss: 0.5 then, inf now", id="number"),
        pytest.param({"data_hash": "b"}, "data_hash: 0.5 then, 'b' now", id="data"),
        pytest.param({"probe_after": 3.0}, None, id="a column of a later release"),
    ],
)
def test_what_differs_between_two_rows_is_named(change: dict[str, Any], told: str | None) -> None:
    assert difference_of(ROW, {**ROW, **change}) == told


def test_diverged_runs_are_equal_if_their_losses_are() -> None:
    row = {**ROW, "state": "diverged", "losses": [1.0, INF, NAN], "final_loss": NAN, "ratio": NAN}
    assert difference_of(row, {**row, "losses": [1.0, INF, NAN], "final_loss": NAN}) is None
    assert difference_of(row, {**row, "losses": [1.0, -INF, NAN]}) is not None
    zero = {**row, "losses": [0.0]}
    assert difference_of(zero, {**zero, "losses": [-0.0]}) == "loss of step 0: 0.0 then, -0.0 now"


def test_a_point_that_differs_alone_only_is_no_certificate() -> None:
    where = {"i": 0, "shard": 0, "size": 2, "place": 0, "moved": True}
    repeats = [
        compare(ROW, ROW, j=1, cold=False, **where),
        compare(ROW, ROW, j=2, cold=False, **where),
        compare(ROW, {**ROW, "steps": 1.0}, j=2, cold=True, **where),
    ]
    note = certificate(repeats, seed=0)
    assert (note["equal"], note["compared"], note["moved"], note["cold"]) == (1, 2, 2, 1)
    assert note["line"].startswith("no certificate: 1 of 2 points bit-equal")
    assert "point (0, 2) alone, steps: 0.5 then, 1.0 now" in str(fault_of(note))
    assert fault_of(certificate(repeats[:2], seed=0)) is None


def test_a_difference_stays_until_its_points_are_compared_again() -> None:
    def note(*points: tuple[int, bool], kind: str = "cpu") -> dict[str, Any]:
        told = [{"i": 0, "j": j, "difference": "loss" if wrong else None} for j, wrong in points]
        equal = sum(not wrong for _, wrong in points)
        return {"numerics_class": kind, "points": told, "compared": len(told), "equal": equal}

    large, small = note((0, False), (1, False), (2, False)), note((0, False))
    wrong = note((1, True), (2, False))
    assert counts_more(small, None)
    assert counts_more(large, small)
    assert not counts_more(small, large)
    assert counts_more(small, note((1, True), kind="gpu"))  # of other machines
    assert counts_more(wrong, large)
    assert not counts_more(small, wrong)
    assert counts_more(note((1, False)), wrong)
