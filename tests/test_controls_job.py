"""Controls that a cluster trains, against the stand-in."""

from __future__ import annotations

import json

from conftest import Run
from fractal_k8s.manifest import labels
from test_dispatch import Place, busy, still  # noqa: F401
from test_repro_job import a_map, complete, files, interrupt, meanwhile


def test_cells_are_trained_by_jobs_of_their_sweeps_and_only_once(busy: Place, run: Run) -> None:  # noqa: F811
    sweep_id = a_map(busy)
    outcomes = {name: text for name, text in files(busy).items() if "/outcomes/" in name}
    command = ("controls", "small", "--sample", "6", "--seeds", "1", "--replicas", "1")
    command += ("--points-per-index", "300")
    notes = busy.facts(*command)
    unchanged = notes["controls"]["unchanged"]
    assert (unchanged["bit_equal"], unchanged["compared"]) == (12, 12)
    assert notes["controls"]["ulp"]["edge"]["cells"] == 6
    assert (notes["controls"]["seeds"]["seeds"], len(notes["replicas"]["sweeps"])) == ([43], 2)
    made = [name for name in busy.names("jobs") if not name.endswith("-aggregate")]
    assert sorted(busy.store.sweep_ids()) == sorted([sweep_id, *made])
    assert len(made) == 3
    # as this machine trains them, and nothing of the map's own has changed
    here = run(*command[:-2], "--store", busy.store.uri, "--json")
    assert json.loads(here.stdout) == notes
    after = files(busy)
    assert {name: after[name] for name in outcomes} == outcomes
    sent = busy.calls("create")
    assert busy.facts(*command) == notes
    assert busy.calls("create") == sent


def test_who_stops_waiting_finds_the_jobs_again(still: Place) -> None:  # noqa: F811
    a_map(still)
    command = ("controls", "small", "--sample", "3", "--seeds", "1", "--image", "fractal-k8s:two")
    with meanwhile(still, interrupt, jobs=2):
        output = still.run(*command, code=130)
    jobs = [still.job(name) for name in still.names("jobs")]
    images = {job["spec"]["template"]["spec"]["containers"][0]["image"] for job in jobs}
    assert images == {"fractal-k8s:two"}
    assert "not waited for any more, and going on: small-controls-" in output
    assert "go on       fractal-k8s controls small --sample 3 --seeds 1" in output
    for job in jobs:
        assert job["metadata"]["labels"][labels.COMPONENT] == labels.WORKER
    sent = still.calls("create")
    with meanwhile(still, lambda: [complete(still, job) for job in jobs], jobs=2):
        output = still.run(*command)
    assert "6 of 6 loss series equal bit for bit" in output
    assert still.calls("create") == sent


def test_what_cannot_be_is_refused_before_anything_is_created(still: Place, run: Run) -> None:  # noqa: F811
    sweep_id = a_map(still)
    before = files(still)
    for options, said in (
        (["--workers", "2"], "say how this machine trains"),
        (["--beside-pods"], "--beside-pods say how this machine trains"),
        (["--dataset", "x"], "say where files are on this machine"),
        (["--job", "store_claim=x"], "claim x"),
    ):
        assert said in still.run("controls", "small", *options, code=2)
    assert "--image needs --context" in run("controls", "small", "--image", "x:1", code=2).output
    assert files(still) == before
    for entry in still.store.sweep(sweep_id).outcome_entries():
        still.store.files.discard([entry.key])
    assert "lacks 256 points" in still.run("controls", sweep_id, code=2)
    assert still.calls("create") == []


def test_a_job_that_fails_is_told_with_what_to_do(still: Place) -> None:  # noqa: F811
    a_map(still)
    failed = {"type": "Failed", "status": "True", "reason": "FailedIndexes", "message": ""}

    def fail() -> None:
        (name,) = still.names("jobs")
        still.set_status(name, failedIndexes="0", conditions=[failed])

    with meanwhile(still, fail):
        output = still.run("controls", "small", "--sample", "3", "--seeds", "0", code=1)
    assert "12 points are missing and 0 failed" in output
    assert "train what is left: fractal-k8s controls small --sample 3 --seeds 0" in output
    assert "controls" not in still.store.sweep(a_map(still)).notes([])
