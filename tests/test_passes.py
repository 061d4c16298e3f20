"""What a pass makes anew where little or nothing is new in a large map."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.aggregate import Aggregation, aggregate
from fractal_k8s.aggregate.every import aggregate_all
from fractal_k8s.aggregate.passes import Look, Passes
from fractal_k8s.aggregate.until import JobsState, Watch, aggregate_until
from fractal_k8s.results import schema
from fractal_k8s.results.files import LocalFiles
from fractal_k8s.results.grid import build_grid
from fractal_k8s.results.published import published_files
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from test_aggregate import _BEGAN, _HERE, new_folder, silent, summary_of
from test_aggregate import PLAN as SMALL
from test_aggregate import put as put_small
from test_results import outcome_of

SIDE = 101
SWEEP = mlp_sweep(resolution=[SIDE, SIDE], verdict={"window": 1})
PLAN = Plan(SWEEP, Deal())
WHOLE = SWEEP.num_points


def rows(points: Iterable[int], *, shift: float = 0.0, node: str = "n0") -> pa.Table:
    """Outcomes of some points: trainable on one side of a wavy edge."""
    index = np.fromiter(points, np.int64)
    i, j = np.divmod(index, SIDE)
    return rows_of(SWEEP, index, np.where(i > 50 + 20 * np.sin(j / 5), 9.0, 1.0) + shift, node=node)


def rows_of(
    sweep: Sweep, index: npt.NDArray[np.int64], last: npt.NDArray[np.float64], *, node: str = "n0"
) -> pa.Table:
    """Outcomes of some points by their last losses; the first one is 4."""
    one = schema.to_table(sweep, [outcome_of(sweep, 0, [4.0, 2.0])], [_BEGAN], _HERE)
    table = one.take(pa.array(np.zeros(len(index), np.int64)))
    i, j = np.divmod(index, sweep.columns)
    losses = np.stack([np.full(len(index), 4.0), last], axis=1).astype(np.float32)
    y, x = sweep.values_of(index)
    new = {
        "i": i,
        "j": j,
        sweep.y_knob.name: y,
        sweep.x_knob.name: x,
        "final_loss": last,
        "last_mean_loss": last,
        "ratio": last / 4,
        "losses": pa.array(list(losses), table.schema.field("losses").type),
        "node": pa.array([node] * len(index)).dictionary_encode(),
    }
    for name, values in new.items():
        field = table.schema.field(name)
        column = values if isinstance(values, pa.Array) else pa.array(values)
        table = table.set_column(table.schema.get_field_index(name), field, column.cast(field.type))
    return table


def put(folder: SweepStore, shard: str, points: Iterable[int], **options: Any) -> None:
    key = folder.outcome_key(shard, "1")
    folder.files.put(key, schema.to_bytes(rows(points, **options)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with half of the map and its summary."""
    place = tmp_path_factory.mktemp("made")
    folder = Store(str(place)).sweep(SWEEP.id)
    folder.write_plan(PLAN)
    put(folder, "half", range(WHOLE // 2))
    assert isinstance(step(folder), Aggregation)
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> SweepStore:
    return Store(str(shutil.copytree(made, tmp_path / "runs"))).sweep(SWEEP.id)


def step(folder: SweepStore, **options: Any) -> Aggregation | Look | None:
    """A pass as of a process of its own."""
    return Passes(folder, PLAN, allow_mixed=False, say=print).next(**options)


def page_time(folder: SweepStore) -> int:
    return Path(folder.files.uri, SWEEP.id, "summary", "report.html").stat().st_mtime_ns


def progress(folder: SweepStore) -> dict[str, Any] | None:
    data = folder.files.get(folder.key("summary", "progress.json"))
    return None if data is None else json.loads(data)


def test_a_little_more_is_counted_and_not_drawn(folder: SweepStore) -> None:
    drawn = page_time(folder)
    put(folder, "late", range(WHOLE // 2, WHOLE // 2 + 50))
    look = step(folder)
    assert isinstance(look, Look)
    assert (look.known, look.points, look.num_read) == (WHOLE // 2 + 50, WHOLE, 1)
    grid = build_grid(SWEEP, folder.read_outcomes(SWEEP))
    assert look.counts == grid.counts()
    assert progress(folder) == {
        "sweep": SWEEP.id,
        "counts": grid.counts(),
        "coverage": grid.coverage,
        "complete": False,
        "problems": [],
    }
    assert page_time(folder) == drawn


def test_it_is_drawn_when_nothing_has_come_since(folder: SweepStore, tmp_path: Path) -> None:
    put(folder, "late", range(WHOLE // 2, WHOLE // 2 + 50))
    assert isinstance(step(folder), Look)
    done = step(folder)
    assert isinstance(done, Aggregation)
    assert done.summary["coverage"] == (WHOLE // 2 + 50) / WHOLE
    assert progress(folder) is None
    assert step(folder) is None
    # as a single pass would have made it
    alone = Store(str(tmp_path / "alone")).sweep(SWEEP.id)
    alone.write_plan(PLAN)
    put(alone, "all", range(WHOLE // 2 + 50))
    other = step(alone)
    assert isinstance(other, Aggregation)
    assert other.digest == done.digest


def test_much_more_is_drawn_at_once_and_so_is_what_comes_in_small_steps(
    folder: SweepStore,
) -> None:
    put(folder, "much", range(WHOLE // 2, WHOLE // 2 + 103))
    assert isinstance(step(folder), Aggregation)
    kinds = []
    for number in range(5):
        start = WHOLE // 2 + 103 + 50 * number
        put(folder, f"s{number}", range(start, start + 50))
        kinds.append(type(step(folder)))
    assert kinds == [Look, Look, Aggregation, Look, Look]


def test_the_last_points_are_drawn(folder: SweepStore) -> None:
    put(folder, "most", range(WHOLE // 2, WHOLE - 1))
    assert isinstance(step(folder), Aggregation)
    put(folder, "last", [WHOLE - 1])
    done = step(folder)
    assert isinstance(done, Aggregation)
    assert done.summary["complete"]


@pytest.mark.parametrize("what", ["damaged", "differs", "deleted", "note", "asked", "no summary"])
def test_whatever_else_has_changed_is_drawn(folder: SweepStore, what: str) -> None:
    put(folder, "late", range(WHOLE // 2, WHOLE // 2 + 50))
    may_look = True
    if what == "damaged":
        folder.files.put(folder.outcome_key("bad", "1"), b"noise")
    elif what == "differs":
        put(folder, "again", [7], shift=0.25)
    elif what == "deleted":
        put(folder, "half", range(100, WHOLE // 2))
    elif what == "note":
        folder.put_note("remark", {"version": 1})
    elif what == "asked":
        may_look = False
    else:
        folder.files.remove(folder.key("summary"))
    done = step(folder, may_look=may_look)
    assert isinstance(done, Aggregation)
    assert bool(done.summary["problems"]) == (what in ("damaged", "differs"))


def test_an_attempt_that_writes_its_object_again_with_more_is_counted(folder: SweepStore) -> None:
    put(folder, "half", range(WHOLE // 2 + 60))
    look = step(folder)
    assert isinstance(look, Look)
    assert look.known == WHOLE // 2 + 60
    assert look.problems == ()


@pytest.mark.parametrize("damage", [b"", b"noise", None])
def test_without_what_was_kept_everything_is_made_anew(
    folder: SweepStore, damage: bytes | None
) -> None:
    (kept,) = folder.files.entries(folder.key("aggregate", "tally"))
    if damage is None:
        folder.files.discard([kept.key])
    else:
        folder.files.put(kept.key, damage)
    put(folder, "late", range(WHOLE // 2, WHOLE // 2 + 50))
    assert isinstance(step(folder), Aggregation)
    put(folder, "later", range(WHOLE // 2 + 50, WHOLE // 2 + 90))
    assert isinstance(step(folder), Look)


def test_a_small_map_is_always_drawn(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "runs")
    put_small(folder, range(40))
    passes = Passes(folder, SMALL, allow_mixed=False, say=print)
    assert isinstance(passes.next(), Aggregation)
    put_small(folder, [40], "b")
    assert isinstance(passes.next(), Aggregation)
    assert folder.files.entries(folder.key("aggregate", "tally")) == []


def test_every_sweep_of_a_store(folder: SweepStore, run: Run) -> None:
    put(folder, "late", range(WHOLE // 2, WHOLE // 2 + 50))
    typed = ("aggregate", "--all", "--store", folder.files.uri)
    assert "partial, pictures follow, 50.5% with a verdict" in run(*typed).output
    assert "partial, 50.5% with a verdict" in run(*typed).output
    assert "unchanged" in run(*typed).output
    # a person who asks for one is given all of it
    put(folder, "later", range(WHOLE // 2 + 50, WHOLE // 2 + 90))
    run("aggregate", SWEEP.id, "--store", folder.files.uri, code=1)
    assert "unchanged" in run(*typed).output
    (visit,) = aggregate_all(Store(folder.files.uri), allow_mixed=False, say=silent)
    assert visit.state == "unchanged"


def test_who_waits_sees_counts_in_between_and_everything_at_the_end(folder: SweepStore) -> None:
    said: list[str] = []
    asked = 0

    def jobs(sweep_id: str) -> JobsState:
        """A cluster: more has come at the third look, and then the Job has ended."""
        nonlocal asked
        asked += 1
        if asked == 2:
            put(folder, "late", range(WHOLE // 2, WHOLE // 2 + 50))
        return JobsState(asked == 3, {})

    watch = Watch(every_s=0.01, jobs=jobs)
    store = Store(folder.files.uri)
    _, done = aggregate_until(store, SWEEP.id, watch, allow_mixed=False, say=said.append)
    assert done.summary["coverage"] == (WHOLE // 2 + 50) / WHOLE
    assert [line.partition(" points")[0] for line in said] == [
        f"{WHOLE // 2:,} of {WHOLE:,}",
        *[f"{WHOLE // 2 + 50:,} of {WHOLE:,}"] * 2,
    ]
    assert "the pictures follow" in said[1]
    assert progress(folder) is None


def test_a_pass_that_another_one_overtook_is_made_again(tmp_path: Path) -> None:
    """An older map must not stay, nor files of two."""
    folder = new_folder(tmp_path / "runs")
    put_small(folder, range(30))

    class Overtaken(LocalFiles):
        """More outcomes come, and another pass is made, between two writes of this one."""

        done = False

        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            if key.endswith("summary/map.png") and not self.done:
                self.done = True
                put_small(folder, range(30, 42), "late")
                Passes(folder, SMALL, allow_mixed=False, say=print).whole()

    slow = SweepStore(Overtaken(tmp_path / "runs"), SMALL.sweep.id)
    done = Passes(slow, SMALL, allow_mixed=False, say=print).whole()
    assert done.summary["complete"]
    published = published_files(folder)
    assert published is not None
    assert published.files == summary_of(folder)
    assert json.loads(published.files["analysis.json"])["complete"]
    assert Passes(folder, SMALL, allow_mixed=False, say=print).next() is None


def test_counts_of_a_pass_that_another_one_overtook_do_not_stay(folder: SweepStore) -> None:
    put(folder, "late", range(WHOLE // 2, WHOLE // 2 + 50))

    class Overtaken(LocalFiles):
        """Everything else comes, and is drawn, before the counts are written."""

        def put(self, key: str, data: bytes) -> None:
            if key.endswith("progress.json"):
                put(folder, "rest", range(WHOLE // 2, WHOLE))
                assert isinstance(step(folder), Aggregation)
            super().put(key, data)

    slow = SweepStore(Overtaken(Path(folder.files.uri)), SWEEP.id)
    assert isinstance(step(slow), Look)
    assert progress(folder) is None


def test_who_draws_without_being_asked_to_go_on_leaves_no_counts(folder: SweepStore) -> None:
    """As a launch does at its end, and `report`."""
    put(folder, "late", range(WHOLE // 2, WHOLE // 2 + 50))
    assert isinstance(step(folder), Look)
    aggregate(folder, PLAN)
    assert progress(folder) is None


def test_a_summary_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "runs")
    put_small(folder, range(42))
    passes = Passes(folder, SMALL, allow_mixed=False, say=print)
    assert isinstance(passes.next(), Aggregation)
    assert passes.next() is None
    folder.files.discard([folder.key("summary", "report.html")])
    assert isinstance(passes.next(), Aggregation)
    assert passes.next() is None
