"""Fixtures that most tests share: a clean environment, golden data, small sweeps."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from click.testing import CliRunner, Result

from fractal_k8s import cli
from fractal_k8s.environ import prepare_environment
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.load import resolve
from sweeps import network_text

prepare_environment()  # before any test imports numpy or torch

# an example may take as long as a busy machine needs
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# a shell that runs the tests in the background has them ignore Ctrl-C, and with them every command
# that a test starts and then interrupts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("standin.fixtures",)

Run = Callable[..., Result]

_GOLDEN = Path(__file__).parent / "golden" / "nanochat-d4"


def pytest_addoption(parser: pytest.Parser) -> None:
    """A real cluster for tests/cluster; see tests/cluster/__init__.py."""
    group = parser.getgroup("cluster", "scenarios on a real cluster (tests/cluster)")
    for name, what in (
        ("--context", "context of the kubeconfig; without it a stand-in is used"),
        ("--image", "image of the pods, NAME:TAG or NAME@sha256:..."),
        ("--store", "URI of a store, readable from here and from the pods"),
        ("--store-secret", "Secret with the store's keys"),
        ("--model-claim", "claim with the golden checkpoint"),
        ("--dataset-claim", "claim with conversations.jsonl"),
    ):
        group.addoption(name, default=None, help=what)
    group.addoption("--namespace", default="fractal", help="namespace of the sweeps")
    group.addoption("--kubeconfig", type=Path, default=None, help="default: as kubectl has it")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person's shell reaches a test, and no test writes into their folders."""
    for name in list(os.environ):
        if name.startswith(("FRACTAL_K8S_", "AWS_", "WANDB_", "JOB_COMPLETION_INDEX")) and (
            name != "FRACTAL_K8S_GOLDEN"
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with what real nanochat computed; see tests/golden/README.md."""
    return Path(os.environ.get("FRACTAL_K8S_GOLDEN", _GOLDEN))


def mlp_raw(**changes: Any) -> dict[str, Any]:
    """A small mlp sweep as plain data; keyword arguments replace top-level keys."""
    raw: dict[str, Any] = {
        "name": "small",
        "model": "mlp",
        "resolution": [6, 7],
        "axes": {
            "y": {"knob": "output_lr", "low": 1e-2, "high": 1e4},
            "x": {"knob": "input_lr", "low": 1e-2, "high": 1e4},
        },
        "training": {"width": 4, "steps": 30},
    }
    return {**raw, **changes}


def mlp_sweep(**changes: Any) -> Sweep:
    return Sweep.parse(mlp_raw(**changes))


@pytest.fixture
def gpt_sweep(golden: Path) -> Callable[..., Sweep]:
    """Makes small fine-tuning sweeps of the golden checkpoint; settings are `key=value` texts."""

    def make(*settings: str, resolution: int | tuple[int, int] = 2, **changes: Any) -> Sweep:
        raw: dict[str, Any] = {
            "name": "tuned",
            "model": "gpt",
            "checkpoint": str(golden),
            "dataset": f"conversations:{golden}/conversations.jsonl",
            "axes": {
                "y": {"knob": "matrix_lr", "low": 1e-3, "high": 1e-1},
                "x": {"knob": "unembedding_lr", "low": 1e-3, "high": 1e-1},
            },
            "training": {"tokens": 400, "batch_size": 2, "max_seq_len": 100},
            "verdict": {"window": 1},
        }
        raw.update(changes)
        return resolve(raw, settings=settings, resolution=resolution, source="test")

    return make


@pytest.fixture(scope="session")
def record() -> ModuleType:
    """scripts/record.py, which writes what is recorded in the repository."""
    spec = importlib.util.spec_from_file_location(
        "record", Path(__file__).parents[1] / "scripts/record.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- commands ---

SMALL = network_text("small", (16, 16))


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a place in an empty bucket on that server."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client: Any = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    client.create_bucket(Bucket="fractal")
    # the server is that of all tests
    for entry in client.list_objects_v2(Bucket="fractal").get("Contents", []):
        client.delete_object(Bucket="fractal", Key=entry["Key"])
    return f"s3://fractal/maps?endpoint={moto}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli.main, list(arguments))
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture
def small(run: Run, tmp_path: Path) -> str:
    """A finished small sweep; returns its id."""
    (tmp_path / "small.toml").write_text(SMALL)
    result = run("launch", "small.toml", "--backend", "inline", "--json")
    sweep_id: str = json.loads(result.stdout)["sweep"]
    return sweep_id
