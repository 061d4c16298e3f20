"""The store on a real HTTP S3 server (moto's)."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import mlp_sweep
from fractal_k8s.aggregate import aggregate, read_grid
from fractal_k8s.backends import Work
from fractal_k8s.backends.inline import InlineBackend
from fractal_k8s.errors import StoreError
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal


def test_a_sweep_trains_into_a_bucket_and_resumes_from_it(bucket: str) -> None:
    sweep = mlp_sweep(resolution=[4, 5])
    store = Store(bucket)
    folder = store.sweep(sweep.id)
    plan = Plan(sweep, Deal(points_per_shard=8))
    folder.write_plan(plan)
    seen: list[Any] = []
    first = InlineBackend().submit(Work(folder, plan), seen.append)
    assert first.wait().done == 3
    assert len(seen) == 20
    assert read_grid(folder, plan).known.all()
    assert store.sweep_ids() == [sweep.id]
    assert store.plan("small")[1] == plan

    again = InlineBackend().submit(Work(folder, plan), seen.append)
    assert again.wait().done == 3
    assert len(seen) == 20  # nothing was trained twice

    done = aggregate(folder, plan)
    assert done.summary["complete"]
    assert folder.read_summary() == done.summary
    assert len(folder.read_logs()) == 20


def test_a_small_write_is_one_request(
    bucket: str, moto: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="werkzeug")
    files = Store(bucket.replace("/maps", "/single")).files
    files.put("a/b", b"x" * 1000)
    assert files.get("a/b") == b"x" * 1000
    assert files.get("a/missing") is None
    assert [entry.key for entry in files.entries("a")] == ["a/b"]
    assert [entry.key for entry in files.entries("")] == ["a/b"]  # no marker objects
    writes = [line for line in caplog.messages if '"PUT /' in line or '"POST /' in line]
    assert len([line for line in writes if "a/b" in line]) == 1


def test_a_place_is_shown_without_its_options(bucket: str) -> None:
    assert Store(bucket).sweep("x").where("summary") == "s3://fractal/maps/x/summary"


def test_a_missing_bucket_is_named(moto: str, bucket: str) -> None:
    files = Store(f"s3://nowhere/x?endpoint={moto}").files
    with pytest.raises(StoreError, match="cannot write s3://nowhere"):
        files.put("a", b"b")


def test_an_unreachable_server_is_an_error_of_the_store(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Store("s3://fractal/x?endpoint=http://127.0.0.1:9").files
    with pytest.raises(StoreError, match="cannot read"):
        files.get("a")
