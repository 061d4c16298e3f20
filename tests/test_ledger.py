"""Predicted and actual: whose time counts, which wall time, and when nothing is compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import mlp_sweep
from fractal_k8s.aggregate import read_grid
from fractal_k8s.analysis import ledger
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.results import schema
from fractal_k8s.results.ledger import NOTE, record_launch
from fractal_k8s.results.outcome import Environment, Outcome, State
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
SWEEP = mlp_sweep(resolution=[2, 3])
PREDICTED = {
    "source": "earlier",
    "start_seconds": 5.0,
    "training_seconds": 50.0,
    "worker_seconds": 80.0,
    "interval": [60.0, 100.0],
    "wall_seconds": 40.0,
}


def store_points(folder: SweepStore, sweep: Sweep, seconds_after_noon: dict[int, float]) -> None:
    """Outcomes of ten seconds each, known so long after noon, by point."""
    folder.write_plan(Plan(sweep, Deal()))
    outcomes = [
        Outcome(
            index=index,
            i=sweep.point(index).i,
            j=sweep.point(index).j,
            y=sweep.point(index).y,
            x=sweep.point(index).x,
            state=State.TRAINED,
            run_seed=0,
            steps=30,
            final_loss=1.0,
            seconds=10.0,
            losses=np.ones(2, np.float32),
        )
        for index in seconds_after_noon
    ]
    times = [NOON + timedelta(seconds=after) for after in seconds_after_noon.values()]
    table = schema.to_table(sweep, outcomes, times, Environment(numerics_class="test"))
    folder.files.put(folder.outcome_key("s", "a"), schema.to_bytes(table))


def result_of(folder: SweepStore, notes: dict[str, Any]) -> dict[str, Any]:
    grid = read_grid(folder, Plan(SWEEP, Deal()))
    result = ledger.analyse(Subject.of(grid, notes))
    assert result is not None
    return result


@pytest.fixture
def folder(tmp_path: Path) -> SweepStore:
    return Store(str(tmp_path)).sweep(SWEEP.id)


def test_a_pause_between_launch_and_resume_does_not_count(folder: SweepStore) -> None:
    # three points in the first launch, three after two hours
    store_points(folder, SWEEP, {0: 15, 1: 25, 2: 35, 3: 7220, 4: 7230, 5: 7245})
    note = {
        "predicted": PREDICTED,
        "price_per_hour": 36.0,
        "launches": [
            {"began": NOON.isoformat(), "workers": 1, "shards": 4},
            {"began": (NOON + timedelta(hours=2)).isoformat(), "workers": 2, "shards": 1},
        ],
    }
    result = result_of(folder, {NOTE: note})
    assert result["refused"] is None
    actual = result["actual"]
    assert (actual["experiments"], actual["steps"]) == (6, 180)
    assert actual["training_seconds"] == 60.0
    assert actual["wall_seconds"] == 35 + 45
    assert actual["worker_seconds"] == 35 * 1 + 45 * 1  # the one shard of the resume kept one
    assert actual["cost_usd"] == pytest.approx(0.8)
    assert result["ratio"] == {
        "training_seconds": 1.2,
        "worker_seconds": 1.0,
        "wall_seconds": 2.0,
        "cost_usd": pytest.approx(1.0),
    }
    assert result["inside"] is True
    texts = dict(ledger.lines(result))
    assert texts["training time"] == "actual 60.0 s, predicted 50.0 s, ratio 1.20"
    assert texts["95 % interval"] == "60.0 s to 100.0 s, actual inside"


def test_nothing_is_compared_while_points_are_missing(folder: SweepStore) -> None:
    store_points(folder, SWEEP, {0: 15, 1: 25, 2: 35})
    note = {"predicted": PREDICTED, "price_per_hour": None, "launches": []}
    result = result_of(folder, {NOTE: note})
    assert result["refused"] == "only 50.0% of the points are trained"
    assert (result["ratio"], result["inside"], result["coverage"]) == (None, None, 0.5)
    assert result["actual"]["training_seconds"] == 30.0
    assert result["actual"]["wall_seconds"] is None  # nobody noted when it was launched
    assert "cost" not in dict(ledger.lines(result))


def test_a_sweep_without_outcomes_has_no_times(folder: SweepStore) -> None:
    folder.write_plan(Plan(SWEEP, Deal()))
    result = result_of(folder, {})
    assert result["actual"]["wall_seconds"] is None
    assert result["actual"]["worker_seconds"] is None
    assert ledger.lines(result)[-1][0] == "not compared"


def test_a_picture_has_no_ledger() -> None:
    labels = np.ones((4, 4), dtype=bool)
    assert ledger.analyse(Subject(labels, labels)) is None


def test_only_the_first_forecast_is_kept(folder: SweepStore) -> None:
    record_launch(folder, PREDICTED, workers=2, shards=3, price_per_hour=None)
    record_launch(folder, None, workers=4, shards=1, price_per_hour=1.5)
    note = folder.notes([])[NOTE]
    assert note["predicted"] == PREDICTED
    assert note["price_per_hour"] == 1.5
    assert [launch["workers"] for launch in note["launches"]] == [2, 4]
