"""Ctrl-C: exit code 130, one sentence, and nothing that is lost."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from conftest import Run
from faults import Fault, FaultyProxy
from fractal_k8s import cli
from fractal_k8s.results.store import Store, SweepStore
from scans import parquet, scanned
from test_aggregate import PLAN, folder, put

__all__ = ["folder"]  # fixtures

_LONGEST_S = 240.0


class Started:
    """A command that runs as a process of its own, and what it has said so far."""

    def __init__(self, arguments: tuple[str, ...], told: Path) -> None:
        self.path = told
        with told.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fractal_k8s", *arguments],
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _LONGEST_S
        while not what():
            assert self.process.poll() is None, self.path.read_text()
            assert time.monotonic() < deadline, self.path.read_text()
            time.sleep(0.02)

    def interrupt(self) -> str:
        """Presses Ctrl-C, which reaches every process of a terminal; what was said in the end."""
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.wait(_LONGEST_S) == 130, self.path.read_text()
        return self.path.read_text()


@contextmanager
def started(told: Path, *arguments: str) -> Iterator[Started]:
    one = Started(arguments, told)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


@pytest.mark.parametrize(
    ("words", "promise"),
    [
        (("cache", "fill"), "run the same command to go on"),
        (("cache", "verify"), "nothing was changed"),
        (("data", "download"), "run the same command to begin again"),
        (("data", "prepare"), "run the same command to begin again"),
        (("aggregate",), "the last whole summary stays; run the same command to go on"),
        (("fetch",), "files that have come are kept; run the same command to go on"),
        (("analyze",), "stopped"),
    ],
)
def test_every_command_ends_with_130_and_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], promise: str
) -> None:
    def interrupted(**options: Any) -> None:
        raise KeyboardInterrupt

    name, *below = words
    command: Any = importlib.import_module(f"fractal_k8s.cli.{name}").command
    for part in below:
        command = command.commands[part]
    monkeypatch.setattr(command, "callback", interrupted)
    for param in command.params:
        monkeypatch.setattr(param, "required", False)
    result = CliRunner().invoke(cli.main, list(words))
    assert result.exit_code == 130
    (said,) = result.stderr.strip().splitlines()
    assert said.startswith("stopped")
    assert said.endswith(promise)


def test_ctrl_c_before_a_command_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, ctx: click.Context, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(cli.main), "get_command", interrupted)
    result = CliRunner().invoke(cli.main, ["list"])
    assert (result.exit_code, result.output.strip()) == (130, "")


def test_an_aggregator_of_a_person_stops(folder: SweepStore, tmp_path: Path) -> None:
    put(folder, range(5), "s0")
    store = str(Path(folder.files.uri))
    typed = ("aggregate", PLAN.sweep.id, "--store", store, "--until-complete", "--every", "0.2")
    with started(tmp_path / "told", *typed) as one:
        one.until(lambda: "5 of 42 points" in one.path.read_text())
        time.sleep(0.5)  # it waits for the next look
        told = one.interrupt()
    assert told.splitlines()[-1].startswith("stopped; the last whole summary stays")
    assert "Traceback" not in told
    assert folder.read_summary() is not None


def test_a_fill_that_was_stopped_fetches_nothing_twice(
    run: Run, bucket: str, moto: str, golden: Path, tmp_path: Path
) -> None:
    """Files come one after the other, each in a second."""
    source = bucket.replace("/maps", "/model")
    files = Store(source).files
    for path in sorted(golden.rglob("*")):
        if path.parent.name in ("checkpoints", "tokenizer"):
            files.put(path.relative_to(golden).as_posix(), path.read_bytes())
    root = str(tmp_path / "cache")
    with FaultyProxy(moto) as proxy:
        proxy.faults = [Fault("slow", count=10_000, method="GET", path="/model/")]
        slow = source.replace(moto, proxy.url)
        typed = ("cache", "fill", "--root", root, "--model", slow)
        with started(tmp_path / "told", *typed) as one:
            one.until(lambda: one.path.read_text().count(" in ") > 0)
            told = one.interrupt()
        proxy.faults = []
        again = run("cache", "fill", "--root", root, "--model", slow).output
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("stopped; files that have come are kept")
    came = told.count(" in ")
    assert came < 4
    assert f"{4 - came} file" in again.splitlines()[0]


def test_the_processes_that_prepare_pages_are_silent(golden: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches them, too."""
    source, target = tmp_path / "pages", tmp_path / "made"
    source.mkdir()
    (source / "train-0.parquet").write_bytes(parquet([scanned(k) for k in range(60)] * 100))
    typed = ("data", "prepare", "--tokenizer", str(golden), "--source", str(source))
    with started(tmp_path / "told", *typed, "--to", str(target), "--workers", "2") as one:
        one.until(lambda: any(path.stat().st_size for path in target.rglob("train.jsonl")))
        told = one.interrupt()
    (line,) = told.strip().splitlines()
    assert line.startswith("stopped; no half of it passes for a data set")
    assert [path.name for path in target.rglob("*") if not path.name.startswith(".")] == []


def test_a_copy_that_was_stopped_reads_nothing_twice(
    run: Run, bucket: str, moto: str, tmp_path: Path
) -> None:
    """Objects come one second each, sixteen at once."""
    stored = Store(bucket.replace("/maps", "/stopped")).sweep(PLAN.sweep.id)
    stored.write_plan(PLAN)
    for point in range(42):
        put(stored, [point], f"s{point}")
    time.sleep(2.1)  # what was written in the present second may be written again unseen
    stored.files.put(stored.key("aggregate", "state.json"), b"{}")
    target = tmp_path / "copy"

    def came() -> int:
        return len(list(target.rglob("*.parquet")))

    with FaultyProxy(moto) as proxy:
        proxy.faults = [Fault("slow", count=10_000, method="GET", path="/outcomes/")]
        uri = stored.files.uri.replace(moto, proxy.url)
        typed = ("fetch", PLAN.sweep.id, "--store", uri, "--to", str(target))
        with started(tmp_path / "told", *typed) as one:
            one.until(lambda: came() > 3)
            told = one.interrupt()
    assert "Traceback" not in told
    assert told.splitlines()[-1].endswith("run the same command to go on")
    had = came()
    assert had < 42
    asked = run("fetch", PLAN.sweep.id, "--store", stored.files.uri, "--to", str(target))
    assert came() == 42
    # it may be stopped between a file and the note of it
    left = (f"43 files, {number} of them fetched now" for number in (42 - had, 43 - had))
    assert any(text in asked.output for text in left)
