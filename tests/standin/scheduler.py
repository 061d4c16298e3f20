"""Which node a pod fits on, and why not on the others. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from standin.objects import Object

GPU: Final = "nvidia.com/gpu"

_SCALE: Final = {
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
}


def make_node(
    name: str,
    *,
    gpus: int = 8,
    labels: dict[str, str] | None = None,
    taints: Sequence[Object] = (),
    pods: int = 110,
) -> Object:
    """A node with H200 GPUs and the labels that CoreWeave gives it; `labels` override or add."""
    allocatable = {
        "cpu": "128",
        "memory": "2000Gi",
        "ephemeral-storage": "7000Gi",
        "pods": str(pods),
        **({GPU: str(gpus)} if gpus else {}),
    }
    found = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        **(
            {
                "gpu.nvidia.com/class": "H200",
                "gpu.nvidia.com/model": "H200",
                "node.kubernetes.io/instance-type": "gd-8xh200ib-i128",
            }
            if gpus
            else {}
        ),
        **(labels or {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": found},
        "spec": {"taints": list(taints)} if taints else {},
        "status": {
            "allocatable": allocatable,
            "capacity": allocatable,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }


def quantity(text: str | float) -> float:
    """The number that "14", "500m" or "220Gi" stands for."""
    match = re.fullmatch(r"([\d.]+(?:[eE]\d+)?)([a-zA-Z]*)", str(text))
    assert match, text
    return float(match[1]) * _SCALE[match[2]]


def requests_of(pod: Object) -> dict[str, float]:
    """What a pod asks for: the requests of its containers, or else their limits."""
    total: Counter[str] = Counter()
    for container in pod["spec"]["containers"]:
        resources = container.get("resources") or {}
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, amount in asked.items():
            total[name] += quantity(amount)  # type: ignore[assignment]
    return {**total, "pods": 1.0}


def place(pod: Object, nodes: Sequence[Object], running: Iterable[Object]) -> tuple[str, str]:
    """The node for a pod, or "" and why there is none, in the scheduler's words."""
    used: dict[str, Counter[str]] = {node["metadata"]["name"]: Counter() for node in nodes}
    for other in running:
        if (where := other["spec"].get("nodeName")) in used:
            used[where].update(requests_of(other))
    reasons: Counter[str] = Counter()
    best: tuple[float, float, str] | None = None
    for node in nodes:
        name = node["metadata"]["name"]
        wrong = _misfits(pod, node, used[name])
        reasons.update(wrong)
        if not wrong:
            load = used[name][GPU] + used[name]["pods"] / 1000
            here = (-_preference(pod, node["metadata"].get("labels") or {}), load, name)
            best = min(best or here, here)
    if best:
        return best[2], ""
    listed = ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))
    if not nodes:
        return "", "no nodes available to schedule pods"
    return "", f"0/{len(nodes)} nodes are available: {listed}."


def tolerates(pod: Object, taint: Object) -> bool:
    for toleration in pod["spec"].get("tolerations") or ():
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        if toleration.get("key") not in (None, "", taint["key"]):
            continue
        if toleration.get("operator", "Equal") == "Exists":
            return True
        if toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def _misfits(pod: Object, node: Object, used: Counter[str]) -> list[str]:
    """What the first check that fails says; that of resources may say several things."""
    spec = node.get("spec") or {}
    if spec.get("unschedulable"):
        return ["node(s) were unschedulable"]
    for taint in spec.get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not tolerates(pod, taint):
            return ["node(s) had untolerated taint(s)"]
    if not _matches(pod, node["metadata"].get("labels") or {}):
        return ["node(s) didn't match Pod's node affinity/selector"]
    allocatable = node["status"]["allocatable"]
    wrong = []
    for name, amount in requests_of(pod).items():
        if used[name] + amount > quantity(allocatable.get(name, "0")):
            wrong.append("Too many pods" if name == "pods" else f"Insufficient {name}")
    return wrong


def _matches(pod: Object, labels: dict[str, str]) -> bool:
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(name) != value for name, value in wanted.items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    return any(
        all(_expression(rule, labels) for rule in term.get("matchExpressions") or ())
        for term in required["nodeSelectorTerms"]
    )


def _preference(pod: Object, labels: dict[str, str]) -> float:
    """The weights of what a pod would like of a node and gets, added up."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    return sum(
        float(term["weight"])
        for term in terms
        if all(_expression(rule, labels) for rule in term["preference"]["matchExpressions"])
    )


def _expression(rule: dict[str, Any], labels: dict[str, str]) -> bool:
    value, values = labels.get(rule["key"]), rule.get("values") or ()
    verdicts = {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }
    return verdicts[rule["operator"]]
