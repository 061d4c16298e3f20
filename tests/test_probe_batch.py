"""`probe-batch`: real processes with real memory limits, and failures that are not memory's."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Run
from fractal_k8s.errors import FractalError, UsageError
from fractal_k8s.results.capacity import Capacity, decisive, record_capacity
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.probe import search, trial_sweep, try_rows
from fractal_k8s.train.trial import Answer, is_out_of_memory, whole_rows

Make = Callable[..., Sweep]
ROWS_OF = 128


@pytest.fixture
def options(golden: Path) -> list[str]:
    return [
        f"--checkpoint={golden}",
        f"--dataset=conversations:{golden}/conversations.jsonl",
        f"--set=training.max_seq_len={ROWS_OF}",
        "--set=training.dtype=float32",
        "--steps=1",
    ]


# --- the search ---


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("most", [8, 20, 64])
@pytest.mark.parametrize("capacity", [0, 1, 7, 8, 23, 40, 1000])
def test_the_search_finds_the_largest_size_that_fits(stride: int, most: int, capacity: int) -> None:
    def attempt(rows: int) -> Answer:
        return Answer(fits=rows <= capacity, full=rows > capacity)

    trials = list(search(attempt, stride=stride, most=most))
    sizes = [trial.rows for trial in trials]
    assert len(set(sizes)) == len(sizes)
    assert all(rows % stride == 0 and rows <= most for rows in sizes)
    best = max((trial.rows for trial in trials if trial.fits), default=0)
    assert best == min(capacity, most) // stride * stride


def test_a_failure_that_is_not_memory_ends_the_search() -> None:
    answers = {8: Answer(fits=True), 16: Answer(error="RuntimeError: an illegal access")}
    with pytest.raises(FractalError, match="16 rows failed, and not for want of memory: Runtime"):
        list(search(answers.__getitem__, stride=8, most=64))


def test_a_failure_of_ours_stays_what_it_is() -> None:
    with pytest.raises(UsageError, match="no such folder"):
        list(
            search(lambda rows: Answer(error="no such folder", kind="UsageError"), stride=1, most=1)
        )


def _message(work: Callable[[], object]) -> str:
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("it should have failed")


def test_only_refused_memory_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(_message(lambda: torch.empty(1 << 55, dtype=torch.uint8)))
    assert is_out_of_memory(_message(lambda: bytearray(1 << 62)))
    assert is_out_of_memory(_message(lambda: np.empty(1 << 50)))
    assert is_out_of_memory("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert is_out_of_memory("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")
    assert not is_out_of_memory(_message(lambda: torch.ones(2, 3) @ torch.ones(2, 3)))
    assert not is_out_of_memory("RuntimeError: CUDA error: an illegal memory access was found")


def test_the_rows_of_a_trial_are_as_long_as_they_may_be(gpt_sweep: Make) -> None:
    rows = whole_rows(3, 64, 7, 1000)
    assert [len(row.ids) for row in rows] == [64] * 3
    assert [sum(row.trained) for row in rows] == [7] * 3
    sweep = gpt_sweep("training.device_batch_size=1", "training.token_accounting=supervised")
    tried = Sweep.parse(trial_sweep(sweep, 48, 5)).training
    assert isinstance(tried, GPTTraining)
    assert (tried.batch_size, tried.device_batch_size, tried.num_steps()) == (48, None, 5)


# --- real trials ---


def test_a_memory_limit_bounds_the_batch_and_plan_knows(
    run: Run, options: list[str], gpt_sweep: Make
) -> None:
    small = gpt_sweep(f"training.max_seq_len={ROWS_OF}")
    first = try_rows(small, 16, steps=1)
    assert first.fits, first
    assert first.shape is not None
    assert first.peak_bytes > 1 << 27
    assert first.labels > 1
    limit = first.peak_bytes + 40_000_000
    result = run(
        *("probe-batch", *options, f"--memory-limit={limit}", "--headroom=0"),
        *("--stride=16", "--max=32", "--json"),
    )
    found = json.loads(result.stdout)
    assert (found["largest_rows"], found["too_many_rows"]) == (16, 32)
    assert found["peak_bytes"] <= found["allowed_bytes"] == limit
    assert "allocate memory" in next(t for t in found["trials"] if not t["fits"])["error"]
    assert Path(found["kept_in"]).is_file()
    plan = run("plan", *options[:-1], "--set=training.batch_size=32", "--allow-repeats")
    assert "16 rows measured" in plan.stdout
    assert "32 rows at once are more than fit" in plan.stdout


def test_random_weights_need_no_files(run: Run) -> None:
    shape = ("--depth=1", "--random-weights", "--set=training.max_seq_len=32")
    result = run("probe-batch", *shape, "--steps=1", "--stride=2", "--max=2")
    assert "     2 rows  fits" in result.stdout
    assert "largest batch: 2 rows of 32 ids" in result.stdout
    assert "no larger size was tried" in result.stdout


def test_nothing_fits_is_said_and_nothing_is_written(run: Run, options: list[str]) -> None:
    result = run("probe-batch", *options, "--memory-limit=10M", "--max=8", code=2)
    assert "not even 8 rows of 128 ids fit" in result.output
    assert not Path("runs").exists()


def test_a_damaged_checkpoint_is_not_taken_for_full_memory(
    run: Run, options: list[str], golden: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(golden, copy)
    (weights,) = copy.glob("checkpoints/*.pt")
    weights.write_bytes(weights.read_bytes()[:-1000])
    result = run("probe-batch", *options, f"--checkpoint={copy}", code=65)
    assert "damaged or truncated" in result.output
    assert not Path("runs").exists()


def test_ctrl_c_says_what_is_known(options: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fractal_k8s", "probe-batch", *options, "--stride=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "1 rows  fits" in first
    assert "stopped; what is known so far" in rest
    assert "largest batch: " in rest
    assert "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset=tanh"], "probe-batch is for gpt sweeps"),
        (["--depth=2"], "--depth and --random-weights go together"),
        (["--random-weights"], "--depth and --random-weights go together"),
        (["--stride=9", "--max=8"], "--stride 9 is more than --max 8"),
        (["--memory-limit=much"], "'much' is not a size"),
        (["--memory-limit=0"], "'0' is not a size"),
        (["--headroom=1"], "is not in the range 0<=x<1"),
        ([], "needs weights: give --checkpoint FOLDER"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Run, arguments: list[str], message: str) -> None:
    assert message in run("probe-batch", *arguments, code=2).output
    assert not Path("runs").exists()


# --- what plan makes of it ---


def _capacity(sweep: Sweep, **changes: Any) -> Capacity:
    assert isinstance(sweep.training, GPTTraining)
    shape = {"vocab_size": 1024, "n_layer": 4, "n_head": 2, "n_kv_head": 2, "n_embd": 128}
    kept = Capacity(
        device="NVIDIA H200",
        shape=shape,
        training=decisive(sweep.training),
        rows=6,
        too_many=7,
        steps=5,
        labels=7,
        peak_bytes=121_000_000_000,
        allowed_bytes=140_000_000_000,
        headroom=0.05,
        measured="2026-11-01T00:00:00+00:00",
    )
    return replace(kept, **changes)


def test_plan_reads_the_measurement_of_the_same_step(
    run: Run, gpt_sweep: Make, tmp_path: Path
) -> None:
    sweep = gpt_sweep("training.batch_size=8")
    (tmp_path / "sweep.json").write_text(json.dumps(sweep.to_dict()))
    store = Store(str(tmp_path / "runs"))
    record_capacity(store, _capacity(sweep))
    record_capacity(store, _capacity(sweep, device="NVIDIA H100", rows=8, too_many=None))
    record_capacity(store, _capacity(gpt_sweep("training.max_seq_len=64"), rows=500))
    text = run("plan", "sweep.json").stdout
    assert "6 rows measured (NVIDIA H200, 5 steps of rows with" in text
    assert "8 rows at once are more than fit on NVIDIA H200" in text
    assert "set training.device_batch_size=4" in text
    assert "8 rows measured (NVIDIA H100" in text
    assert "more than fit on NVIDIA H100" not in text
    assert "500" not in text
    asked = json.loads(run("plan", "sweep.json", "--json").stdout)["largest_batches"]
    assert [found["rows"] for found in asked] == [8, 6]
    smaller = run("plan", "sweep.json", "--set=training.device_batch_size=2").stdout
    assert "rows at once are more" not in smaller
    assert run("list").output  # the folder of notes is no sweep


def test_a_later_measurement_replaces_the_earlier(gpt_sweep: Make, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    places = {record_capacity(store, _capacity(gpt_sweep(), rows=rows)) for rows in (4, 5)}
    assert len(places) == 1
    assert json.loads(Path(places.pop()).read_text())["rows"] == 5
