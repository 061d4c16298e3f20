"""Weights & Biases beside a run: offline, online against a small server, and without one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from fractal_k8s.tracking import VARIABLE

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


class _Server(BaseHTTPRequestHandler):
    """As much of W&B's server as a run asks for; remembers what it was sent."""

    asked: list[str]
    rows: list[dict[str, Any]]
    ended: list[bool]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/graphql"):
            self._answer({"data": self._data(json.loads(body))})
        elif not self.path.endswith("/file_stream"):
            self._answer({})  # the client's own telemetry
        else:
            sent = json.loads(body)
            for name, part in (sent.get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    self.rows += [json.loads(line) for line in part["content"]]
            self.ended.append(bool(sent.get("complete")))
            self._answer({"limits": {}})

    def _data(self, sent: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
        name = match[1] if match else ""
        self.asked.append(name)
        if name == "UpsertBucket":
            project = {"name": "edges", "entity": {"name": "me"}}
            run = sent["variables"]["name"]
            bucket = {"id": "1", "name": run, "displayName": run, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "Viewer":
            viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}"}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        if name == "CreateRunFiles":
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
        return {}

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Server]]]:
    """Address of a small server and what it heard."""
    handler = type("Heard", (_Server,), {"asked": [], "rows": [], "ended": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}", handler
        listening.shutdown()


def test_an_online_run_sends_every_step(
    server: tuple[str, type[_Server]], golden: Path, tmp_path: Path
) -> None:
    address, heard = server
    said = train(golden, tmp_path, WANDB_BASE_URL=address, WANDB_API_KEY=KEY)
    assert "W&B" not in said
    losses = json.loads((tmp_path / "one" / "result.json").read_text())["result"]["losses"]
    assert [row["train/loss"] for row in heard.rows if "train/loss" in row] == losses
    assert "UpsertBucket" in heard.asked
    assert heard.ended[-1]


def test_the_missing_library_is_named(
    run: Run, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = run("train", "--preset", "tiny", "--out", "one", "--wandb", "edges", code=2).output
    assert "fractal-k8s[wandb]" in said
    assert not Path("one").exists()
