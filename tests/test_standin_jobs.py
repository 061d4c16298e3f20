"""The stand-in's Job controller and kubelet do what Kubernetes does (tests/standin)."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from standin.container import expand
from standin.deletion import collect_orphans, delete_owner, edit
from standin.jobpods import INDEX, rule_on
from standin.jobs import JobController, plant
from standin.kubelet import Kubelet
from standin.objects import RESOURCES, ApiError, Object, Objects
from standin.scheduler import make_node, place
from standin.validation import check_schema

NAMESPACE = "fractal"
IGNORE = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
# says that it runs, and goes on until it is told to end
STAYS = "trap 'exit 143' TERM; touch {flag}-$JOB_COMPLETION_INDEX; while :; do sleep 0.02; done"


class Cluster:
    """Controller and kubelet over one store of objects, and shortcuts to look at it."""

    def __init__(self, folder: Path, **kubelet: Any) -> None:
        self.folder = folder
        self.objects = Objects()
        self.controller = JobController(self.objects, backoff_s=0.05)
        kubelet = {"claims": {"data": folder}, "retry_s": 0.05, **kubelet}
        self.kubelet = Kubelet(self.objects, folder / "nodes", **kubelet)

    def __enter__(self) -> Cluster:
        self.controller.start()
        self.kubelet.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.controller.stop()
        self.kubelet.stop()

    def run(self, command: str, *, name: str = "job", **spec: Any) -> None:
        """Creates a Job of shell commands; `pod` and `container` add to those of its template."""
        self.objects.create("jobs", self.job(command, name=name, **spec))

    def job(self, command: str, *, name: str = "job", **spec: Any) -> Object:
        pod, container = spec.pop("pod", {}), spec.pop("container", {})
        command = command.replace("{flag}", str(self.folder / "flag"))
        worker = {"name": "w", "image": "any:1", "command": ["sh", "-c", command], **container}
        template = {"spec": {"restartPolicy": "Never", "containers": [worker], **pod}}
        return {
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "completionMode": "Indexed",
                "completions": 1,
                "parallelism": 4,
                "backoffLimitPerIndex": 0,
                "template": template,
                **spec,
            },
        }

    def patch(self, **spec: Any) -> None:
        edit(self.objects, "jobs", NAMESPACE, "job", lambda job: job["spec"].update(spec))

    def status(self, name: str = "job") -> Object:
        found: Object = self.objects.get("jobs", NAMESPACE, name).get("status") or {}
        return found

    def conditions(self) -> dict[str, str]:
        found = self.status().get("conditions", ())
        return {item["type"]: item["reason"] for item in found if item["status"] == "True"}

    def ended(self) -> Object:
        """The Job's status once it has ended."""
        self.wait(lambda: {"Complete", "Failed"} & set(self.conditions()))
        return self.status()

    def pods(self, index: int | None = None) -> list[Object]:
        found = self.objects.list("pods", NAMESPACE)
        found = [pod for pod in found if index in (None, int(pod["metadata"]["labels"][INDEX]))]
        return sorted(found, key=lambda pod: int(pod["metadata"]["labels"][INDEX]))

    def name(self, index: int = 0) -> str:
        return str(self.pods(index)[-1]["metadata"]["name"])

    def running(self, *indexes: int) -> None:
        """Waits until the pods of some indexes have said that they run."""
        self.wait(lambda: all((self.folder / f"flag-{index}").exists() for index in indexes))

    def state(self, index: int = 0) -> Object:
        """The state of an index's container: {"waiting": ...}, {"terminated": ...}"""
        statuses = self.pods(index)[-1]["status"].get("containerStatuses")
        found: Object = statuses[0]["state"] if statuses else {}
        return found

    def log(self, index: int = 0) -> str:
        return self.kubelet.log_path(NAMESPACE, self.name(index)).read_text()

    def events(self, reason: str) -> list[str]:
        events = self.objects.list("events", NAMESPACE)
        return [event["message"] for event in events if event["reason"] == reason]

    def wait(self, until: Callable[[], object], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, (self.objects.list("jobs"), self.pods())
            time.sleep(0.01)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


# --- indexes ---


def test_a_job_runs_each_index_once_and_says_so(cluster: Cluster) -> None:
    cluster.run("echo index $JOB_COMPLETION_INDEX", completions=6)
    status = cluster.ended()
    assert status["completedIndexes"] == "0-5"
    assert (status["succeeded"], status["failedIndexes"], status["ready"]) == (6, "", 0)
    assert "active" not in status  # what is zero is left out, as by the API
    assert "failed" not in status
    assert status["completionTime"] >= status["startTime"]
    assert cluster.conditions() == dict.fromkeys(
        ("SuccessCriteriaMet", "Complete"), "CompletionsReached"
    )
    assert [cluster.log(index) for index in range(6)] == [f"index {i}\n" for i in range(6)]
    assert cluster.events("Completed") == ["Job completed"]
    assert len(cluster.events("SuccessfulCreate")) == 6


def test_a_pod_carries_what_kubernetes_gives_it(cluster: Cluster) -> None:
    cluster.run("true", completions=2)
    cluster.ended()
    uid = cluster.objects.get("jobs", NAMESPACE, "job")["metadata"]["uid"]
    pod = cluster.pods(1)[0]
    meta = pod["metadata"]
    assert re.fullmatch(r"job-1-[a-z0-9]{5}", meta["name"])
    assert pod["spec"]["hostname"] == "job-1"
    assert meta["labels"] == {
        INDEX: "1",
        "batch.kubernetes.io/job-name": "job",
        "batch.kubernetes.io/controller-uid": uid,
        "job-name": "job",
        "controller-uid": uid,
    }
    assert meta["annotations"] == {INDEX: "1", "batch.kubernetes.io/job-index-failure-count": "0"}
    assert meta["ownerReferences"][0]["uid"] == uid
    assert meta["ownerReferences"][0]["controller"] is True
    assert "finalizers" not in meta
    assert pod["status"]["phase"] == "Succeeded"
    assert cluster.state(1)["terminated"]["reason"] == "Completed"


def test_what_is_written_has_the_form_that_the_api_gives_it(cluster: Cluster) -> None:
    since = cluster.objects.version
    job = cluster.job(f"test $JOB_COMPLETION_INDEX = 0 && exit 1; {STAYS}", completions=2)
    job["spec"]["template"]["spec"]["containers"][0]["image"] = "any:1"
    cluster.objects.create("jobs", {"apiVersion": "batch/v1", "kind": "Job", **job})
    cluster.running(1)
    cluster.run("true", name="other", container={"image": "missing:1"})
    cluster.kubelet.evict(NAMESPACE, cluster.name(1))
    cluster.ended()
    changes = [c for c in cluster.objects.since(since, 0) if c.plural in ("pods", "events")]
    for change in changes:
        check_schema(RESOURCES[change.plural], change.object)
    check_schema(RESOURCES["jobs"], cluster.objects.get("jobs", NAMESPACE, "job"))
    assert {"Failed", "Pending", "Running"} <= {
        c.object["status"]["phase"] for c in changes if c.plural == "pods"
    }


def test_the_lowest_indexes_run_first_and_never_more_than_asked_at_once(cluster: Cluster) -> None:
    since = cluster.objects.version
    cluster.run("true", completions=7, parallelism=2)
    cluster.ended()
    made, alive, most = [], set(), 0
    for change in cluster.objects.since(since, 0):
        if change.plural == "pods":
            meta = change.object["metadata"]
            if change.type == "ADDED":
                made.append(int(meta["labels"][INDEX]))
            ended = change.object["status"]["phase"] in ("Succeeded", "Failed")
            (alive.discard if ended else alive.add)(meta["name"])
            most = max(most, len(alive))
    assert made == list(range(7))
    assert most == 2


def test_a_failed_index_is_tried_again_and_the_job_fails_within_its_limit(
    cluster: Cluster,
) -> None:
    cluster.run(
        "test $JOB_COMPLETION_INDEX != 3", completions=6, backoffLimitPerIndex=2, maxFailedIndexes=5
    )
    status = cluster.ended()
    assert status["completedIndexes"] == "0-2,4,5"
    assert (status["failedIndexes"], status["failed"]) == ("3", 3)
    assert cluster.conditions() == dict.fromkeys(("FailureTarget", "Failed"), "FailedIndexes")
    assert "completionTime" not in status
    key = "batch.kubernetes.io/job-index-failure-count"
    counts = [pod["metadata"]["annotations"][key] for pod in cluster.pods(3)]
    assert sorted(counts) == ["0", "1", "2"]


def test_each_try_waits_twice_as_long(cluster: Cluster) -> None:
    times = cluster.folder / "times"
    cluster.run(f"date +%s.%N >> {times}; exit 1", backoffLimitPerIndex=3)
    cluster.ended()
    tries = [float(line) for line in times.read_text().split()]
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert len(gaps) == 3
    assert all(gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.2), strict=True))


# --- ends ---


def test_too_many_failed_indexes_end_the_job_and_what_still_runs(cluster: Cluster) -> None:
    cluster.run(
        f"test $JOB_COMPLETION_INDEX = 0 && exit 1; {STAYS}", completions=3, maxFailedIndexes=0
    )
    status = cluster.ended()
    assert cluster.conditions()["Failed"] == "MaxFailedIndexesExceeded"
    assert (status["failedIndexes"], status["failed"]) == ("0", 3)
    assert [pod["metadata"]["labels"][INDEX] for pod in cluster.pods()] == ["0"]
    assert len(cluster.events("SuccessfulDelete")) == 2


def test_without_limits_per_index_all_failures_count_together(cluster: Cluster) -> None:
    job = cluster.job("exit 1", completions=3, parallelism=1, backoffLimit=1)
    del job["spec"]["backoffLimitPerIndex"]
    cluster.objects.create("jobs", job)
    status = cluster.ended()
    assert cluster.conditions()["Failed"] == "BackoffLimitExceeded"
    assert status["failed"] == 2
    assert "failedIndexes" not in status


def test_a_job_has_failed_only_when_its_pods_have_ended(cluster: Cluster) -> None:
    cluster.run(
        "test $JOB_COMPLETION_INDEX = 0 && { sleep 0.2; exit 64; };"
        "trap 'sleep 0.3; exit 143' TERM; touch {flag}-1; while :; do sleep 0.02; done",
        completions=2,
        podFailurePolicy=_rules("FailJob", "In", [64]),
    )
    cluster.wait(lambda: "FailureTarget" in cluster.conditions())
    assert "Failed" not in cluster.conditions()
    assert cluster.status()["terminating"] == 1
    status = cluster.ended()
    assert status["terminating"] == 0
    message = next(item["message"] for item in status["conditions"] if item["type"] == "Failed")
    assert re.fullmatch(
        rf"Container w for pod {NAMESPACE}/job-0-\w+ failed with exit code 64 "
        "matching FailJob rule at index 1",
        message,
    )


def test_a_job_that_takes_too_long_is_ended(cluster: Cluster) -> None:
    cluster.run(STAYS, completions=2, activeDeadlineSeconds=1)
    cluster.ended()
    assert cluster.conditions()["Failed"] == "DeadlineExceeded"


def test_a_finished_job_goes_after_its_time_with_its_pods(cluster: Cluster) -> None:
    cluster.run("true", completions=2, ttlSecondsAfterFinished=1)
    cluster.ended()
    assert len(cluster.pods()) == 2
    cluster.wait(lambda: not cluster.objects.list("jobs") and not cluster.pods())


def _rules(action: str, operator: str, codes: list[int], **more: Any) -> Object:
    exits = {"operator": operator, "values": codes, **more}
    return {"rules": [IGNORE, {"action": action, "onExitCodes": exits}]}


def test_an_index_can_fail_without_another_try(cluster: Cluster) -> None:
    policy = _rules("FailIndex", "In", [7])
    cluster.run(
        "exit $((7 + JOB_COMPLETION_INDEX))",
        completions=2,
        backoffLimitPerIndex=1,
        podFailurePolicy=policy,
    )
    status = cluster.ended()
    assert status["failedIndexes"] == "0,1"
    assert [len(cluster.pods(index)) for index in (0, 1)] == [1, 2]


def _failed(*containers: tuple[str, int], condition: str | None = None) -> Object:
    states = [
        {"name": name, "state": {"terminated": {"exitCode": code}}} for name, code in containers
    ]
    conditions = [{"type": condition, "status": "True"}] if condition else []
    status = {"phase": "Failed", "containerStatuses": states, "conditions": conditions}
    return {"metadata": {"name": "p", "namespace": "n"}, "status": status}


@pytest.mark.parametrize(
    ("policy", "pod", "action"),
    [
        pytest.param(None, _failed(("w", 1)), "Count", id="no policy"),
        pytest.param(_rules("FailJob", "In", [3, 4]), _failed(("w", 4)), "FailJob", id="in"),
        pytest.param(_rules("FailJob", "In", [3, 4]), _failed(("w", 5)), "Count", id="not in it"),
        pytest.param(_rules("FailJob", "NotIn", [3]), _failed(("w", 5)), "FailJob", id="outside"),
        pytest.param(
            _rules("FailJob", "NotIn", [3]), _failed(("w", 0)), "Count", id="0 is no failure"
        ),
        pytest.param(
            _rules("FailJob", "In", [3], containerName="w"),
            _failed(("other", 3), ("w", 1)),
            "Count",
            id="another container's",
        ),
        pytest.param(
            _rules("FailJob", "In", [143]),
            _failed(("w", 143), condition="DisruptionTarget"),
            "Ignore",
            id="the first rule that fits",
        ),
    ],
)
def test_the_first_rule_that_fits_rules(policy: Object | None, pod: Object, action: str) -> None:
    ruling = rule_on(policy, pod)
    assert ruling.action == action
    assert ruling.counts == (action != "Ignore")


# --- disruptions ---


def test_an_evicted_pod_is_replaced_once_it_is_gone_and_does_not_count(cluster: Cluster) -> None:
    cluster.run(
        "test -e {flag}-0 && exit 0; trap 'sleep 0.3; exit 143' TERM; touch {flag}-0;"
        "while :; do sleep 0.02; done",
        completions=2,
        parallelism=1,
        podFailurePolicy={"rules": [IGNORE]},
    )
    cluster.running(0)
    since, first = cluster.objects.version, cluster.name()
    cluster.kubelet.evict(NAMESPACE, first)
    assert cluster.ended()["completedIndexes"] == "0,1"
    assert "failed" not in cluster.status()
    seen = [c for c in cluster.objects.since(since, 0) if c.plural == "pods"]
    made = next(c.version for c in seen if c.type == "ADDED")
    end = next(c for c in seen if c.object["status"]["phase"] == "Failed")
    assert end.version < made  # nor did the other index take its place
    assert end.object["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 143
    kinds = {c["type"]: c.get("reason") for c in end.object["status"]["conditions"]}
    assert kinds["DisruptionTarget"] == "EvictionByEvictionAPI"
    # the object goes only after its Job has taken note of it
    assert end.object["metadata"]["finalizers"]
    gone = next(c for c in seen if c.type == "DELETED")
    assert gone.object["metadata"]["name"] == first
    assert gone.version > made
    notes = cluster.pods()[0]["metadata"]["annotations"]
    assert notes["batch.kubernetes.io/job-index-failure-count"] == "0"
    assert notes["batch.kubernetes.io/job-index-ignored-failure-count"] == "1"


def test_memory_that_runs_out_is_137_and_counts(cluster: Cluster) -> None:
    cluster.run(STAYS)
    cluster.running(0)
    cluster.kubelet.oom_kill(NAMESPACE, cluster.name())
    assert cluster.ended()["failedIndexes"] == "0"
    ended = cluster.state()["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_pods_of_a_lost_node_are_placed_on_another(tmp_path: Path) -> None:
    nodes = [make_node("a", gpus=1), make_node("b", gpus=1)]
    command = f"test -e {{flag}}-$JOB_COMPLETION_INDEX && exit 0; {STAYS}"
    container = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    with Cluster(tmp_path, nodes=nodes) as cluster:
        policy = {"rules": [IGNORE]}
        cluster.run(command, completions=2, container=container, podFailurePolicy=policy)
        cluster.running(0, 1)
        since = cluster.objects.version
        cluster.kubelet.kill_node("a")
        cluster.wait(lambda: cluster.status().get("completedIndexes") is None)
        other = next(pod for pod in cluster.pods() if pod["spec"].get("nodeName") == "b")
        cluster.kubelet.delete_pod(NAMESPACE, other["metadata"]["name"])
        cluster.ended()
        assert {pod["spec"]["nodeName"] for pod in cluster.pods()} == {"b"}
        lost = next(
            change.object["status"]
            for change in cluster.objects.since(since, 0)
            if change.plural == "pods" and change.object["status"]["phase"] == "Failed"
        )
        # no kubelet was left to tell how it ended
        assert "running" in lost["containerStatuses"][0]["state"]
        assert lost["conditions"][-1]["reason"] == "DeletionByTaintManager"


# --- what a person does to a Job ---


def test_a_suspended_job_has_no_pods_and_no_failures(cluster: Cluster) -> None:
    cluster.run(f"test -e {{flag}}-$JOB_COMPLETION_INDEX && exit 0; {STAYS}", completions=2)
    cluster.running(0, 1)
    cluster.patch(suspend=True)
    cluster.wait(lambda: "Suspended" in cluster.conditions() and not cluster.pods())
    cluster.wait(lambda: cluster.status()["terminating"] == 0)
    assert "startTime" not in cluster.status()
    cluster.patch(suspend=False)
    status = cluster.ended()
    assert "failed" not in status
    assert "startTime" in status
    assert set(cluster.conditions()) == {"SuccessCriteriaMet", "Complete"}
    assert cluster.events("Suspended") == ["Job suspended"]
    assert cluster.events("Resumed") == ["Job resumed"]


def test_a_pod_that_is_taken_away_is_no_failure_of_its_index(cluster: Cluster) -> None:
    cluster.run(
        "test -e {flag}-0 && exit 0; trap 'sleep 0.3; exit 143' TERM; touch {flag}-0;"
        "while :; do sleep 0.02; done",
        backoffLimitPerIndex=1,
    )
    cluster.running(0)
    first = cluster.name()
    cluster.patch(suspend=True)
    cluster.wait(lambda: "Suspended" in cluster.conditions())
    cluster.patch(suspend=False)  # while the first still ends
    cluster.ended()
    second = next(pod for pod in cluster.pods() if pod["metadata"]["name"] != first)
    notes = second["metadata"]["annotations"]
    assert notes["batch.kubernetes.io/job-index-failure-count"] == "0"
    assert "failed" not in cluster.status()


def test_a_job_that_is_made_suspended_waits(cluster: Cluster) -> None:
    cluster.run("true", suspend=True)
    cluster.wait(lambda: "Suspended" in cluster.conditions())
    assert not cluster.pods()
    cluster.patch(suspend=False)
    assert cluster.ended()["completedIndexes"] == "0"


def test_fewer_pods_at_once_take_away_the_highest_indexes(cluster: Cluster) -> None:
    cluster.run(STAYS, completions=4, parallelism=2)
    cluster.running(0, 1)
    cluster.patch(parallelism=4)
    cluster.running(2, 3)
    cluster.wait(lambda: cluster.status().get("ready") == 4)
    cluster.patch(parallelism=1)
    cluster.wait(lambda: len(cluster.pods()) == 1)
    assert cluster.pods()[0]["metadata"]["labels"][INDEX] == "0"
    cluster.wait(lambda: cluster.status().get("active") == 1)
    assert "failed" not in cluster.status()
    cluster.patch(parallelism=0)
    cluster.wait(lambda: not cluster.pods())


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_a_deleted_job_takes_what_it_owns_and_lets_it_end(
    cluster: Cluster, propagation: str
) -> None:
    said = cluster.folder / "said"
    cluster.run(
        f"trap 'echo flushed > {said}; exit 143' TERM; touch {{flag}}-0;"
        "while :; do sleep 0.02; done"
    )
    uid = cluster.objects.get("jobs", NAMESPACE, "job")["metadata"]["uid"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": uid}
    meta = {"name": "job", "namespace": NAMESPACE, "ownerReferences": [owner]}
    cluster.objects.create("configmaps", {"metadata": meta})
    cluster.running(0)
    delete_owner(cluster.objects, "jobs", NAMESPACE, "job", propagation)
    left = ("jobs", "configmaps", "pods")
    cluster.wait(lambda: not any(cluster.objects.list(kind) for kind in left))
    assert said.read_text() == "flushed\n"


def test_what_owns_nothing_is_not_waited_for(cluster: Cluster) -> None:
    cluster.objects.create("configmaps", {"metadata": {"name": "plan", "namespace": NAMESPACE}})
    delete_owner(cluster.objects, "configmaps", NAMESPACE, "plan", "Foreground")
    assert not cluster.objects.list("configmaps")


def test_a_job_can_leave_its_pods_behind(cluster: Cluster) -> None:
    cluster.run("sleep 0.1")
    cluster.wait(cluster.pods)
    delete_owner(cluster.objects, "jobs", NAMESPACE, "job", "Orphan")
    cluster.wait(lambda: cluster.pods()[0]["status"]["phase"] == "Succeeded")
    meta = cluster.pods()[0]["metadata"]
    assert "ownerReferences" not in meta
    assert "finalizers" not in meta


def test_what_names_an_owner_that_never_was_is_collected(cluster: Cluster) -> None:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "gone", "uid": "0"}
    meta = {"name": "left", "namespace": NAMESPACE, "ownerReferences": [owner]}
    cluster.objects.create("configmaps", {"metadata": meta})
    collect_orphans(cluster.objects)
    assert not cluster.objects.list("configmaps")


# --- pods that cannot start ---


def test_a_pod_that_fits_nowhere_says_why_and_starts_when_it_does(cluster: Cluster) -> None:
    container = {"resources": {"limits": {"nvidia.com/gpu": "16"}}}
    cluster.run("true", container=container)
    why = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    cluster.wait(lambda: cluster.events("FailedScheduling") == [why])
    (condition,) = cluster.pods()[0]["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("PodScheduled", "False")
    assert (condition["reason"], condition["message"]) == ("Unschedulable", why)
    cluster.objects.create("nodes", make_node("big", gpus=16))
    cluster.ended()
    assert cluster.pods()[0]["spec"]["nodeName"] == "big"


def _asks(gpus: int = 1, **spec: Any) -> Object:
    container = {"resources": {"limits": {"nvidia.com/gpu": str(gpus), "memory": "1Gi"}}}
    return {"spec": {"containers": [container], **spec}}


def _affinity(*rules: Object) -> Object:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [rule]} for rule in rules]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
_CLASS = "gpu.nvidia.com/class"


@pytest.mark.parametrize(
    ("pod", "node", "problem"),
    [
        pytest.param(_asks(), {}, "", id="fits"),
        pytest.param(_asks(9), {}, "Insufficient nvidia.com/gpu", id="GPUs"),
        pytest.param(_asks(), {"gpus": 0}, "Insufficient nvidia.com/gpu", id="no GPU"),
        pytest.param(_asks(), {"pods": 0}, "Too many pods", id="pods"),
        pytest.param(
            _asks(nodeSelector={"a": "b"}),
            {},
            "node(s) didn't match Pod's node affinity/selector",
            id="selector",
        ),
        pytest.param(
            _asks(
                affinity=_affinity(
                    {"key": "none", "operator": "Exists"},
                    {"key": _CLASS, "operator": "In", "values": ["H100", "H200"]},
                )
            ),
            {},
            "",
            id="one of several terms",
        ),
        pytest.param(
            _asks(affinity=_affinity({"key": _CLASS, "operator": "In", "values": ["B200"]})),
            {},
            "node(s) didn't match Pod's node affinity/selector",
            id="affinity",
        ),
        pytest.param(
            _asks(),
            {"taints": [_TAINT]},
            "node(s) had untolerated taint(s)",
            id="taint",
        ),
        pytest.param(
            _asks(tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}]),
            {"taints": [_TAINT]},
            "",
            id="toleration",
        ),
    ],
)
def test_the_scheduler_says_why(pod: Object, node: Object, problem: str) -> None:
    expected = f"0/1 nodes are available: 1 {problem}." if problem else ""
    assert place(pod, [make_node("a", **node)], [])[1] == expected


def test_gpus_that_others_use_are_not_free() -> None:
    taken = _asks(6, nodeName="a")
    assert place(_asks(2), [make_node("a")], [taken]) == ("a", "")
    assert place(_asks(4), [make_node("a"), make_node("b")], [taken]) == ("b", "")
    assert place(_asks(4), [make_node("a")], [taken])[0] == ""


@pytest.mark.parametrize(
    ("pod", "container", "kind", "message"),
    [
        pytest.param(
            {"volumes": [{"name": "v", "configMap": {"name": "late"}}]},
            {"volumeMounts": [{"name": "v", "mountPath": "/etc/late"}]},
            "configmaps",
            'MountVolume.SetUp failed for volume "v" : configmap "late" not found',
            id="ConfigMap",
        ),
        pytest.param(
            {},
            {"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "late", "key": "k"}}}]},
            "secrets",
            'Error: secret "late" not found',
            id="Secret",
        ),
        pytest.param(
            {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]},
            {"volumeMounts": [{"name": "v", "mountPath": "/data"}]},
            "persistentvolumeclaims",
            '0/1 nodes are available: persistentvolumeclaim "data" not found.',
            id="claim",
        ),
    ],
)
def test_a_pod_waits_for_what_is_missing(
    cluster: Cluster, pod: Object, container: Object, kind: str, message: str
) -> None:
    cluster.run("true", pod=pod, container=container)
    reason = {"configmaps": "FailedMount", "secrets": "Failed"}.get(kind, "FailedScheduling")
    cluster.wait(lambda: cluster.events(reason) == [message])
    assert cluster.pods()[0]["status"]["phase"] == "Pending"
    waiting = cluster.state().get("waiting", {}).get("reason")
    expected = {"configmaps": "ContainerCreating", "secrets": "CreateContainerConfigError"}
    assert waiting == expected.get(kind)
    name = "data" if kind == "persistentvolumeclaims" else "late"
    content = {"data": {"k": base64.b64encode(b"v").decode()}}
    cluster.objects.create(kind, {"metadata": {"name": name, "namespace": NAMESPACE}, **content})
    assert cluster.ended()["completedIndexes"] == "0"


def test_an_image_that_cannot_be_pulled_is_tried_again(cluster: Cluster) -> None:
    cluster.run("true", container={"image": "missing:1"})
    reasons = []
    for expected in ("ErrImagePull", "ImagePullBackOff"):
        cluster.wait(lambda wanted=expected: _reason(cluster) == wanted)
        reasons.append(cluster.state()["waiting"]["message"])
    assert all("missing:1" in reason for reason in reasons)
    cluster.wait(lambda: cluster.events("BackOff") == ['Back-off pulling image "missing:1"'])


def _reason(cluster: Cluster) -> str | None:
    pods = cluster.pods()
    found: str | None = cluster.state().get("waiting", {}).get("reason") if pods else None
    return found


def test_a_program_that_is_not_there_is_a_failed_start(cluster: Cluster) -> None:
    cluster.run("", container={"command": ["no-such-program"]})
    cluster.ended()
    ended = cluster.state()["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert "no-such-program" in ended["message"]


# --- what a process is given ---


def test_a_process_has_the_pods_variables_and_mounts_and_no_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THIS_MACHINE", "1")
    objects = cluster.objects
    token = base64.b64encode(b"planted").decode()
    for kind, name, data in (
        ("configmaps", "plan", {"sweep.json": "{}", "A": "from all"}),
        ("secrets", "keys", {"TOKEN": token}),
        ("persistentvolumeclaims", "data", {}),
    ):
        objects.create(kind, {"metadata": {"name": name, "namespace": NAMESPACE}, "data": data})
    variables = [
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "TOKEN"}}},
        {
            "name": "NONE",
            "valueFrom": {"secretKeyRef": {"name": "x", "key": "y", "optional": True}},
        },
        {"name": "STORE", "value": "file:///store/runs"},
        {"name": "BUCKET", "value": "s3://store/runs"},
        {"name": "BOTH", "value": "$(POD)@$(NODE)"},
    ]
    volumes = [
        {"name": "plan", "configMap": {"name": "plan"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts = [
        {"name": "plan", "mountPath": "/etc/plan", "readOnly": True},
        {"name": "data", "mountPath": "/store"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    container = {
        "env": variables,
        "envFrom": [{"configMapRef": {"name": "plan"}}],
        "volumeMounts": mounts,
        "args": ["/etc/plan/sweep.json", "conversations:/store/x", "/storage", "$(POD)", "$$(A)"],
        "command": ["sh", "-c", 'env; cat "$0"; echo; echo "$1|$2|$3|$4"; touch /tmp/in-tmp'],
    }
    cluster.run("", container=container, pod={"volumes": volumes})
    cluster.ended()
    lines, folder, pod = cluster.log().splitlines(), cluster.folder, cluster.name()
    found = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    own = {name: found[name] for name in found if name not in ("PWD", "SHLVL", "_", "OLDPWD")}
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in own}
    assert own == {
        **inherited,
        "A": "from all",
        "JOB_COMPLETION_INDEX": "0",
        "POD": pod,
        "NODE": "node-0",
        "TOKEN": "planted",
        "STORE": f"file://{folder}/runs",
        "BUCKET": "s3://store/runs",
        "BOTH": f"{pod}@node-0",
        # a key that is no name of a variable is passed over by the shell, not by the kubelet
        **({"sweep.json": "{}"} if "sweep.json" in own else {}),
    }
    assert lines[-2] == "{}"
    assert lines[-1] == f"conversations:{folder}/x|/storage|{pod}|$(A)"
    assert not Path("/tmp/in-tmp").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)/$(B)", "1/$(B)"),
        ("$$(A)", "$(A)"),
        ("$A $(", "$A $("),
    ],
)
def test_variables_in_arguments(text: str, expected: str) -> None:
    assert expand(text, {"A": "1"}) == expected


@pytest.mark.parametrize(
    ("command", "policy", "message"),
    [
        ("echo 3 points > $LOG; exit 1", "File", "3 points\n"),
        ("echo seen; exit 1", "File", None),
        ("echo seen; exit 1", "FallbackToLogsOnError", "seen\n"),
        ("echo seen", "FallbackToLogsOnError", None),
        ("{ head -c 5000 /dev/zero | tr '\\0' x; echo end; } > $LOG", "File", "x" * 4092 + "end\n"),
    ],
)
def test_the_termination_message(
    cluster: Cluster, command: str, policy: str, message: str | None
) -> None:
    env = [{"name": "LOG", "value": "/dev/termination-log"}]
    cluster.run(command, container={"env": env, "terminationMessagePolicy": policy})
    cluster.ended()
    assert cluster.state()["terminated"].get("message") == message


# --- ends of processes ---


@pytest.mark.parametrize(("answer", "code"), [("exit 143", 143), ("true", 137)])
def test_a_deleted_pod_is_told_and_killed_after_its_grace(
    cluster: Cluster, answer: str, code: int
) -> None:
    cluster.run(
        f"trap '{answer}' TERM; touch {{flag}}-0; while :; do sleep 0.02; done",
        pod={"terminationGracePeriodSeconds": 1},
    )
    cluster.running(0)
    since, began = cluster.objects.version, time.monotonic()
    cluster.kubelet.delete_pod(NAMESPACE, cluster.name())
    cluster.ended()
    took = time.monotonic() - began
    assert code == 143 or took >= 1
    states = [
        change.object["status"]["containerStatuses"][0]["state"]
        for change in cluster.objects.since(since, 0)
        if change.plural == "pods" and change.object["status"]["phase"] == "Failed"
    ]
    assert states[0]["terminated"]["exitCode"] == code
    cluster.wait(lambda: not cluster.pods())


def test_a_pod_that_is_removed_at_once_is_killed(cluster: Cluster) -> None:
    meta = {"name": "bare", "namespace": NAMESPACE}
    flag = cluster.folder / "flag"
    container = {"name": "w", "image": "any:1", "command": ["sh", "-c", f"touch {flag}; sleep 60"]}
    cluster.objects.create(
        "pods", {"metadata": meta, "spec": {"containers": [container]}, "status": {}}
    )
    cluster.wait(flag.exists)
    pid = cluster.kubelet.pid(NAMESPACE, "bare")
    cluster.kubelet.delete_pod(NAMESPACE, "bare", grace=0)
    assert not cluster.objects.list("pods")
    cluster.wait(lambda: not _is_alive(pid), 2)


def test_nothing_outlives_its_pod(tmp_path: Path) -> None:
    child = "sh -c 'echo $$$$ > {flag}-%d; sleep 60' &"
    command = f"setsid {child % 0} {child % 1}"
    with Cluster(tmp_path) as cluster:
        cluster.run(f"{command} wait", name="stopped")
        cluster.running(0, 1)
        stopped = _pids(cluster)
        cluster.kubelet.stop()
        cluster.wait(lambda: not any(_is_alive(pid) for pid in stopped), 2)
    with Cluster(tmp_path) as cluster:
        cluster.run(f"{command} sleep 0.2; exit 0")
        cluster.ended()
        ended = _pids(cluster)
        cluster.wait(lambda: not any(_is_alive(pid) for pid in ended), 2)


def _pids(cluster: Cluster) -> list[int]:
    files = [cluster.folder / f"flag-{number}" for number in (0, 1)]
    cluster.wait(lambda: all(file.read_text().strip() for file in files))
    return [int(file.read_text()) for file in files]


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_processes_beyond_the_slots_wait(tmp_path: Path) -> None:
    with Cluster(tmp_path, slots=1) as cluster:
        cluster.run("echo begin >> {flag}; sleep 0.05; echo end >> {flag}", completions=3)
        cluster.ended()
        assert (tmp_path / "flag").read_text().split() == ["begin", "end"] * 3


def test_a_pod_of_two_containers_is_refused(cluster: Cluster) -> None:
    cluster.run("true", pod={"initContainers": [{"name": "first", "image": "any:1"}]})
    cluster.wait(lambda: _reason(cluster) == "CreateContainerConfigError")


# --- size ---


def test_thousands_of_indexes_run_and_old_pods_go(tmp_path: Path) -> None:
    with Cluster(
        tmp_path, instant=lambda pod: int(pod["metadata"]["labels"][INDEX]) % 100 == 7
    ) as c:
        c.controller.stop()
        c.controller = JobController(c.objects, backoff_s=0.01, keep_pods=500)
        c.controller.start()
        c.run("", completions=2000, parallelism=64)
        status = c.ended()
        assert (status["succeeded"], status["failed"]) == (1980, 20)
        assert status["failedIndexes"].startswith("7,107,207")
        c.wait(lambda: len(c.pods()) == 500)


def test_a_job_of_one_pod_knows_no_indexes(cluster: Cluster) -> None:
    job = cluster.job("echo [$JOB_COMPLETION_INDEX]; exit 1", backoffLimit=2)
    for field in ("completionMode", "backoffLimitPerIndex"):
        del job["spec"][field]
    cluster.objects.create("jobs", job)
    status = cluster.ended()
    assert cluster.conditions()["Failed"] == "BackoffLimitExceeded"
    assert status["failed"] == 3
    assert not {"completedIndexes", "failedIndexes"} & set(status)
    for pod in cluster.objects.list("pods"):
        assert INDEX not in {**pod["metadata"]["labels"], **pod["metadata"]["annotations"]}
        assert pod["metadata"]["name"].startswith("job-")
        log = cluster.kubelet.log_path(NAMESPACE, pod["metadata"]["name"])
        assert log.read_text() == "[]\n"


def test_a_job_of_one_pod_that_succeeded_is_not_run_again(tmp_path: Path) -> None:
    """By a controller that has just been started."""
    with Cluster(tmp_path) as cluster:
        job = cluster.job("true")
        for field in ("completionMode", "backoffLimitPerIndex"):
            del job["spec"][field]
        cluster.objects.create("jobs", {**job, "status": {"succeeded": 1}})
        cluster.ended()
        assert not cluster.objects.list("pods")


def test_a_claim_that_waits_is_bound_for_its_first_pod(cluster: Cluster) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    for name in ("data", "nowhere"):
        meta = {"name": name, "namespace": NAMESPACE}
        status = {"phase": "Pending"}
        claim = {"metadata": meta, "spec": spec, "status": status}
        cluster.objects.create("persistentvolumeclaims", claim)
        volume = {"name": "v", "persistentVolumeClaim": {"claimName": name}}
        cluster.run("true", name=name, pod={"volumes": [volume]})
    cluster.wait(lambda: cluster.status("data").get("succeeded"))
    found = cluster.objects.list("persistentvolumeclaims")
    assert [claim["status"]["phase"] for claim in found] == ["Bound", "Pending"]


def test_the_folder_that_mounts_lie_in_is_theirs(cluster: Cluster) -> None:
    """A program that is given /cache finds /cache/data, and nothing of this machine's /cache."""
    (cluster.folder / "hello").write_text("hello")
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}
    meta = {"name": "data", "namespace": NAMESPACE}
    cluster.objects.create("persistentvolumeclaims", {"metadata": meta, "spec": {}})
    cluster.run(
        'ls "$0"; cat "$0/data/hello"',
        pod={"volumes": [volume]},
        container={
            "args": ["/cache"],
            "volumeMounts": [{"name": "v", "mountPath": "/cache/data"}],
        },
    )
    assert cluster.ended()["succeeded"] == 1
    assert cluster.log() == "data\nhello"


def test_a_job_goes_on_from_where_it_is_said_to_be(tmp_path: Path) -> None:
    with Cluster(tmp_path, instant=True) as cluster:
        job = cluster.job("", completions=16_384)
        done = set(range(16_384)) - {5, 9, 16_000}
        plant(cluster.objects, job, completed=done - {7}, failed={7})
        status = cluster.ended()
        assert status["completedIndexes"] == "0-6,8-16383"
        assert status["failedIndexes"] == "7"
        assert sorted(int(p["metadata"]["labels"][INDEX]) for p in cluster.pods()) == [5, 9, 16_000]


def test_another_controller_takes_over(cluster: Cluster) -> None:
    cluster.run(f"test $JOB_COMPLETION_INDEX = 1 && exit 1; {STAYS}", completions=3)
    cluster.running(0, 2)
    cluster.wait(lambda: cluster.status().get("failedIndexes") == "1")
    cluster.controller.stop()
    cluster.controller = JobController(cluster.objects)
    cluster.controller.start()
    for index in (0, 2):
        cluster.kubelet.delete_pod(NAMESPACE, cluster.name(index))
    status = cluster.ended()
    assert (status["failedIndexes"], status["failed"]) == ("0-2", 3)


def test_a_job_of_another_manager_is_left_alone(cluster: Cluster) -> None:
    cluster.run("true", name="theirs", managedBy="example.com/queue")
    cluster.run("true")
    cluster.ended()
    assert not cluster.status("theirs")


def test_a_pod_that_is_not_there_cannot_be_deleted(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="not found"):
        cluster.kubelet.delete_pod(NAMESPACE, "nobody")
