"""Stores with a past: passes over whatever came, went and broke, and one that has seen none of it.

Times are those of a store that tells whole seconds, and of a clock that the test moves.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conftest import mlp_sweep
from fractal_k8s.aggregate import aggregate, grid_table
from fractal_k8s.aggregate.drawing import choose
from fractal_k8s.aggregate.every import aggregate_all
from fractal_k8s.results import listing, schema
from fractal_k8s.results.collect import collect
from fractal_k8s.results.files import LocalFiles
from fractal_k8s.results.grid import build_grid
from fractal_k8s.results.outcome import Environment, Outcome, State
from fractal_k8s.results.published import published_files
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.results.tally import TallyReader
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from test_aggregate import FILES, PLAN, SWEEP, new_folder, outcome, put, summary_of
from test_results import outcome_of

_SECOND = 10**9
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Seconds(LocalFiles):
    """A folder whose times are whole seconds of a clock of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.now_ns = 1_700_000_000 * _SECOND

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self.date(key)

    def date(self, key: str, *, ns: int | None = None) -> None:
        time_ns = self.now_ns // _SECOND * _SECOND if ns is None else ns
        os.utime(self.path(key), ns=(time_ns, time_ns))


class History:
    """A sweep's folder, and things that happen to it at random."""

    def __init__(self, place: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.place = place
        self.files = Seconds(place)
        self.folder = SweepStore(self.files, SWEEP.id)
        self.folder.write_plan(PLAN)
        self.numbers = itertools.count()

    def entries(self) -> list[str]:
        return [entry.key for entry in self.folder.outcome_entries()]

    def add(self) -> None:
        self.write(self.folder.outcome_key(f"s{next(self.numbers)}", "1"))

    def write(self, key: str) -> None:
        chosen = self.random.sample(range(SWEEP.num_points), self.random.choice([1, 3, 8]))
        made = [self.an_outcome(index) for index in chosen]
        times = [_BEGAN + timedelta(seconds=self.random.randrange(4)) for _ in made]
        here = Environment(numerics_class="test", node=self.random.choice(["n1", "n2"]))
        table = schema.to_table(SWEEP, made, times, here)
        self.files.put(key, schema.to_bytes(table, key.rpartition("/")[2]))

    def an_outcome(self, index: int) -> Outcome:
        if self.random.random() < 0.2:
            return outcome_of(SWEEP, index, [1.0], state=State.FAILED, error="lost")
        return outcome(index, self.random.choice([None, None, 3.5]))

    def replace(self) -> None:
        if keys := self.entries():
            self.write(self.random.choice(keys))

    def replace_by_the_same_size(self) -> None:
        """As many bytes, other numbers; the clock decides whether within the same second."""
        for key in self.random.sample(keys := self.entries(), min(3, len(keys))):
            data = self.files.get(key) or b""
            for _ in range(5):
                self.write(key)
                if len(self.files.get(key) or b"") == len(data):
                    return

    def delete(self) -> None:
        if keys := self.entries():
            self.files.path(self.random.choice(keys)).unlink()

    def damage(self) -> None:
        if keys := self.entries():
            self.damage_file(self.random.choice(keys))

    def damage_what_is_kept(self) -> None:
        kept = [entry.key for entry in self.files.entries(self.folder.key("aggregate"))]
        if kept:
            self.damage_file(self.random.choice(kept))

    def damage_file(self, key: str) -> None:
        data = bytearray(self.files.get(key) or b"")
        how = self.random.randrange(4)
        if how == 0 and data:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        elif how == 1:
            del data[self.random.randrange(len(data) + 1) :]
        elif how == 2:
            data.clear()
        else:
            data[:] = b"something else"
        self.files.put(key, bytes(data))

    def forget(self) -> None:
        shutil.rmtree(self.place / SWEEP.id / "aggregate", ignore_errors=True)

    def wait(self) -> None:
        self.files.now_ns += self.random.choice([0, 1, 3, 30]) * _SECOND

    def step(self) -> None:
        do = self.random.choice(
            [
                self.add,
                self.add,
                self.replace,
                self.replace_by_the_same_size,
                self.delete,
                self.damage,
                self.damage_what_is_kept,
                self.forget,
                self.wait,
            ]
        )
        do()
        self.files.now_ns += self.random.choice([0, 0, _SECOND // 3, _SECOND])

    def copy(self, place: Path) -> SweepStore:
        """The same outcomes at the same times, with nothing that a pass has left."""
        shutil.copytree(self.place, place)
        shutil.rmtree(place / SWEEP.id / "aggregate", ignore_errors=True)
        return SweepStore(LocalFiles(place), SWEEP.id)


def found(folder: SweepStore, *, keep: bool) -> tuple[bytes, list[str]]:
    """All that a summary is drawn from."""
    grid = build_grid(SWEEP, collect(folder, SWEEP, keep=keep))
    return schema.to_bytes(grid_table(grid)), grid.problems


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the clocks of passes to that of a history, and some seconds more."""

    def use(history: History, skew_s: int) -> None:
        class Clock:
            @staticmethod
            def time_ns() -> int:
                return history.files.now_ns + skew_s * _SECOND

            monotonic = staticmethod(lambda: 0.0)

        monkeypatch.setattr(listing, "time", Clock)
        monkeypatch.setattr("fractal_k8s.results.tally.time", Clock)

    return use


def lived(place: Path, seed: int, skew_s: int, clock: Any) -> None:
    """A history with passes in between, each of them compared with a pass from nothing."""
    history = History(place / "store", seed)
    clock(history, skew_s)
    reader = TallyReader(history.folder, SWEEP)
    for number in range(5):
        for _ in range(history.random.randrange(1, 6)):
            history.step()
        expected = found(history.copy(place / f"copy{number}"), keep=False)
        assert found(history.folder, keep=True) == expected, (seed, number)
        known = TallyReader(history.folder, SWEEP).refresh().states.tolist()
        assert reader.refresh().states.tolist() == known, (seed, number)


@pytest.mark.parametrize("seed", range(50))
def test_no_past_can_be_seen(seed: int, tmp_path: Path, clock: Any) -> None:
    lived(tmp_path, seed, 0, clock)


@pytest.mark.parametrize("skew_s", [-600, 600])
def test_nor_with_a_clock_that_is_wrong(skew_s: int, tmp_path: Path, clock: Any) -> None:
    for seed in range(50, 70):
        lived(tmp_path / str(seed), seed, skew_s, clock)


def test_a_body_of_another_object_is_not_kept(tmp_path: Path) -> None:
    """Served once under the wrong key, in place of an object of another size."""
    plain = new_folder(tmp_path / "store")
    key, other = put(plain, range(30), "a"), put(plain, range(30, 42), "b")

    class Mixed(LocalFiles):
        mixed = 0

        def get(self, wanted: str) -> bytes | None:
            self.mixed += wanted == key
            return super().get(other if wanted == key and self.mixed == 1 else wanted)

    collect(SweepStore(Mixed(tmp_path / "store"), SWEEP.id), SWEEP)
    assert len(collect(plain, SWEEP).table) == 42


def test_an_object_that_is_listed_and_gone_is_asked_for_again(tmp_path: Path) -> None:
    """An answer that something is not there is no reason to leave it out for ever."""
    plain = new_folder(tmp_path / "store")
    key = put(plain, range(42))

    class Late(LocalFiles):
        def get(self, wanted: str) -> bytes | None:
            return None if wanted == key else super().get(wanted)

    late = SweepStore(Late(tmp_path / "store"), SWEEP.id)
    assert len(collect(late, SWEEP).table) == 0
    assert len(collect(plain, SWEEP).table) == 42


# --- every sweep of a store ---


def every(store: Store) -> dict[str, tuple[str, int]]:
    visits = aggregate_all(store, allow_mixed=False, say=lambda text: None)
    return {visit.sweep_id: (visit.state, visit.exit_code) for visit in visits}


def test_what_is_wrong_is_named_also_where_nothing_has_changed(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    put(folder, range(42))
    folder.files.put(folder.outcome_key("noise", "1"), b"noise")
    store = Store(str(tmp_path / "store"))
    assert every(store) == {SWEEP.id: ("complete", 65)}
    (visit,) = aggregate_all(store, allow_mixed=False, say=lambda text: None)
    assert (visit.state, visit.exit_code, visit.coverage) == ("unchanged", 65, 1.0)
    assert "noise-1.parquet: not a readable outcomes file" in visit.problems[0]


def zoomed(place: Path) -> tuple[Store, str, str]:
    """A store with a map and a zoom into it: store, id of the map, id of the zoom."""
    origin = {"parent": SWEEP.id, "box": [[1, 3], [1, 3]]}
    child = mlp_sweep(name="zzz-zoom", resolution=[6, 7], verdict={"window": 1}, origin=origin)
    store = Store(str(place))
    for sweep in (SWEEP, child):
        folder = store.sweep(sweep.id)
        folder.write_plan(Plan(sweep, Deal()))
        made = [outcome_of(sweep, k, [4.0, float(k * 7 % 11)]) for k in range(sweep.num_points)]
        table = schema.to_table(sweep, made, [_BEGAN] * len(made), Environment("test"))
        folder.files.put(folder.outcome_key("a", "1"), schema.to_bytes(table))
    return store, SWEEP.id, child.id


def test_a_map_shows_its_zooms_as_they_are_however_many_passes(tmp_path: Path) -> None:
    store, parent, child = zoomed(tmp_path / "store")
    every(store)
    every(store)
    after = store.sweep(parent).read_summary()
    assert after is not None
    numbers = store.sweep(child).read_summary() or {}
    (shown,) = after["family"]["children"]
    assert shown["coverage"] == numbers["coverage"] == 1.0


def test_what_only_says_that_it_is_a_zoom_costs_no_map(tmp_path: Path) -> None:
    store, parent, child = zoomed(tmp_path / "store")
    boxes = ("x", [1], [[1, 2], [3, "4"]], [[1, 2], [3, float("nan")]], [[10**400, 2], [3, 4]], 7)
    odd: list[Any] = [{"origin": {"parent": parent, "box": box}} for box in boxes]
    odd += [{"origin": {"parent": [parent], "box": None}}, {"origin": parent}]
    for number, fields in enumerate(odd):
        text = json.dumps({"sweep": {"resolution": [6, 7], **fields}})
        store.files.put(f"foreign{number}/sweep.json", text.encode())
    store.files.put(f"{child}/summary/analysis.json", b"[1]")
    assert {name: visit for name, visit in every(store).items() if name == parent} == {
        parent: ("complete", 0)
    }
    shown = (store.sweep(parent).read_summary() or {})["family"]["children"]
    assert [member["id"] for member in shown] == [child]


def test_a_zoom_that_cannot_be_read_costs_no_figure_of_its_map(tmp_path: Path) -> None:
    store, parent, child = zoomed(tmp_path / "store")
    text = (store.files.get(f"{child}/sweep.json") or b"").replace(b'"mlp"', b'"of-tomorrow"')
    store.files.put(f"{child}/sweep.json", text)
    folder = store.sweep(parent)
    choose(folder, colours=None, figures=True)
    written = aggregate(folder, PLAN).written
    assert "map.pdf" in written
    assert "zoom.png" not in written


def test_the_sweeps_of_a_store_are_read_once_in_a_pass_over_all(tmp_path: Path) -> None:
    """Not once for each of them: of 200 sweeps that would be 40,000 requests."""

    class Counted(LocalFiles):
        read = 0

        def get(self, key: str) -> bytes | None:
            self.read += key.endswith("/sweep.json")
            return super().get(key)

    for number in range(6):
        sweep = mlp_sweep(name=f"s{number}", resolution=[6, 7], verdict={"window": 1})
        folder = Store(str(tmp_path)).sweep(sweep.id)
        folder.write_plan(Plan(sweep, Deal()))
        made = [outcome_of(sweep, k, [4.0, 1.0]) for k in range(sweep.num_points)]
        table = schema.to_table(sweep, made, [_BEGAN] * len(made), Environment("test"))
        folder.files.put(folder.outcome_key("a", "1"), schema.to_bytes(table))
    store = Store(str(tmp_path))
    store.files = files = Counted(tmp_path)
    assert len(every(store)) == 6
    assert files.read == 2 * 6


# --- two at once ---


class Interrupted(LocalFiles):
    """Between two files of a summary it lets another pass go by, which has seen more."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_over = False

    def put(self, key: str, data: bytes) -> None:
        if key.endswith("/measure.png") and not self.is_over:
            self.is_over = True
            folder = SweepStore(LocalFiles(self.root), SWEEP.id)
            put(folder, range(10, 42), "late")
            aggregate(folder, PLAN)
        super().put(key, data)


def test_a_pass_that_another_one_overtook_leaves_no_mixture(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    put(folder, range(10), "first")
    aggregate(SweepStore(Interrupted(tmp_path / "store"), SWEEP.id), PLAN)
    published = published_files(folder)
    assert published is not None
    assert published.problems == ()


_LOOP = """
import sys
from fractal_k8s.aggregate import aggregate
from fractal_k8s.results.store import Store
folder, plan = Store(sys.argv[1]).plan(sys.argv[2])
for _ in range(int(sys.argv[3])):
    aggregate(folder, plan)
"""


def test_two_passes_at_once_leave_one_summary(tmp_path: Path) -> None:
    """While objects come: at the end every file is the one that the manifest names."""
    folder = new_folder(tmp_path / "store")
    put(folder, range(10), "first")
    command = [sys.executable, "-c", _LOOP, str(tmp_path / "store"), SWEEP.id, "4"]
    both = [subprocess.Popen(command) for _ in range(2)]
    for shard in range(10, 42):
        put(folder, [shard], f"s{shard}")
    assert [child.wait() for child in both] == [0, 0]
    subprocess.run([*command[:-1], "1"], check=True)
    expected = new_folder(tmp_path / "plain")
    put(expected, range(10), "first")
    for shard in range(10, 42):
        put(expected, [shard], f"s{shard}")
    subprocess.run([*command[:3], str(tmp_path / "plain"), SWEEP.id, "1"], check=True)
    ours, theirs = summary_of(folder), summary_of(expected)
    assert set(ours) == FILES
    assert ours == theirs
