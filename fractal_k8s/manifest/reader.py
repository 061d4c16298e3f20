"""A pod that reads the caches of a site: where no Job of the chart is left to be taken after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fractal_k8s.manifest import labels
from fractal_k8s.manifest.render import USER
from fractal_k8s.manifest.settings import JobSettings

_MOUNTS: Final = {"model": labels.MODEL_MOUNT, "dataset": labels.DATASET_MOUNT}


def reading_pod(settings: JobSettings, claims: Mapping[str, str]) -> dict[str, Any]:
    """The spec of a restricted pod with some claims mounted read-only, and nothing to do yet.

    Args:
        claims: claim by part of the cache.
    """
    container = {
        "name": labels.FILL_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": [labels.PROGRAM],
        "env": [
            {"name": "FRACTAL_K8S_TERMINATION_LOG", "value": labels.TERMINATION_LOG},
            {"name": "HOME", "value": f"{labels.SCRATCH}/home"},
            {"name": "TMPDIR", "value": labels.SCRATCH},
            {"name": "USER", "value": labels.PROGRAM},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": labels.TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *({"name": part, "mountPath": _MOUNTS[part], "readOnly": True} for part in claims),
            {"name": "scratch", "mountPath": labels.SCRATCH},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            *(
                {
                    "name": part,
                    "persistentVolumeClaim": {"claimName": claim, "readOnly": True},
                }
                for part, claim in claims.items()
            ),
            {"name": "scratch", "emptyDir": {}},
        ],
    }
    if settings.service_account is not None:
        pod["serviceAccountName"] = settings.service_account
    if settings.priority_class is not None:
        pod["priorityClassName"] = settings.priority_class
    if settings.image_pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": settings.image_pull_secret}]
    return pod
