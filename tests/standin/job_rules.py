"""The rules of Jobs beyond their schema, as the API server of Kubernetes 1.36 checks them."""

from __future__ import annotations

import re
from typing import Any, Final

from standin.objects import Object

_MOST_PARALLEL: Final = 100_000
_MOST_FAILED: Final = 100_000
# from so many completions on, with a limit per index, the next two hold
_MANY: Final = 100_000
_MOST_OF_MANY: Final = 10_000
_MOST_RULES: Final = 20
_MOST_CODES: Final = 255
_HOST_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_IMMUTABLE: Final = (
    "selector",
    "completionMode",
    "podFailurePolicy",
    "backoffLimitPerIndex",
    "managedBy",
    "successPolicy",
)
# what of the pods of a Job that has not started may change
_SCHEDULING: Final = ("nodeSelector", "affinity", "tolerations", "schedulingGates")


def create(job: Object) -> list[str]:
    """Problems of a Job that is to be created."""
    spec = job["spec"]
    problems = _counts(spec) + _pods(spec)
    if spec.get("completionMode") == "Indexed":
        problems += _indexed(job)
    else:
        problems += [
            f"spec.{field}: Invalid value: requires indexed completion mode"
            for field in ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy")
            if field in spec
        ]
    if "podFailurePolicy" in spec:
        problems += _failure_policy(spec)
    return problems


def update(job: Object, old: Object) -> list[str]:
    """Problems of a Job that is to replace another."""
    spec, before = job["spec"], old["spec"]
    problems = [
        f"spec.{field}: Invalid value: field is immutable"
        for field in _IMMUTABLE
        if spec.get(field) != before.get(field)
    ]
    if spec["template"] != before["template"] and not _only_scheduling(old, spec):
        problems.append("spec.template: Invalid value: field is immutable")
    if spec.get("completions") != before.get("completions"):
        elastic = spec.get("completionMode") == "Indexed"
        if not elastic:
            problems.append("spec.completions: Invalid value: field is immutable")
        elif spec.get("completions") != spec.get("parallelism"):
            problems.append(
                "spec.completions: Invalid value: can only be modified in tandem with parallelism"
            )
    return problems + _counts(spec) + (_failed_indexes(spec) if "completions" in spec else [])


def _counts(spec: Object) -> list[str]:
    fields = (
        "parallelism",
        "completions",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    )
    return [
        f"spec.{field}: Invalid value: {spec[field]}: must be greater than or equal to 0"
        for field in fields
        if spec.get(field, 0) < 0
    ]


def _pods(spec: Object) -> list[str]:
    pod = spec["template"]["spec"]
    policy = pod.get("restartPolicy")
    problems = [
        f"spec.template.spec.{kind}[{number}].image: Required value"
        for kind in ("containers", "initContainers")
        for number, container in enumerate(pod.get(kind) or [])
        if not container.get("image")
    ]
    if policy not in ("Never", "OnFailure"):
        problems.append(
            'spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"'
        )
    if "podFailurePolicy" in spec:
        if policy != "Never":
            problems.append(
                f'spec.template.spec.restartPolicy: Invalid value: "{policy}": only "Never" is '
                "supported when podFailurePolicy is specified"
            )
        if spec.get("podReplacementPolicy") != "Failed":
            problems.append(
                "spec.podReplacementPolicy: Unsupported value: "
                f'"{spec.get("podReplacementPolicy")}": supported values: "Failed"'
            )
    if spec.get("selector") and not spec.get("manualSelector"):
        matched = spec["selector"].get("matchLabels") or {}
        if list(matched) != ["batch.kubernetes.io/controller-uid"]:
            problems.append("spec.selector: Invalid value: `selector` not auto-generated")
    return problems


def _indexed(job: Object) -> list[str]:
    spec = job["spec"]
    if "completions" not in spec:
        return ["spec.completions: Required value: when completion mode is Indexed"]
    problems = _failed_indexes(spec)
    if spec["parallelism"] > _MOST_PARALLEL:
        problems.append(
            f"spec.parallelism: Invalid value: {spec['parallelism']}: must be less than or equal "
            f"to {_MOST_PARALLEL} when completion mode is Indexed"
        )
    longest = f"{job['metadata']['name']}-{max(0, spec['completions'] - 1)}"
    if len(longest) > 63 or not _HOST_NAME.fullmatch(longest):
        problems.append(
            f'metadata.name: Invalid value: "{job["metadata"]["name"]}": will not able to create '
            f"pod with invalid DNS label: {longest}"
        )
    return problems


def _failed_indexes(spec: Object) -> list[str]:
    problems = []
    per_index, most = "backoffLimitPerIndex" in spec, spec.get("maxFailedIndexes")
    completions = spec["completions"]
    if most is not None:
        where = f"spec.maxFailedIndexes: Invalid value: {most}"
        if not per_index:
            problems.append(
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"
            )
        if most > completions:
            problems.append(f"{where}: must be less than or equal to completions")
        if most > _MOST_FAILED:
            problems.append(f"{where}: must be less than or equal to {_MOST_FAILED}")
    if per_index and completions > _MANY:
        if most is None:
            problems.append(
                f"spec.maxFailedIndexes: Required value: must be specified when completions is "
                f"above {_MANY}"
            )
        elif most > _MOST_OF_MANY:
            problems.append(
                f"spec.maxFailedIndexes: Invalid value: {most}: must be less than or equal to "
                f"{_MOST_OF_MANY} when completions are above {_MANY}"
            )
        if spec["parallelism"] > _MOST_OF_MANY:
            problems.append(
                f"spec.parallelism: Invalid value: {spec['parallelism']}: must be less than or "
                f"equal to {_MOST_OF_MANY} when completions are above {_MANY} and used with "
                "backoffLimitPerIndex"
            )
    return problems


def _failure_policy(spec: Object) -> list[str]:
    rules = spec["podFailurePolicy"].get("rules") or []
    path = "spec.podFailurePolicy.rules"
    problems = []
    if len(rules) > _MOST_RULES:
        problems.append(f"{path}: Too many: {len(rules)}: must have at most {_MOST_RULES} items")
    pod = spec["template"]["spec"]
    names = {
        item["name"] for key in ("containers", "initContainers") for item in pod.get(key) or []
    }
    for number, rule in enumerate(rules):
        where = f"{path}[{number}]"
        if rule["action"] not in ("FailJob", "FailIndex", "Ignore", "Count"):
            problems.append(f'{where}.action: Unsupported value: "{rule["action"]}"')
        if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
            problems.append(
                f'{where}.action: Invalid value: "FailIndex": requires the backoffLimitPerIndex '
                "to be set"
            )
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if (codes is None) == (not conditions):
            problems.append(
                f"{where}: Invalid value: specifying one of OnExitCodes and OnPodConditions is "
                "required, and not both"
            )
        if codes is not None:
            problems += _exit_codes(codes, names, f"{where}.onExitCodes")
    return problems


def _exit_codes(rule: Object, names: set[str], path: str) -> list[str]:
    problems = []
    values: list[Any] = rule["values"]
    if rule["operator"] not in ("In", "NotIn"):
        problems.append(f'{path}.operator: Unsupported value: "{rule["operator"]}"')
    if not 1 <= len(values) <= _MOST_CODES:
        problems.append(f"{path}.values: Invalid value: 1 to {_MOST_CODES} values are needed")
    if values != sorted(set(values)):
        problems.append(f"{path}.values: Invalid value: must be ordered and without duplicates")
    if 0 in values and rule["operator"] == "In":
        problems.append(f"{path}.values: Invalid value: 0: must not be 0 for the In operator")
    if "containerName" in rule and rule["containerName"] not in names:
        problems.append(
            f'{path}.containerName: Invalid value: "{rule["containerName"]}": must be one of the '
            "container or initContainer names in the pod template"
        )
    return problems


def _only_scheduling(old: Object, spec: Object) -> bool:
    """Whether a Job waits suspended, never started, and only where its pods go has changed."""
    before = old["spec"]
    if not before.get("suspend") or (old.get("status") or {}).get("startTime"):
        return False

    def rest(template: Object) -> tuple[Object, Object]:
        pod = {k: v for k, v in template["spec"].items() if k not in _SCHEDULING}
        meta = template.get("metadata") or {}
        return pod, {k: v for k, v in meta.items() if k not in ("labels", "annotations")}

    return rest(spec["template"]) == rest(before["template"])
