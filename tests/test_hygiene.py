"""Workers that leak, hang or run out of memory: nothing is lost, and nothing is a verdict."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import mlp_sweep
from fractal_k8s.aggregate import read_grid
from fractal_k8s.errors import EXIT_COMPLETE, EXIT_HUNG, EXIT_RETRY
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.watchdog import GROWTH_BYTES, MemoryWatch, Watchdog
from fractal_k8s.worker import Worker

MIB = 1 << 20


def write_plan(tmp_path: Path, sweep: Sweep) -> Path:
    path = tmp_path / "sweep.json"
    path.write_text(Plan(sweep, Deal(points_per_shard=sweep.num_points)).to_json())
    return path


def run_script(tmp_path: Path, code: str, sweep: Sweep, **env: str) -> tuple[int, str, str]:
    """The worker command, in a process that first runs `code`; exit code, stdout, stderr."""
    script = tmp_path / "worker.py"
    script.write_text(code + "\nfrom fractal_k8s.cli import main\nmain()\n")
    arguments = ["--store", str(tmp_path / "runs"), "--sweep", str(write_plan(tmp_path, sweep))]
    done = subprocess.run(
        [sys.executable, str(script), "worker", *arguments, "--shard", "0"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        close_fds=False,
    )
    return done.returncode, done.stdout, done.stderr


# --- memory that grows ---


LEAK = f"""
import fractal_k8s.train.mlp as mlp, fractal_k8s.watchdog as watchdog
watchdog.GROWTH_BYTES = {24 * MIB}
watchdog.GROWTH_SHARE = 0.0
kept = []
honest = mlp.MLPTrainer.train
def leaking(self, points, beat):
    for outcome in honest(self, points, beat):
        kept.append(b"x" * {12 * MIB})
        yield outcome
mlp.MLPTrainer.train = leaking
"""


def test_a_worker_whose_memory_grows_starts_anew_and_trains_every_point_once(
    tmp_path: Path,
) -> None:
    """Real processes; the launcher's pipe stays open across the new start."""
    sweep = mlp_sweep(resolution=[4, 2])
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    env = {"FRACTAL_K8S_EVENTS_FD": str(writing), "FRACTAL_K8S_PARENT_PID": str(os.getpid())}
    code, out, err = run_script(tmp_path, LEAK, sweep, **env)
    os.close(writing)
    with os.fdopen(reading) as events:
        told = [line.split(",")[0] for line in events]
    assert code == EXIT_COMPLETE, err
    starts = [line for line in out.splitlines() if "points to train" in line]
    assert [line.split(": ")[1].split(";")[0] for line in starts] == [
        "8 points to train, 0 stored",
        "3 points to train, 5 stored",
    ]
    assert out.count("what is done is stored, the worker starts anew") == 1
    assert sorted(told) == sorted(f"[{index}" for index in range(8))
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    outcomes = folder.read_outcomes(sweep)
    assert outcomes.objects == 2
    assert len(outcomes.table) == 8
    assert read_grid(folder, Plan(sweep, Deal())).known.all()


def test_in_this_process_nothing_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryWatch, "is_leaking", lambda self, held: True)
    sweep = mlp_sweep(resolution=[2, 2])
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    plan = Plan(sweep, Deal(points_per_shard=4))
    assert Worker(folder, plan, 0, emit=lambda line: None).run() == EXIT_COMPLETE


def readings(*megabytes: float) -> list[bool]:
    watch = MemoryWatch()
    return [watch.is_leaking(int(value * MIB)) for value in megabytes]


def test_a_leak_is_growth_at_every_point() -> None:
    assert readings(500, 900, 1000, 1100, 1200) == [False] * 4 + [True]
    assert readings(500, 900, 980, 1060, 1150) == [False] * 5  # within 256 MiB
    assert not any(readings(500, 900, 900, 1900, 1900, 1900, 1901, 1901, 1902))  # once
    assert not any(readings(500, 900, 1000, 1100, 1050, 1200, 1300, 1250))  # up and down
    assert readings(500, 9000, 9300, 9600, 9890, 9950)[-2:] == [False, True]  # 10 % of much
    assert GROWTH_BYTES == 256 * MIB


# --- out of memory ---


# the address space is limited after the weights are there, to little more than what is in use
LIMIT = f"""
import re, resource
import fractal_k8s.train as train
honest = train.open_trainer
def limited(sweep):
    trainer = honest(sweep)
    used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + {400 * MIB}, resource.RLIM_INFINITY))
    return trainer
train.open_trainer = limited
"""


def test_out_of_memory_is_failed_and_asks_for_another_attempt(
    gpt_sweep: Callable[..., Sweep], golden: Path, tmp_path: Path
) -> None:
    """A real limit: no point fits, and none is called not trainable."""
    data = tmp_path / "many.jsonl"
    data.write_text((golden / "conversations.jsonl").read_text() * 40)
    sweep = gpt_sweep(
        "training.batch_size=512",
        "training.tokens=51200",
        resolution=2,
        dataset=f"conversations:{data}",
    )
    code, out, err = run_script(tmp_path, LIMIT, sweep)
    assert code == EXIT_RETRY, err
    assert out.count("failed: ") == 4
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    grid = read_grid(folder, Plan(sweep, Deal()))
    assert grid.counts() == {
        "missing": 0,
        "failed": 4,
        "diverged": 0,
        "not trainable": 0,
        "trainable": 0,
    }
    assert all("memory" in text for text in grid.table.column("error").to_pylist())


# --- hanging ---


HANG = """
import time
import fractal_k8s.watchdog as watchdog
watchdog.Watchdog.__init__.__kwdefaults__["start_seconds"] = 2.0
import fractal_k8s.train.mlp as mlp
honest = mlp.MLPTrainer.golden_losses
def hanging(self, *arguments):
    time.sleep(600)
    return honest(self, *arguments)
mlp.MLPTrainer.golden_losses = hanging
"""


def test_a_worker_that_hangs_before_its_first_step_is_ended_too(tmp_path: Path) -> None:
    began = time.monotonic()
    code, _, err = run_script(
        tmp_path,
        HANG,
        mlp_sweep(resolution=[2, 2]),
        FRACTAL_K8S_HANG_SECONDS="1",
    )
    assert code == EXIT_HUNG, err
    assert "no training step for" in err
    assert time.monotonic() - began < 60


def test_loading_may_take_longer_than_a_step() -> None:
    """If it might not, this process would end here."""
    with Watchdog(lambda: None, seconds=0.1, start_seconds=60.0) as watchdog:
        time.sleep(0.5)
        watchdog.beat()
        assert watchdog.seconds == 0.1
