"""The Job beside the one that trains: it puts outcomes together until all indexes have ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fractal_k8s.environ import DEAL_VARIABLE, GPUS_VARIABLE, WEBHOOK_VARIABLE
from fractal_k8s.manifest import labels, pod
from fractal_k8s.manifest.limits import MOST_CHARACTERS
from fractal_k8s.manifest.settings import JobSettings
from fractal_k8s.sweep.assignment import Plan

# what a webhook's Secret calls its address
WEBHOOK_KEY: Final = "url"
# pods that may fail; a store that does not answer is tried again
_RETRIES: Final = 4
# of what it writes outside memory
_STORAGE: Final = "4Gi"
# of a worker's variables
_OF_TRAINING: Final = (
    "FRACTAL_K8S_IMAGE",
    "FRACTAL_K8S_TERMINATION_LOG",
    "FRACTAL_K8S_GRACE",
    GPUS_VARIABLE,
    DEAL_VARIABLE,
    "FRACTAL_K8S_STAGE",
    "HF_",
    "TORCH",
    "TRITON",
    "CUDA",
)
# by how long the name may become
_SUFFIXES: Final = ("-aggregate", "-agg", "-a")


def aggregator_name(job: str) -> str:
    """The name of the aggregator of a Job: as long as a label's value may be."""
    return next(
        (name for suffix in _SUFFIXES if len(name := f"{job}{suffix}") <= MOST_CHARACTERS),
        f"{job}{_SUFFIXES[-1]}",
    )


def arguments(plan: Plan, settings: JobSettings) -> list[str]:
    """Its command line. Without an account it may ask no cluster, and waits for outcomes alone."""
    given = ["aggregate", plan.sweep.id, "--store", settings.store or "", "--until-complete"]
    if settings.aggregator_account is not None:
        given += ["--in-cluster"]
    if settings.allow_mixed:
        given += ["--allow-mixed"]
    return [pod.literal(argument) for argument in given]


def variables(plan: Plan, settings: JobSettings) -> dict[str, str]:
    """Its environment without Secrets: the worker's, but for what only training reads."""
    return {
        name: value
        for name, value in pod.variables(plan, settings).items()
        if name in settings.env or not name.startswith(_OF_TRAINING)
    }


def secrets(settings: JobSettings) -> list[tuple[str, str, str]]:
    """(variable, Secret, its key) of everything that is read from Secrets."""
    found = [
        (name, secret, pod.secret_key(settings, name))
        for name, secret in pod.secrets(settings, aggregator=True).items()
    ]
    if settings.notify_secret is not None:
        found.append((WEBHOOK_VARIABLE, settings.notify_secret, WEBHOOK_KEY))
    return found


def template_values(
    plan: Plan, settings: JobSettings, *, job: str, common: Mapping[str, str]
) -> dict[str, Any]:
    """What the template `aggregator.yaml.j2` needs besides what all have.

    Args:
        job: name of the Job that trains.
        common: labels of everything of the sweep.
    """
    return {
        "name": aggregator_name(job),
        "labels": {**common, labels.COMPONENT: labels.AGGREGATOR},
        "arguments": arguments(plan, settings),
        "variables": variables(plan, settings),
        "secrets": secrets(settings),
        "claims": [mount for mount in pod.claims(plan.sweep, settings) if not mount.read_only],
        "retries": _RETRIES,
        "storage": _STORAGE,
    }
