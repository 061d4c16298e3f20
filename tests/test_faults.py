"""Object storage that makes trouble: what may pass is tried again, the rest told, no map wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from faults import Fault, FaultyProxy
from fractal_k8s.aggregate import aggregate
from fractal_k8s.errors import StoreError, UsageError
from fractal_k8s.results import files, listing, retries, tally
from fractal_k8s.results.collect import collect
from fractal_k8s.results.files import open_files
from fractal_k8s.results.listing import list_sweep
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.results.tally import TallyReader
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


@pytest.mark.parametrize("kind", ["slow down", "too many", "error", "reset", "cut", "slow"])
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


@pytest.mark.parametrize("kind", ["slow down", "reset"])
def test_a_question_whether_something_is_there_is_asked_again(
    kind: str, proxy: FaultyProxy, folder: SweepStore
) -> None:
    proxy.faults.append(Fault(kind, count=5, method="HEAD"))
    assert folder.read_plan() == PLAN
    assert proxy.met == [kind] * 5


@pytest.mark.parametrize("kind", ["slow down", "reset", "cut"])
def test_trouble_in_the_middle_of_a_listing_loses_no_page(
    kind: str, proxy: FaultyProxy, folder: SweepStore, expected: str
) -> None:
    proxy.page = 2
    proxy.faults.append(Fault(kind, count=5, path="continuation-token"))
    assert aggregate(folder, PLAN).digest == expected
    assert proxy.met == [kind] * 5


@pytest.mark.parametrize("path", ["continuation-token", "list-type"])
def test_a_page_without_a_body_does_not_end_a_listing(
    path: str,
    proxy: FaultyProxy,
    folder: SweepStore,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client takes it for the last page, which says that there is no more."""
    monkeypatch.setattr(listing, "_PAUSE_S", 0.01)
    proxy.page = 3
    proxy.faults.append(Fault("empty", count=1, path=path))
    assert passed(folder).digest == expected
    assert proxy.met == ["empty"]
    proxy.faults.append(Fault("empty", count=1000, path="continuation-token"))
    with pytest.raises(StoreError, match=r"listing ends before sweep\.json, which is there"):
        passed(folder)
    summary = folder.read_summary()
    assert summary is not None
    assert summary["complete"]


def test_an_answer_that_comes_byte_by_byte_is_given_up(
    proxy: FaultyProxy, folder: SweepStore, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.outcome_entries()  # the bucket was asked for
    monkeypatch.setattr(retries, "_ANSWER_S", 1.5)
    proxy.faults.append(Fault("drip", count=1, method="GET", path="s3-1.parquet"))
    assert aggregate(folder, PLAN).digest == expected
    assert proxy.met == ["drip"]
    monkeypatch.setenv(retries.VARIABLE, "1")
    proxy.faults.append(Fault("drip", count=1000, method="GET", path="/outcomes/"))
    began = time.monotonic()
    with pytest.raises(StoreError, match="the server's answer comes too slowly"):
        aggregate(folder, PLAN)
    assert time.monotonic() - began < 100


def test_a_listing_that_comes_byte_by_byte_is_given_up(
    proxy: FaultyProxy, folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LISTING_S", 1.5)
    monkeypatch.setenv(retries.VARIABLE, "1")
    proxy.faults.append(Fault("drip", count=1000, method="GET", path="list-type"))
    with pytest.raises(StoreError, match=r"cannot list .*: the server's answer comes too slowly"):
        list_sweep(folder)


def test_parts_of_a_large_object_that_come_byte_by_byte_are_had_as_a_whole(
    proxy: FaultyProxy, folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TallyReader(folder, SWEEP).refresh().states.tolist()
    monkeypatch.setattr(tally, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(retries, "_ANSWER_S", 1.5)
    proxy.faults.append(Fault("drip", count=1, method="GET", path="s3-1.parquet"))
    assert TallyReader(folder, SWEEP).refresh().states.tolist() == expected
    assert proxy.met == ["drip"]


def test_a_pass_that_gave_up_ends(proxy: FaultyProxy, folder: SweepStore) -> None:
    """Requests that still run hold no process."""
    proxy.drip_s = 600.0
    proxy.faults.append(Fault("drip", count=1000, method="GET", path="/outcomes/"))
    code = (
        "from fractal_k8s.results import retries; retries._ANSWER_S = 1.0;"
        "from fractal_k8s.__main__ import run; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "aggregate", SWEEP.id, "--store", folder.files.uri],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, retries.VARIABLE: "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "the server's answer comes too slowly" in done.stderr


def test_a_bucket_that_is_gone_in_the_middle_of_a_listing_is_told(
    proxy: FaultyProxy, folder: SweepStore
) -> None:
    proxy.page = 2
    proxy.faults.append(Fault("no bucket", path="continuation-token"))
    with pytest.raises(StoreError, match="no such bucket"):
        folder.outcome_entries()


def test_an_answer_without_its_body_is_no_outcome(
    proxy: FaultyProxy, folder: SweepStore, expected: str
) -> None:
    """The client fills it up with what its memory holds, which may be another object."""
    collect(folder, SWEEP, keep=False)
    proxy.faults.append(Fault("empty", count=1, method="GET", path="/outcomes/"))
    done = aggregate(folder, PLAN)
    assert proxy.met == ["empty"]
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
    method: str, proxy: FaultyProxy, folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retries.VARIABLE, "120")
    proxy.faults.append(Fault("denied", count=1000, method=method, path="/outcomes"))
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        collect(folder, SWEEP) if method == "GET" else put(folder, ALL, "new")
    assert time.monotonic() - began < 60
    text = str(caught.value)
    assert "access denied; check the credentials and their rights on the bucket" in text
    assert "secret-that-nobody-may-see" not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("kind", "said", "without_a_body"),
    [
        ("expired", "the keys have expired; get new ones", "whether the keys are over"),
        ("skewed", "this machine's clock differs from the server's", "access denied"),
        ("elsewhere", "in another region; give it with ?region=", "check endpoint, region"),
        ("denied", "access denied; check the credentials", "access denied"),
        ("no bucket", "no such bucket", "no such bucket"),
    ],
)
def test_what_does_not_pass_is_told_at_once(
    kind: str,
    said: str,
    without_a_body: str,
    proxy: FaultyProxy,
    folder: SweepStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(retries.VARIABLE, "120")
    files = open_files(folder.files.uri)
    proxy.faults.append(Fault(kind, count=1000))
    began = time.monotonic()
    for request, words in (
        (lambda: files.entries(""), said),
        (lambda: files.put("a", b"b"), said),
        (lambda: files.get("a"), without_a_body),
    ):
        with pytest.raises(StoreError, match=re.escape(words)):
            request()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "list-type"), ("GET", "/outcomes/"), ("PUT", "/summary/")],
    ids=["list", "get", "put"],
)
def test_one_right_that_is_missing_ends_the_command_with_a_sentence(
    method: str, path: str, proxy: FaultyProxy, folder: SweepStore, run: Run
) -> None:
    proxy.faults.append(Fault("denied", count=1000, method=method, path=path))
    output = run("aggregate", SWEEP.id, "--store", folder.files.uri, code=2).output
    assert "access denied; check the credentials and their rights on the bucket" in output
    proxy.faults.clear()
    assert folder.read_summary() is None


def test_words_in_a_name_are_no_words_of_the_server(proxy: FaultyProxy, folder: SweepStore) -> None:
    for name in ("credentials-forbidden", "bucket does not exist"):
        proxy.faults.append(Fault("slow down", count=5))
        folder.files.put(name, b"x")
        assert folder.files.get(name) == b"x"
    assert len(proxy.met) == 10


def test_seconds_that_are_no_number_are_refused(
    folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ("soon", "-1", "nan"):
        monkeypatch.setenv(retries.VARIABLE, given)
        with pytest.raises(UsageError, match=f"must be a number of seconds, got '{given}'"):
            folder.files.get("a")


# --- what is too large for one request ---

LARGE = bytes(range(256)) * 50_000  # 12.8 MB, two parts


@pytest.mark.parametrize("kind", ["slow down", "reset"])
def test_a_large_write_goes_through_trouble(
    kind: str, proxy: FaultyProxy, folder: SweepStore
) -> None:
    proxy.faults.append(Fault(kind, count=4, method="PUT", path="partNumber=2"))
    folder.files.put("x/large", LARGE)
    assert kind in proxy.met
    assert folder.files.get("x/large") == LARGE
    assert [entry.key for entry in folder.files.entries("x")] == ["x/large"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "uploads"), ("PUT", "partNumber=1"), ("PUT", "partNumber=2"), ("POST", "uploadId")],
)
def test_a_large_write_that_fails_leaves_what_was_there(
    method: str, path: str, proxy: FaultyProxy, folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retries.VARIABLE, "0")
    folder.files.put("x/large", b"old")
    proxy.faults.append(Fault("denied", count=1000, method=method, path=path))
    with pytest.raises(StoreError):
        folder.files.put("x/large", LARGE)
    proxy.faults.clear()
    assert folder.files.get("x/large") == b"old"
    assert [entry.key for entry in folder.files.entries("x")] == ["x/large"]


def test_trouble_that_does_not_pass_ends_in_time(
    proxy: FaultyProxy, folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retries.VARIABLE, "1")
    proxy.faults.append(Fault("slow down", count=10_000))
    began = time.monotonic()
    with pytest.raises(StoreError, match="the trouble may pass: try again later"):
        folder.files.get(folder.key("sweep.json"))
    assert time.monotonic() - began < 29  # shorter than without the variable


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


def test_a_bucket_that_is_not_there_is_told(proxy: FaultyProxy, run: Run) -> None:
    uri = f"s3://nowhere/x?endpoint={proxy.url}"
    for request in (
        lambda: open_files(uri).put("a", b"b"),
        lambda: open_files(uri).get("a"),
        lambda: open_files(uri).entries(""),
        lambda: open_files(uri).folders(),
    ):
        with pytest.raises(StoreError, match=r"s3://nowhere/x.*: no such bucket"):
            request()
    for typed in (["--all"], [SWEEP.id]):
        assert "no such bucket" in run("aggregate", *typed, "--store", uri, code=2).output


def test_a_server_that_says_yes_to_everything_is_no_store(proxy: FaultyProxy) -> None:
    files = open_files(f"s3://fractal/x?endpoint={proxy.url}")
    proxy.faults.append(Fault("hello", count=1000))
    for request in (lambda: files.entries(""), lambda: files.folders()):
        with pytest.raises(StoreError, match="the endpoint does not speak S3"):
            request()
