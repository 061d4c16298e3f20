"""The aggregator: incremental, the same bytes whatever happens, everything wrong named."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.aggregate import Aggregation
from fractal_k8s.aggregate.every import aggregate_all
from fractal_k8s.aggregate.passes import Passes
from fractal_k8s.aggregate.until import JobsState, Watch, aggregate_until
from fractal_k8s.backends import Status
from fractal_k8s.backends.k8s import K8sRun
from fractal_k8s.dispatch import Attached
from fractal_k8s.errors import ClusterError, ConflictError, IncompleteError, StoreError
from fractal_k8s.results import schema
from fractal_k8s.results.collect import collect
from fractal_k8s.results.files import Entry, LocalFiles
from fractal_k8s.results.listing import list_sweep
from fractal_k8s.results.outcome import Environment, Outcome
from fractal_k8s.results.published import published_files
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from test_results import outcome_of

SWEEP = mlp_sweep(resolution=[6, 7], verdict={"window": 1})
PLAN = Plan(SWEEP, Deal())
ALL = range(SWEEP.num_points)
FILES = {"map.png", "measure.png", "report.html", "grid.parquet", "analysis.json", "manifest.json"}
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_HERE = Environment(numerics_class="test")


def outcome(index: int, last: float | None = None) -> Outcome:
    losses = [4.0, 2.0, float((index * 7) % 11) if last is None else last]
    return outcome_of(SWEEP, index, losses if index % 9 else [4.0, float("nan")])


def put(
    folder: SweepStore,
    indexes: Iterable[int],
    shard: str = "a",
    *,
    last: float | None = None,
    node: str = "n0",
    seconds: float = 0.0,
    numerics_class: str = "test",
) -> str:
    """An object with the outcomes of some points; its key. Times are the points' own."""
    made = [outcome(index, last) for index in indexes]
    times = [_BEGAN + timedelta(seconds=one.index + seconds) for one in made]
    where = replace(_HERE, node=node, numerics_class=numerics_class)
    table = schema.to_table(SWEEP, made, times, where)
    key = folder.outcome_key(shard, "1")
    folder.files.put(key, schema.to_bytes(table, key.rpartition("/")[2]))
    return key


def new_folder(place: Path) -> SweepStore:
    folder = Store(str(place)).sweep(SWEEP.id)
    folder.write_plan(PLAN)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> SweepStore:
    return new_folder(tmp_path / "runs")


def summary_of(folder: SweepStore) -> dict[str, bytes]:
    assert isinstance(folder.files, LocalFiles)
    place = folder.files.path(folder.key("summary"))
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def passed(folder: SweepStore) -> Aggregation:
    return Passes(folder, PLAN, allow_mixed=False, say=print).whole()


def rows_folder(folder: SweepStore) -> Path:
    assert isinstance(folder.files, LocalFiles)
    return folder.files.path(folder.key("aggregate", "rows"))


class Counted(LocalFiles):
    """Notes what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    def get(self, key: str) -> bytes | None:
        self.read.append(key)
        return super().get(key)


# --- incremental ---


def test_a_second_pass_reads_only_what_is_new_or_was_written_again(tmp_path: Path) -> None:
    plain = new_folder(tmp_path / "runs")
    files = Counted(tmp_path / "runs")
    folder = SweepStore(files, SWEEP.id)
    keys = [put(plain, range(k, 42, 6), f"s{k}") for k in range(5)]
    assert passed(folder).num_read == 5
    files.read.clear()
    assert passed(folder).num_read == 0
    assert not [key for key in files.read if "/outcomes/" in key]
    changed = put(plain, range(0, 42, 6), "s0", node="another-node")
    new = put(plain, range(5, 42, 6), "s5")
    files.read.clear()
    done = passed(folder)
    assert sorted(key for key in files.read if "/outcomes/" in key) == sorted([changed, new])
    assert (done.num_read, done.objects) == (2, 6)
    assert changed in keys
    assert done.summary["complete"]
    anew = passed(new_copy(plain, tmp_path / "copy"))
    assert repr(done.grid.record(0, 0)) == repr(anew.grid.record(0, 0))
    assert done.digest == anew.digest


def new_copy(folder: SweepStore, place: Path) -> SweepStore:
    """The same outcomes elsewhere, with nothing that a pass has left."""
    assert isinstance(folder.files, LocalFiles)
    shutil.copytree(folder.files.root, place)
    for name in ("aggregate", "summary"):
        shutil.rmtree(place / SWEEP.id / name, ignore_errors=True)
    return Store(str(place)).sweep(SWEEP.id)


def test_what_was_deleted_from_the_store_is_not_remembered(folder: SweepStore) -> None:
    put(folder, range(20), "a")
    key = put(folder, range(20, 42), "b")
    assert passed(folder).summary["complete"]
    folder.files.discard([key])
    assert passed(folder).summary["counts"]["missing"] == 22


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "gone"])
def test_kept_rows_that_are_not_sound_are_read_anew(folder: SweepStore, damage: str) -> None:
    for shard in range(4):
        put(folder, range(shard, 42, 4), f"s{shard}")
    passed(folder)
    expected = summary_of(folder)
    (kept,) = rows_folder(folder).iterdir()
    data = bytearray(kept.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        del data[-100:]
    elif damage == "empty":
        data.clear()
    elif damage == "foreign":
        data[:] = b"something else"
    kept.write_bytes(data) if damage != "gone" else kept.unlink()
    assert passed(folder).num_read == 4
    assert summary_of(folder) == expected


def test_rows_of_another_sweep_or_release_are_not_taken(
    folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, ALL)
    passed(folder)
    monkeypatch.setattr("fractal_k8s.results.collect._FORMAT", 2)
    assert passed(folder).num_read == 1


def test_many_passes_leave_few_files(folder: SweepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fractal_k8s.results.collect._MOST_PARTS", 5)
    for index in ALL:
        put(folder, [index], f"s{index}")
        collect(folder, SWEEP)
    assert len([*rows_folder(folder).iterdir()]) <= 6
    assert collect(folder, SWEEP).num_read == 0
    assert passed(folder).summary["complete"]


def at(folder: SweepStore, key: str, seconds: int) -> None:
    """Gives a file a time as of an object store, in whole seconds from now."""
    assert isinstance(folder.files, LocalFiles)
    when = (time.time_ns() // 10**9 + seconds) * 10**9
    os.utime(folder.files.path(key), ns=(when, when))


def test_an_object_that_may_still_change_unseen_is_read_again(folder: SweepStore) -> None:
    """Object stores tell times in whole seconds, and of their own clock."""
    key = put(folder, ALL)
    at(folder, key, -60)  # or now, and this machine's clock is a minute late
    assert [collect(folder, SWEEP).num_read for _ in range(2)] == [1, 1]
    # something that was written later by the same clock
    mark = folder.key("aggregate", "state.json")
    folder.files.put(mark, b"{}")
    at(folder, mark, -60)
    assert [collect(folder, SWEEP).num_read for _ in range(2)] == [1, 1]
    at(folder, mark, -58)
    assert [collect(folder, SWEEP).num_read for _ in range(2)] == [1, 0]


def test_an_old_object_cannot_change_unseen(folder: SweepStore) -> None:
    at(folder, put(folder, ALL), -3600)
    assert [collect(folder, SWEEP).num_read for _ in range(2)] == [1, 0]


def test_what_was_read_as_another_object_than_was_listed_is_read_again(tmp_path: Path) -> None:
    plain = new_folder(tmp_path / "runs")
    key, other = put(plain, ALL), put(plain, range(20), "other")

    class Mistaken(LocalFiles):
        """Gives another object's body."""

        def get(self, asked: str) -> bytes | None:
            return super().get(other if asked == key else asked)

    wrong = collect(SweepStore(Mistaken(tmp_path / "runs"), SWEEP.id), SWEEP)
    assert len(wrong.table) == 20
    assert len(wrong.problems) == 1
    again = collect(plain, SWEEP)
    assert (again.num_read, len(again.table)) == (1, 62)


def test_a_store_that_cannot_be_written_is_collected_all_the_same(folder: SweepStore) -> None:
    put(folder, ALL)
    rows = rows_folder(folder)
    rows.parent.mkdir()
    rows.write_text("a file where a folder should be")
    assert len(collect(folder, SWEEP).table) == 42


# --- the same bytes ---


def test_the_bytes_depend_neither_on_order_nor_attempts_nor_passes(tmp_path: Path) -> None:
    random_ = random.Random(1)
    written = []
    for number in range(3):
        folder = new_folder(tmp_path / str(number))
        points = random_.sample([*ALL], 42)
        size = (42, 16, 21)[number]
        shards = [points[start : start + size] for start in range(0, 42, size)]
        for name, shard in enumerate(shards):
            put(folder, shard, f"s{random_.randrange(10**6)}-{name}")
            put(folder, shard[:2], f"again-{name}")  # an earlier attempt, with the same rows
            if number % 2:
                passed(folder)
        passed(folder)
        written.append(summary_of(folder))
    assert set(written[0]) == FILES
    for other in written[1:]:
        for name in FILES:
            assert other[name] == written[0][name], name


def test_rows_of_the_same_time_are_chosen_by_content(tmp_path: Path) -> None:
    tables = []
    for number, nodes in enumerate((("n1", "n2"), ("n2", "n1"))):
        folder = new_folder(tmp_path / str(number))
        for shard, node in zip("ab", nodes, strict=True):
            put(folder, ALL, shard, node=node)
        passed(folder)
        tables.append(summary_of(folder)["grid.parquet"])
    assert tables[0] == tables[1]


# one pass after another in a process, to be killed
_PASSES = """
import sys
from fractal_k8s.aggregate.passes import Passes
from fractal_k8s.results.store import Store
folder, plan = Store(sys.argv[1]).plan(sys.argv[2])
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    if number % 2:
        folder.files.remove(folder.key("aggregate", "rows"))
    Passes(folder, plan, allow_mixed=False, say=print).whole()
"""


def passes(folder: SweepStore, count: int) -> subprocess.Popen[bytes]:
    """A process that makes so many passes, and has started."""
    child = subprocess.Popen(
        [sys.executable, "-c", _PASSES, folder.files.uri, SWEEP.id, str(count)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_two_at_once_do_no_harm(folder: SweepStore) -> None:
    for shard in range(12):
        put(folder, range(shard, 42, 12), f"s{shard}")
    passed(folder)
    expected = summary_of(folder)
    folder.files.remove(folder.key("aggregate"))
    folder.files.remove(folder.key("summary"))
    for child in [passes(folder, 2) for _ in range(2)]:
        assert child.wait() == 0
        assert child.stdout is not None
        child.stdout.close()
    assert summary_of(folder) == expected
    assert passed(folder).digest


def test_killed_at_any_moment_it_leaves_a_whole_summary(folder: SweepStore) -> None:
    """That of the outcomes before or of those after, and every file by itself is whole."""
    for shard in range(6):
        put(folder, range(shard, 36, 6), f"s{shard}")
    passed(folder)
    before = summary_of(folder)
    put(folder, range(36, 42), "late")
    copy = new_copy(folder, Path(folder.files.uri).with_name("copy"))
    passed(copy)
    after = summary_of(copy)
    random_ = random.Random(2)
    # from before the first write to after the last; one pass takes about 0.6 s
    for _ in range(5):
        child = passes(folder, 1000)
        assert child.stdout is not None
        time.sleep(random_.uniform(0.2, 1.5))
        child.kill()
        child.wait()
        child.stdout.close()
        lying = {name: data for name, data in summary_of(folder).items() if name in FILES}
        assert set(lying) == FILES
        for name, data in lying.items():
            assert data in (before[name], after[name]), name
        published = published_files(folder)
        assert published is not None
        assert published.files in (before, after)
    passed(folder)
    assert {name: data for name, data in summary_of(folder).items() if name in FILES} == after


# --- what is wrong is named, and costs no other point ---


def test_every_kind_of_wrong_object_is_named(folder: SweepStore, run: Run) -> None:
    put(folder, range(1, 40), "sound")
    put(folder, range(40, 42), "truncated")
    key = folder.outcome_key("truncated", "1")
    whole = folder.files.get(key) or b""
    folder.files.put(key, whole[: len(whole) // 2])
    folder.files.put(folder.outcome_key("noise", "1"), b"not parquet at all")
    other = mlp_sweep(name="other", resolution=[6, 7])
    foreign = schema.to_table(other, [outcome_of(other, 0, [1.0])], [_BEGAN], _HERE)
    folder.files.put(folder.outcome_key("foreign", "1"), schema.to_bytes(foreign))
    newer = schema.to_table(SWEEP, [outcome(0)], [_BEGAN], _HERE)
    newer = newer.replace_schema_metadata({**newer.schema.metadata, b"fractal_k8s.schema": b"99"})
    folder.files.put(folder.outcome_key("newer", "1"), schema.to_bytes(newer))
    put(folder, [7], "twice", last=3.5, seconds=100)

    output = run("aggregate", SWEEP.id, "--store", folder.files.uri, code=65).output
    summary = folder.read_summary()
    assert summary is not None
    problems = "\n".join(summary["problems"])
    page = summary_of(folder)["report.html"].decode()
    for text in (
        "truncated-1.parquet: not a readable outcomes file",
        "noise-1.parquet: not a readable outcomes file",
        f"holds outcomes of {other.id}, not of {SWEEP.id}",
        "written with schema version 99",
        "point (1, 0) has 2 results that differ; the first counts",
    ):
        for place in (problems, output, page):
            assert text in place.replace("&#x27;", "'"), text
    assert len(summary["problems"]) == 5
    assert summary["counts"]["missing"] == 3  # 0, 40 and 41: the others are all there
    table = pq.read_table(Path(folder.files.uri, SWEEP.id, "summary", "grid.parquet"))
    assert len(table) == 39
    assert table.filter(pc.equal(table["i"], 1)).to_pylist()[0]["final_loss"] == 49 % 11


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]"])
def test_a_damaged_note_costs_no_map(folder: SweepStore, run: Run, damage: bytes) -> None:
    put(folder, ALL)
    folder.files.put(folder.key("notes", "forecast.json"), damage)
    output = run("aggregate", SWEEP.id, "--store", folder.files.uri, code=65).output
    assert "notes/forecast.json: a damaged note, left out; delete it" in output
    summary = folder.read_summary()
    assert summary is not None
    assert (summary["complete"], len(summary["problems"])) == (True, 1)
    assert "a damaged note" in run("status", SWEEP.id, "--store", folder.files.uri).output


def test_problems_are_named_again_by_every_pass(folder: SweepStore) -> None:
    put(folder, range(41))
    folder.files.put(folder.outcome_key("noise", "1"), b"noise")
    first, second = (passed(folder).summary["problems"] for _ in range(2))
    assert first == second != []


def test_an_object_that_is_written_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    plain = new_folder(tmp_path / "runs")
    put(plain, ALL)

    class Torn(LocalFiles):
        """Gives half of the first outcome object that is asked for."""

        torn = False

        def get(self, key: str) -> bytes | None:
            data = super().get(key)
            if "/outcomes/" in key and data and not self.torn:
                self.torn = True
                return data[: len(data) // 2]
            return data

    done = collect(SweepStore(Torn(tmp_path / "runs"), SWEEP.id), SWEEP)
    assert (done.problems, len(done.table)) == ([], 42)


# --- exit codes and partial maps ---


def test_a_partial_map_says_so_everywhere(folder: SweepStore, run: Run) -> None:
    put(folder, range(21))
    output = run("aggregate", "small", "--store", folder.files.uri, code=1).output
    assert "PARTIAL: 21 points missing, 0 failed" in output
    files = summary_of(folder)
    assert b"Partial map: 50.0% of the points have a verdict" in files["report.html"]
    manifest = json.loads(files["manifest.json"])
    assert (manifest["complete"], manifest["coverage"]) == (False, 0.5)
    put(folder, range(21, 42), "b")
    facts = json.loads(run("aggregate", "small", "--store", folder.files.uri, "--json").stdout)
    assert (facts["complete"], facts["read"], facts["objects"]) == (True, 1, 2)


def test_what_makes_no_sense_is_refused(run: Run) -> None:
    for typed in ([], ["x", "--all"], ["--all", "--until-complete"], ["x", "--context", "c"]):
        run("aggregate", *typed, code=2)


# --- every sweep of a store ---


def test_all_sweeps_but_those_that_have_not_changed(folder: SweepStore, run: Run) -> None:
    put(folder, ALL)
    store = Store(folder.files.uri)
    store.sweep("broken-0123456789").files.put("broken-0123456789/sweep.json", b"{")
    empty = Plan(mlp_sweep(name="empty"), Deal())
    store.sweep(empty.sweep.id).write_plan(empty)
    store.files.put("no-sweep/readme.txt", b"x")

    visits = {one.sweep_id: one for one in aggregate_all(store, allow_mixed=False, say=silent)}
    assert visits.pop("broken-0123456789").exit_code == 65
    assert {name: one.state for name, one in visits.items()} == {
        SWEEP.id: "complete",
        empty.sweep.id: "nothing stored",
    }
    place = Path(folder.files.uri, SWEEP.id, "summary", "report.html")
    written = place.stat().st_mtime_ns
    store.files.remove("broken-0123456789")
    output = run("aggregate", "--all", "--store", store.uri).output
    assert f"{SWEEP.id}  unchanged" in output
    assert place.stat().st_mtime_ns == written
    folder.put_note("data", {"sentences": []})
    output = run("aggregate", "--all", "--store", store.uri).output
    assert f"{SWEEP.id}  complete" in output


def silent(text: str) -> None:
    pass


# --- until it has ended ---

QUICK = Watch(every_s=0.05, patience_s=60.0)


def test_until_every_point_is_known(folder: SweepStore) -> None:
    put(folder, range(20))
    late = threading.Timer(1.0, lambda: put(folder, range(20, 42), "late"))
    late.start()
    lines: list[str] = []
    store = Store(folder.files.uri)
    plan, done = aggregate_until(store, SWEEP.id, QUICK, allow_mixed=False, say=lines.append)
    late.join()
    assert plan.sweep.id == SWEEP.id
    assert done.summary["complete"]
    assert lines[0] == "20 of 42 points, 1 objects read"
    assert lines[-1] == "42 of 42 points, 1 objects read"


def test_until_every_index_has_ended_with_holes(folder: SweepStore) -> None:
    put(folder, range(20))
    states = [JobsState(False, {}), ClusterError("away"), JobsState(False, {})]

    def jobs(sweep_id: str) -> JobsState:
        state = states.pop(0) if states else JobsState(True, {})
        if isinstance(state, ClusterError):
            raise state
        if not states:
            put(folder, range(20, 40), "late")  # just before the Job ended
        return state

    lines: list[str] = []
    watch = replace(QUICK, patience_s=0.0, jobs=jobs)
    store = Store(folder.files.uri)
    _, done = aggregate_until(store, SWEEP.id, watch, allow_mixed=False, say=lines.append)
    assert done.summary["counts"]["missing"] in (2, 22)
    assert done.exit_code == 1
    assert any("the cluster does not say how the Job stands: away" in line for line in lines)


def test_until_nothing_new_comes(folder: SweepStore) -> None:
    put(folder, range(20))
    watch = Watch(every_s=0.05, patience_s=0.3)
    store = Store(folder.files.uri)
    _, done = aggregate_until(store, SWEEP.id, watch, allow_mixed=False, say=silent)
    assert done.summary["counts"]["missing"] == 22


def test_a_sweep_of_which_nothing_is_stored_ends_with_a_sentence(tmp_path: Path) -> None:
    watch = Watch(every_s=0.05, patience_s=0.2)
    store = Store(str(tmp_path / "runs"))
    with pytest.raises(IncompleteError, match="no worker has stored anything in"):
        aggregate_until(store, SWEEP.id, watch, allow_mixed=False, say=silent)


def test_points_that_are_not_one_map_are_told_at_once(folder: SweepStore) -> None:
    """Waiting changes nothing: what is stored stays of two classes."""
    put(folder, range(20))
    put(folder, range(20, 30), "b", numerics_class="other")
    lines: list[str] = []
    store = Store(folder.files.uri)
    watch = replace(QUICK, patience_s=3.0)
    with pytest.raises(ConflictError, match="not one map"):
        aggregate_until(store, SWEEP.id, watch, allow_mixed=False, say=lines.append)
    assert lines == []


def test_who_waits_for_a_job_is_told_that_its_points_are_not_one_map(folder: SweepStore) -> None:
    """Not that every shard is done, as where the store cannot be written to from here."""
    put(folder, range(20))
    put(folder, range(20, 42), "b", numerics_class="other")
    attached = Attached(PLAN, folder, cast("K8sRun", None))
    with pytest.raises(ConflictError, match="not one map"):
        attached.finish(Status(pending=0, done=2), allow_mixed=False)


def test_a_store_that_is_away_when_the_job_ends_is_asked_again(
    folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, ALL)
    away = [True, True]
    listed = LocalFiles.entries

    def entries(self: LocalFiles, prefix: str) -> list[Entry]:
        if away and prefix == SWEEP.id:
            away.pop()
            raise StoreError("away")
        return listed(self, prefix)

    monkeypatch.setattr(LocalFiles, "entries", entries)
    lines: list[str] = []
    watch = replace(QUICK, jobs=lambda sweep_id: JobsState(True, {}))
    store = Store(folder.files.uri)
    _, done = aggregate_until(store, SWEEP.id, watch, allow_mixed=False, say=lines.append)
    assert done.summary["complete"]
    assert lines == ["away; trying again", "42 of 42 points, 1 objects read"]


def test_a_cluster_is_asked_by_the_whole_id_of_a_sweep_that_a_person_names(
    folder: SweepStore,
) -> None:
    put(folder, range(20))
    asked: list[str] = []

    def jobs(sweep_id: str) -> JobsState:
        asked.append(sweep_id)
        return JobsState(True, {})

    watch = replace(QUICK, jobs=jobs)
    aggregate_until(Store(folder.files.uri), "small", watch, allow_mixed=False, say=silent)
    assert asked == [SWEEP.id]


def test_it_waits_for_a_sweep_s_first_worker(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs"))
    late = threading.Timer(0.4, lambda: put(new_folder(tmp_path / "runs"), ALL))
    late.start()
    _, done = aggregate_until(store, SWEEP.id, QUICK, allow_mixed=False, say=silent)
    late.join()
    assert done.summary["complete"]


def test_a_listing_that_was_made_is_not_made_again(folder: SweepStore) -> None:
    put(folder, ALL)
    listing = list_sweep(folder)
    put(folder, [0], "later")
    assert collect(folder, SWEEP, listing=listing).objects == 1


def test_who_visits_every_sweep_accepts_what_a_launch_s_own_aggregator_did(
    folder: SweepStore, run: Run
) -> None:
    put(folder, range(20))
    put(folder, range(20, 42), "b", numerics_class="other")
    typed = ("aggregate", "--all", "--store", folder.files.uri)
    assert "2 numerics classes, which are not one map" in run(*typed, code=65).output
    run("aggregate", SWEEP.id, "--store", folder.files.uri, "--allow-mixed")
    assert "unchanged" in run(*typed).output


# --- W&B ---


def test_a_summary_is_one_run_of_w_and_b(folder: SweepStore) -> None:
    """Offline, so that what would have been sent lies in the store."""
    put(folder, ALL)
    place = Path(folder.files.uri, SWEEP.id, "wandb")
    stored = ("--store", folder.files.uri)
    for _ in range(2):  # the second pass has nothing new to track
        done = subprocess.run(
            [sys.executable, "-m", "fractal_k8s", "aggregate", SWEEP.id, *stored],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder.files.uri,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "FRACTAL_K8S_WANDB_PROJECT": "maps",
                "FRACTAL_K8S_WANDB_MODE": "summary",
                "WANDB_MODE": "offline",
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "not everything" not in done.stdout
        (run_file,) = place.glob(f"summary-*/offline-run-*-{SWEEP.id}/run-{SWEEP.id}.wandb")
    written = run_file.read_bytes()
    for name in (b"trainable_fraction", b"points/diverged", b"grid.parquet", b"map", b"report"):
        assert name in written, name
    media = {path.suffix for path in run_file.parent.rglob("media/**/*") if path.is_file()}
    assert {".png", ".html"} <= media
