"""Counting a sweep's outcomes again and again: the same states as the grid's, read only once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from conftest import mlp_sweep
from fractal_k8s.analysis import ledger
from fractal_k8s.analysis.ledger import Spent
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.errors import StoreError
from fractal_k8s.results import schema
from fractal_k8s.results.files import LocalFiles
from fractal_k8s.results.grid import Grid, build_grid
from fractal_k8s.results.outcome import Environment, Outcome, State
from fractal_k8s.results.store import SweepStore
from fractal_k8s.results.tally import _ROW, Tally, TallyReader
from fractal_k8s.sweep.definition import Sweep
from test_results import HERE, NOON, outcome_of

NAN = float("nan")


class CountedFiles(LocalFiles):
    """A folder that remembers what was read of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.got: list[str] = []
        self.opened: list[str] = []

    def get(self, key: str) -> bytes | None:
        self.got.append(key)
        return super().get(key)

    def open(self, key: str) -> pa.NativeFile | None:
        self.opened.append(key)
        return super().open(key)


class Place:
    """A sweep's folder with attempts planted into it."""

    def __init__(self, root: Path, sweep: Sweep) -> None:
        self.sweep = sweep
        self.files = CountedFiles(root)
        self.folder = SweepStore(self.files, sweep.id)

    def put(
        self,
        shard: str,
        outcomes: Sequence[Outcome],
        *,
        after_s: float = 0.0,
        environment: Environment = HERE,
        owner: Sweep | None = None,
        is_durable: bool = True,
    ) -> str:
        """Writes an attempt whose outcomes are known some seconds after noon.

        Args:
            owner: the sweep that they were trained for. is_durable: False = faster.
        """
        times: list[datetime] = [NOON + timedelta(seconds=after_s)] * len(outcomes)
        table = schema.to_table(self.sweep, outcomes, times, environment)
        if owner is not None:
            names = pa.array([owner.id] * len(outcomes)).dictionary_encode()
            table = table.set_column(0, table.schema.field(0), names)
        key = self.folder.outcome_key(shard, "a")
        if is_durable:
            self.files.put(key, schema.to_bytes(table))
        else:
            path = self.files.path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(schema.to_bytes(table))
        return key

    def grid(self) -> Grid:
        outcomes = self.folder.read_outcomes(self.sweep)
        return build_grid(self.sweep, outcomes, allow_mixed=True)

    def reader(self, keep_in: Path | None = None) -> TallyReader:
        return TallyReader(self.folder, self.sweep, keep_in=keep_in)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "store", mlp_sweep())


def same(tally: Tally, grid: Grid) -> None:
    """Whether a tally says what the grid says."""
    assert np.array_equal(tally.states, grid.states)
    assert tally.counts() == grid.counts()
    assert list(tally.problems) == grid.problems
    assert list(tally.classes) == grid.classes
    ours = ledger.account(Spent.of_tally(tally), {}, float(tally.known.mean()))
    assert ours == ledger.analyse(Subject.of(grid))


def trained(sweep: Sweep, index: int, last: float = 0.5, **changes: Any) -> Outcome:
    return outcome_of(sweep, index, [1.0, 0.9, last], seconds=0.1 * index, **changes)


def broken(sweep: Sweep, index: int) -> Outcome:
    return outcome_of(sweep, index, [1.0], state=State.FAILED, error="lost")


# --- the same states as the grid's ---


Case = Callable[[Place], None]


def _nothing(place: Place) -> None:
    """No object at all."""


def _every_state(place: Place) -> None:
    one = place.sweep
    place.put("a", [trained(one, 0), trained(one, 1, 3.0), trained(one, 2, NAN), broken(one, 3)])


def _result_after_failure(place: Place) -> None:
    place.put("a", [broken(place.sweep, 4)])
    place.put("b", [trained(place.sweep, 4)], after_s=9)


def _failure_after_result(place: Place) -> None:
    place.put("b", [trained(place.sweep, 4)])
    place.put("a", [broken(place.sweep, 4)], after_s=9)


def _first_of_two_counts(place: Place) -> None:
    place.put("a", [trained(place.sweep, 5, 3.0)], after_s=9)
    place.put("z", [trained(place.sweep, 5, 0.2)])


def _equal_twice(place: Place) -> None:
    place.put("a", [trained(place.sweep, 5, NAN)])
    place.put("b", [trained(place.sweep, 5, NAN), broken(place.sweep, 5)], after_s=3)


def _same_time_another_result(place: Place) -> None:
    place.put("a", [trained(place.sweep, 7, 0.2)])
    place.put("b", [trained(place.sweep, 7, 3.0)])


def _three_results(place: Place) -> None:
    for shard, last in (("a", 0.2), ("b", 0.2), ("c", 3.0)):
        place.put(shard, [trained(place.sweep, 7, last), trained(place.sweep, 8)])


def _several_classes(place: Place) -> None:
    other = Environment(numerics_class="another", versions="{}")
    place.put("a", [trained(place.sweep, 1), broken(place.sweep, 2)])
    place.put("b", [trained(place.sweep, 3)], environment=other)
    unused = Environment(numerics_class="never of a result", versions="{}")
    place.put("c", [broken(place.sweep, 9)], environment=unused)


def _copied(place: Place) -> None:
    place.put("copied-a", [trained(place.sweep, 1)], owner=mlp_sweep(name="other"))
    place.put("b", [trained(place.sweep, 2)])


def _damaged(place: Place) -> None:
    place.put("a", [trained(place.sweep, 1)])
    place.files.put(place.folder.outcome_key("b", "a"), b"PAR1 not parquet")
    key = place.put("c", [trained(place.sweep, 2)])
    path = place.files.path(key)
    path.write_bytes(path.read_bytes()[:-20])


def _large(place: Place) -> None:
    """Objects of which only parts are read."""
    losses = np.random.default_rng(0).uniform(0.1, 1.0, 60_000).tolist()
    place.put("a", [outcome_of(place.sweep, 3, losses)])
    place.put("b", [outcome_of(place.sweep, 4, [*losses, NAN])])


@pytest.mark.parametrize(
    "plant",
    [
        _nothing,
        _every_state,
        _result_after_failure,
        _failure_after_result,
        _first_of_two_counts,
        _equal_twice,
        _same_time_another_result,
        _three_results,
        _several_classes,
        _copied,
        _damaged,
        _large,
    ],
)
def test_a_tally_says_what_the_grid_says(plant: Case, place: Place) -> None:
    plant(place)
    same(place.reader().refresh(), place.grid())


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "ratio", "threshold": 0.5, "marginal": 0.9, "window": 1},
        {"rule": "bound", "bound": 0.6},
    ],
    ids=["with a band", "bound"],
)
def test_other_rules(rule: dict[str, Any], tmp_path: Path) -> None:
    place = Place(tmp_path, mlp_sweep(verdict=rule))
    lasts = [0.1, 0.5, 0.6, 0.85, 0.9, 1.5, NAN]
    place.put("a", [trained(place.sweep, k, last) for k, last in enumerate(lasts)])
    tally = place.reader().refresh()
    same(tally, place.grid())
    assert min(tally.counts().values()) == 0 < tally.counts()["trainable"]


def test_random_histories(tmp_path: Path) -> None:
    """Attempts that come, grow and disagree, counted at every step."""
    random = np.random.default_rng(3)
    place = Place(tmp_path, mlp_sweep())
    reader = place.reader()
    for step in range(12):
        outcomes = []
        for index in random.integers(0, place.sweep.num_points, 8):
            last = float(random.choice([0.2, 0.5, 3.0, NAN]))
            make = broken(place.sweep, int(index)) if random.random() < 0.3 else None
            outcomes.append(make or trained(place.sweep, int(index), last))
        place.put(f"s{random.integers(4)}", outcomes, after_s=float(step))
        same(reader.refresh(), place.grid())


# --- only what is new ---


def test_only_new_and_changed_objects_are_read(place: Place) -> None:
    first = place.put("a", [trained(place.sweep, 1)])
    second = place.put("b", [trained(place.sweep, 2)])
    reader = place.reader()
    assert reader.refresh().counts()["trainable"] == 2
    assert sorted(place.files.got) == sorted([first, second])
    place.files.got.clear()
    assert reader.refresh().objects == 2
    assert place.files.got == []
    # a rewritten object replaces what it said before
    place.put("a", [trained(place.sweep, 1, 3.0), trained(place.sweep, 3)])
    third = place.put("c", [trained(place.sweep, 4)])
    tally = reader.refresh()
    assert sorted(place.files.got) == sorted([first, third])
    assert (tally.counts()["trainable"], tally.counts()["not trainable"]) == (3, 1)
    place.files.path(second).unlink()
    assert reader.refresh().counts()["missing"] == place.sweep.num_points - 3


def test_of_a_large_object_the_losses_are_not_read(place: Place) -> None:
    _large(place)
    reader = place.reader()
    reader.refresh()
    assert place.files.got == []
    assert len(place.files.opened) == 2


def test_a_budget_leaves_the_oldest_for_later(place: Place, monkeypatch: Any) -> None:
    monkeypatch.setattr("fractal_k8s.results.tally._WAVE", 2)
    keys = [place.put(f"s{k}", [trained(place.sweep, k)]) for k in range(5)]
    now = time.time_ns()
    for age, key in enumerate(reversed(keys)):
        path = place.files.path(key)
        os.utime(path, ns=(now - age * 10**9, now - age * 10**9))
    reader = place.reader()
    tally = reader.refresh(0.0)
    assert (tally.objects, tally.unread) == (5, 3)
    assert sorted(place.files.got) == sorted(keys[3:])
    assert reader.refresh(0.0).unread == 1
    assert reader.refresh(0.0).unread == 0
    same(reader.tally(), place.grid())


def test_what_was_read_survives_an_error(place: Place, monkeypatch: Any) -> None:
    monkeypatch.setattr("fractal_k8s.results.tally._WAVE", 1)
    for k in range(3):
        place.put(f"s{k}", [trained(place.sweep, k)])
    reader = place.reader()
    good, calls = place.files.get, []

    def failing(key: str) -> bytes | None:
        calls.append(key)
        if len(calls) == 2:
            raise StoreError("away")
        return good(key)

    monkeypatch.setattr(place.files, "get", failing)
    with pytest.raises(StoreError, match="away"):
        reader.refresh()
    assert reader.tally().unread == 2
    tally = reader.refresh()
    assert len(calls) == 4
    same(tally, place.grid())


# --- what is kept for the next process ---


def test_the_next_process_goes_on(place: Place, tmp_path: Path) -> None:
    _several_classes(place)
    reader = place.reader(tmp_path / "kept")
    reader.refresh()
    reader.keep()
    place.files.got.clear()
    place.put("new", [trained(place.sweep, 20)])
    again = place.reader(tmp_path / "kept")
    same(again.refresh(), place.grid())
    assert [key.rpartition("/")[2] for key in place.files.got[:1]] == ["new-a.parquet"]
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_damaged_and_foreign_files_are_ignored(place: Place, tmp_path: Path) -> None:
    _every_state(place)
    reader = place.reader(tmp_path / "kept")
    reader.refresh()
    reader.keep()
    (path,) = (tmp_path / "kept").iterdir()
    whole = path.read_bytes()
    for damage in (b"", b"nonsense", whole[:-50], whole[:200] + b"\0" * 60 + whole[260:]):
        path.write_bytes(damage)
        same(place.reader(tmp_path / "kept").refresh(), place.grid())
    # the file of another sweep under this one's name
    other = Place(tmp_path / "store", mlp_sweep(name="other", resolution=[3, 3]))
    other.put("a", [trained(other.sweep, 1)])
    theirs = other.reader(tmp_path / "theirs")
    theirs.refresh()
    theirs.keep()
    shutil.copy(next((tmp_path / "theirs").iterdir()), path)
    same(place.reader(tmp_path / "kept").refresh(), place.grid())


def test_a_folder_that_cannot_be_written_is_no_error(place: Place, tmp_path: Path) -> None:
    _every_state(place)
    (tmp_path / "kept").write_text("a file")
    reader = place.reader(tmp_path / "kept")
    reader.refresh()
    reader.keep()


def test_rate_is_that_of_the_last_moments(place: Place) -> None:
    assert place.reader().refresh().rate(60) is None
    place.put("a", [trained(place.sweep, k) for k in range(5)])
    for k in range(5, 11):
        place.put(f"b{k}", [trained(place.sweep, k)], after_s=1000 + 2 * k)
    tally = place.reader().refresh()
    assert tally.rate(60) == pytest.approx(0.5)
    assert tally.newest() == NOON.timestamp() + 1020


def test_points_that_are_known_many_at_once_took_their_time() -> None:
    rows = np.zeros(8, dtype=_ROW)
    rows["time"][4:] = 1000  # two chunks of four points, a second apart
    rows["seconds"] = 50.0
    tally = Tally(mlp_sweep(resolution=[4, 4]), np.zeros((4, 4), np.uint8), rows, (), (), 2, 0)
    assert tally.rate(60.0) == 7.0
    assert tally.rate(60.0, workers=2) == 8 * 2 / 400
    assert tally.rate(0.5) is None
    assert tally.rate(0.5, workers=1) == 4 / 200
    rows["seconds"] = 0.01  # less than has passed: the clock counts
    assert tally.rate(60.0, workers=2) == 7.0
