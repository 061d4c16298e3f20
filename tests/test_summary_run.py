"""The W&B run of a sweep's summary: the real client, online, against a server that keeps runs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.aggregate import every
from fractal_k8s.aggregate.announce import publish
from fractal_k8s.aggregate.until import JobsState, Watch, aggregate_until
from fractal_k8s.results import schema
from fractal_k8s.results.outcome import Environment
from fractal_k8s.results.published import manifest_digest
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.tracking import VARIABLE, child, summary
from fractal_k8s.tracking.modes import MODE, PROJECT
from standin.experiments import Experiments, serving
from test_aggregate import ALL, PLAN, SWEEP, folder, put
from test_aggregate import passed as aggregated
from test_results import outcome_of

__all__ = ["folder"]  # fixtures

KEY = "a1" * 20
OTHER = "very-secret-" + "s3" * 14


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Experiments]:
    """A server that lets in who has the key, and an environment that tracks summaries there."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serving() as experiments:
        experiments.key = KEY
        monkeypatch.setenv(PROJECT, "maps")
        monkeypatch.setenv(MODE, "summary")
        monkeypatch.setenv("WANDB_BASE_URL", experiments.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", OTHER)
        monkeypatch.setenv("HOME", str(tmp_path))
        yield experiments


def passed(run: Run, folder: SweepStore, *more: str, code: int = 0) -> str:
    """What a pass says of W&B."""
    said = run("aggregate", *(more or (SWEEP.id,)), "--store", folder.files.uri, code=code).output
    assert KEY not in said
    assert OTHER not in said
    return "\n".join(line for line in said.splitlines() if "W&B" in line or "wandb" in line)


def kept(folder: SweepStore) -> list[Path]:
    """Runs that lie in the store."""
    return sorted(Path(folder.files.uri).glob("*/wandb/*/*"))


def stored(folder: SweepStore, name: str) -> bytes:
    return Path(folder.files.uri, SWEEP.id, "summary", name).read_bytes()


def test_passes_go_on_with_one_run(online: Experiments, folder: SweepStore, run: Run) -> None:
    put(folder, range(30))
    assert passed(run, folder, code=1) == ""
    (tracked,) = online.runs.values()
    assert (tracked.name, tracked.place["project"]) == (SWEEP.id, "maps")
    assert tracked.sent[0]["groupName"] == tracked.sent[0]["displayName"] == SWEEP.id
    assert tracked.sent[0]["tags"] == ["summary"]
    assert tracked.values() == json.loads(json.dumps(SWEEP.to_dict()))
    assert (tracked.summary["complete"], tracked.summary["points/missing"]) == (False, 12)
    assert sorted(name.partition("_")[0] for name in tracked.files if "_0_" in name) == [
        "map",
        "measure",
        "report",
    ]
    table = stored(folder, "grid.parquet")
    assert [version.files["grid.parquet"] for version in online.versions] == [table]
    assert stored(folder, "report.html") in tracked.files.values()

    put(folder, ALL, "rest")
    tracked.summary["dimension"] = 1.5  # as if there had been one
    assert passed(run, folder) == ""
    assert [*online.runs] == [SWEEP.id]
    assert [row["_step"] for row in tracked.rows] == [0, 1]
    assert (tracked.summary["complete"], tracked.summary["points/missing"]) == (True, 0)
    assert tracked.summary.get("dimension") is None
    assert stored(folder, "map.png") in tracked.files.values()
    assert [version.is_committed for version in online.versions] == [True, True]
    assert online.versions[1].files["grid.parquet"] == stored(folder, "grid.parquet") != table
    assert tracked.is_ended

    assert not [path for path in online.asked if "otel" in path]  # to the client's makers
    before = len(online.asked)
    for more in ((), ("--all",)):
        assert passed(run, folder, *more) == ""
    assert len(online.asked) == before
    assert kept(folder) == []
    sent = b"".join(online.received)
    for private in (KEY, OTHER, folder.files.uri, f'"{os.uname().nodename}"', sys.executable):
        assert private.encode() not in sent, private


def test_of_two_passes_at_once_the_later_summary_is_the_last_that_is_told(
    folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROJECT, "maps")
    monkeypatch.setenv(MODE, "summary")
    put(folder, range(30))
    told: list[int] = []

    def slow(wish: Any, sweep_id: str, config: Any, numbers: Any, *rest: Any, **more: Any) -> Any:
        """A server that takes its time: meanwhile more comes, and another pass tells it."""
        if not told:
            told.append(0)
            put(folder, ALL, "rest")
            aggregated(folder)
            publish(folder, PLAN, print, has_ended=False)
        told.append(42 - numbers["counts"]["missing"])
        return summary.Logged(True)

    monkeypatch.setattr(summary, "log_summary", slow)
    aggregated(folder)
    publish(folder, PLAN, print, has_ended=False)
    assert told == [0, 42, 30, 42]
    done = json.loads(folder.files.get(folder.key("aggregate", "done", "wandb.json")) or b"")
    assert done["value"] == manifest_digest(folder)


def test_an_equal_table_is_not_sent_again(
    online: Experiments, folder: SweepStore, run: Run
) -> None:
    put(folder, ALL)
    passed(run, folder)
    folder.put_note("remark", {"text": "other numbers, the same table"})
    online.asked.clear()
    passed(run, folder)
    assert [row["_step"] for row in online.runs[SWEEP.id].rows] == [0, 1]
    assert "wandb-summary.json" in online.uploads()
    assert "grid.parquet" not in online.uploads()
    assert len(online.versions) == 1


def growing(folder: SweepStore) -> Watch:
    """A cluster whose Job stores some points between two looks, and ends with the last."""
    parts = iter([range(30), range(30, 36), ALL])

    def jobs(_: str) -> JobsState:
        part = next(parts, None)
        if part is not None:
            put(folder, part, f"s{part[0]}-{len(part)}")
        return JobsState(part is ALL, {})

    return Watch(every_s=0.01, jobs=jobs)


def test_a_summary_is_told_on_the_way_and_holds_no_pass_up(
    folder: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROJECT, "maps")
    monkeypatch.setenv(MODE, "summary")
    said: list[str] = []
    told: list[tuple[int, int]] = []

    def slow(wish: Any, sweep_id: str, config: Any, numbers: Any, *rest: Any, **more: Any) -> Any:
        """A server that has not answered when the last map but one is drawn."""
        if not told:
            deadline = time.monotonic() + 60
            while len(said) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        told.append((42 - numbers["counts"]["missing"], len(said)))
        if len(told) == 1:
            raise RuntimeError("something odd")
        return summary.Logged(True)

    monkeypatch.setattr(summary, "log_summary", slow)
    store = Store(folder.files.uri)
    aggregate_until(store, SWEEP.id, growing(folder), allow_mixed=False, say=said.append)
    assert told[0][0] == 30
    assert told[0][1] >= 2  # maps were drawn meanwhile
    assert told[-1][0] == 42
    assert [line for line in said if "W&B" in line] == [
        "W&B: the summary is not tracked: something odd; a later pass tries again"
    ]
    assert folder.files.entries(folder.key("aggregate", "doing")) == []


def test_the_job_s_run_is_there_before_the_job_has_ended(
    online: Experiments, folder: SweepStore
) -> None:
    put(folder, range(30))
    seen: list[int] = []

    def jobs(_: str) -> JobsState:
        if SWEEP.id in online.runs and "points/missing" in online.runs[SWEEP.id].summary:
            seen.append(online.runs[SWEEP.id].summary["points/missing"])
            put(folder, ALL, "rest")
        return JobsState(bool(seen), {})

    watch = Watch(every_s=0.05, jobs=jobs)
    store = Store(folder.files.uri)
    aggregate_until(store, SWEEP.id, watch, allow_mixed=False, say=print)
    assert seen == [12]
    assert online.runs[SWEEP.id].summary["points/missing"] == 0


TROUBLE = {
    "away": "does not answer",
    "mute": "does not answer",
    "wrong key": "the server refuses the API key, see WANDB_API_KEY",
    "no key": "no API key",
    "errors": "the server cannot be used",
    "slow": "it was not done in 4 s",
    "slow uploads": "it was not done in 4 s",
}


def trouble(kind: str, online: Experiments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2")
    if kind == "away":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    elif kind == "wrong key":
        monkeypatch.setenv("WANDB_API_KEY", "b2" * 20)
    elif kind == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    elif kind == "errors":
        online.status = 500
    elif kind == "mute":
        online.delay = 7.0
    else:
        monkeypatch.setenv(VARIABLE, "30")
        monkeypatch.setattr(summary, "_ONLINE_SECONDS", 4)
        online.delay, online.slow = 5.0, "/storage" if "uploads" in kind else "/graphql"


def is_there(number: int) -> bool:
    """Whether a process or the one that W&B's client has started for it is still there."""
    own = ("--pid", str(number))
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            arguments = place.read_bytes().decode().split("\0")
            if place.parent.name == own[1] or own in pairwise(arguments):
                return True
    return False


@pytest.mark.parametrize("kind", [*TROUBLE])
def test_a_server_in_trouble_costs_a_sentence_and_no_result(
    kind: str, online: Experiments, folder: SweepStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = []

    def start(*arguments: Any) -> subprocess.Popen[bytes]:
        processes.append(child.start(*arguments))
        return processes[-1]

    monkeypatch.setattr(summary, "start", start)
    put(folder, range(30))
    with monkeypatch.context() as troubled:
        trouble(kind, online, troubled)
        began = time.monotonic()
        (told,) = passed(run, folder, code=1).splitlines()
        assert time.monotonic() - began < 120
    assert TROUBLE[kind] in told
    assert json.loads(stored(folder, "analysis.json"))["counts"]["missing"] == 12
    deadline = time.monotonic() + 120.0  # the client's own process ends as it notices
    while left := [process.pid for process in processes if is_there(process.pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    online.delay, online.status = 0.0, 200
    online.runs.clear()
    online.versions.clear()

    hint = hint_in(told)
    assert [str(path) for path in kept(folder)] == hint[2:]
    sync(hint)
    synced = online.runs[SWEEP.id].files
    assert synced["grid.parquet"] == stored(folder, "grid.parquet")
    for name in ("map.png", "measure.png", "report.html"):
        assert stored(folder, name) in synced.values(), name
    assert online.runs[SWEEP.id].summary["points/missing"] == 12


def test_a_client_that_dies_is_one_that_fails(
    online: Experiments, folder: SweepStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "start", lambda module, *more: child.start("no_module", *more))
    put(folder, ALL)
    told = passed(run, folder)
    assert "not tracked: its client has ended too early; a later pass tries again" in told
    assert kept(folder) == []


def hint_in(told: str) -> list[str]:
    return shlex.split(told.partition("or upload it with: ")[2])


def sync(typed: list[str]) -> None:
    assert typed[:2] == ["wandb", "sync"]
    done = subprocess.run(
        [sys.executable, "-m", *typed], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_a_bucket_keeps_is_fetched_and_sent(
    online: Experiments, bucket: str, run: Run, tmp_path: Path
) -> None:
    folder = Store(bucket).sweep(SWEEP.id)
    folder.write_plan(PLAN)
    put(folder, ALL)
    online.status = 403
    (told,) = passed(run, folder).splitlines()
    assert passed(run, folder).count("a later pass tries again") == 1
    online.status = 200
    hint = " ".join(hint_in(told)).replace("DIR", str(tmp_path / "copy"))
    fetch, both, upload = hint.partition(" && ")
    assert both
    run(*fetch.split()[1:])
    sync(upload.split())
    assert online.runs[SWEEP.id].summary["complete"] is True
    assert "grid.parquet" in online.runs[SWEEP.id].files
    assert passed(run, folder) == ""
    assert folder.files.entries(folder.key("wandb")) == []
    assert folder.files.entries(folder.key("aggregate", "doing")) == []


def test_a_later_pass_sends_what_could_not_be_sent(
    online: Experiments, folder: SweepStore, run: Run
) -> None:
    put(folder, range(30))
    online.status = 403
    assert "a later pass tries again" in passed(run, folder, code=1)
    first = kept(folder)
    assert len(first) == 1
    assert "a later pass tries again" in passed(run, folder, "--all")  # nothing new is stored
    assert kept(folder) == first
    put(folder, ALL, "rest")
    passed(run, folder, "--all")
    assert len(kept(folder)) == 1  # the last summary tells all
    assert kept(folder) != first
    online.status = 200
    assert passed(run, folder, "--all") == ""
    assert online.runs[SWEEP.id].summary["complete"] is True
    assert kept(folder) == []


def test_a_pass_over_all_does_not_wait_for_each(
    online: Experiments, folder: SweepStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(every, "_TRACKING_S", 0.1)
    put(folder, ALL)
    other = mlp_sweep(name="another", resolution=[2, 2])
    another = Store(folder.files.uri).sweep(other.id)
    another.write_plan(Plan(other, Deal()))
    made = outcome_of(other, 0, [4.0, 2.0])
    table = schema.to_table(other, [made], [datetime.now(UTC)], Environment(numerics_class="t"))
    another.files.put(another.outcome_key("a", "1"), schema.to_bytes(table))
    online.status = 403
    said = passed(run, folder, "--all")
    assert said.count("not tracked") == 1
    online.status = 200
    assert passed(run, folder, "--all") == ""
    assert {*online.runs} == {SWEEP.id, other.id}


def test_offline_is_a_choice(
    online: Experiments, folder: SweepStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    put(folder, ALL)
    for _ in range(2):
        assert passed(run, folder) == ""
        assert len(kept(folder)) == 1
    assert online.asked == []
