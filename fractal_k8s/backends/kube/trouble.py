"""Why pods of a sweep failed or wait, in words, grouped by cause.

A pod that cannot be scheduled, mounted or pulled never fails, nor does one whose node is lost, so
they are told from the pods that wait. Both kinds are read in bounded numbers: of a sweep in which
everything fails, some hundred pods say what is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from fractal_k8s.backends.kube.client import Object
from fractal_k8s.errors import (
    EXIT_CORRUPT,
    EXIT_HUNG,
    EXIT_INTERRUPTED,
    EXIT_NOT_READY,
    EXIT_RETRY,
    EXIT_SETTINGS,
    EXIT_TERMINATED,
)
from fractal_k8s.manifest import labels

Events = Callable[[str], Iterable[Object]]

_KILLED: Final = 137  # 128 + SIGKILL
_AGAIN: Final = "tried again on its own"
_NEW_JOB: Final = "then resume it with another Job"
_NODE_IS_BACK: Final = (
    "wait for the node; if it is lost, kubectl delete node NAME has its indexes tried elsewhere"
)

_EXITS: Final = {
    EXIT_SETTINGS: ("its sweep or settings are wrong", "correct them and launch again"),
    EXIT_CORRUPT: (
        "weights or data are damaged or not the sweep's, or what is stored of it is",
        "if weights or data: fill the claim anew (docs/chart.md) or another, and resume",
    ),
    EXIT_NOT_READY: ("its cache is not filled yet", _AGAIN),
    EXIT_HUNG: ("no step for minutes", f"{_AGAIN}; if it is always one node, cordon that node"),
    EXIT_RETRY: ("store, cache or device trouble", _AGAIN),
    EXIT_TERMINATED: ("stopped by SIGTERM, what was done is stored", _AGAIN),
    EXIT_INTERRUPTED: ("interrupted", _AGAIN),
    _KILLED: ("killed by SIGKILL", f"{_AGAIN}; see kubectl describe pod"),
    139: ("crashed with a segmentation fault", f"{_AGAIN}; if it is always one node, cordon it"),
}

# reasons of a Job's events about its pods
_CREATIONS: Final = ("SuccessfulCreate", "FailedCreate")

# reason of the condition DisruptionTarget -> what happened
_DISRUPTIONS: Final = {
    "PreemptionByScheduler": "preempted by pods of a higher priority",
    "DeletionByTaintManager": "its node was taken away (taint)",
    "EvictionByEvictionAPI": "evicted, such as by a drain of its node",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "ended by its node, which shut down or ran short",
}

# what a kubelet says of a pod that it evicts for its use of a disk -> the setting that gives more
_SHARES: Final = {
    'EmptyDir volume "shared-memory"': "shared_memory",
    "ephemeral local storage": "ephemeral_storage",
    "local ephemeral storage": "ephemeral_storage",
    "EmptyDir volume": "ephemeral_storage",
}

# reason of a container that waits -> what happened, what to do
_WAITS: Final = {
    **dict.fromkeys(
        ("ErrImagePull", "ImagePullBackOff"),
        ("its image cannot be pulled", "check the image's name and the pull secret"),
    ),
    "InvalidImageName": ("its image has no valid name", "launch with another --image"),
    "ErrImageNeverPull": (
        "its image is not on the node",
        "launch with --job image_pull_policy=IfNotPresent",
    ),
    "CreateContainerConfigError": (
        "something it refers to is missing (CreateContainerConfigError)",
        "create it, the pod then starts on its own",
    ),
    "CreateContainerError": ("its container cannot be made", "see kubectl describe pod"),
    "RunContainerError": ("its container cannot be started", "see kubectl describe pod"),
}
_MOUNT_REASONS: Final = frozenset({"FailedMount", "FailedAttachVolume"})
# A pod that has been starting for longer is worth a word.
_SLOW_START_S: Final = 120.0
_MOST_EXAMPLES: Final = 4
# pods of one cause whose events are asked for
_ASKED_EVENTS: Final = 2
_LONGEST_SAID: Final = 300


@dataclass(frozen=True)
class Cause:
    """Why a pod failed or waits."""

    what: str
    # what to do, in a few words
    advice: str
    waits: bool = False
    # what Kubernetes or the worker said of it
    said: str | None = None


@dataclass(frozen=True)
class Trouble:
    """Pods with the same cause."""

    cause: Cause
    pods: int
    # (Job, index) of some of them, without repeats
    indexes: tuple[tuple[str, int], ...]
    nodes: tuple[str, ...]


@dataclass
class _Group:
    cause: Cause
    pods: list[Object] = field(default_factory=list)


def find_troubles(pods: Sequence[Object], events: Events, *, now: float) -> list[Trouble]:
    """What is wrong with some pods, what is waited for first, then the most frequent.

    Args:
        pods: those that are well are passed over.
        events: what happened to the object of a name; asked for a few pods of each cause.
        now: seconds since 1970.
    """
    groups: dict[tuple[str, bool], _Group] = {}
    silent: list[Object] = []
    for pod in pods:
        cause = cause_of(pod)
        if cause is not None:
            groups.setdefault((cause.what, cause.waits), _Group(cause)).pods.append(pod)
        elif _is_starting(pod):
            silent.append(pod)
    if silent:
        for cause, found in _slow_starts(silent, events, now):
            groups[cause.what, True] = _Group(cause, found)
    troubles = [_trouble(group) for group in groups.values()]
    return sorted(troubles, key=lambda one: (not one.cause.waits, -one.pods, one.cause.what))


def cause_of(pod: Object) -> Cause | None:
    """Why a pod failed or waits; None if its own status says nothing of the kind."""
    status = pod.get("status") or {}
    if status.get("phase") == "Failed":
        return _failure(pod, status)
    if status.get("phase") == "Pending":
        return _wait(pod, status)
    if status.get("phase") == "Running" and _is_cut_off(status):
        return Cause("its node does not answer", _NODE_IS_BACK, waits=True)
    return None


def _is_cut_off(status: Object) -> bool:
    """Whether the control plane has taken a pod's readiness away, while its containers were well.

    That is how it marks the pods of a node from which it hears nothing. They end, and are replaced,
    only once the node is back or its object is gone.
    """
    unready = _condition(status, "Ready", "False")
    return unready is not None and _condition(status, "ContainersReady", "True") is not None


def _failure(pod: Object, status: Object) -> Cause:
    disruption = condition(pod, "DisruptionTarget")
    if disruption is not None:
        what = _DISRUPTIONS.get(disruption.get("reason", ""), "taken from its node")
        return Cause(what, _AGAIN, said=disruption.get("message") or status.get("message"))
    if status.get("reason") == "Evicted":
        return _eviction(_short(status.get("message")))
    ended = next(_states(status, "terminated"), None)
    if ended is None:
        reason = status.get("reason") or "Failed"
        return Cause(f"failed ({reason})", "see kubectl describe pod", said=status.get("message"))
    said = _last_words(ended.get("message"))
    if ended.get("reason") == "OOMKilled":
        advice = f"give more with --job memory=SIZE or smaller batches, {_NEW_JOB}"
        return Cause("out of memory (OOMKilled)", advice, said=said)
    if status.get("reason") == "DeadlineExceeded":
        return Cause("over its deadline", "resume it", said=said)
    code = int(ended.get("exitCode", 0))
    what, advice = _EXITS.get(code, ("crashed", "see its log: fractal-k8s logs ID --index K"))
    return Cause(f"{what} (exit code {code})", advice, said=said)


def _eviction(said: str | None) -> Cause:
    """What a kubelet did without counting it as a disruption: the pod took more than its share.

    Its container then ends with SIGTERM's code, as one that is only moved does.
    """
    for word, setting in _SHARES.items():
        if word in (said or ""):
            advice = f"give more with --job {setting}=SIZE, {_NEW_JOB}"
            return Cause("evicted by its node", advice, said=said)
    return Cause("evicted by its node", _AGAIN, said=said)


def _wait(pod: Object, status: Object) -> Cause | None:
    placed = _condition(status, "PodScheduled", "False")
    if placed is not None and placed.get("reason") == "SchedulingGated":
        return Cause("held back by a scheduling gate", "wait for its queue", waits=True)
    if placed is not None and placed.get("reason") == "Unschedulable":
        said = _short(placed.get("message"))
        return Cause("no node has room for it", _room(said or ""), waits=True, said=said)
    for waiting in _states(status, "waiting"):
        if (reason := waiting.get("reason", "")) in _WAITS:
            what, advice = _WAITS[reason]
            said = waiting.get("message")
            if "Image" in reason:
                said = f"{_images(pod)}: {said or reason}"
            return Cause(what, advice, waits=True, said=_short(said))
    return None


def _images(pod: Object) -> str:
    return ", ".join(str(container.get("image")) for container in pod["spec"]["containers"])


def _room(said: str) -> str:
    if "nvidia.com/gpu" in said and "Insufficient" in said:
        return "wait for GPUs, or scale down; fractal-k8s cluster shows who uses them"
    if "persistentvolumeclaim" in said.lower():
        return "create the claim, the pod then starts on its own"
    if "affinity" in said or "selector" in said:
        return "no node carries the labels asked for; see --job nodes and --job node_selector"
    if "Insufficient" not in said and "untolerated taint" in said:
        return "its nodes have a taint that pods do not tolerate; see --job tolerations"
    if "Insufficient" not in said and "were unschedulable" in said:
        return "its nodes are cordoned: wait, or uncordon one"
    return "wait for room, or ask for less with --job cpu, memory or ephemeral_storage"


# --- pods that are starting for long: their events say why ---


def _is_starting(pod: Object) -> bool:
    status = pod.get("status") or {}
    return status.get("phase") == "Pending" and not pod["metadata"].get("deletionTimestamp")


def _slow_starts(
    pods: list[Object], events: Events, now: float
) -> Iterator[tuple[Cause, list[Object]]]:
    """Why pods do not start: a volume that cannot be mounted, or nothing that is known."""
    asked = [
        event
        for pod in pods[:_ASKED_EVENTS]
        for event in events(pod["metadata"]["name"])
        if event.get("reason") in _MOUNT_REASONS
    ]
    if asked:
        said = _short(asked[-1].get("message"))
        advice = "create what is missing, the pod then starts on its own"
        yield Cause("a volume cannot be mounted", advice, waits=True, said=said), pods
        return
    slow = [pod for pod in pods if _age(pod, now) > _SLOW_START_S]
    if slow:
        yield Cause("starting for minutes", "see kubectl describe pod", waits=True), slow


def _age(pod: Object, now: float) -> float:
    return now - (seconds(pod["metadata"].get("creationTimestamp")) or now)


def refused_pods(events: Iterable[Object]) -> Cause | None:
    """Why a Job cannot even create its pods, from the events of the Job, oldest first."""
    creations = [event for event in events if event.get("reason") in _CREATIONS]
    if not creations or creations[-1]["reason"] != "FailedCreate":
        return None
    words = _short(creations[-1].get("message")) or ""
    advice = "allow its pods in the namespace"
    if "quota" in words:
        advice = "ask for more quota"
    elif "serviceaccount" in words:
        advice = "create the account (the chart does), or name another with --job service_account"
    return Cause("its pods are refused", advice, waits=True, said=words)


# --- reading pods ---


def condition(pod: Object, kind: str) -> Object | None:
    """The condition of that type of an object, if it is true."""
    return _condition(pod.get("status") or {}, kind, "True")


def _condition(status: Object, kind: str, value: str) -> Object | None:
    for one in status.get("conditions") or []:
        if one["type"] == kind and one["status"] == value:
            found: Object = one
            return found
    return None


def _states(status: Object, kind: str) -> Iterator[Object]:
    """States of that kind (waiting, running, terminated) of a pod's containers."""
    for container in [
        *(status.get("containerStatuses") or []),
        *(status.get("initContainerStatuses") or []),
    ]:
        if state := (container.get("state") or {}).get(kind):
            yield state


def index_of(pod: Object) -> int | None:
    """The index that a pod of an Indexed Job works at."""
    meta = pod["metadata"]
    for place in ("labels", "annotations"):
        text = (meta.get(place) or {}).get(labels.INDEX, "")
        if text.isdecimal():
            return int(text)
    return None


def job_of(pod: Object) -> str:
    """Name of the Job of a pod."""
    return str((pod["metadata"].get("labels") or {}).get(labels.JOB_NAME, ""))


def run_seconds(pod: Object, now: float) -> float:
    """How long a pod has held its node's GPUs: from the node's taking it until it ended."""
    status = pod.get("status") or {}
    began = seconds(status.get("startTime"))
    if began is None:
        return 0.0
    ends = [seconds(state.get("finishedAt")) for state in _states(status, "terminated")]
    known = [end for end in ends if end is not None]
    is_over = status.get("phase") in ("Succeeded", "Failed")
    return max(0.0, (max(known) if known else began if is_over else now) - began)


def seconds(time: str | None) -> float | None:
    """Seconds since 1970 of a time such as "2026-11-21T08:30:00Z"."""
    if not time:
        return None
    return datetime.fromisoformat(time).timestamp()


# --- what was said ---


def _last_words(message: Any) -> str | None:
    """The error in a worker's termination message; the last line where a crash left its log."""
    text = str(message or "").strip()
    if not text:
        return None
    try:
        said = json.loads(text.splitlines()[-1])
    except ValueError:
        return _short(text.splitlines()[-1])
    if not isinstance(said, dict):
        return _short(text)
    return _short(said.get("error"))


def _short(text: Any) -> str | None:
    words = re.sub(r"\s+", " ", str(text or "")).strip()
    if not words:
        return None
    return words if len(words) <= _LONGEST_SAID else words[: _LONGEST_SAID - 3] + "..."


def _trouble(group: _Group) -> Trouble:
    indexes = {(job_of(pod), index) for pod in group.pods if (index := index_of(pod)) is not None}
    nodes = {str(pod["spec"]["nodeName"]) for pod in group.pods if pod["spec"].get("nodeName")}
    return Trouble(
        group.cause,
        len(group.pods),
        tuple(sorted(indexes)[:_MOST_EXAMPLES]),
        tuple(sorted(nodes)[:_MOST_EXAMPLES]),
    )
