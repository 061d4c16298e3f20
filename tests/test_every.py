"""A pass over a store of many sweeps: what finished ones cost, what is told at every pass."""

from __future__ import annotations

import collections
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Run, mlp_sweep
from faults import FaultyProxy
from fractal_k8s.aggregate.every import Visit, aggregate_all
from fractal_k8s.results import listing
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from test_aggregate import ALL, SWEEP, folder, passed, put, silent, summary_of
from test_cron import named
from test_cron import put as put_of

__all__ = ["folder"]  # a fixture


def visits(store: Store) -> dict[str, Visit]:
    return {one.sweep_id: one for one in aggregate_all(store, allow_mixed=False, say=silent)}


class Counting(FaultyProxy):
    """Counts requests by what they ask for."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.asked: collections.Counter[str] = collections.Counter()

    def plan(self, method: str, path: str) -> str:
        with self._lock:
            self.asked["list" if "list-type" in path else method] += 1
        return super().plan(method, path)


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client: Any = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    client.create_bucket(Bucket="fractal")
    with Counting(moto) as running:
        yield running


def fill(store: Store) -> None:
    """Two finished sweeps and one that is not, all of them drawn."""
    for number in range(3):
        sweep = named(f"s{number}")
        folder = store.sweep(sweep.id)
        folder.write_plan(Plan(sweep, Deal()))
        put_of(folder, sweep, range(sweep.num_points - (number == 2)))
    visits(store)


def test_a_finished_sweep_costs_one_listing_and_one_read(
    proxy: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"s3://fractal/{tmp_path.name}?endpoint={proxy.url}")
    monkeypatch.setattr(listing, "_MOST_SKEW_NS", -(10**10))  # as if time had passed
    fill(store)
    proxy.asked.clear()
    assert [one.state for one in visits(store).values()] == ["unchanged"] * 3
    # the first listing tells which sweeps there are
    assert proxy.asked["list"] == 1 + 3
    # of the one that is not finished its definition is read, and its record once more
    assert proxy.asked["GET"] == 2 + 3
    assert proxy.asked["PUT"] == proxy.asked["DELETE"] == 0


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("filled")
    fill(Store(str(place)))
    return place


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Store:
    return Store(str(shutil.copytree(filled, tmp_path / "runs")))


@pytest.mark.parametrize("change", ["outcome", "deleted", "note", "page", "definition", "record"])
def test_whatever_changes_in_a_finished_sweep_is_noticed(store: Store, change: str) -> None:
    sweep = named("s1")
    folder = store.sweep(sweep.id)
    if change == "outcome":
        put_of(folder, sweep, range(5, 9))
    elif change == "deleted":
        folder.files.remove(folder.key("outcomes"))
        put_of(folder, sweep, range(1, sweep.num_points))
    elif change == "note":
        folder.put_note("remark", {"text": "x"})
    elif change == "page":
        folder.files.discard([folder.key("summary", "report.html")])
    elif change == "definition":
        folder.files.put(folder.key("sweep.json"), b"{")
    else:
        folder.files.put(folder.key("aggregate", "state.json"), b"[1]")
    found = visits(store)
    assert found[sweep.id].state == {
        "deleted": "partial",
        "definition": "problem",
    }.get(change, "complete")
    assert {one.state for name, one in found.items() if name != sweep.id} == {"unchanged"}
    if change == "page":
        assert folder.files.get(folder.key("summary", "report.html")) is not None


def test_what_is_wrong_with_a_finished_sweep_is_told_at_every_pass(
    folder: SweepStore, run: Run
) -> None:
    put(folder, ALL)
    folder.files.put(folder.outcome_key("noise", "1"), b"not parquet at all")
    for state in ("complete", "unchanged", "unchanged"):
        output = run("aggregate", "--all", "--store", folder.files.uri, code=65).output
        assert f"{SWEEP.id}  {state}, 100.0% with a verdict" in output
        assert "noise-1.parquet: not a readable outcomes file" in output


def test_zooms_are_not_read_for_each_of_their_family(tmp_path: Path) -> None:
    """Whose summary is read once, is not read once more for a relative."""
    from test_aggregate import Counted

    files = Counted(tmp_path / "runs")
    store = Store(str(tmp_path / "runs"))
    parent = None
    for number in range(4):
        origin = {"parent": parent, "box": [[0, 2], [0, 2]]} if parent else None
        sweep = mlp_sweep(name=f"z{number}", verdict={"window": 1}, origin=origin)
        folder = store.sweep(sweep.id)
        folder.write_plan(Plan(sweep, Deal()))
        put_of(folder, sweep, range(sweep.num_points))
        parent = sweep.id
    for _ in range(5):  # until each knows the numbers of the others
        visits(store)
    store.files = files
    assert {one.state for one in visits(store).values()} == {"unchanged"}
    read = [key for key in files.read if key.endswith("analysis.json")]
    assert len(read) == len(set(read)) == 4
    assert not [key for key in files.read if key.endswith("sweep.json")]


# --- a map never shrinks silently ---


def test_objects_that_are_gone_are_told_once(folder: SweepStore, run: Run) -> None:
    put(folder, range(20), "a")
    key = put(folder, range(20, 42), "b")
    passed(folder)
    folder.files.discard([key])
    typed = ("aggregate", "--all", "--store", folder.files.uri)
    output = run(*typed).output
    assert "1 of 2 outcome objects that the last pass saw are gone from the store" in output
    assert "22 points fewer have a verdict than when it was drawn last" in output
    assert "gone" not in run(*typed).output
    folder.files.remove(folder.key("outcomes"))
    output = run(*typed, code=65).output
    assert "problem: all 1 outcome objects that the last pass saw are gone" in output
    assert b"Partial map" in summary_of(folder)["report.html"]


def test_outcomes_that_were_written_again_with_less_are_told(folder: SweepStore, run: Run) -> None:
    put(folder, ALL)
    passed(folder)
    put(folder, range(40))
    output = run("aggregate", SWEEP.id, "--store", folder.files.uri, code=1).output
    assert "2 points fewer have a verdict than when it was drawn last" in output


# --- many problems ---


def test_of_many_problems_all_stand_in_a_file_and_the_first_ones_elsewhere(
    folder: SweepStore, run: Run
) -> None:
    put(folder, ALL)
    for number in range(150):
        folder.files.put(folder.outcome_key(f"noise{number:03d}", "1"), b"noise")
    typed = ("--store", folder.files.uri)
    more = "and 50 more; aggregate names all in summary/problems.txt"
    for command in (("aggregate", SWEEP.id), ("aggregate", "--all")):
        output = run(*command, *typed, code=65).output
        assert output.count("noise") == 100
        assert more in output
    assert run("status", SWEEP.id, *typed).output.count("not a readable") == 100
    files = summary_of(folder)
    named = files["problems.txt"].decode().splitlines()
    assert len(named) == len(set(named)) == 150
    page = files["report.html"].decode()
    assert page.count("not a readable outcomes file") == 100
    assert more in page
    summary = folder.read_summary()
    assert summary is not None
    assert (len(summary["problems"]), summary["num_problems"]) == (100, 150)
    for entry in folder.outcome_entries():
        if "noise" in entry.key:
            folder.files.discard([entry.key])
    run("aggregate", SWEEP.id, *typed)
    assert "problems.txt" not in summary_of(folder)
