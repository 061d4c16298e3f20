"""16,384 indexes: what a client holds in memory and how long it takes, on a stand-in."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from cluster.conftest import standin_place
from cluster.place import INDEX, Place
from fractal_k8s.results import schema
from fractal_k8s.results.outcome import Environment, Outcome, State
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Dealt
from fractal_k8s.sweep.points import Point
from standin.cluster import StandIn

POINTS = 16_384
MOST_MIB = 200
# the program, and at its end the most memory that the process has held
MEASURED = """
import os, sys, time
from fractal_k8s.cli import main
began = time.monotonic()
try:
    main()
finally:
    held = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
    seconds = time.monotonic() - began
    sys.stderr.write(f"\\nmeasured {int(held) // 1024} MiB {seconds:.2f} s\\n")
    sys.stderr.flush()
    os._exit(0)
"""


@pytest.fixture
def planted(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kubectl_binary: Path,
) -> Iterator[Place]:
    """A cluster in which nothing runs, and a store in a claim that is a folder here."""
    if request.config.getoption("--context") is not None:
        pytest.skip("only on the stand-in: the Job's progress is planted")
    runs = tmp_path / "runs"
    runs.mkdir()
    with StandIn(tmp_path / "standin", run_pods=False, claims={"runs": runs}) as standin:
        place = standin_place(standin, tmp_path, kubectl_binary, "")
        place.settings |= {"store": "/store", "client_store": str(runs), "store_claim": "runs"}
        del place.settings["store_secret"]
        yield place


@pytest.mark.parametrize("points", [1, 64], ids=["one-point indexes", "256 blocks"])
def test_clients_of_a_large_sweep_stay_small(
    planted: Place, network: Callable[..., Path], points: int
) -> None:
    sweep = network("large", size=128)
    options = ("--site", planted.site, "--points-per-index", str(points), "--gpus", "256")
    sent, first = measured(planted, "launch", sweep, *options, "--json")
    sweep_id = json.loads(sent)["sweep"]
    assert json.loads(sent)["indexes"] == POINTS // points
    plant_progress(planted, sweep_id)

    calls = {"launch": first}
    told, calls["launch again"] = measured(planted, "launch", sweep, *options)
    assert "nothing was sent" in told
    told, calls["status"] = measured(planted, "status", sweep_id)
    assert "8,192 of 16,384 points" in told or "outcome objects read so far" in told
    told, calls["status again"] = measured(planted, "status", sweep_id, "--json")
    assert json.loads(told)["points"] == POINTS
    told, calls["status --watch for 5 s"] = measured(planted, "status", sweep_id, "--watch", end=5)
    for name, (mib, seconds) in calls.items():  # seen with pytest -rP
        print(f"{POINTS // points:,} indexes, {name}: {mib} MiB, {seconds:.2f} s")
    assert max(mib for mib, _ in calls.values()) < MOST_MIB


def measured(
    place: Place, *arguments: str | Path, end: float | None = None
) -> tuple[str, tuple[int, float]]:
    """A command's output, and its peak memory in MiB and time in s, imports not counted.

    Args:
        end: after so many seconds it is interrupted.
    """
    argv = [sys.executable, "-c", MEASURED, *place.words(*arguments)]
    process = subprocess.Popen(
        argv,
        cwd=place.root,
        env=place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if end is not None:
        time.sleep(end)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    found = re.search(r"^measured (\d+) MiB ([\d.]+) s$", err, re.M)
    assert found is not None, err
    assert "Traceback" not in err, err
    return out, (int(found[1]), float(found[2]))


def plant_progress(place: Place, sweep_id: str) -> None:
    """Every second index is done, 256 pods run, and outcomes are in the store."""
    standin = place.only_standin("it is planted")
    job = standin.objects.get("jobs", place.namespace, sweep_id)
    completions = job["spec"]["completions"]
    done = ",".join(str(index) for index in range(0, completions, 2))  # the longest such text
    job["status"] = {
        "active": 256,
        "ready": 256,
        "succeeded": completions // 2,
        "completedIndexes": done,
        "startTime": "2026-01-01T00:00:00Z",
    }
    standin.objects.update("jobs", job)
    for index in range(1, 513, 2):
        template = job["spec"]["template"]
        meta = template["metadata"] | {
            "name": f"{sweep_id}-{index}-abcde",
            "namespace": place.namespace,
            "annotations": {INDEX: str(index)},
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
        started = {"startTime": "2026-01-01T00:00:00Z", "phase": "Running"}
        standin.objects.create("pods", {**pod, "status": started})

    config_map = standin.objects.get("configmaps", place.namespace, sweep_id)
    plan = Plan.from_json(config_map["data"]["sweep.json"], source="ConfigMap")
    folder = Store(place.store).sweep(sweep_id)
    folder.write_plan(plan)
    plant_outcomes(folder, plan)


def plant_outcomes(folder: SweepStore, plan: Plan) -> None:
    """An object for every second shard, as its worker would have left it; 2,048 at most."""
    dealt = Dealt(plan.sweep, plan.deal)
    step = max(2, dealt.num_shards // 2048)
    shards = [dealt.shard(index) for index in range(0, dealt.num_shards, step)]
    points = [plan.sweep.point(point) for shard in shards for point in shard.trained]
    now = datetime.now(UTC)
    environment = Environment(numerics_class="planted")
    outcomes = [outcome(point) for point in points]
    table = schema.to_table(plan.sweep, outcomes, [now] * len(points), environment)
    first = 0
    for shard in shards:
        size = len(shard.trained)
        path = Path(folder.where("x")).parent.parent / folder.outcome_key(shard.name, "planted")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(schema.to_bytes(table.slice(first, size)))
        first += size


def outcome(point: Point) -> Outcome:
    loss = np.linspace(1.0, 0.5, 30, dtype=np.float32)
    return Outcome(
        **{name: getattr(point, name) for name in ("index", "i", "j", "y", "x")},
        state=State.TRAINED,
        run_seed=42,
        steps=30,
        **dict.fromkeys(("last_mean_loss", "ratio", "final_loss", "mean_loss"), 0.5),
        first_loss=1.0,
        seconds=0.1,
        losses=loss,
    )
