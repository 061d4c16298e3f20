"""Several workers in one pod: codes, messages, signals, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest

from conftest import mlp_sweep
from fractal_k8s import termination
from fractal_k8s.aggregate import read_grid
from fractal_k8s.errors import (
    EXIT_COMPLETE,
    EXIT_CORRUPT,
    EXIT_RETRY,
    EXIT_SETTINGS,
    EXIT_TERMINATED,
)
from fractal_k8s.fanout import merge_codes
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("codes", "told", "merged"),
    [
        ((0, 0, 0), False, 0),
        ((0, 0, 0), True, 0),
        ((0, 75, 64, 65), True, 65),
        ((0, 75, 64, 143), True, 64),
        ((0, 143, 70, 75), True, 143),
        ((75, 70, 137), False, 70),
        ((0, 137, 75), False, 75),
        ((0, 137), False, 137),
        ((143, 0), False, 143),
        ((143, 75), False, 75),
        ((0, 69, 69), False, 69),
        ((69, 75), False, 75),
        ((0, 69, 137), False, 137),
    ],
)
def test_the_code_of_a_pod_is_that_of_the_worst_end_in_any_order(
    codes: tuple[int, ...], told: bool, merged: int
) -> None:
    assert {merge_codes(order, told=told) for order in permutations(codes)} == {merged}


def pod(tmp_path: Path, code: str, processes: int, **env: str) -> subprocess.Popen[str]:
    """A pod whose workers run `code` instead of the program, with the shard's number as K.

    The fan-out is the real one, with its signals, pipes and processes.
    """
    program = tmp_path / "program"
    (program / "fractal_k8s").mkdir(parents=True)
    child = "import os, sys, time, signal\nK = int(sys.argv[1])\n" + code
    (program / "fractal_k8s" / "__init__.py").write_text("")
    (program / "fractal_k8s" / "__main__.py").write_text(child)
    parent = f"""
import os, sys
from fractal_k8s.fanout import Fanout, Part
parts = [Part(f"gpu {{k}}", [str(k)], str(k)) for k in range({processes})]
os.environ["PYTHONPATH"] = {str(program)!r}
def emit(line):
    print(line, flush=True)
sys.exit(Fanout(parts, emit).run())
"""
    return subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=program.parent,  # where no other package of that name is found
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            termination.VARIABLE: str(tmp_path / "message"),
            **env,
        },
    )


def message(tmp_path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((tmp_path / "message").read_text())
    return found


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


NOTE = """
import json
def note(**content):
    open(os.environ["FRACTAL_K8S_TERMINATION_LOG"], "w").write(json.dumps(content))
"""


def test_each_worker_has_a_gpu_and_its_lines_say_which(tmp_path: Path) -> None:
    code = NOTE + (
        "print('sees', os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "print('trouble', file=sys.stderr)\n"
        "note(shards=[K], points_done=3, points_total=4, failed=1, stored=3, error=f'of {K}')\n"
        "sys.exit(75 if K == 1 else 0)\n"
    )
    process = pod(tmp_path, code, 3)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 75
    for k in range(3):
        assert f"[gpu {k}] sees {k}\n" in out
        assert f"[gpu {k}] trouble\n" in out
    assert "[gpu 1] worker ended: may be tried again (exit code 75)" in out
    assert out.splitlines()[-1] == "3 workers have ended; exit code 75"
    found = message(tmp_path)
    assert found.pop("seconds") is not None
    assert found == {
        "shards": [0, 1, 2],
        "points_done": 9,
        "points_total": 12,
        "failed": 3,
        "stored": 9,
        "code": 75,
        "error": "of 0; of 1; of 2",
    }


def test_a_crash_leaves_the_others_alone_and_what_is_wrong_for_all_stops_them(
    tmp_path: Path,
) -> None:
    crash = "os.kill(os.getpid(), signal.SIGKILL) if K == 0 else time.sleep(0.5)\nprint('done')\n"
    process = pod(tmp_path, crash, 2)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 137
    assert "[gpu 1] done" in out
    wrong = (
        "signal.signal(signal.SIGTERM, lambda *a: (print('flushed', flush=True), os._exit(143)))\n"
        "time.sleep(0.5)\n"
        f"sys.exit({EXIT_SETTINGS}) if K == 0 else time.sleep(600)\n"
    )
    process = pod(tmp_path / "wrong", wrong, 3)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == EXIT_SETTINGS
    assert out.count("] flushed") == 2


def test_sigterm_reaches_every_worker_once_and_a_second_one_changes_nothing(
    tmp_path: Path,
) -> None:
    code = (
        "def stop(*a):\n"
        "    print('asked', flush=True); time.sleep(1); print('flushed', flush=True)\n"
        "    os._exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = pod(tmp_path, code, 2)
    assert process.stdout is not None
    for _ in range(2):
        assert "ready" in process.stdout.readline()
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == EXIT_TERMINATED
    assert out.count("asked") == out.count("flushed") == 2
    assert message(tmp_path)["code"] == EXIT_TERMINATED


def test_workers_that_outlive_the_grace_are_killed(tmp_path: Path) -> None:
    code = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(600)\n"
    )
    process = pod(tmp_path, code, 2, FRACTAL_K8S_GRACE_SECONDS="2")
    assert process.stdout is not None
    workers = [int(process.stdout.readline().split()[-1]) for _ in range(2)]
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    assert time.monotonic() - began < 120
    assert process.returncode == 137
    assert not any(is_alive(worker) for worker in workers)


def slow_plan(tmp_path: Path, points_per_shard: int = 100) -> tuple[Plan, Path]:
    sweep = mlp_sweep(resolution=[40, 40], training={"width": 8, "steps": 4000})
    plan = Plan(sweep, Deal(points_per_shard=points_per_shard))
    path = tmp_path / "sweep.json"
    path.write_text(plan.to_json())
    return plan, path


def worker(tmp_path: Path, path: Path, *more: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fractal_k8s", "worker", "--store", str(tmp_path / "runs")]
    return subprocess.Popen(
        [*command, "--sweep", str(path), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def test_a_pod_trains_its_shards_and_no_others(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[3, 4])
    plan = Plan(sweep, Deal(points_per_shard=3))
    path = tmp_path / "sweep.json"
    path.write_text(plan.to_json())
    log = {termination.VARIABLE: str(tmp_path / "message")}
    # shards 3 and, which is not there, 4 and 5: 4 shards in pods of 3
    process = worker(
        tmp_path, path, "--processes", "3", **log, JOB_COMPLETION_INDEX="1", CUDA_VISIBLE_DEVICES=""
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == EXIT_COMPLETE, err
    assert re.search(r"^\[gpu 0\] sweep \S+, shard 3 ", out, re.MULTILINE)
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    assert int(read_grid(folder, plan).known.sum()) == 3
    found = message(tmp_path)
    assert (found["shards"], found["points_done"], found["code"]) == ([3], 3, 0)
    process = worker(tmp_path, path, "--processes", "3", "--shard", "2")
    _, err = process.communicate(timeout=240)
    assert process.returncode == EXIT_SETTINGS
    assert "pod 2 of 3 shards each has none" in err


def test_damage_in_one_of_real_workers_ends_all_of_them(tmp_path: Path) -> None:
    plan, path = slow_plan(tmp_path)
    # what the second shard finds stored of it is of another sweep: no worker may go on
    folder = Store(str(tmp_path / "runs")).sweep(plan.sweep.id)
    folder.files.put(folder.key("classes", "first.json"), b"not JSON")
    process = worker(tmp_path, path, "--processes", "2", "--shard", "0", CUDA_VISIBLE_DEVICES="")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == EXIT_CORRUPT, out
    assert "not a numerics class written by fractal-k8s" in out


def test_workers_end_with_their_pod(tmp_path: Path) -> None:
    _, path = slow_plan(tmp_path)
    process = worker(tmp_path, path, "--processes", "2", "--shard", "0", CUDA_VISIBLE_DEVICES="")
    assert process.stdout is not None
    while "points to train" not in (line := process.stdout.readline()):
        assert line
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(children) == 2
    process.kill()  # no chance to tell its workers
    process.communicate(timeout=240)
    deadline = time.monotonic() + 240
    while any(is_alive(int(child)) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_workers_never_share_a_gpu_because_none_is_seen(tmp_path: Path) -> None:
    _, path = slow_plan(tmp_path)
    given = {"FRACTAL_K8S_GPUS": "2", "CUDA_VISIBLE_DEVICES": ""}
    process = worker(tmp_path, path, "--processes", "2", "--shard", "0", **given)
    _, err = process.communicate(timeout=240)
    assert process.returncode == EXIT_RETRY
    assert "2 processes need a GPU each and 0 are visible here" in err
