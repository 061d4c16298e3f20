"""Rights and signatures on a second S3 server, OpenStack Swift; see tests/swift.py to have one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fractal_k8s.aggregate import aggregate
from fractal_k8s.errors import StoreError
from fractal_k8s.results.collect import collect
from fractal_k8s.results.reach import are_keys_wrong, why_unreadable
from fractal_k8s.results.store import Store
from swift import USERS, Swift
from test_aggregate import PLAN, SWEEP, new_folder, passed, put

_ROOT = os.environ.get("FRACTAL_K8S_TEST_SWIFT", "")  # before a fixture cleans the environment

pytestmark = pytest.mark.skipif(
    not Path(_ROOT, "bin", "swift-proxy-server").exists(),
    reason="Swift is not installed: `python tests/swift.py FOLDER` installs it, and "
    "FRACTAL_K8S_TEST_SWIFT=FOLDER names it",
)

As = Callable[[str, str], None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import boto3

    with Swift(Path(_ROOT).absolute(), tmp_path_factory.mktemp("swift")) as running:
        user, key = "test:tester", USERS["test:tester"]
        client: Any = boto3.client(
            "s3",
            endpoint_url=running.url,
            region_name="us-east-1",
            aws_access_key_id=user,
            aws_secret_access_key=key,
        )
        client.create_bucket(Bucket="fractal")
        yield running.url


@pytest.fixture
def log_in(monkeypatch: pytest.MonkeyPatch) -> As:
    """Whom the client is from then on."""

    def change(user: str, key: str) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", user)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key)

    change("test:tester", USERS["test:tester"])
    return change


def uri(server: str, prefix: str) -> str:
    return f"s3://fractal/{prefix}?endpoint={server}&region=us-east-1"


def test_a_sweep_is_put_together_as_anywhere(server: str, log_in: As, tmp_path: Path) -> None:
    plain = new_folder(tmp_path / "plain")
    folder = Store(uri(server, "maps")).sweep(SWEEP.id)
    folder.write_plan(PLAN)
    for shard in range(3):
        for place in (plain, folder):
            put(place, range(shard, 42, 3), f"s{shard}")
    expected = aggregate(plain, PLAN).digest
    assert passed(folder).digest == expected
    assert passed(folder).digest == expected
    kept = folder.files.entries(folder.key("aggregate", "rows"))
    folder.files.discard(entry.key for entry in kept)
    assert folder.files.entries(folder.key("aggregate", "rows")) == []
    assert len(collect(folder, SWEEP).table) == 42


def test_a_wrong_key_is_told(server: str, log_in: As) -> None:
    log_in("test:tester", "not-the-key-of-tester")
    place = uri(server, "maps")
    files = Store(place).files
    for request in (
        lambda: files.entries(""),
        lambda: files.get("a"),
        lambda: files.put("a", b"b"),
    ):
        with pytest.raises(StoreError, match="access denied; check the credentials") as caught:
            request()
        assert "not-the-key" not in str(caught.value)
    assert are_keys_wrong(why_unreadable(place, seconds=30) or "")


@pytest.mark.parametrize("user", ["test:reader", "test:nobody"])
def test_who_has_no_rights_is_told(server: str, log_in: As, user: str) -> None:
    Store(uri(server, "rights")).files.put("a", b"b")
    log_in(user, USERS.get(user, "whatever"))
    files = Store(uri(server, "rights")).files
    for request in (lambda: files.get("a"), lambda: files.put("a", b"c")):
        with pytest.raises(StoreError, match="access denied; check the credentials"):
            request()
    log_in("test:tester", USERS["test:tester"])
    assert Store(uri(server, "rights")).files.get("a") == b"b"


def test_another_region_and_a_missing_bucket_are_told(server: str, log_in: As) -> None:
    elsewhere = uri(server, "maps").replace("us-east-1", "eu-west-9")
    for request in (
        lambda: Store(elsewhere).files.entries(""),
        lambda: Store(elsewhere).files.put("a", b"b"),
        lambda: Store(elsewhere).files.get("a"),
    ):
        with pytest.raises(StoreError, match=r"in another region; give it|check endpoint, region"):
            request()
    nowhere = uri(server, "maps").replace("fractal", "nowhere")
    for request in (
        lambda: Store(nowhere).files.entries(""),
        lambda: Store(nowhere).files.folders(),
        lambda: Store(nowhere).files.get("a"),
    ):
        with pytest.raises(StoreError, match="no such bucket"):
            request()
