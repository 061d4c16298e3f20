"""The places where shards run: one contract for all, and what only child processes can show."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import mlp_raw, mlp_sweep
from fractal_k8s import backends, controller
from fractal_k8s.aggregate import read_grid
from fractal_k8s.backends import Backend, Work, open_backend
from fractal_k8s.backends.inline import InlineBackend
from fractal_k8s.backends.k8s import K8sBackend
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.backends.local import LocalBackend, LocalRun, visible_gpus
from fractal_k8s.errors import ConflictError, CorruptError, StoreError, UsageError
from fractal_k8s.manifest.settings import JobSettings
from fractal_k8s.results.grid import Grid
from fractal_k8s.results.lock import is_locked
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from standin.cluster import StandIn
from sweeps import network_text


class Silent:
    """A display that shows nothing."""

    def begin(self, sweep: Sweep, states: Any, workers: int) -> None: ...
    def point(self, event: Any) -> None: ...
    def end(self) -> None: ...


def bits(grid: Grid) -> list[tuple[Any, ...]]:
    """Everything about a map that training decides, bit for bit."""
    rows = grid.table.select(["i", "j", "state", "steps", "ratio", "losses"]).to_pylist()
    return [
        (
            row["i"],
            row["j"],
            row["state"],
            row["steps"],
            np.float64(row["ratio"]).tobytes(),
            np.array(row["losses"], np.float32).tobytes(),
        )
        for row in rows
    ]


def uninterrupted(sweep: Sweep, tmp_path: Path) -> list[tuple[Any, ...]]:
    folder = Store(str(tmp_path / "reference")).sweep(sweep.id)
    plan = Plan(sweep, Deal(points_per_shard=sweep.num_points))
    InlineBackend().submit(Work(folder, plan), lambda event: None).wait()
    grid = read_grid(folder, plan)
    assert grid.known.all()
    return bits(grid)


# --- contract ---


@contextlib.contextmanager
def opened(name: str, tmp_path: Path, workers: int) -> Iterator[tuple[Backend, Store]]:
    """A backend, and a store that its workers write to."""
    if name != "k8s":
        yield open_backend(name, workers=workers), Store(str(tmp_path / "runs"))
        return
    claims = {part: tmp_path / part for part in ("fractal-store", "fractal-model", "fractal-data")}
    for folder in claims.values():
        folder.mkdir()
        (folder / "READY").touch()
    settings = JobSettings(
        store="/store/runs",
        store_claim="fractal-store",
        model_claim="fractal-model",
        model_path="/cache/model/nowhere",
        dataset_claim="fractal-data",
        gpus=workers,
        gpus_per_pod=0,
        memory="1Gi",
        cpu="500m",
    )
    with StandIn(tmp_path / "standin", claims=claims) as standin:
        cluster = connect("standin", kubeconfig=str(standin.kubeconfig))
        backend = open_backend(name, place=(cluster, settings))
        assert isinstance(backend, K8sBackend)
        backend.poll_s = 0.2
        yield backend, Store(str(claims["fractal-store"] / "runs"))


@pytest.mark.parametrize("name", backends.names())
def test_a_backend_trains_every_shard_once_and_reports_every_point(
    name: str, tmp_path: Path
) -> None:
    sweep = mlp_sweep(resolution=[5, 6])
    plan = Plan(sweep, Deal(points_per_shard=12))
    events: list[int] = []
    with opened(name, tmp_path, workers=2) as (backend, store):
        folder = store.sweep(sweep.id)
        run = backend.submit(Work(folder, plan), lambda event: events.append(event.index))
        assert run.status().pending == 3
        status = run.wait()
        assert "steps 30" in run.logs(2)
    assert (status.pending, status.running, status.done, status.failed) == (0, 0, 3, {})
    assert sorted(events) == list(range(30))
    grid = read_grid(folder, plan)
    assert bits(grid) == uninterrupted(sweep, tmp_path)
    assert len(folder.outcome_entries()) == 3


@pytest.mark.parametrize("name", backends.names())
def test_a_backend_stops_when_it_is_cancelled_and_keeps_what_is_done(
    name: str, tmp_path: Path
) -> None:
    sweep = mlp_sweep(resolution=[6, 6])
    plan = Plan(sweep, Deal(points_per_shard=3))
    events: list[Any] = []

    def cancel_once(event: Any) -> None:
        events.append(event)
        if len(events) == 1:  # a second time would kill
            run.cancel()

    with opened(name, tmp_path, workers=1) as (backend, store):
        folder = store.sweep(sweep.id)
        run = backend.submit(Work(folder, plan), cancel_once)
        status = run.wait()
    assert status.pending > 0
    known = int(read_grid(folder, plan).known.sum())
    assert 0 < known < 36


@pytest.mark.parametrize("name", backends.names())
def test_what_is_wrong_for_every_shard_ends_the_run(name: str, tmp_path: Path) -> None:
    raw = mlp_raw()
    raw.update(model="gpt", checkpoint=str(tmp_path / "nowhere"), dataset="conversations:x.jsonl")
    raw["axes"] = {
        "y": {"knob": "matrix_lr", "low": 1e-3, "high": 1.0},
        "x": {"knob": "unembedding_lr", "low": 1e-3, "high": 1.0},
    }
    raw["training"] = {}
    sweep = Sweep.parse(raw)
    plan = Plan(sweep, Deal(points_per_shard=4))
    with (
        opened(name, tmp_path, workers=2) as (backend, store),
        pytest.raises(UsageError, match="nowhere: no such folder"),
    ):
        backend.submit(Work(store.sweep(sweep.id), plan), lambda event: None).wait()


def test_a_cancel_while_a_child_is_started_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = medium_sweep()
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    work = Work(folder, Plan(sweep, Deal(points_per_shard=sweep.num_points)))
    run = LocalBackend(workers=1).submit(work, lambda event: None)
    original = subprocess.Popen

    def cancelling(*arguments: Any, **options: Any) -> Any:
        process = original(*arguments, **options)
        run.cancel()
        return process

    monkeypatch.setattr(subprocess, "Popen", cancelling)
    assert run.wait().done == 0


def test_the_output_of_a_shard_can_be_read_after_the_run(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[3, 3])
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    run = LocalBackend(workers=1).submit(
        Work(folder, Plan(sweep, Deal(points_per_shard=9))), lambda event: None
    )
    run.wait()
    assert run.logs(0).count("steps 30") == 9


def test_an_unknown_backend_is_told_its_neighbour() -> None:
    with pytest.raises(UsageError, match="no backend 'locale'; did you mean 'local'"):
        open_backend("locale")


# --- child processes ---


def test_workers_share_the_gpus_they_are_given() -> None:
    assert LocalBackend(workers=3, gpus=("4", "5")).devices == ["4", "5", "4"]
    assert LocalBackend(gpus=("0", "1")).devices == ["0", "1"]


def test_visible_gpus_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert visible_gpus() == ("2", "3")
    for nothing in ("", "-1", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert visible_gpus() == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,-1,4")
    assert visible_gpus() == ("3",)


def test_a_child_sees_its_own_gpu_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    started: list[dict[str, str]] = []
    original = subprocess.Popen

    def recording(*arguments: Any, **options: Any) -> Any:
        started.append(options["env"])
        return original(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", recording)
    work = Work(folder, Plan(sweep, Deal(points_per_shard=2)))
    LocalBackend(gpus=("7", "9")).submit(work, lambda event: None).wait()
    assert sorted(env["CUDA_VISIBLE_DEVICES"] for env in started) == ["7", "9"]


def test_only_gpus_that_are_there_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert LocalBackend(gpus=("1",)).devices == ["1"]
    with pytest.raises(UsageError, match="no GPU 7 here; there are 0, 1"):
        LocalBackend(gpus=("0", "7"))


def test_folders_of_killed_launchers_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    for name in (f"fractal-k8s-run-{gone}-abc", f"fractal-k8s-run-{os.getpid()}-abc", "other-1"):
        (tmp_path / name).mkdir()
    sweep = mlp_sweep(resolution=[2, 2])
    work = Work(Store(str(tmp_path / "runs")).sweep(sweep.id), Plan(sweep, Deal()))
    run = LocalBackend(workers=1).submit(work, lambda event: None)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"fractal-k8s-run-{os.getpid()}-abc", "other-1", run.folder.name}


def medium_sweep() -> Sweep:
    """A few seconds of training in one process."""
    raw = mlp_raw(resolution=[80, 80])
    raw["training"] = {"width": 8, "steps": 150}
    return Sweep.parse(raw)


def test_any_kill_at_any_moment_then_resume_gives_the_same_map(tmp_path: Path) -> None:
    sweep = medium_sweep()
    expected = uninterrupted(sweep, tmp_path)
    began = time.monotonic()  # a busy machine takes longer, and so do the kills
    timed = controller.prepare(sweep, Store(str(tmp_path / "timed")), workers=2)
    controller.train(timed, LocalBackend(workers=2), Silent())
    whole = time.monotonic() - began
    store = Store(str(tmp_path / "runs"))
    chance = random.Random(0)
    kills = 0
    timers: list[threading.Timer] = []

    def strike(run: LocalRun) -> None:
        nonlocal kills
        for child in list(run._children.values()):
            child.process.send_signal(signal.SIGKILL)
            kills += 1
        if kills < 12:
            arm(run)

    def arm(run: Any) -> None:
        timers.append(threading.Timer(chance.uniform(0.05, 0.6) * whole, strike, (run,)))
        timers[-1].start()

    for _ in range(40):
        launch = controller.prepare(sweep, store, workers=2)
        if not launch.missing:
            break
        controller.train(launch, LocalBackend(workers=2), Silent(), started=arm)
        for timer in timers:
            timer.cancel()
    grid = read_grid(store.sweep(sweep.id), Plan(sweep, Deal()))
    assert kills >= 4
    assert grid.known.all()
    assert grid.problems == []
    assert bits(grid) == expected


def test_a_shard_whose_workers_keep_dying_is_given_up_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = mlp_sweep(resolution=[4, 4])
    store = Store(str(tmp_path / "runs"))
    launch = controller.prepare(sweep, store, workers=1)
    monkeypatch.setattr(
        LocalRun,
        "argv",
        lambda self, shard: [
            "worker",
            "--debug",
            "--store",
            "ftp://x",
            "--sweep",
            "y",
            "--shard",
            "0",
        ],
    )
    monkeypatch.setattr("fractal_k8s.backends.local.sys.executable", "/bin/false")
    status = controller.train(launch, LocalBackend(workers=1), Silent())
    assert status.failed == {0: "ended with code 1"}
    assert status.repeated == ["shard 0 ended with code 1"]
    assert status.done == 0


def launcher(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """`fractal-k8s launch` of a sweep that takes a while, as a process."""
    sweep_file = tmp_path / "sweep.toml"
    sweep_file.write_text(network_text("long", (150, 150), width=8, steps=400))
    command = [sys.executable, "-m", "fractal_k8s", "launch", str(sweep_file), *arguments]
    return subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def folder_of(tmp_path: Path) -> SweepStore:
    return Store(str(tmp_path / "runs")).find("long")


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def stored_points(tmp_path: Path) -> int:
    try:
        folder = folder_of(tmp_path)
    except UsageError:
        return 0
    plan = folder.read_plan()
    return int(read_grid(folder, plan).known.sum()) if plan else 0


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    ],
)
@pytest.mark.parametrize("backend", ["inline", "local"])
def test_a_stop_is_clean_and_names_the_command_that_goes_on(
    number: signal.Signals, code: int, backend: str, tmp_path: Path
) -> None:
    process = launcher(tmp_path, "--backend", backend)
    wait_for(lambda: stored_points(tmp_path) > 0)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    assert "Traceback" not in err
    kept = stored_points(tmp_path)
    assert 0 < kept < 22_500
    assert f"stopped: {kept:,} of 22,500 points are kept" in out
    assert f"continue with: fractal-k8s resume {folder_of(tmp_path).sweep_id}" in out
    assert is_locked(folder_of(tmp_path)) is False


def test_a_killed_launcher_then_resume_gives_the_same_map(tmp_path: Path) -> None:
    for _ in range(2):
        before = stored_points(tmp_path)
        with launcher(tmp_path) as process:
            wait_for(lambda least=before: stored_points(tmp_path) > least)  # type: ignore[misc]
            process.kill()
        folder = folder_of(tmp_path)
        wait_for(lambda: not is_locked(folder_of(tmp_path)))
    plan = folder.read_plan()
    assert plan is not None
    launch = controller.prepare(plan.sweep, Store(str(tmp_path / "runs")), workers=2)
    controller.finish(launch, controller.train(launch, LocalBackend(workers=2), Silent()))
    grid = read_grid(folder, plan)
    assert grid.problems == []
    assert bits(grid) == uninterrupted(plan.sweep, tmp_path)
    times_trained = folder.read_outcomes(plan.sweep).table.num_rows
    assert times_trained == plan.sweep.num_points  # none was trained and stored twice


def test_workers_of_a_killed_launcher_end_and_save_what_they_did(tmp_path: Path) -> None:
    with launcher(tmp_path) as process:
        wait_for(lambda: stored_points(tmp_path) > 0)
        process.kill()
    folder = folder_of(tmp_path)
    wait_for(lambda: not is_locked(folder))
    assert 0 < stored_points(tmp_path) < 22_500


def test_a_second_launcher_is_refused_while_the_first_works(tmp_path: Path) -> None:
    with launcher(tmp_path) as first:
        wait_for(lambda: stored_points(tmp_path) > 0)
        second = launcher(tmp_path)
        _, err = second.communicate(timeout=240)
        first.terminate()
        assert second.returncode == 2
        assert f"is being trained by process {first.pid}; watch it with" in err


# --- launch ---


def test_a_finished_sweep_is_not_trained_again(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[4, 5])
    store = Store(str(tmp_path / "runs"))
    launch = controller.prepare(sweep, store, workers=2)
    assert launch.missing == 20
    status = controller.train(launch, InlineBackend(), Silent())
    done = controller.finish(launch, status)
    assert done.summary["complete"]
    assert controller.prepare(sweep, store, workers=2).missing == 0


def test_a_resume_deals_only_what_is_missing(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[4, 5])
    store = Store(str(tmp_path / "runs"))
    folder = store.sweep(sweep.id)
    half = Plan(sweep, Deal(points_per_shard=10))
    InlineBackend().submit(Work(folder, half), lambda event: None)._train(0)  # type: ignore[attr-defined]
    launch = controller.prepare(sweep, store, workers=2)
    assert launch.missing == 10
    seen: list[int] = []

    class Display(Silent):
        def point(self, event: Any) -> None:
            seen.append(event.index)

    controller.train(launch, InlineBackend(), Display())
    assert len(seen) == 10
    assert read_grid(folder, launch.plan).known.all()


def test_what_a_disk_cannot_hold_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal_k8s.results.files.LocalFiles.free_bytes", lambda self: 1000)
    with pytest.raises(StoreError, match=r"needs about .* MB in .*, where 0.0 MB are free"):
        controller.prepare(mlp_sweep(), Store(str(tmp_path / "runs")), workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_named_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = mlp_sweep(resolution=[6, 6])
    store = Store(str(tmp_path / "runs"))
    launch = controller.prepare(sweep, store, workers=1, points_per_shard=6)
    original = os.replace
    writes: list[str] = []

    def filling(source: Any, target: Any) -> None:
        writes.append(str(target))
        if "outcomes" in str(target) and len([key for key in writes if "outcomes" in key]) > 2:
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.setattr(os, "replace", filling)
    status = controller.train(launch, InlineBackend(), Silent())
    assert len(status.failed) == 4
    assert "the disk is full; free some space" in status.failed[5]
    monkeypatch.setattr(os, "replace", original)
    assert read_grid(launch.folder, launch.plan).known.sum() == 12
    again = controller.prepare(sweep, store, workers=1)
    controller.finish(again, controller.train(again, InlineBackend(), Silent()))


def test_a_damaged_sweep_file_in_the_store_is_refused(tmp_path: Path) -> None:
    sweep = mlp_sweep()
    store = Store(str(tmp_path / "runs"))
    store.files.put(f"{sweep.id}/sweep.json", b"{")
    with pytest.raises(CorruptError, match="not a sweep written by fractal-k8s"):
        controller.prepare(sweep, store, workers=1)


def test_mixed_numerics_are_refused_before_training(tmp_path: Path) -> None:
    from test_results import outcome_of, stored

    sweep = mlp_sweep(resolution=[2, 3])
    store = Store(str(tmp_path / "runs"))
    for number, name in enumerate(("cpu", "gpu")):
        outcome = outcome_of(sweep, number, [2.0, 1.0])
        stored(store.sweep(sweep.id), sweep, [outcome], numerics_class=name)
    with pytest.raises(ConflictError, match="2 numerics classes"):
        controller.prepare(sweep, store, workers=1)
