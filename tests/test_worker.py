"""A shard: what it trains, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run, mlp_raw, mlp_sweep
from fractal_k8s import termination
from fractal_k8s.aggregate import read_grid
from fractal_k8s.checkpoints import ready
from fractal_k8s.errors import (
    EXIT_COMPLETE,
    EXIT_NOT_READY,
    EXIT_RETRY,
    CorruptError,
    MixedNumericsError,
    NotReadyError,
    StoreError,
)
from fractal_k8s.results.attempt import Attempt
from fractal_k8s.results.files import LocalFiles
from fractal_k8s.results.outcome import Environment, Outcome, State
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.points import Point
from fractal_k8s.worker import Worker


class RecordingTrainer:
    """Trains nothing; notes which points were asked for. A point's numbers are its index."""

    def __init__(self, sweep: Sweep, **changes: Any) -> None:
        self.sweep = sweep
        self.changes = changes
        self.environment = Environment(numerics_class="test")
        self.digests: dict[str, str] = {}
        self.trained: list[int] = []

    def train(self, points: Sequence[Point], beat: Callable[[], None]) -> Iterator[Outcome]:
        for point in points:
            beat()
            self.trained.append(point.index)
            outcome = Outcome(
                index=point.index,
                i=point.i,
                j=point.j,
                y=point.y,
                x=point.x,
                state=State.TRAINED,
                run_seed=0,
                steps=1,
                first_loss=2.0,
                final_loss=1.0,
                ratio=0.5,
                losses=np.array([2.0, 1.0], np.float32),
            )
            yield replace(outcome, **self.changes)


TOKENS = {
    "name": "tokens",
    "model": "gpt",
    "dataset": "docvqa",
    "axes": {
        "y": {"knob": "lr", "low": 1e-6, "high": 1e-3},
        "x": {"knob": "tokens", "low": 1e3, "high": 1e5},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Sweep], SweepStore]:
    return lambda sweep: Store(str(tmp_path / "runs")).sweep(sweep.id)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RecordingTrainer]:
    def use(sweep: Sweep, **changes: Any) -> RecordingTrainer:
        made = RecordingTrainer(sweep, **changes)
        monkeypatch.setattr("fractal_k8s.train.open_trainer", lambda sweep: made)
        return made

    return use


def run(folder: SweepStore, plan: Plan, index: int, **options: Any) -> tuple[int, list[str]]:
    lines: list[str] = []
    return Worker(folder, plan, index, emit=lines.append, **options).run(), lines


def test_a_worker_trains_its_points_and_nothing_else(folder: Any, trainer: Any) -> None:
    sweep = mlp_sweep(resolution=[4, 4])
    made = trainer(sweep)
    plan = Plan(sweep, Deal(points_per_shard=6))
    code, lines = run(folder(sweep), plan, 1)
    assert code == EXIT_COMPLETE
    grid = read_grid(folder(sweep), plan)
    assert np.flatnonzero(grid.known.ravel()).tolist() == sorted(made.trained)
    assert len(made.trained) == 6
    assert len(lines) == 9
    assert lines[0].startswith(f"sweep {sweep.id}, shard 1 (")
    assert "6 points; node " in lines[0]
    assert lines[-1] == "complete: 6 points trained, 0 stored before"


def test_what_is_stored_is_not_trained_again(folder: Any, trainer: Any) -> None:
    sweep = mlp_sweep(resolution=[4, 4])
    plan = Plan(sweep, Deal(points_per_shard=16))
    trainer(sweep)
    run(folder(sweep), plan, 0)
    again = trainer(sweep)
    code, lines = run(folder(sweep), plan, 0)
    assert (code, again.trained) == (EXIT_COMPLETE, [])
    assert lines[-1] == "complete: all 16 points are stored, nothing to train"
    other_deal = Plan(sweep, Deal(points_per_shard=5))
    assert run(folder(sweep), other_deal, 2)[0] == EXIT_COMPLETE
    assert again.trained == []


def test_failed_points_are_trained_again_and_ask_for_another_attempt(
    folder: Any, trainer: Any
) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    plan = Plan(sweep, Deal(points_per_shard=4))
    trainer(sweep, state=State.FAILED, error="out of memory")
    code, lines = run(folder(sweep), plan, 0)
    assert code == EXIT_RETRY
    assert "failed: out of memory" in lines[2]
    assert lines[-1] == "trained 4 points, 4 of them failed; try again"
    again = trainer(sweep)
    assert run(folder(sweep), plan, 0)[0] == EXIT_COMPLETE
    assert sorted(again.trained) == [0, 1, 2, 3]
    assert read_grid(folder(sweep), plan).known.all()


def test_diverged_points_are_results(folder: Any, trainer: Any) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    plan = Plan(sweep, Deal(points_per_shard=4))
    trainer(sweep, state=State.DIVERGED, final_loss=float("nan"))
    assert run(folder(sweep), plan, 0)[0] == EXIT_COMPLETE
    assert read_grid(folder(sweep), plan).counts()["diverged"] == 4


def test_an_experiment_is_trained_once_and_stored_for_every_point_it_stands_for(
    folder: Any, trainer: Any
) -> None:
    sweep = Sweep.parse({**TOKENS, "resolution": [2, 30]})
    made = trainer(sweep)
    plan = Plan(sweep, Deal(points_per_shard=100))
    assert run(folder(sweep), plan, 0)[0] == EXIT_COMPLETE
    grid = read_grid(folder(sweep), plan)
    assert len(made.trained) == 2 * 3  # one, two and three steps
    assert grid.known.all()
    record = grid.record(1, 7)
    assert record is not None
    assert record["tokens"] == sweep.x_values[7]
    assert len(grid.table) == 60


def test_a_machine_of_another_numerics_class_must_be_accepted(folder: Any, trainer: Any) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    trainer(sweep)
    run(folder(sweep), Plan(sweep, Deal(points_per_shard=2)), 0)
    made = trainer(sweep)
    made.environment = Environment(numerics_class="another")
    plan = Plan(sweep, Deal(points_per_shard=4))
    with pytest.raises(MixedNumericsError, match="class 'test', this machine would add 'another'"):
        run(folder(sweep), plan, 0)
    assert made.trained == []
    assert run(folder(sweep), plan, 0, allow_mixed=True)[0] == EXIT_COMPLETE


@pytest.mark.parametrize("only", [None, "5-15"])
def test_another_class_is_noticed_in_every_shard_and_after_a_resume(
    only: str | None, folder: Any, trainer: Any
) -> None:
    sweep = mlp_sweep(resolution=[4, 4])
    trainer(sweep)
    first = Deal(points_per_shard=5)
    run(folder(sweep), Plan(sweep, first), 0)
    made = trainer(sweep)
    made.environment = Environment(numerics_class="another")
    deal = first if only is None else Deal(points_per_shard=5, only=only)
    with pytest.raises(MixedNumericsError):
        run(folder(sweep), Plan(sweep, deal), 1)
    assert made.trained == []
    trainer(sweep)
    assert run(folder(sweep), Plan(sweep, deal), 1)[0] == EXIT_COMPLETE


def test_failures_of_another_machine_do_not_stand_in_the_way(folder: Any, trainer: Any) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    plan = Plan(sweep, Deal(points_per_shard=4))
    trainer(sweep)
    run(folder(sweep), plan, 0)
    failed = trainer(sweep, state=State.FAILED)
    failed.environment = Environment(numerics_class="another")
    other = Plan(sweep, Deal(points_per_shard=4, only="0-3"))
    run(folder(sweep), other, 0, allow_mixed=True)
    grid = read_grid(folder(sweep), plan)
    assert grid.classes == ["test"]
    assert grid.known.all()


def test_what_was_collected_is_stored_whatever_ends_the_training(folder: Any, trainer: Any) -> None:
    sweep = mlp_sweep(resolution=[4, 4])
    made = trainer(sweep)
    honest = made.train

    def breaking(points: Any, beat: Any) -> Iterator[Outcome]:
        for number, outcome in enumerate(honest(points, beat)):
            if number == 10:
                raise ZeroDivisionError
            yield outcome

    made.train = breaking
    plan = Plan(sweep, Deal(points_per_shard=16))
    with pytest.raises(ZeroDivisionError):
        run(folder(sweep), plan, 0)
    assert read_grid(folder(sweep), plan).known.sum() == 10


def test_a_store_that_refuses_for_a_while_loses_nothing(
    folder: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = mlp_sweep(resolution=[4, 4])
    trainer(sweep)
    plan = Plan(sweep, Deal(points_per_shard=16))
    monkeypatch.setattr("fractal_k8s.worker._RETRY_WAITS_S", (0.0, 0.0))
    original = LocalFiles.put
    refused: list[str] = []

    def put(self: LocalFiles, key: str, data: bytes) -> None:
        if "outcomes" in key and len(refused) < 5:
            refused.append(key)
            raise StoreError("cannot write: slow down")
        original(self, key, data)

    monkeypatch.setattr(LocalFiles, "put", put)
    worker = Worker(folder(sweep), plan, 0, emit=lambda line: None)
    worker.flush_seconds = 0.0
    assert worker.run() == EXIT_COMPLETE
    assert len(refused) == 5
    assert read_grid(folder(sweep), plan).known.all()


def test_a_store_that_refuses_for_good_is_an_error(
    folder: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    trainer(sweep)
    monkeypatch.setattr("fractal_k8s.worker._RETRY_WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(Attempt, "flush", lambda self: (_ for _ in ()).throw(StoreError("no")))
    with pytest.raises(StoreError):
        run(folder(sweep), Plan(sweep, Deal(points_per_shard=4)), 0)


@pytest.mark.parametrize("what", ["sweep.json", "deals", "classes", "outcomes"])
def test_a_pod_outlasts_a_store_that_is_away(
    what: str, folder: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = mlp_sweep(resolution=[4, 4])
    trainer(sweep)
    plan = Plan(sweep, Deal(points_per_shard=16))
    original, refused = LocalFiles.put, []

    def put(self: LocalFiles, key: str, data: bytes) -> None:
        if what in key and len(refused) < 6:
            refused.append(key)
            raise StoreError("cannot write: no answer")
        original(self, key, data)

    monkeypatch.setattr(LocalFiles, "put", put)
    worker = Worker(folder(sweep), plan, 0, emit=lambda line: None)
    worker.waits = (0.0,) * 10
    assert worker.run() == EXIT_COMPLETE
    assert len(refused) == 6
    assert read_grid(folder(sweep), plan).known.all()


def test_keys_that_are_refused_are_told_at_once(
    folder: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    trainer(sweep)
    tries: list[Plan] = []

    def write_plan(self: SweepStore, plan: Plan) -> bool:
        tries.append(plan)
        raise StoreError("ACCESS_DENIED; check the credentials and their rights on the bucket")

    monkeypatch.setattr(SweepStore, "write_plan", write_plan)
    worker = Worker(folder(sweep), Plan(sweep, Deal()), 0, emit=lambda line: None)
    worker.waits = (600.0,)
    with pytest.raises(StoreError):
        worker.run()
    assert len(tries) == 1


def test_a_pod_that_waits_for_its_store_ends_within_the_grace(tmp_path: Path) -> None:
    """All is trained, the store has been away for long, and is back when SIGTERM comes."""
    sweep = mlp_sweep(resolution=[4, 4])
    path = plan_file(tmp_path, sweep)
    store = tmp_path / "runs"
    logs = store / sweep.id / "logs"
    logs.parent.mkdir(parents=True)
    logs.write_text("a file where a folder should be")
    # the third wait is of 10 s
    process = start(path, store, POD_NAME="pod")
    assert process.stdout is not None
    for _ in range(3):
        while "not stored yet" not in (line := process.stdout.readline()):
            assert line
    logs.unlink()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 143, out + err
    assert time.monotonic() - began < 8
    assert "stopped after 16 points, which are stored" in out
    assert read_grid(Store(str(store)).sweep(sweep.id), Plan(sweep, Deal())).known.all()


@pytest.mark.parametrize("arrivals", [1, 3])
def test_signals_never_split_an_experiment_s_points_or_a_write(
    arrivals: int, folder: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals while points are added and while they are written: one clean stop, all kept."""
    sweep = Sweep.parse({**TOKENS, "resolution": [2, 30]})
    trainer(sweep)
    plan = Plan(sweep, Deal(points_per_shard=100))
    add, flush = Attempt.add, Attempt.flush

    def interrupted_add(self: Attempt, *arguments: Any) -> None:
        add(self, *arguments)
        if len(self) == 3:
            for _ in range(arrivals):
                signal.raise_signal(signal.SIGTERM)

    def interrupted_flush(self: Attempt) -> None:
        signal.raise_signal(signal.SIGTERM)
        flush(self)

    monkeypatch.setattr(Attempt, "add", interrupted_add)
    monkeypatch.setattr(Attempt, "flush", interrupted_flush)
    code, lines = run(folder(sweep), plan, 0)
    assert code == 143
    grid = read_grid(folder(sweep), plan)
    first = Dealt(sweep, plan.deal).shard(0)
    assert int(grid.known.sum()) == len(first.shared[first.trained[0]])
    assert lines[-1] == f"stopped after {int(grid.known.sum())} points, which are stored"


def test_a_line_tells_a_point_s_whole_story(folder: Any, trainer: Any) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    trainer(sweep)
    _, lines = run(folder(sweep), Plan(sweep, Deal(points_per_shard=4)), 0)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d \(  0,  0\)  output_lr=0.01 +input_lr=0.01 +steps 1 +loss 2 -> 1  "
        r"trainable  \S+ points/s  1/4",
        lines[2],
    )
    assert lines[-2].endswith("4/4")


def test_the_listener_hears_of_every_point(folder: Any, trainer: Any) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    trainer(sweep)
    events: list[Any] = []
    run(folder(sweep), Plan(sweep, Deal(points_per_shard=4)), 0, listener=events.append)
    assert sorted(event.index for event in events) == [0, 1, 2, 3]


# --- as a process ---


def start(plan_file: Path, store: Path, shard: int = 0, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fractal_k8s", "worker", "--store", str(store)]
    return subprocess.Popen(
        [*command, "--sweep", str(plan_file), "--shard", str(shard)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def plan_file(tmp_path: Path, sweep: Sweep, deal: Deal | None = None) -> Path:
    path = tmp_path / "sweep.json"
    path.write_text(Plan(sweep, deal or Deal(points_per_shard=sweep.num_points)).to_json())
    return path


def slow_sweep() -> Sweep:
    """Some tens of seconds of training in many groups."""
    raw = mlp_raw(resolution=[200, 200])
    raw["training"] = {"width": 8, "steps": 400}
    return Sweep.parse(raw)


def test_sigterm_saves_what_is_done_and_ends_with_143(tmp_path: Path) -> None:
    sweep = slow_sweep()
    process = start(plan_file(tmp_path, sweep), tmp_path / "runs")
    assert process.stdout is not None
    for _ in range(50):
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 143
    told = re.search(r"stopped after (\d+) points, which are stored", out)
    assert told is not None
    stored = int(told[1])
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    assert int(read_grid(folder, Plan(sweep, Deal())).known.sum()) == stored >= 48


def test_a_worker_without_a_shard_is_wrong_for_good(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fractal_k8s", "worker", "--store", "x", "--sweep", "y"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 64
    assert "--shard" in done.stderr


def test_the_index_comes_from_the_environment_of_a_job(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[3, 4])
    path = plan_file(tmp_path, sweep, Deal(points_per_shard=5))
    command = [sys.executable, "-m", "fractal_k8s", "worker"]
    arguments = ["--store", str(tmp_path / "runs"), "--sweep", str(path)]
    done = subprocess.run(
        command + arguments,
        env={**os.environ, "JOB_COMPLETION_INDEX": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    assert read_grid(folder, Plan(sweep, Deal())).known.sum() == 2
    by_id = subprocess.run(
        [*command, "--store", str(tmp_path / "runs"), "--sweep", sweep.id, "--shard", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert by_id.returncode == 0, by_id.stderr
    assert read_grid(folder, Plan(sweep, Deal())).known.sum() == 7


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        pytest.param(lambda text: text, 64, "shard 99 does not exist", id="no such shard"),
        pytest.param(
            lambda text: text[:-20], 65, "not a sweep written by fractal-k8s", id="cut file"
        ),
        pytest.param(
            lambda text: text.replace('"width": 4', '"width": 0'),
            64,
            "training.width",
            id="settings",
        ),
    ],
)
def test_a_worker_that_cannot_work_says_why(
    change: Callable[[str], str], code: int, message: str, tmp_path: Path
) -> None:
    path = plan_file(tmp_path, mlp_sweep(resolution=[3, 4]))
    path.write_text(change(path.read_text()))
    process = start(path, tmp_path / "runs", shard=99)
    _, err = process.communicate(timeout=240)
    assert process.returncode == code
    assert err.startswith("Error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_the_plan_of_another_job_is_not_trained(tmp_path: Path) -> None:
    """A node may still have the ConfigMap of a Job that was cancelled and launched anew."""
    sweep = mlp_sweep(resolution=[2, 2])
    wanted = Deal(points_per_shard=1)
    path = plan_file(tmp_path, sweep, Deal(points_per_shard=2))
    # the plan has no shard 3: were it the right one, that would be wrong for every shard
    process = start(path, tmp_path / "runs", shard=3, FRACTAL_K8S_DEAL=wanted.tag)
    _, err = process.communicate(timeout=240)
    assert process.returncode == EXIT_RETRY
    assert "is the plan of another Job" in err
    assert not (tmp_path / "runs").exists()
    path = plan_file(tmp_path, sweep, wanted)
    process = start(path, tmp_path / "runs", shard=3, FRACTAL_K8S_DEAL=wanted.tag)
    _, err = process.communicate(timeout=240)
    assert process.returncode == EXIT_COMPLETE, err


@pytest.mark.parametrize("execution", ["eager", "graphs"])
def test_a_pod_whose_gpu_cannot_be_used_asks_for_another_attempt(
    execution: str, tmp_path: Path, gpt_sweep: Callable[..., Sweep]
) -> None:
    """It neither claims the sweep for its CPU nor ends the whole Job."""
    sweep = gpt_sweep(f"training.execution={execution}")
    path = plan_file(tmp_path, sweep)
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    process = start(path, tmp_path / "runs", FRACTAL_K8S_GPUS="1", **hidden)
    _, err = process.communicate(timeout=240)
    assert process.returncode == EXIT_RETRY
    assert "given a GPU and CUDA shows none" in err
    assert Store(str(tmp_path / "runs")).sweep(sweep.id).claimed_class() is None


def test_corrupt_weights_end_with_65(tmp_path: Path, golden: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(golden, broken)
    weights = broken / "checkpoints" / "model_000300.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    raw = {
        "name": "tuned",
        "model": "gpt",
        "checkpoint": str(broken),
        "dataset": f"conversations:{golden}/conversations.jsonl",
        "resolution": [2, 2],
        "axes": {
            "y": {"knob": "matrix_lr", "low": 1e-3, "high": 1e-1},
            "x": {"knob": "unembedding_lr", "low": 1e-3, "high": 1e-1},
        },
    }
    process = start(plan_file(tmp_path, Sweep.parse(raw)), tmp_path / "runs")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 65
    assert "damaged or truncated" in err


def test_a_hung_trainer_is_ended_with_70_and_what_is_done_is_kept(tmp_path: Path) -> None:
    """The watchdog in a real process: a step that never returns."""
    sweep = mlp_sweep(resolution=[2, 2])
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_worker import RecordingTrainer
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
import fractal_k8s.train
from fractal_k8s.worker import Worker

plan = Plan.from_json(open({str(plan_file(tmp_path, sweep))!r}).read(), source="x")

class Hanging(RecordingTrainer):
    def train(self, points, beat):
        for number, outcome in enumerate(super().train(points, beat)):
            if number == 2:
                time.sleep(600)
            yield outcome

fractal_k8s.train.open_trainer = Hanging
sys.exit(Worker(Store({str(tmp_path / "runs")!r}).sweep(plan.sweep.id), plan, 0).run())
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FRACTAL_K8S_HANG_SECONDS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 70, done.stderr
    assert time.monotonic() - began < 120
    assert "no training step for" in done.stderr
    assert "what is done is stored" in done.stderr
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    assert read_grid(folder, Plan(sweep, Deal())).known.sum() == 2


def test_the_stored_log_has_a_line_per_point(folder: Any, trainer: Any) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    trainer(sweep, ratio=float("nan"))
    run(folder(sweep), Plan(sweep, Deal(points_per_shard=4)), 0)
    lines = folder(sweep).read_logs()
    assert len(lines) == 4
    assert {"time", "shard", "attempt", "i", "j", "output_lr", "input_lr", "state"} <= set(lines[0])
    assert lines[0]["ratio"] == "nan"
    assert json.loads(json.dumps(lines, allow_nan=False)) == lines


# --- last words ---


def read_message(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "message").read_bytes())
    assert found.pop("seconds") >= 0
    return found


def test_a_message_fits_names_no_secret_and_never_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    termination.note(code=1)  # nobody asked
    path = tmp_path / "message"
    monkeypatch.setenv(termination.VARIABLE, str(path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t/s3cr3t")
    path.write_text("x" * 5000)
    same = path.stat().st_ino
    termination.note(shards=[3], error="the key s3cr3t/s3cr3t\nwas refused " + "\u20ac" * 3000)
    assert path.stat().st_size <= 4096
    assert path.stat().st_ino == same  # it may be a mount
    found = read_message(tmp_path)
    assert found["error"].startswith("the key *** was refused \u20ac")
    termination.note(code=75)
    assert read_message(tmp_path) == {**found, "code": 75}
    monkeypatch.setenv(termination.VARIABLE, str(tmp_path / "no" / "folder"))
    termination.note(code=1)


def test_messages_of_several_workers_are_one() -> None:
    one = {"shards": [4], "points_done": 2, "points_total": 3, "failed": 1, "stored": 2}
    other = {"shards": [5], "points_done": 3, "points_total": 3, "stored": 3, "error": "no"}
    assert termination.merged([one, other, {}]) == {
        "shards": [4, 5],
        "points_done": 5,
        "points_total": 6,
        "failed": 1,
        "stored": 5,
        "error": "no",
    }


def test_every_way_out_leaves_last_words(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[3, 4])
    path = plan_file(tmp_path, sweep)
    log = {termination.VARIABLE: str(tmp_path / "message")}
    process = start(path, tmp_path / "runs", **log)
    process.communicate(timeout=240)
    counts = {"points_done": 12, "points_total": 12, "failed": 0, "stored": 12}
    assert read_message(tmp_path) == {"shards": [0], **counts, "code": 0}
    (tmp_path / "message").unlink()
    process = start(path, tmp_path / "runs", shard=7, **log)
    process.communicate(timeout=240)
    found = read_message(tmp_path)
    assert found["code"] == process.returncode == 64
    assert "shard 7 does not exist" in found["error"]
    (tmp_path / "message").unlink()
    command = [sys.executable, "-m", "fractal_k8s", "worker", "--nonsense"]
    done = subprocess.run(command, env={**os.environ, **log}, capture_output=True, check=False)
    found = read_message(tmp_path)
    assert found["code"] == done.returncode == 64
    assert "--nonsense" in found["error"]


def test_a_worker_that_is_killed_leaves_what_it_had_stored(tmp_path: Path) -> None:
    process = start(
        plan_file(tmp_path, slow_sweep()),
        tmp_path / "runs",
        FRACTAL_K8S_TERMINATION_LOG=str(tmp_path / "message"),
    )
    assert process.stdout is not None
    stored = 0
    for line in process.stdout:
        if "points/s" in line and (stored := read_message(tmp_path).get("stored", 0)):
            break
    assert stored
    process.kill()
    process.communicate()
    found = read_message(tmp_path)
    assert found["points_total"] == 40_000
    assert 0 < found["stored"] <= found["points_done"] <= 40_000
    assert "code" not in found


# --- signals at any time ---


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_sigterm_at_any_time_ends_cleanly(seconds: float, tmp_path: Path) -> None:
    """While libraries load, the store is read or the first points are trained."""
    process = start(
        plan_file(tmp_path, slow_sweep()),
        tmp_path / "runs",
        FRACTAL_K8S_TERMINATION_LOG=str(tmp_path / "message"),
    )
    time.sleep(seconds)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    out, err = process.communicate(timeout=240)
    if process.returncode == -signal.SIGTERM:  # before a line of ours was run
        assert out == ""
        return
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert read_message(tmp_path)["code"] == 143


HANGING = """
import ctypes, os, signal, sys, threading, time
sys.path.insert(0, {tests!r})
from test_worker import RecordingTrainer
from fractal_k8s.results.files import LocalFiles
import fractal_k8s.train

def block():
    "Never returns, and lets no handler run: a lock of C that its owner takes again."
    lock = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(lock)
    ctypes.CDLL(None).pthread_mutex_lock(lock)

class Hanging(RecordingTrainer):
    def train(self, points, beat):
        for number, outcome in enumerate(super().train(points, beat)):
            if number == 2:
                print("ready", flush=True)
                {what}
            yield outcome

original = LocalFiles.put
def put(self, key, data):
    if {hangs} and "logs" in key:
        block()
    original(self, key, data)

LocalFiles.put = put
fractal_k8s.train.open_trainer = Hanging
from fractal_k8s.cli import main
main()
"""


@pytest.mark.parametrize(
    ("what", "hangs", "code", "stored"),
    [
        pytest.param("block()", False, 143, 2, id="a device"),
        pytest.param("time.sleep(600)", True, 75, 0, id="a store"),
        pytest.param("block()", True, 75, 0, id="both"),
    ],
)
def test_what_hangs_does_not_outlast_the_grace(
    what: str, hangs: bool, code: int, stored: int, tmp_path: Path
) -> None:
    """Main threads that no signal handler reaches, and writes that never return."""
    sweep = mlp_sweep(resolution=[2, 2])
    script = HANGING.format(tests=str(Path(__file__).parent), what=what, hangs=hangs)
    (tmp_path / "worker.py").write_text(script)
    process = subprocess.Popen(
        [
            *(sys.executable, str(tmp_path / "worker.py"), "worker", "--store"),
            *(str(tmp_path / "runs"), "--sweep", str(plan_file(tmp_path, sweep)), "--shard", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "FRACTAL_K8S_GRACE_SECONDS": "8",
            "FRACTAL_K8S_TERMINATION_LOG": str(tmp_path / "message"),
        },
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "ready\n":
        assert line
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert time.monotonic() - began < 8.0
    assert process.returncode == code, err
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    assert int(read_grid(folder, Plan(sweep, Deal())).known.sum()) == stored
    found = read_message(tmp_path)
    assert (found["code"], found["stored"], found["points_done"]) == (code, stored, 2)
    if hangs:
        assert "2 points are done and not stored" in out
        assert "2 points are done and not stored" in found["error"]


# --- caches ---


def test_a_cache_is_waited_for_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr(ready, "_POLL_SECONDS", 0.05)
    model, data = tmp_path / "model", tmp_path / "data"
    said: list[str] = []
    ready.wait_until_ready([], 0, said.append)
    model.mkdir()
    (model / "READY").touch()

    def fill() -> None:
        data.mkdir()
        (data / "READY").touch()

    filler = threading.Timer(0.3, fill)
    filler.start()
    ready.wait_until_ready([model, data], 30, said.append)
    filler.join()
    assert said == [f"waiting up to 30 s for a file READY in {data}"]
    (model / "READY").unlink()
    with pytest.raises(NotReadyError, match=rf"no file READY in {model} after 0 s: the cache"):
        ready.wait_until_ready([model, data], 0.2, said.append)


def test_a_worker_whose_cache_is_empty_asks_for_another_attempt(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    arguments = ["--store", str(tmp_path / "runs"), "--shard", "0", "--cache", str(tmp_path)]
    command = [sys.executable, "-m", "fractal_k8s", "worker", *arguments]
    command += ["--sweep", str(plan_file(tmp_path, sweep))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_NOT_READY  # which no try of a Job's index is counted for
    assert "no file READY in" in done.stderr
    process = subprocess.Popen([*command, "--cache-wait", "600"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "waiting up to 600 s for" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 143
    assert out == "stopped before the first point, nothing is lost\n"


# --- weights and data that the launch did not have ---


def test_the_first_worker_s_files_are_the_sweep_s(
    gpt_sweep: Callable[..., Sweep], golden: Path, folder: Any, tmp_path: Path, run: Run
) -> None:
    """Launched with the paths of a pod, trained where the files lie elsewhere."""
    here = gpt_sweep()
    paths = {"checkpoint": "/cache/model", "dataset": "conversations:/cache/dataset/train.jsonl"}
    launched = Sweep.parse({**here.to_dict(), **paths})
    plan = Plan(launched, Deal(points_per_shard=2))
    store = folder(launched)

    def worker(index: int, placed: Sweep) -> Worker:
        made = Worker(store, plan, index, emit=lambda line: None)
        made.placed = placed
        return made

    assert worker(0, here).run() == EXIT_COMPLETE
    assert set(store.claimed_files()) == {"checkpoint", "dataset"}
    data = (golden / "conversations.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(reversed(data)))
    other = gpt_sweep(dataset=f"conversations:{tmp_path}/other.jsonl")
    with pytest.raises(CorruptError, match=r"dataset conversations:.*other.jsonl: its sha256 is"):
        worker(1, other).run()
    resume = ["resume", launched.id, "--store", str(tmp_path / "runs"), "--backend", "inline"]
    resume += ["--checkpoint", str(golden), "--dataset"]
    said = run(*resume, str(other.spec.dataset), code=65).output
    assert f"the first worker of {launched.id} had" in said
    assert int(read_grid(store, plan).known.sum()) == 2
    run(*resume, str(here.spec.dataset))
    assert read_grid(store, plan).known.all()
    assert Store(str(tmp_path / "runs")).sweep_ids() == [launched.id]
