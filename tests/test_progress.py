"""How a sweep on a cluster stands: counts, time, money, and why pods fail or wait."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from conftest import Run, mlp_sweep
from fractal_k8s.backends.kube.client import CONFIG_MAPS, JOBS, Cluster
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.backends.kube.ended import why
from fractal_k8s.backends.kube.jobs import SweepJob
from fractal_k8s.backends.kube.podlogs import Place, follow_all, follow_index
from fractal_k8s.backends.kube.progress import (
    ProgressReader,
    count_evicted,
    job_progress,
    points_done,
    use_of,
)
from fractal_k8s.backends.kube.trouble import Cause, cause_of, find_troubles, refused_pods
from fractal_k8s.cli.cluster_status import View, follow, look_once, status_lines
from fractal_k8s.errors import EXIT_NOT_READY, ForbiddenError, UsageError
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.render import render
from fractal_k8s.manifest.settings import make_settings
from fractal_k8s.results.attempt import Attempt
from fractal_k8s.results.grid import TRAINABLE
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.worker import log_line, readable
from standin.cluster import StandIn
from standin.jobs import plant
from test_results import HERE
from test_tally import Place as StorePlace
from test_tally import trained

Object = dict[str, Any]

NOW = 1_800_000_000.0
READER = [
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
]


def stamp(seconds_ago: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - seconds_ago))


# --- why a pod failed or waits: from its status alone ---


def pod_of(phase: str, *, index: int = 3, node: str | None = "g0", **status: Any) -> Object:
    meta = {
        "name": f"small-{index}-abcde",
        "creationTimestamp": stamp(600),
        "labels": {labels.JOB_NAME: "small", labels.INDEX: str(index)},
        "annotations": {},
    }
    spec: Object = {"containers": [{"name": labels.CONTAINER, "image": "registry/tune:1"}]}
    if node is not None:
        spec["nodeName"] = node
    return {"metadata": meta, "spec": spec, "status": {"phase": phase, **status}}


def ended(code: int, message: str = "", reason: str = "Error", **status: Any) -> Object:
    state = {"exitCode": code, "reason": reason, "message": message}
    containers = [{"name": labels.CONTAINER, "state": {"terminated": state}}]
    return pod_of("Failed", containerStatuses=containers, **status)


def waiting(reason: str, message: str = "") -> Object:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod_of("Pending", containerStatuses=[{"name": labels.CONTAINER, "state": state}])


def unplaced(reason: str, message: str) -> Object:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return pod_of("Pending", node=None, conditions=[condition])


def disrupted(reason: str) -> Object:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why"}
    return ended(143, conditions=[condition])


def ready(value: str, containers: str) -> list[Object]:
    return [{"type": "Ready", "status": value}, {"type": "ContainersReady", "status": containers}]


def cut_off() -> Object:
    """As the control plane leaves a pod of a node that is silent: running, and about to go."""
    disruption = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    pod = pod_of("Running", conditions=[*ready("False", "True"), disruption])
    pod["metadata"]["deletionTimestamp"] = stamp(60)
    return pod


def evicted(message: str) -> Object:
    """As a kubelet leaves a pod that has filled its disk; there is no condition of it."""
    pod = ended(143)
    pod["status"] |= {"reason": "Evicted", "message": message}
    return pod


GPUS = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
# as the scheduler of 1.36 says it
TAINT = "0/1 nodes are available: 1 node(s) had untolerated taint(s)."
CORDON = "0/1 nodes are available: 1 node(s) were unschedulable."


@pytest.mark.parametrize(
    ("pod", "what", "said", "advice"),
    [
        pytest.param(ended(137, reason="OOMKilled"), "OOMKilled", None, "memory", id="oom"),
        pytest.param(ended(137), "SIGKILL (exit code 137)", None, "", id="killed"),
        pytest.param(
            ended(64, '{"points_done": 0, "error": "no such store"}'),
            "settings are wrong (exit code 64)",
            "no such store",
            "launch again",
            id="settings",
        ),
        pytest.param(
            ended(65, "Traceback\nValueError: x"), "65", "ValueError: x", "", id="corrupt"
        ),
        pytest.param(ended(70), "no step for minutes (exit code 70)", None, "again", id="hung"),
        pytest.param(ended(75, '{"error": null}'), "(exit code 75)", None, "again", id="retry"),
        pytest.param(ended(143), "SIGTERM", None, "", id="stopped"),
        pytest.param(ended(3, "[1, 2]"), "crashed (exit code 3)", "[1, 2]", "log", id="crash"),
        pytest.param(disrupted("PreemptionByScheduler"), "preempted", "why", "", id="preempted"),
        pytest.param(disrupted("EvictionByEvictionAPI"), "evicted", "why", "", id="evicted"),
        pytest.param(disrupted("DeletionByTaintManager"), "node was taken", "why", "", id="taint"),
        pytest.param(
            pod_of("Failed", reason="Evicted", message="low on ephemeral-storage"),
            "evicted by its node",
            "low on ephemeral-storage",
            "",
            id="node pressure",
        ),
        pytest.param(
            evicted("Pod ephemeral local storage usage exceeds the total limit"),
            "evicted by its node",
            "Pod ephemeral local storage usage exceeds the total limit",
            "--job ephemeral_storage=SIZE",
            id="disk",
        ),
        pytest.param(
            evicted('Usage of EmptyDir volume "shared-memory" exceeds the limit'),
            "evicted by its node",
            'Usage of EmptyDir volume "shared-memory" exceeds the limit',
            "--job shared_memory=SIZE",
            id="shared memory",
        ),
        pytest.param(
            pod_of("Failed", reason="UnexpectedAdmissionError", message="no GPU"),
            "failed (UnexpectedAdmissionError)",
            "no GPU",
            "",
            id="admission",
        ),
        pytest.param(
            waiting("ImagePullBackOff", "not found"),
            "image cannot be pulled",
            "registry/tune:1: not found",
            "pull secret",
            id="image",
        ),
        pytest.param(
            waiting("CreateContainerConfigError", 'secret "s3" not found'),
            "is missing (CreateContainerConfigError)",
            'secret "s3" not found',
            "create it",
            id="secret",
        ),
        pytest.param(
            unplaced("Unschedulable", GPUS), "no node has room", GPUS, "cluster", id="gpus"
        ),
        pytest.param(
            unplaced("Unschedulable", 'persistentvolumeclaim "model" not found'),
            "no node has room",
            'persistentvolumeclaim "model" not found',
            "create the claim",
            id="claim",
        ),
        pytest.param(
            unplaced("Unschedulable", "3 node(s) didn't match Pod's node affinity/selector"),
            "no node has room",
            "3 node(s) didn't match Pod's node affinity/selector",
            "labels",
            id="labels",
        ),
        pytest.param(
            unplaced("Unschedulable", TAINT), "no node has room", TAINT, "tolerations", id="taint"
        ),
        pytest.param(
            unplaced("Unschedulable", CORDON), "no node has room", CORDON, "cordoned", id="cordon"
        ),
        pytest.param(cut_off(), "its node does not answer", None, "delete node", id="node"),
        pytest.param(unplaced("SchedulingGated", ""), "scheduling gate", None, "queue", id="gated"),
    ],
)
def test_cause_of_a_pod(pod: Object, what: str, said: str | None, advice: str) -> None:
    cause = cause_of(pod)
    assert cause is not None
    assert what in cause.what
    assert cause.said == said
    assert advice in cause.advice
    assert cause.waits == (pod["status"]["phase"] != "Failed")


def test_the_end_of_a_job_tells_of_a_full_disk() -> None:
    assert why(evicted("too much")) == "was evicted by its node (too much)"


@pytest.mark.parametrize("phase", ["Running", "Succeeded"])
def test_a_sound_pod_has_no_cause(phase: str) -> None:
    assert cause_of(pod_of(phase)) is None
    assert cause_of(pod_of("Running", conditions=ready("True", "True"))) is None
    assert cause_of(pod_of("Running", conditions=ready("False", "False"))) is None


def test_troubles_are_grouped_with_what_is_waited_for_first() -> None:
    pods = [ended(137, reason="OOMKilled", message="x" * 900) for _ in range(3)]
    for index, pod in enumerate(pods):
        pod["metadata"]["labels"][labels.INDEX] = str(index)
    pods += [waiting("ErrImagePull"), waiting("ImagePullBackOff"), ended(75), pod_of("Running")]
    troubles = find_troubles(pods, lambda name: [], now=NOW)
    assert [(one.pods, one.cause.waits) for one in troubles] == [(2, True), (3, False), (1, False)]
    assert troubles[1].indexes == (("small", 0), ("small", 1), ("small", 2))
    assert troubles[1].nodes == ("g0",)
    assert len(troubles[1].cause.said or "") == 300


def test_events_tell_why_a_pod_does_not_start() -> None:
    asked: list[str] = []

    def events(name: str) -> list[Object]:
        asked.append(name)
        return [{"reason": "FailedMount", "message": 'configmap "small" not found'}]

    pods = [pod_of("Pending", index=index) for index in range(40)]
    (trouble,) = find_troubles(pods, events, now=NOW)
    assert (trouble.cause.what, trouble.pods) == ("a volume cannot be mounted", 40)
    assert trouble.cause.said == 'configmap "small" not found'
    assert len(asked) == 2  # whatever the number of pods
    (slow,) = find_troubles(pods, lambda name: [], now=NOW)
    assert slow.cause.what == "starting for minutes"
    assert find_troubles(pods, lambda name: [], now=NOW - 590) == []


def test_a_job_whose_pods_are_refused() -> None:
    quota = {"reason": "FailedCreate", "message": "exceeded quota: gpus, requested: 8, used: 64"}
    cause = refused_pods([{"reason": "SuccessfulCreate"}, quota])
    assert cause == Cause("its pods are refused", "ask for more quota", True, quota["message"])
    assert refused_pods([{"reason": "SuccessfulCreate", "message": "made"}]) is None
    assert refused_pods([quota, {"reason": "SuccessfulCreate"}]) is None  # and then there was room
    lost = 'error looking up service account x/y: serviceaccount "y" not found'
    account = refused_pods([{"reason": "FailedCreate", "message": lost}])
    assert account is not None
    assert "create the account" in account.advice


# --- Jobs and what they took ---


def job_of(
    *, name: str = "small", gpus: int = 1, price: str | None = None, **more: Any
) -> SweepJob:
    annotations = {labels.GPUS: str(gpus), **({labels.PRICE: price} if price else {})}
    meta = {
        "name": name,
        "uid": f"uid-{name}",
        "creationTimestamp": stamp(1000),
        "labels": {labels.SWEEP: "small", **more.pop("labels", {})},
        "annotations": annotations,
    }
    spec = {"completions": 10, "parallelism": 4, **more.pop("spec", {})}
    return SweepJob({"metadata": meta, "spec": spec, "status": more})


def condition(kind: str, reason: str = "", message: str = "") -> list[Object]:
    found = {"type": kind, "status": "True", "reason": reason, "message": message}
    return [{**found, "lastTransitionTime": stamp(10)}]


@pytest.mark.parametrize(
    ("job", "state", "reason"),
    [
        (job_of(), "starting", None),
        (job_of(active=2), "starting", None),
        (job_of(active=2, ready=1), "running", None),
        (job_of(failed=1), "running", None),
        (job_of(completedIndexes="0-3"), "running", None),
        (job_of(spec={"suspend": True}), "paused", None),
        (
            job_of(spec={"suspend": True}, labels={labels.QUEUE: "research"}),
            "queued",
            "in queue research",
        ),
        (job_of(conditions=condition("Complete")), "complete", None),
        (job_of(conditions=condition("SuccessCriteriaMet")), "ending", None),
        (
            job_of(conditions=condition("FailureTarget", "DeadlineExceeded")),
            "ending",
            "DeadlineExceeded: it is over its deadline",
        ),
        (
            job_of(conditions=condition("Failed", "FailedIndexes", "Job has failed indexes")),
            "failed",
            "FailedIndexes: some indexes failed for good",
        ),
        (
            job_of(conditions=condition("Failed", "PodFailurePolicy", "pod x exited with 65")),
            "failed",
            "PodFailurePolicy: a pod met what is wrong for all of them; pod x exited with 65",
        ),
    ],
)
def test_state_of_a_job(job: SweepJob, state: str, reason: str | None) -> None:
    shown = job_progress(job)
    assert (shown.state, shown.reason) == (state, reason)
    assert shown.is_finished == (state in ("complete", "failed"))


def test_indexes_of_a_job() -> None:
    job = job_of(completedIndexes="0-2,7", failedIndexes="4", active=3, ready=2)
    shown = job_progress(job)
    assert (shown.done, shown.failed, shown.active, shown.ready, shown.pending) == (4, 1, 3, 2, 2)


def timed(phase: str, seconds: float, job: str = "small", index: int = 0) -> Object:
    pod = pod_of(phase, index=index, startTime=stamp(1000))
    pod["metadata"]["labels"][labels.JOB_NAME] = job
    if phase != "Running":
        end = {"terminated": {"exitCode": 0, "finishedAt": stamp(1000 - seconds)}}
        pod["status"]["containerStatuses"] = [{"name": labels.CONTAINER, "state": end}]
    return pod


def test_use_is_the_pods_own_time() -> None:
    jobs = [job_of(gpus=8, price="2.5"), job_of(name="small-r2", gpus=1, price="4")]
    pods = [timed("Succeeded", 360), timed("Failed", 720), timed("Running", 0)]
    pods.append(timed("Succeeded", 900, job="small-r2"))
    use = use_of(jobs, pods, NOW, is_all=True)
    first = (360 + 720 + 1000) / 3600
    assert use.pod_hours == pytest.approx(first + 0.25)
    assert use.gpu_hours == pytest.approx(8 * first + 0.25)
    assert use.usd == pytest.approx(8 * first * 2.5 + 0.25 * 4)
    assert use.is_exact


def test_use_says_when_pods_are_gone() -> None:
    pods = [timed("Running", 0)]
    assert not use_of([job_of()], pods, NOW, is_all=True).is_least
    resumed = job_of(conditions=[{"type": "Suspended", "status": "False"}])
    assert use_of([resumed], pods, NOW, is_all=True).is_least
    pods[0]["metadata"]["annotations"]["batch.kubernetes.io/job-index-ignored-failure-count"] = "1"
    use = use_of([job_of()], pods, NOW, is_all=True)
    assert use.is_least
    assert not use.is_exact


def test_use_of_many_pods_is_told_from_some() -> None:
    job = job_of(succeeded=900, failed=100, active=10)
    pods = [timed("Succeeded", 300), timed("Succeeded", 500), timed("Running", 0)]
    use = use_of([job], pods, NOW, is_all=False)
    assert use.gpu_hours == pytest.approx((1000 * 400 + 10 * 1000) / 3600)
    assert (use.usd, use.read, use.pods, use.is_exact) == (None, 3, 1010, False)


def test_evictions_are_counted_once() -> None:
    first, second, gone = timed("Running", 0), timed("Running", 0, index=1), timed("Failed", 5)
    first["metadata"]["annotations"]["batch.kubernetes.io/job-index-ignored-failure-count"] = "2"
    gone["status"]["conditions"] = condition("DisruptionTarget", "EvictionByEvictionAPI")
    assert count_evicted([first, second, gone]) == 2


def test_pods_that_gave_up_waiting_for_a_cache_were_not_evicted() -> None:
    """Both count as ignored by the Job, in one number."""
    earlier, later = (ended(EXIT_NOT_READY, index=0) for _ in range(2))
    running = timed("Running", 0)
    running["metadata"]["annotations"]["batch.kubernetes.io/job-index-ignored-failure-count"] = "3"
    assert count_evicted([earlier, later, running]) == 1
    assert count_evicted([earlier]) == 0


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_points_of_done_indexes(gpus: int) -> None:
    sweep = mlp_sweep(resolution=[8, 8])
    plan = Plan(sweep, Deal(points_per_shard=5))
    job = job_of(gpus=gpus, completedIndexes="0,2")
    dealt, processes = Dealt(sweep, plan.deal), max(1, gpus)
    shards = [index * processes + k for index in (0, 2) for k in range(processes)]
    expected = np.zeros(64, bool)
    for shard in shards:
        if shard < dealt.num_shards:
            expected[list(dealt.shard(shard).trained)] = True
    assert np.array_equal(points_done(plan, job), expected)
    for point in (0, 7, 63):
        found = dealt.shard_of(point)
        assert found is not None
        assert point in dealt.shard(found).trained


# --- on the stand-in ---

Submit = Callable[..., str]

_STORE = {"store": "/store/runs", "store_claim": "runs"}


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[StandIn]:
    (tmp_path / "claim").mkdir()
    with StandIn(tmp_path / "standin", claims={"runs": tmp_path / "claim"}) as cluster:
        cluster.controller.backoff_s = 0.1
        yield cluster


@pytest.fixture
def cluster(standin: StandIn) -> Cluster:
    return connect("standin", kubeconfig=str(standin.kubeconfig))


@pytest.fixture
def submit(cluster: Cluster) -> Submit:
    return lambda *arguments, **more: submit_to(cluster, *arguments, **more)


def submit_to(cluster: Cluster, name: str, script: str, *, res: int = 4, **settings: Any) -> str:
    """Sends a sweep whose pods run a shell script instead of a worker; returns its id."""
    points = settings.pop("points_per_shard", 4)
    plan = Plan(mlp_sweep(name=name, resolution=[res, res]), Deal(points_per_shard=points))
    given = {**_STORE, "cpu": "1", "memory": "1Gi", **settings}
    made = render(plan, make_settings(("test", given)))
    container = made.job["spec"]["template"]["spec"]["containers"][0]
    container["command"], container["args"] = ["sh", "-c"], [script]
    cluster.create(CONFIG_MAPS, made.config_map)
    cluster.create(JOBS, made.job)
    return plan.sweep.id


def until(look: Callable[[], Any], seconds: float = 240) -> Any:
    """What `look` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.1)
    return found


def running_pods(standin: StandIn, count: int) -> list[str]:
    pods = standin.objects.list("pods", "fractal")
    names = [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") == "Running"]
    return names if len(names) >= count else []


def test_troubles_of_real_pods(standin: StandIn, cluster: Cluster, submit: Submit) -> None:
    """Each kind of trouble, as `status` shows it."""
    said = """printf '{"points_done":1,"error":"the disk of the store is full"}'"""
    ids = {
        "retry": submit("retry", f"{said} > $FRACTAL_K8S_TERMINATION_LOG; exit 75", gpus=1),
        "fatal": submit("fatal", "echo bad weights >&2; exit 65", gpus=1),
        "image": submit("image", "true", image="registry/missing:1"),
        "room": submit("room", "true", gpus=1, cpu="4000"),
        "secret": submit("secret", "true", store_secret="s3-keys"),
        "claim": submit("claim", "true", store_claim="weights"),
        "memory": submit("memory", "exec sleep 60", gpus=1, retries_per_index=0),
    }
    pod = until(lambda: [name for name in running_pods(standin, 1) if name.startswith("memory")])
    standin.kubelet.oom_kill("fractal", pod[0])
    expected = {
        "retry": ("store, cache or device trouble", "the disk of the store is full"),
        "fatal": ("weights or data are damaged", "bad weights"),
        "image": ("its image cannot be pulled", "registry/missing:1"),
        "room": ("no node has room for it", "Insufficient cpu"),
        "secret": ("something it refers to is missing", "s3-keys"),
        "claim": ("no node has room for it", "weights"),
        "memory": ("out of memory (OOMKilled)", ""),
    }
    for name, (what, words) in expected.items():
        until(lambda name=name, what=what, words=words: _tells(cluster, ids[name], what, words))
    fatal = ProgressReader(cluster, ids["fatal"]).read()
    assert fatal.state == "failed"
    assert "exit code 65" in str(fatal.jobs[0].reason)


def _tells(cluster: Cluster, sweep_id: str, what: str, words: str) -> bool:
    troubles = ProgressReader(cluster, sweep_id).read().troubles
    return any(what in one.cause.what and words in (one.cause.said or "") for one in troubles)


def test_an_evicted_pod_is_told(standin: StandIn, cluster: Cluster, submit: Submit) -> None:
    sweep_id = submit("evicted", "exec sleep 60", gpus=1)
    (pod,) = until(lambda: running_pods(standin, 1))
    standin.kubelet.evict("fractal", pod)
    until(lambda: [name for name in running_pods(standin, 1) if name != pod])
    progress = ProgressReader(cluster, sweep_id).read()
    assert progress.evicted == 1
    assert progress.state == "running"


def test_status_without_a_store_goes_by_the_indexes(
    run: Run, standin: StandIn, submit: Submit
) -> None:
    sweep_id = submit("indexes", "[ $JOB_COMPLETION_INDEX != 2 ] || exec sleep 60", gpus=4)
    here = ("--context", "standin", "--kubeconfig", str(standin.kubeconfig))
    until(lambda: json.loads(run("status", "indexes", *here, "--json").stdout)["done"] == 12)
    output = run("status", "indexes", *here).output
    assert f"{sweep_id}  running  on standin, namespace fractal" in output
    assert "12 of 16 points (75.0%) by the indexes that are done" in output
    assert "4 indexes (4 at once, 4 GPUs): 3 done, 1 running" in output
    assert "names no store that this machine can read" in output
    listed = run("list", *here).output
    assert re.search(rf"{sweep_id}  running +3 of 4 indexes, 1 pods", listed)


def test_status_with_the_store(
    run: Run, standin: StandIn, cluster: Cluster, submit: Submit, tmp_path: Path
) -> None:
    """Two Jobs of one sweep, and counts from what is stored."""
    place = StorePlace(tmp_path / "runs", mlp_sweep(name="stored", resolution=[4, 4]))
    settings = {"client_store": str(tmp_path / "runs"), "usd_per_gpu_hour": 3.6, "gpus": 4}
    sweep_id = submit("stored", "sleep 1.2; [ $JOB_COMPLETION_INDEX != 2 ] || exit 1", **settings,
                      retries_per_index=0)  # fmt: skip
    assert sweep_id == place.sweep.id
    reader = ProgressReader(cluster, sweep_id)
    until(lambda: reader.read().is_finished)
    here = ("--context", "standin", "--kubeconfig", str(standin.kubeconfig))
    empty = run("status", sweep_id, *here).output
    assert "nothing of" in empty
    assert "3 indexes are done, and" in empty
    assert "pods write to /store/runs; are the two the same place" in empty
    assert "continue with" not in empty  # it would be trained again for nothing
    Store(str(tmp_path / "runs")).sweep(sweep_id).write_plan(Plan(place.sweep, Deal()))
    place.put("a", [trained(place.sweep, k, 3.0 if k < 4 else 0.5) for k in range(12)])
    output = run("status", sweep_id, *here).output
    assert "12 of 16 points (75.0%)" in output
    assert "the same place" not in output
    assert "8 trainable, 4 not trainable, 0 diverged, 0 failed, 4 missing" in output
    assert "failed (FailedIndexes: some indexes failed for good)" in output
    assert "1 pod failed: crashed (exit code 1)  [index 2 = (" in output
    assert f"continue with: fractal-k8s resume {sweep_id} --context standin" in output
    assert re.search(r"GPU time \S+ s, 0.0\d USD", output)
    assert not list((tmp_path / "home").rglob("*runs*"))  # what is kept names no store
    facts = json.loads(run("status", sweep_id, *here, "--json").stdout)
    assert (facts["done"], facts["counts"]["trainable"], facts["state"]) == (12, 8, "failed")
    assert facts["cost_usd"] == pytest.approx(facts["gpu_hours"] * 3.6)


def test_watch_lives_through_an_api_that_goes_away(
    standin: StandIn, cluster: Cluster, submit: Submit, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("fractal_k8s.cli.cluster_status._SILENT_S", 1.0)
    monkeypatch.setattr("fractal_k8s.cli.cluster_status._CLUSTER_EVERY_S", 0.3)
    monkeypatch.setattr("fractal_k8s.cli.cluster_status._LAST_LOOK_S", 0.1)
    gate = tmp_path / "claim" / "gate"  # /store in the pods
    script = "for k in $(seq 100); do [ -e /store/gate ] || sleep 0.1; done"
    sweep_id = submit("away", script, gpus=4)
    until(lambda: running_pods(standin, 4))
    console = Console(force_terminal=True, width=160, height=40, color_system=None, record=True)

    def trouble() -> None:
        time.sleep(0.5)
        standin.down()
        time.sleep(2.5)
        gate.touch()
        standin.up()

    thread = threading.Thread(target=trouble)
    thread.start()
    view = View(cluster, sweep_id)
    progress = follow(view, console)
    thread.join()
    assert progress.state == "complete"
    assert "16 of 16 points" in "\n".join(status_lines(progress, view))
    assert "no answer from the cluster for" in console.export_text()


def test_watch_ends_where_the_jobs_are_deleted(
    standin: StandIn, cluster: Cluster, submit: Submit, monkeypatch: Any
) -> None:
    monkeypatch.setattr("fractal_k8s.cli.cluster_status._CLUSTER_EVERY_S", 0.2)
    sweep_id = submit("deleted", "exec sleep 60", gpus=1)
    until(lambda: running_pods(standin, 1))
    threading.Timer(0.5, lambda: cluster.delete(JOBS, sweep_id)).start()
    with pytest.raises(UsageError, match="has no Job on cluster 'standin' any more"):
        follow(View(cluster, sweep_id), Console(file=io.StringIO()))


def test_rights_that_are_missing(run: Run, standin: StandIn, submit: Submit) -> None:
    sweep_id = submit("rights", "true", gpus=4)
    here = ("--kubeconfig", str(standin.kubeconfig))
    standin.add_user("half", READER)
    output = run("status", sweep_id, "--context", "half", *here).output
    assert 'cannot list resource "pods"' in output
    standin.add_user("none")
    message = run("status", sweep_id, "--context", "none", *here, code=2).output
    assert 'cannot list resource "jobs"' in message
    assert "rights" not in run("list", "--context", "standin", *here).output.replace(sweep_id, "")


# --- logs ---


def test_logs_of_a_point_and_of_an_index(run: Run, standin: StandIn, submit: Submit) -> None:
    script = "echo index $JOB_COMPLETION_INDEX begins; echo and ends"
    sweep_id = submit("logged", script, gpus=4)
    here = ("--context", "standin", "--kubeconfig", str(standin.kubeconfig))
    until(lambda: json.loads(run("list", *here, "--json").stdout)[0]["state"] == "complete")
    result = run("logs", sweep_id, "--index", "2", *here)
    assert result.stdout == "index 2 begins\nand ends\n"
    assert re.fullmatch(rf"pod {sweep_id}-2-\w+, index 2 on g\d, succeeded\n", result.stderr)
    assert run("logs", sweep_id, "--index", "2", "--tail", "1", *here).stdout == "and ends\n"
    # the coarse order deals (0,0) (0,2) (2,0) (2,2) first
    assert run("logs", sweep_id, "--point", "2,2", *here).stdout.startswith("index 0")
    facts = json.loads(run("logs", sweep_id, "--point", "3,3", "--json", *here).stdout)
    assert (facts["index"], facts["lines"][0]) == (3, "index 3 begins")
    assert (
        run("logs", sweep_id, "-f", "--point", "2,2", *here).stdout == "index 0 begins\nand ends\n"
    )
    assert "has the indexes 0..3" in run("logs", sweep_id, "--index", "4", *here, code=2).output
    assert "outside the map" in run("logs", sweep_id, "--point", "9,9", *here, code=2).output
    assert "no pod before" in run(
        "logs", sweep_id, "--index", "1", "--previous", *here, code=2
    ).output  # fmt: skip
    assert "--store URI, or --point" in run("logs", sweep_id, *here, code=2).output


def test_logs_of_a_point_leave_out_other_points(run: Run, standin: StandIn, submit: Submit) -> None:
    lines = ["begins", *(f"09:01:15 (  {p})  lr=1  trainable" for p in ("0,  0", "2,  2")), "ends"]
    sweep_id = submit("pointed", "; ".join(f"echo '{line}'" for line in lines), gpus=4)
    here = ("--context", "standin", "--kubeconfig", str(standin.kubeconfig))
    until(lambda: json.loads(run("list", *here, "--json").stdout)[0]["state"] == "complete")
    wanted = [lines[0], *lines[2:]]
    for options in ([], ["-f"]):
        found = run("logs", sweep_id, "--point", "2,2", *options, *here).stdout
        assert found.splitlines() == wanted
    found = run("logs", sweep_id, "--point", "2,2", "-f", "--tail", "3", *here).stdout
    assert found.splitlines() == wanted[-3:]
    assert run("logs", sweep_id, "--index", "0", *here).stdout.splitlines() == lines
    ended = run("logs", sweep_id, "-f", *here)
    assert (ended.stdout, ended.stderr) == ("", "the Jobs have ended, and no pod runs\n")


def test_the_line_of_a_worker_is_known_as_a_point_s() -> None:
    sweep = mlp_sweep(resolution=[16, 16])
    line = readable(sweep, log_line(sweep, trained(sweep, 3 * 16 + 7), TRAINABLE))
    job = SweepJob({})
    for text in (line, f"[gpu 1] {line}"):
        assert Place(job, 0, (), point=(3, 7)).wanted(text)
        assert not Place(job, 0, (), point=(7, 3)).wanted(text)
        assert Place(job, 0, ()).wanted(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--index", "1"], "--index and --previous are of pods"),
        (["--point", "1,1", "--index", "1"], "give --point or --index"),
        (["--context", "c", "--previous"], "--previous needs --point or --index"),
        (["--follow", "--json"], "give --follow or --json"),
        (["--namespace", "n"], "need --context NAME"),
    ],
)
def test_options_of_logs_that_do_not_go_together(
    run: Run, options: list[str], message: str
) -> None:
    assert message in run("logs", "any", *options, code=2).output


def test_following_an_index_through_its_pods(
    standin: StandIn, cluster: Cluster, submit: Submit, tmp_path: Path
) -> None:
    """A pod that fails, then one that loses the API in the middle, then the end."""
    script = (
        "if [ ! -e /store/1 ]; then touch /store/1; echo first; exit 75; fi; echo second; "
        "for k in $(seq 100); do [ -e /store/2 ] || sleep 0.1; done; echo done"
    )
    sweep_id = submit("followed", script, gpus=1, res=2)
    job = SweepJob(cluster.get(JOBS, sweep_id) or {})
    told: list[str] = []
    lines: list[str] = []
    for line in follow_index(cluster, Place(job, 0, ()), told.append):
        lines.append(line)
        if line == "second":
            standin.down()
            threading.Timer(1.0, standin.up).start()
            threading.Timer(2.0, (tmp_path / "claim" / "2").touch).start()
    assert lines[-2:] == ["second", "done"]
    assert lines.count("second") == 1
    assert any("index 0" in text and "running" in text for text in told)


def test_following_all_pods(
    standin: StandIn, cluster: Cluster, submit: Submit, monkeypatch: Any
) -> None:
    monkeypatch.setattr("fractal_k8s.backends.kube.podlogs._PODS_EVERY_S", 0.5)
    monkeypatch.setattr("fractal_k8s.backends.kube.podlogs._EVERY_S", 0.2)
    sweep_id = submit("all", "sleep 1; echo hello from $JOB_COMPLETION_INDEX; sleep 1", gpus=4)
    until(lambda: running_pods(standin, 4))
    found = {*follow_all(cluster, sweep_id, lambda text: None)}
    assert found == {(index, f"hello from {index}") for index in range(4)}


def test_marked_lines_are_told_apart() -> None:
    place = Place(job_of(), 0, ("a",), process=1)
    lines = ["[gpu 0] no", "[gpu 1] yes", "both"]
    assert [line for line in lines if place.wanted(line)] == lines[1:]


def test_following_a_store(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("fractal_k8s.cli.logs._FOLLOW_EVERY_S", 0.1)
    sweep = mlp_sweep(name="followed")
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    folder.write_plan(Plan(sweep, Deal()))
    attempt = Attempt(folder, sweep, "abc-00000", HERE)
    for index in range(3):
        outcome = trained(sweep, index)
        attempt.add(outcome, log_line(sweep, outcome, TRAINABLE))
    attempt.flush()
    assert len(run("logs", "followed", "-f").output.splitlines()) == 3
    assert "(  0,  2)" in run("logs", "followed", "-f", "--tail", "1").output
    assert len(run("logs", "followed", "-f", "--point", "0,1").output.splitlines()) == 1


# --- size ---

MEASURE = """
import re, sys, time
sys.argv = ["fractal-k8s", *sys.argv[1:]]
began = time.monotonic()
try:
    from fractal_k8s.cli import main
    main()
finally:
    # the most that was resident; getrusage counts the parent's, too, until the fork
    used = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
    spent = f"seconds {time.monotonic() - began:.2f} CPU {time.process_time():.2f}"
    heavy = [name for name in ("torch", "scipy", "matplotlib", "wandb") if name in sys.modules]
    print(f"MiB {used} {spent} loaded {heavy}", file=sys.stderr)
"""


def big_sweep(
    standin: StandIn, tmp_path: Path, *, pods: int, block: int, stored: int | None = None
) -> str:
    """128 x 128 points, three in four of them done, and pods that are in trouble.

    Args:
        block: points of an index. stored: points of an outcome object; None = the same.
    """
    sweep = mlp_sweep(name="big", resolution=[128, 128])
    plan = Plan(sweep, Deal(points_per_shard=block))
    indexes = sweep.num_points // block
    given = {**_STORE, "client_store": str(tmp_path / "runs"), "gpus": min(pods, indexes)}
    made = render(plan, make_settings(("test", given)))
    place = StorePlace(tmp_path / "runs", sweep)
    place.folder.write_plan(plan)
    for first in range(0, sweep.num_points, stored or block):
        points = range(first, first + (stored or block))
        if chosen := [trained(sweep, point) for point in points if point % 4]:
            place.put(f"block-{first:05d}", chosen, is_durable=False)
    standin.objects.create("configmaps", made.config_map)
    done = [index for index in range(indexes) if index % 4]
    job = plant(standin.objects, made.job, completed=done, failed=range(0, indexes // 40, 4))
    body = standin.objects.get("jobs", "fractal", sweep.id)
    body["status"] |= {"active": pods, "ready": pods // 2}
    standin.objects.update("jobs", body)
    for number in range(pods):
        standin.objects.create("pods", big_pod(job, made.job, number, indexes))
    return sweep.id


def big_pod(job: Object, rendered: Object, number: int, indexes: int) -> Object:
    template = rendered["spec"]["template"]
    index = str(4 * number % indexes)
    meta = {
        "name": f"{job['metadata']['name']}-{index}-{number:05x}",
        "namespace": "fractal",
        "labels": {
            **template["metadata"]["labels"],
            labels.JOB_NAME: job["metadata"]["name"],
            labels.INDEX: index,
        },
    }
    pod = ended(75, '{"error": "the store refuses"}') if number % 2 else waiting("ImagePullBackOff")
    spec = {**template["spec"], "nodeName": f"g{number % 16}"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": spec,
        "status": pod["status"],
    }


def test_a_big_sweep_takes_little_memory_and_few_requests(tmp_path: Path) -> None:
    with StandIn(tmp_path / "standin", run_pods=False) as standin:
        sweep_id = big_sweep(standin, tmp_path, pods=1500, block=1, stored=64)
        command = [sys.executable, "-c", MEASURE, "status", sweep_id, "--context", "standin"]
        for _ in range(10):  # each call reads for a second and goes on where the last one stopped
            standin.requests.clear()
            done = subprocess.run(
                [*command, "--kubeconfig", str(standin.kubeconfig)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "FRACTAL_K8S_CACHE": str(tmp_path / "cache")},
            )
            used = int(re.findall(r"MiB (\d+)", done.stderr)[0])
            # 165 to 200: how many pages of its libraries are resident is the kernel's choice
            assert used < 220
            assert "loaded []" in done.stderr
            lists = [call for call in standin.requests if call.resource == "pods"]
            assert len(lists) == 3
            assert len(standin.requests) <= 8, standin.requests
            if "read so far" not in done.stdout:
                break
        assert "12,288 of 16,384 points" in done.stdout, done.stdout + done.stderr
        assert "pods wait: its image cannot be pulled" in done.stdout
        assert "pods failed: store, cache or device trouble" in done.stdout


def test_a_look_takes_the_same_requests_again_and_again(
    standin: StandIn, cluster: Cluster, submit: Submit
) -> None:
    sweep_id = submit("calls", "exec sleep 60", gpus=4)
    until(lambda: running_pods(standin, 4))
    reader = ProgressReader(cluster, sweep_id)
    reader.read()
    standin.requests.clear()
    for _ in range(5):
        reader.read()
    # pods are looked at every ten seconds only
    assert [call.resource for call in standin.requests] == ["jobs"] * 5


def test_forbidden_ends_the_watch(standin: StandIn, submit: Submit) -> None:
    sweep_id = submit("forbidden", "exec sleep 60", gpus=1)
    standin.add_user("none")
    nobody = connect("none", kubeconfig=str(standin.kubeconfig))
    with pytest.raises(ForbiddenError, match="cannot list"):
        look_once(View(nobody, sweep_id))


def test_a_sweep_that_runs_and_gets_no_more_pods(
    standin: StandIn, cluster: Cluster, submit: Submit
) -> None:
    meta = {"name": "pods", "namespace": "fractal"}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    standin.objects.create("serviceaccounts", account)
    sweep_id = submit("few", "exec sleep 600", gpus=2, service_account="pods")
    (first, _) = until(lambda: running_pods(standin, 2))
    standin.objects.delete("serviceaccounts", "fractal", "pods")
    standin.kubelet.evict("fractal", first)
    until(lambda: _tells(cluster, sweep_id, "its pods are refused", "pods"))
    found = ProgressReader(cluster, sweep_id).read()
    assert found.state == "running"
    assert "create the account" in found.troubles[0].cause.advice
