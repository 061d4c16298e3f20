"""Object storage that makes trouble: what may pass is tried again, the rest told, no map wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults import Fault, FaultyProxy
from fractal_k8s.aggregate import aggregate
from fractal_k8s.errors import StoreError
from fractal_k8s.results import retries
from fractal_k8s.results.collect import collect
from fractal_k8s.results.store import Store, SweepStore
from test_aggregate import ALL, PLAN, SWEEP, new_folder, passed, put


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-that-nobody-may-see")
    monkeypatch.setenv(retries.VARIABLE, "20")
    client: Any = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    client.create_bucket(Bucket="fractal")
    with FaultyProxy(moto) as running:
        yield running


@pytest.fixture
def folder(proxy: FaultyProxy, tmp_path: Path) -> SweepStore:
    """A stored sweep behind the proxy."""
    store = Store(f"s3://fractal/{tmp_path.name}?endpoint={proxy.url}")
    folder = store.sweep(SWEEP.id)
    folder.write_plan(PLAN)
    for shard in range(8):
        put(folder, range(shard, 42, 8), f"s{shard}")
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the map as a folder of this machine gives it."""
    folder = new_folder(tmp_path_factory.mktemp("plain"))
    for shard in range(8):
        put(folder, range(shard, 42, 8), f"s{shard}")
    return aggregate(folder, PLAN).digest


@pytest.mark.parametrize("kind", ["slow down", "error", "reset", "cut", "slow"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_trouble_that_passes_changes_nothing(
    kind: str, method: str, proxy: FaultyProxy, folder: SweepStore, expected: str
) -> None:
    # more than the client's own three tries in a row
    proxy.faults.append(Fault(kind, count=2 if kind == "slow" else 5, method=method))
    done = passed(folder)
    assert kind in proxy.met
    assert done.summary["problems"] == []
    assert done.digest == expected


def test_a_storm_changes_nothing_either(
    proxy: FaultyProxy, folder: SweepStore, expected: str
) -> None:
    for kind in ("slow down", "reset", "cut", "error"):
        proxy.faults.append(Fault(kind, count=1000, share=0.08))
    for _ in range(3):
        assert passed(folder).digest == expected
    assert {"slow down", "reset", "cut", "error"} <= set(proxy.met)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_right_that_is_missing_is_told_at_once(
    method: str, proxy: FaultyProxy, folder: SweepStore
) -> None:
    proxy.faults.append(Fault("denied", count=1000, method=method, path="/outcomes"))
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        collect(folder, SWEEP) if method == "GET" else put(folder, ALL, "new")
    assert time.monotonic() - began < 10
    text = str(caught.value)
    assert "access denied; check the credentials and their rights on the bucket" in text
    assert "secret-that-nobody-may-see" not in text
    assert "\n" not in text


def test_trouble_that_does_not_pass_ends_in_time(
    proxy: FaultyProxy, folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retries.VARIABLE, "1")
    proxy.faults.append(Fault("slow down", count=10_000))
    began = time.monotonic()
    with pytest.raises(StoreError, match="the trouble may pass: try again later"):
        folder.files.get(folder.key("sweep.json"))
    assert time.monotonic() - began < 15


def test_a_pass_that_fails_leaves_the_last_summary(
    proxy: FaultyProxy, folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregate(folder, PLAN)
    before = folder.read_summary()
    put(folder, [0], "late", last=1.0)
    monkeypatch.setenv(retries.VARIABLE, "0")
    proxy.faults.append(Fault("denied", count=1000, method="GET", path="late"))
    with pytest.raises(StoreError):
        aggregate(folder, PLAN)
    proxy.faults.clear()
    assert folder.read_summary() == before


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        pytest.param("http://127.0.0.1:9", "the server cannot be reached", id="nobody there"),
        pytest.param("http://no-such-host.invalid", "the server cannot be reached", id="no host"),
    ],
)
def test_a_wrong_endpoint_is_told(
    endpoint: str, said: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retries.VARIABLE, "0.5")
    files = Store(f"s3://fractal/x?endpoint={endpoint}").files
    for request in (lambda: files.get("a"), lambda: files.entries(""), lambda: files.put("a", b"")):
        with pytest.raises(StoreError, match=said):
            request()


def test_a_bucket_that_is_not_there_is_told(proxy: FaultyProxy) -> None:
    files = Store(f"s3://nowhere/x?endpoint={proxy.url}").files
    with pytest.raises(StoreError, match="no such bucket"):
        files.put("a", b"b")
