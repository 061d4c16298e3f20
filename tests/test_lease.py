"""One launcher per sweep in object storage."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.aggregate import read_grid
from fractal_k8s.errors import ConflictError
from fractal_k8s.results import lease
from fractal_k8s.results.lock import SweepLock, is_locked
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.worker import Worker


@pytest.fixture
def folder(bucket: str, monkeypatch: pytest.MonkeyPatch) -> SweepStore:
    monkeypatch.setattr(lease, "_SETTLE_S", 0.05)
    return Store(bucket).sweep("x")


def left(folder: SweepStore, name: str, **content: Any) -> None:
    folder.files.put(folder.key("running", name), json.dumps(content).encode())


def leases(folder: SweepStore) -> list[str]:
    return [entry.key for entry in folder.files.entries(folder.key("running"))]


def test_a_sweep_in_a_bucket_has_one_launcher(folder: SweepStore) -> None:
    assert is_locked(folder) is None  # pods may train it
    with SweepLock(folder) as lock:
        assert lock.handle is None
        assert is_locked(folder) is True
        with (
            pytest.raises(ConflictError, match=rf"x is being trained by process {os.getpid()} on"),
            SweepLock(folder),
        ):
            raise AssertionError("a second one")
        assert len(leases(folder)) == 1
    assert leases(folder) == []
    with SweepLock(folder):
        pass


@pytest.mark.parametrize(("name", "gives_way"), [("0.json", True), ("~.json", False)])
def test_of_two_that_ask_at_once_one_gives_way(
    name: str, gives_way: bool, folder: SweepStore
) -> None:
    left(folder, name, state="asks", host="other", process=7)
    if gives_way:
        with pytest.raises(ConflictError, match="process 7 on other"):
            SweepLock(folder).__enter__()
        assert len(leases(folder)) == 1
    else:
        with SweepLock(folder):
            assert len(leases(folder)) == 2


def test_a_launcher_that_is_gone_is_not_waited_for(
    folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(folder, "~.json", state="holds", host="other", process=7)
    with pytest.raises(ConflictError, match=r"try again in 90 s"):
        SweepLock(folder).__enter__()
    monkeypatch.setattr(lease, "_GONE_S", -1.0)
    with SweepLock(folder):
        assert len(leases(folder)) == 1  # what it left is gone, too


def test_a_lease_is_renewed(folder: SweepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEWED_S", 0.05)
    with SweepLock(folder):
        (key,) = leases(folder)
        folder.files.discard([key])
        deadline = time.monotonic() + 240
        while not leases(folder):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_where_nothing_may_be_deleted_a_lease_ends_all_the_same(
    folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(folder.files), "discard", lambda *_: None)
    with SweepLock(folder):
        pass
    assert len(leases(folder)) == 1
    with SweepLock(folder):
        pass


def test_an_object_that_says_nothing_is_somebodys(folder: SweepStore) -> None:
    folder.files.put(folder.key("running", "~.json"), b"")
    with pytest.raises(ConflictError, match="process unknown on another machine"):
        SweepLock(folder).__enter__()


def test_points_that_a_pod_has_just_stored_are_not_trained_beside_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(lease, "_SETTLE_S", 0.05)
    sweep = mlp_sweep(resolution=[4, 4])
    folder = Store(bucket).sweep(sweep.id)
    plan = Plan(sweep, Deal(points_per_shard=8))
    folder.write_plan(plan)
    with monkeypatch.context() as pod:
        pod.setenv("POD_NAME", "small-0-abcde")
        Worker(folder, plan, 0).run()
    stopped = run("resume", "small", "--store", bucket, "--backend", "inline", code=2)
    assert "pod small-0-abcde of a cluster stored points" in stopped.stderr
    assert "give --beside-pods" in stopped.stderr
    assert int(read_grid(folder, plan).known.sum()) == 8
    run("resume", "small", "--store", bucket, "--backend", "inline", "--beside-pods")
    assert read_grid(folder, plan).known.all()
    # this machine's own points are in nobody's way
    folder.files.remove(folder.key("outcomes"))
    Worker(folder, plan, 0).run()
    run("resume", "small", "--store", bucket, "--backend", "inline")
    assert read_grid(folder, plan).known.all()
