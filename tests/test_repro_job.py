"""Points of a map that a cluster trains again, in a Job of their own, against the stand-in."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.aggregate import aggregate
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.backends.kube.jobs import ended_jobs
from fractal_k8s.buckets import below
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.render import render
from fractal_k8s.manifest.settings import make_settings
from fractal_k8s.repro_job import Wish, deal_elsewhere, turns_of
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.worker import Worker
from rendering import SITE, VERSIONS, docvqa, validate
from standin.cluster import NODES
from standin.objects import ApiError, Object
from standin.scheduler import place as schedule
from test_dispatch import (  # noqa: F401
    Place,
    busy,
    make_place,
    small_sweep,
    still,
    train_some,
    wait_for,
    write_site,
)

FAILED = {"type": "Failed", "status": "True", "reason": "FailedIndexes", "message": ""}
# the workers of pods find it before all else: one loss of the point (3, 4) is one ulp too high
PLANTED = """
from dataclasses import replace

from fractal_k8s.environ import prepare_environment

prepare_environment()
import numpy as np
from fractal_k8s.results.attempt import Attempt

honest = Attempt.add

def add(self, outcome, line):
    if (outcome.i, outcome.j) == (3, 4):
        losses = outcome.losses.copy()
        losses[17] = np.nextafter(losses[17], np.float32(np.inf))
        outcome = replace(outcome, losses=losses)
    honest(self, outcome, line)

Attempt.add = add
"""


def a_map(place: Place) -> str:
    """A small map that this machine has trained, in the store of the site; its id."""
    sweep_id = small_sweep().id
    train_some(place, sweep_id, points=256)
    return sweep_id


def files(place: Place) -> dict[str, str]:
    """Content of every file of the store, by name."""
    root = Path(place.store.uri)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def the_job(place: Place) -> Object:
    """The only Job whose pods train."""
    jobs = [place.job(name) for name in place.names("jobs")]
    (job,) = [job for job in jobs if job["metadata"]["labels"][labels.COMPONENT] != "aggregator"]
    return job


def the_uid(place: Place) -> str | None:
    names = place.names("jobs")
    return place.job(names[0])["metadata"]["uid"] if names else None


def place_of(job: Object) -> Store:
    """Where a Job writes, as this machine has it."""
    return Store(job["metadata"]["annotations"][labels.CLIENT_STORE])


@contextmanager
def meanwhile(place: Place, act: Callable[[], None], *, jobs: int = 1) -> Iterator[None]:
    """Acts once so many Jobs have been sent, and somebody looks at one to wait for it."""

    def is_waited_for() -> bool:
        plans = [item["metadata"] for item in place.objects.list("configmaps", "fractal")]
        owned = [plan for plan in plans if plan.get("ownerReferences")]
        last = place.standin.requests[-1:]
        return len(place.names("jobs")) == len(owned) == jobs and [
            (call.verb, call.resource) for call in last
        ] == [("get", "jobs")]

    def run() -> None:
        try:
            wait_for(is_waited_for)
            act()
        except BaseException:
            interrupt()  # or the test would wait for ever
            raise

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def train_shards(place: Place, job: Object, *indexes: int) -> None:
    """What pods of a Job would do."""
    plan = plan_of(place, job)
    folder = place_of(job).sweep(plan.sweep.id)
    for index in indexes:
        assert Worker(folder, plan, index, emit=lambda line: None).run() == 0


def plan_of(place: Place, job: Object) -> Plan:
    data = place.config_map(job["metadata"]["name"])["data"]
    return Plan.from_json(data["sweep.json"], source="test")


def complete(place: Place, job: Object | None = None) -> None:
    """What its pods and the Job controller would do."""
    job = job or the_job(place)
    plan = plan_of(place, job)
    indexes = range(Dealt(plan.sweep, plan.deal).num_shards)
    train_shards(place, job, *indexes)
    done = {"type": "Complete", "status": "True"}
    place.set_status(
        job["metadata"]["name"], completedIndexes=f"0-{indexes[-1]}", conditions=[done]
    )


# --- from end to end ---


def test_points_are_trained_again_in_pods_and_nothing_else_changes(busy: Place, run: Run) -> None:  # noqa: F811
    sweep_id = a_map(busy)
    aggregate(busy.store.sweep(sweep_id), Plan(small_sweep(), Deal()))
    before = files(busy)
    note = busy.facts("repro", "small", "--sample", "12")
    assert note["line"].startswith(
        "certificate: 12 of 12 points bit-equal, retrained in 2 shards of 6 and 6"
    )
    assert (note["equal"], note["moved"], note["elsewhere"]) == (12, 12, 12)
    assert note["job"].startswith(f"{sweep_id}-repro-")
    # of the sweep's own files one is new: the note
    after = files(busy)
    again = {name for name in after if name.startswith(f"{sweep_id}/repro/")}
    assert sum(name.endswith(".parquet") for name in again) == 2
    kept = {name: text for name, text in after.items() if name not in again}
    assert kept.pop(f"{sweep_id}/notes/certificate.json")
    assert kept == before
    assert note["outcomes"] in {
        f"{busy.store.uri}/{name.rpartition('/logs/')[0]}" for name in again
    }
    assert busy.names("jobs") == busy.names("configmaps") == []
    # and nobody takes it for a sweep or for outcomes
    assert busy.store.sweep_ids() == [sweep_id]
    told = run("aggregate", "--all", "--store", busy.store.uri, "--json").stdout
    (visit,) = json.loads(told)
    assert (visit["sweep"], visit["coverage"], visit["problems"]) == (sweep_id, 1.0, [])


def test_a_worker_with_other_numbers_is_found(
    busy: Place,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_map(busy)
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", f"{planted}:{os.environ.get('PYTHONPATH', '')}")
    options = ("--points", "3,4", "--points", "9,9", "--points-per-index", "2")
    output = busy.run("repro", "small", *options, code=1)
    assert "no certificate: 1 of 2 points bit-equal, retrained in 1 shard of 2" in output
    assert re.search(
        r"1 of 2 points gave other numbers .*: point \(3, 4\), loss of step 17", output
    )
    assert busy.names("jobs") == []


# --- waiting ---


def test_who_stops_waiting_finds_the_job_again(still: Place) -> None:  # noqa: F811
    a_map(still)
    command = ("repro", "small", "--sample", "5", "--seed", "3")
    with meanwhile(still, interrupt):
        output = still.run(*command, code=130)
    name = the_job(still)["metadata"]["name"]
    assert f"not waited for any more; the Job {name} goes on" in output
    again = "fractal-k8s repro small --sample 5 --seed 3 --context standin"
    assert f"go on       {again}\n" in output
    assert f"stop it     kubectl --context standin -n fractal delete job {name}" in output
    complete(still)
    # the sample is that of the Job, also where more points are known by now
    output = still.run(*again.split()[1:-2])
    assert f"again by the Job {name}, sent at 20" in output
    assert "certificate: 5 of 5 points bit-equal, retrained in 2 shards of 3 and 2" in output
    assert still.names("jobs") == []


def test_another_request_is_another_job(still: Place) -> None:  # noqa: F811
    a_map(still)
    requests = ((), ("--seed", "1"), ("--gpus", "1"), ("--points", "1,1"))
    for number, options in enumerate(requests, start=1):
        with meanwhile(still, interrupt, jobs=number):
            output = still.run("repro", "small", *options, code=130)
        # what is said to go on with has what was typed
        (again,) = re.findall("go on       fractal-k8s repro small (.*)", output)
        assert sorted(again.split()) == sorted([*options, "--context", "standin"])


def test_a_failed_job_says_why_and_is_followed_by_one_over_the_rest(still: Place) -> None:  # noqa: F811
    sweep_id = a_map(still)
    command = ("repro", "small", "--sample", "4")

    def fail() -> None:
        train_shards(still, the_job(still), 0)
        name = the_job(still)["metadata"]["name"]
        still.set_status(name, completedIndexes="0", failedIndexes="1", conditions=[FAILED])

    with meanwhile(still, fail):
        output = still.run(*command, code=1)
    first = the_job(still)
    assert f"the Job {first['metadata']['name']} has failed (failed); look at: kubectl" in output
    assert "train what is left with: fractal-k8s repro small --sample 4 --context stand" in output
    assert "certificate" not in still.store.sweep(sweep_id).notes([])

    def finish() -> None:
        wait_for(lambda: the_uid(still) not in (None, first["metadata"]["uid"]))
        complete(still)

    with meanwhile(still, finish):
        output = still.run(*command)
    assert "certificate: 4 of 4 points bit-equal" in output
    assert len(list(Path(place_of(first).uri).parent.iterdir())) == 1  # both have one place


def test_a_worker_that_is_wrong_for_all_is_quoted(still: Place) -> None:  # noqa: F811
    a_map(still)
    policy = {**FAILED, "reason": "PodFailurePolicy", "message": "Container worker failed with 65"}
    with meanwhile(
        still, lambda: still.set_status(the_job(still)["metadata"]["name"], conditions=[policy])
    ):
        output = still.run("repro", "small", code=1)
    assert "was ended by its failure policy: Container worker failed with 65" in output


def test_a_job_that_is_deleted_is_missed(still: Place) -> None:  # noqa: F811
    a_map(still)

    def delete() -> None:
        name = the_job(still)["metadata"]["name"]
        still.objects.delete("jobs", "fractal", name)

    with meanwhile(still, delete):
        output = still.run("repro", "small", code=1)
    assert re.search(r"the Job \S+ was deleted; send another with: fractal-k8s repro small", output)


# --- beside the sweep ---


def test_the_job_is_not_the_sweep_s_and_goes_with_it(still: Place) -> None:  # noqa: F811
    sweep_id = a_map(still)
    with meanwhile(still, interrupt):
        still.run("repro", "small", code=130)
    job = the_job(still)
    assert job["metadata"]["labels"][labels.COMPONENT] == "repro"
    assert ended_jobs(connect("standin"), sweep_id) == (True, {})
    assert json.loads(still.run("list", "--json")) == []
    assert "no Job of a sweep" in still.run("status", sweep_id, code=2)
    output = still.run("delete", sweep_id, "--results", "--confirm", sweep_id)
    assert f"deleted {job['metadata']['name']}" in output
    assert still.names("jobs") == still.names("configmaps") == []
    assert files(still) == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--cold"], "--points-per-index 1 has every point", id="cold"),
        pytest.param(["--workers", "2"], "say how this machine trains", id="workers"),
        pytest.param(["--checkpoint", "x"], "say where files are on this machine", id="files"),
        pytest.param(["--points", "99,0"], "(99, 0) is outside 16 x 16 points", id="points"),
        pytest.param(["--job", "store_claim=x"], "claim x", id="claim"),
        pytest.param(["--gpus-per-pod", "2", "--gpus", "3"], "cannot be had in pods", id="gpus"),
        pytest.param(["--job", "colour=red"], "colour: unknown", id="setting"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_created(
    options: list[str],
    said: str,
    still: Place,  # noqa: F811
) -> None:
    a_map(still)
    before = files(still)
    assert said in still.run("repro", "small", *options, code=2)
    assert files(still) == before
    assert still.calls("create", "delete", "patch") == []


def test_a_store_that_only_pods_see_is_refused(
    still: Place,  # noqa: F811
) -> None:
    a_map(still)
    still.objects.delete("configmaps", "fractal", labels.SITE)
    write_site(still.objects)
    output = still.run("repro", small_sweep().id, code=2)
    assert "lies in a claim that only pods see" in output
    assert still.calls("create") == []


def test_options_of_a_job_need_a_cluster(still: Place, run: Run) -> None:  # noqa: F811
    for options in (["--gpus", "2"], ["--points-per-index", "2"], ["--image", "x:1"]):
        output = run("repro", "small", "--store", still.store.uri, *options, code=2).output
        assert "--context NAME" in output
    assert still.standin.requests == []


def test_what_is_lost_on_the_way_leaves_nothing(still: Place) -> None:  # noqa: F811
    """Who may not create a Job is told, and neither cluster nor store has anything of it."""
    a_map(still)
    rules = [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "get"]},
        {"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": ["get", "list"]},
    ]
    before = files(still)
    user = still.standin.add_user("ben", rules)
    output = still._run("repro", "small", "--context", user, code=2).output
    assert "you may not create/delete jobs" in output
    assert files(still) == before
    assert still.names("jobs") == still.names("configmaps") == []


def test_a_job_that_is_refused_is_taken_back_whole(still: Place) -> None:  # noqa: F811
    a_map(still)
    before = files(still)

    def refuse(plural: str, body: Object) -> None:
        if plural == "jobs":
            raise ApiError(422, "Invalid", "no such Job here")

    still.standin.webhooks.append(refuse)
    output = still.run("repro", "small", code=2)
    assert "no such Job here" in output
    assert "nothing was left behind" in output
    assert still.names("configmaps") == []
    assert files(still) == before


# --- what is sent ---


def test_the_job_is_valid_and_prefers_other_nodes() -> None:
    sweep, settings = docvqa(32), make_settings(("site", SITE))
    plan = Plan(sweep, Deal(order="row-major", points_per_shard=8, only="0-63"))
    manifest = render(
        plan, settings, name="again", component=labels.REPRO, avoid={"g0": 100, "g1": 3}
    )
    validate(manifest, VERSIONS)
    affinity = manifest.job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    assert [
        (term["weight"], term["preference"]["matchExpressions"][0]["values"])
        for term in affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    ] == [(100, ["g0"]), (3, ["g1"])]
    assert affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    # of two nodes that fit the one with fewer of the points
    assert schedule(manifest.job["spec"]["template"], NODES, ()) == ("g1", "")


def test_nothing_of_it_reaches_w_and_b_or_an_aggregator(still: Place) -> None:  # noqa: F811
    sweep_id = a_map(still)
    options = ("--job", "wandb_project=p", "--job", "aggregator=true")
    with meanwhile(still, interrupt):
        still.run("repro", sweep_id, *options, code=130)
    job = the_job(still)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert not [entry for entry in container["env"] if "WANDB_PROJECT" in entry["name"]]
    argv = container["args"]
    assert argv[:2] == ["worker", "--store"]
    assert re.fullmatch(rf"/store/runs/{sweep_id}/repro/\d{{8}}T\d{{6}}-[0-9a-f]{{6}}", argv[2])


def test_a_name_fits_whatever_the_sweep_s() -> None:
    wish = Wish(64, 0, (), None, {})
    for name in ("a", "a" * 40, "long-name-" * 4):
        assert len(f"{wish.job_name(f'{name}-0123456789')}-99999") <= 63
    assert (
        wish.job_name("a-0123456789") == "a-0123456789-repro-" + wish.job_name("a-0123456789")[-8:]
    )
    assert wish.job_name("a-0123456789")[-8:] != wish.job_name("b-0123456789")[-8:]


@pytest.mark.parametrize(("number", "slots"), [(1, 8), (2, 8), (9, 2), (64, 4), (64, 500)])
def test_every_point_has_a_turn_at_another_place(number: int, slots: int) -> None:
    sweep = mlp_sweep(resolution=[32, 32])
    points = [int(p) for p in np.random.RandomState(number).permutation(1024)[:number]]
    first = dict.fromkeys(points, 0)  # as of a launch with one point per index
    deal = deal_elsewhere(sweep, points, first, slots=slots)
    turns = list(turns_of(Plan(sweep, deal), points))
    assert sorted(turn.point for turn in turns) == sorted(points)
    shards = Dealt(sweep, deal).num_shards
    assert (shards > 1) == (number > 1)
    assert shards <= max(slots, 2)
    # but for the first of each shard
    assert sum(first[turn.point] != turn.place for turn in turns) == number - shards
    # where that would be the place of the first time, another way is taken
    same = {turn.point: turn.place for turn in turns}
    other = turns_of(Plan(sweep, deal_elsewhere(sweep, points, same, slots=slots)), points)
    moved = sum(same[turn.point] != turn.place for turn in other)
    assert moved >= (number > 8) * number // 2
    alone = deal_elsewhere(sweep, points, first, slots=slots, size=1)
    assert {turn.size for turn in turns_of(Plan(sweep, alone), points)} == {1}


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://b/p?endpoint=http://h:1&region=x", "s3://b/p/a/b?endpoint=http://h:1&region=x"),
        ("s3://b/", "s3://b/a/b"),
        ("gs://b/p", "gs://b/p/a/b"),
        ("/store/runs/", "/store/runs/a/b"),
        ("what?/runs", "what?/runs/a/b"),
    ],
)
def test_a_folder_of_a_store_keeps_its_options(uri: str, found: str) -> None:
    assert below(uri, "a", "b") == found
