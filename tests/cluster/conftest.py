"""Fixtures of the scenarios: the place where they run, and sweeps for it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.place import Place
from standin.cluster import NAMESPACE, StandIn
from standin.fixtures import kubectl_binary  # noqa: F401
from sweeps import fine_tune_text, network_text

# of the person's shell, which other tests never see: what reaches a real cluster and its store
OWN = {
    name: value
    for name, value in os.environ.items()
    if name.startswith("AWS_") or name in ("HOME", "KUBECONFIG")
}
KEYS = {"AWS_ACCESS_KEY_ID": "planted-access-key", "AWS_SECRET_ACCESS_KEY": "planted-secret-key"}
# pods without GPUs that any node has room for
SMALL = {
    "gpus": 4,
    "gpus_per_pod": 0,
    "nodes": "none",
    "cpu": "250m",  # a node of two cores has room for four
    "memory": "2Gi",
    "ephemeral_storage": "1Gi",
    "shared_memory": "64Mi",
    "grace_seconds": 30,
    "keep_seconds": 3600,
    "cache_wait_seconds": 60,
    "aggregator": False,  # its pods would be counted among the workers'
}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A real HTTP S3 server with a bucket; its address."""
    import boto3

    from standin.serving import s3_server

    with s3_server() as address:
        client: Any = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        client.create_bucket(Bucket="fractal")
        yield address


@pytest.fixture
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kubectl_binary: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    """A stand-in of its own, or the cluster that the options name."""
    if request.config.getoption("--context") is None:
        golden: Path = request.getfixturevalue("golden")
        s3: str = request.getfixturevalue("s3")
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        claims = _claims(golden, tmp_path)
        with StandIn(tmp_path / "standin", claims=claims) as standin:
            yield standin_place(standin, tmp_path, kubectl_binary, s3)
        return
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    place = _real_place(request.config, tmp_path, kubectl_binary)
    yield place
    place.clean()


def _claims(golden: Path, folder: Path) -> dict[str, Path]:
    model, dataset = folder / "claims/model", folder / "claims/dataset"
    shutil.copytree(golden, model)
    dataset.mkdir()
    shutil.copy(golden / "conversations.jsonl", dataset)
    for claim in (model, dataset):
        (claim / "READY").touch()
    return {"model": model, "dataset": dataset}


def standin_place(standin: StandIn, folder: Path, kubectl: Path, s3: str) -> Place:
    """The stand-in as a place, with a Secret for the store's keys."""
    settings = {
        **SMALL,
        "image": "fractal-k8s:test",
        "store": f"s3://fractal/{uuid.uuid4().hex}?endpoint={s3}",
        "store_secret": "store-keys",
        "model_claim": "model",
        "dataset_claim": "dataset",
        "dataset": "conversations:/cache/dataset/conversations.jsonl",
    }
    place = Place(
        folder, "standin", NAMESPACE, standin.kubeconfig, kubectl, settings, KEYS, standin
    )
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store-keys"}}
    place.kubectl("apply", "-f", "-", stdin=yaml.safe_dump({**secret, "stringData": KEYS}))
    return place


def _real_place(config: pytest.Config, folder: Path, kubectl: Path) -> Place:
    option: Callable[[str], Any] = config.getoption
    missing = [name for name in ("--image", "--store") if option(name) is None]
    if missing:
        pytest.exit(f"--context needs {' and '.join(missing)} too; see tests/cluster/__init__.py")
    base, mark, query = option("--store").partition("?")
    given = {
        "image": option("--image"),
        "store": f"{base.rstrip('/')}/{uuid.uuid4().hex}{mark}{query}",
        "store_secret": option("--store-secret"),
        "model_claim": option("--model-claim"),
        "dataset_claim": option("--dataset-claim"),
        "dataset": "conversations:/cache/dataset/conversations.jsonl",
    }
    settings = {**SMALL, **{key: value for key, value in given.items() if value is not None}}
    return Place(
        folder,
        option("--context"),
        option("--namespace"),
        option("--kubeconfig"),
        kubectl,
        settings,
        {},
    )


# --- sweeps ---


@pytest.fixture
def language_model(place: Place, golden: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the file of a sweep that tunes the golden checkpoint, one to three steps a point."""
    if place.standin is None and not {"model_claim", "dataset_claim"} <= set(place.settings):
        pytest.skip("needs --model-claim and --dataset-claim; see tests/cluster/__init__.py")

    def write(name: str, size: int = 16, tokens: int = 600) -> Path:
        path = tmp_path / f"{name}.toml"
        files = {"checkpoint": str(golden), "dataset": f"{golden}/conversations.jsonl"}
        path.write_text(fine_tune_text(name, (size, size), **files, tokens=tokens))
        return path

    return write


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Path]:
    """Writes the file of a sweep of a small network; it needs no files."""

    def write(name: str, size: int = 8, steps: int = 30) -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(network_text(name, (size, size), steps=steps))
        return path

    return write
