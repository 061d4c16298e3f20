"""Weights & Biases beside a run: offline, online against a small server, and without one."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.errors import UsageError
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.tracking import VARIABLE, shards
from fractal_k8s.tracking.modes import FORCE, MODE, PROJECT, Wish, check_mode, wish
from fractal_k8s.tracking.shards import ShardTracker, open_shard_tracker
from standin.experiments import Experiments, serving

ROOT = Path(__file__).parents[1]
KEY = "a1" * 20


def train(golden: Path, folder: Path, *more: str, **variables: str) -> str:
    """What a run of five steps says, on both streams."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fractal_k8s", "train", "--preset", "tiny", "--out", "one"),
            *("--checkpoint", str(golden)),
            *("--dataset", f"conversations:{golden}/conversations.jsonl"),
            *("--set", "training.tokens=2500", "--set", "training.max_seq_len=128"),
            *("--samples=0", "--eval-rows=4"),
            *("--wandb", "edges", *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), **variables},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert KEY not in done.stdout
    assert "step 5/5" in done.stdout
    return done.stdout


def kept_offline(folder: Path) -> bytes:
    """The one offline run below a folder, as W&B writes it."""
    (path,) = (folder / "one" / "wandb").glob("offline-run-*/run-*.wandb")
    return path.read_bytes()


def test_an_offline_run_is_written_with_its_model(golden: Path, tmp_path: Path) -> None:
    said = train(
        golden, tmp_path, "--samples=1", "--wandb-artifact=edge-model", WANDB_MODE="offline"
    )
    assert "W&B" not in said
    written = kept_offline(tmp_path)
    for name in (
        b"train/loss",
        b"train/lr_matrix",
        b"val/loss",
        b"samples/generations",
        b"trainable_ratio",
        b"edge-model",
        b"checkpoints/model_000005.pt",
        b"checkpoints/meta_000005.json",
        b"tokenizer/tokenizer.pkl",
    ):
        assert name in written, name
    assert b"optim_" not in written


def test_a_server_that_does_not_answer_makes_an_offline_run(golden: Path, tmp_path: Path) -> None:
    address = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY, VARIABLE: "2"}
    said = train(golden, tmp_path, **address)
    told = [line for line in said.splitlines() if "W&B" in line or "wandb" in line.lower()]
    assert len(told) == 1
    assert "the server cannot be used" in told[0]
    assert b"train/loss" in kept_offline(tmp_path)


@pytest.fixture
def server() -> Iterator[Experiments]:
    """A server that keeps what it is sent."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serving() as experiments:
        experiments.key = KEY
        yield experiments


def test_an_online_run_sends_every_step(server: Experiments, golden: Path, tmp_path: Path) -> None:
    said = train(golden, tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert "W&B" not in said
    losses = json.loads((tmp_path / "one" / "result.json").read_text())["result"]["losses"]
    (tracked,) = server.runs.values()
    assert [row["train/loss"] for row in tracked.rows if "train/loss" in row] == losses
    assert tracked.is_ended


def test_the_missing_library_is_named(
    run: Run, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = run("train", "--preset", "tiny", "--out", "one", "--wandb", "edges", code=2).output
    assert "fractal-k8s[wandb]" in said
    assert not Path("one").exists()


# --- the points of a worker ---

FACTS = {"sweep": "small-0123456789", "shard": "abcdef-00003", "config": {"sweep": {"seed": 42}}}


def track(mode: str = "shard", said: list[str] | None = None) -> ShardTracker:
    tracker = open_shard_tracker(
        Wish("edges", None, mode),
        FACTS,
        attempt="20260101T000000-abcdef",
        say=[].append if said is None else said.append,
    )
    assert tracker is not None
    return tracker


def line(k: int, state: str = "trainable") -> dict[str, Any]:
    return {"i": k, "j": 2 * k, "output_lr": 0.5, "steps": 3, "final_loss": 1.0, "state": state}


def series(k: int) -> Any:
    return np.array([2.0 + k, 1.5, float("nan") if k == 1 else 1.0], np.float32)


@pytest.fixture
def online(server: Experiments, monkeypatch: pytest.MonkeyPatch) -> Experiments:
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return server


def test_every_step_of_every_point_reaches_the_server(
    online: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_UPLOAD_SECONDS", 60.0)  # a busy machine
    said: list[str] = []
    tracker = track(said=said)
    for k in range(3):
        tracker.point(line(k), series(k))
    assert tracker.close(most_seconds=60) == []
    assert said == []
    (tracked,) = online.runs.values()
    steps = [row for row in tracked.rows if "train/loss" in row]
    assert [(row["i"], row["j"], row["step"]) for row in steps] == [
        (k, 2 * k, step) for k in range(3) for step in range(3)
    ]
    assert [row["train/loss"] for row in steps[:5]] == [2.0, 1.5, 1.0, 3.0, 1.5]
    assert np.isnan(steps[5]["train/loss"])
    ends = [row for row in tracked.rows if "point/state" in row]
    assert [(row["i"], row["point/state"], row["point/final_loss"]) for row in ends] == [
        (k, "trainable", 1.0) for k in range(3)
    ]
    sent = tracked.sent[0]
    assert (sent["groupName"], sent["displayName"]) == (FACTS["sweep"], FACTS["shard"])
    assert tracked.is_ended
    assert not tracker.folder.exists()


def test_a_run_a_point_where_that_is_wanted(
    online: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_UPLOAD_SECONDS", 60.0)
    tracker = track("point")
    for k in range(2):
        tracker.point(line(k), series(k))
    assert tracker.close(most_seconds=60) == []
    assert [run.sent[0]["displayName"] for run in online.runs.values()] == ["0,0", "1,2"]


@pytest.fixture
def mute() -> Iterator[str]:
    """Address of a server that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("trouble", ["refuses", "hangs", "slow"])
def test_a_server_in_trouble_delays_nothing_and_everything_is_kept(
    trouble: str,
    server: Experiments,
    mute: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = {"refuses": "http://127.0.0.1:9", "hangs": mute, "slow": server.url}[trouble]
    server.delay = 4.0
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(shards, "_WRITE_SECONDS", 30.0)  # a busy machine
    said: list[str] = []
    began = time.monotonic()
    tracker = track(said=said)
    for k in range(200):
        tracker.point(line(k), series(k))
    assert time.monotonic() - began < 4.0
    kept = tracker.close(most_seconds=34.0)
    (name, data) = kept[0]
    assert len(kept) == 1, said
    assert re.fullmatch(r"(offline-)?run-\w+-(\w+)/run-\w+\.wandb", name)
    assert data.count(b"point/state") >= 200
    assert KEY.encode() not in data
    assert KEY not in "\n".join(said)


def test_a_process_that_does_not_keep_up_loses_points_and_not_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(shards, "_MOST_WAITING", 1 << 20)
    said: list[str] = []
    tracker = track(said=said)
    os.kill(tracker._process.pid, signal.SIGSTOP)
    losses = np.zeros(10_000, np.float32)
    began = time.monotonic()
    for k in range(100):
        tracker.point(line(k), losses)
    assert time.monotonic() - began < 60.0
    assert 60 <= tracker.num_dropped < 100  # 1 MiB holds 26 points, a pipe one or two
    tracker.close(most_seconds=1.0)
    assert time.monotonic() - began < 120.0
    assert f"W&B: {tracker.num_dropped} points are not tracked, it did not keep up" in said
    assert "W&B: tracking was ended before it was done" in said


def test_what_the_environment_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wish(10) is None
    monkeypatch.setenv(PROJECT, "edges")
    assert wish(10) == Wish("edges", None, "shard")
    for mode in ("off", "summary"):
        monkeypatch.setenv(MODE, mode)
        assert wish(10) is None
    monkeypatch.setenv(MODE, "point")
    assert wish(1000) == Wish("edges", None, "point")
    with pytest.raises(UsageError, match="would make 1,001 runs"):
        wish(1001)
    monkeypatch.setenv(FORCE, "1")
    assert wish(1001) == Wish("edges", None, "point")
    with pytest.raises(UsageError, match="'every' is none of off, summary, shard, point"):
        check_mode("every", 1)


def work(folder: Path, path: Path, **variables: str) -> str:
    """What a worker says that trains the only shard of a plan into `folder`."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fractal_k8s", "worker", "--store", str(folder / "runs")),
            *("--sweep", str(path), "--shard", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_tracking_changes_no_number_keeps_its_files_and_tells_no_secret(
    mute: str, tmp_path: Path
) -> None:
    sweep = mlp_sweep(resolution=[3, 3])
    path = tmp_path / "sweep.json"
    path.write_text(Plan(sweep, Deal(points_per_shard=9)).to_json())
    plain, tracked = tmp_path / "plain", tmp_path / "tracked"
    for place in (plain, tracked):
        place.mkdir()
    secret = "very-secret-" + "s3" * 14
    said = work(plain, path)
    said += work(
        tracked,
        path,
        FRACTAL_K8S_WANDB_PROJECT="edges",
        FRACTAL_K8S_TERMINATION_LOG=str(tracked / "message"),
        WANDB_BASE_URL=mute,
        WANDB_API_KEY=KEY,
        WANDB_DIR=str(tracked / "wandb"),
        AWS_SECRET_ACCESS_KEY=secret,
    )
    rows = []
    for place in (plain, tracked):
        folder = Store(str(place / "runs")).sweep(sweep.id)
        table = folder.read_outcomes(sweep).table.sort_by([("i", "ascending"), ("j", "ascending")])
        rows.append([table.column(name).to_pylist() for name in ("i", "j", "state", "losses")])
    assert repr(rows[0]) == repr(rows[1])
    assert said.splitlines()[-1] == "complete: 9 points trained, 0 stored before"
    folder = Store(str(tracked / "runs")).sweep(sweep.id)
    (entry,) = folder.files.entries(folder.key("wandb"))
    assert re.fullmatch(
        rf"{sweep.id}/wandb/\w{{6}}-00000-\w+-\w{{6}}/offline-run-\w+-\w+/run-\w+\.wandb", entry.key
    )
    assert (folder.files.get(entry.key) or b"").count(b"point/state") >= 9
    for file in (file for file in tracked.rglob("*") if file.is_file()):
        content = file.read_bytes()
        assert KEY.encode() not in content, file
        assert secret.encode() not in content, file
    assert KEY not in said
    assert secret not in said


def test_a_launch_tracks_its_points(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = run("launch", "--preset", "tanh", "--res", "64", "--wandb-mode", "shard", code=2).output
    assert "--wandb-mode needs --wandb PROJECT" in said
    tracked = ("--wandb", "edges", "--backend", "inline")
    refused = ("launch", "--preset", "tanh", "--res", "64", *tracked, "--wandb-mode", "point")
    assert "would make 4,096 runs" in run(*refused, code=2).output
    assert not Path("runs").exists()
    settings = ("--res", "2", "--set", "training.steps=3", "--set", "training.width=4")
    run("launch", "--preset", "tanh", *settings, *tracked)
    whole, shard = sorted(
        Path("runs").glob("tanh-*/wandb/*/offline-run-*/run-*.wandb"),
        key=lambda path: not path.parts[3].startswith("summary-"),
    )
    assert shard.read_bytes().count(b"point/state") >= 4
    assert b"points/trainable" in whole.read_bytes()
    settings = (*settings, "--set", "seed=7", "--wandb-mode", "summary")
    run("launch", "--preset", "tanh", *settings, *tracked)
    assert len([*Path("runs").glob("tanh-*/wandb/*")]) == 3
