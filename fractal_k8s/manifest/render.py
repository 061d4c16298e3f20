"""The manifest of a sweep: a ConfigMap and two Jobs, as text and as what is sent.

Pure: the same plan and settings give the same bytes, and nothing outside is asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from fractal_k8s import __version__, errors
from fractal_k8s.errors import SweepError
from fractal_k8s.manifest import aggregator, labels, pod
from fractal_k8s.manifest.limits import problems_of
from fractal_k8s.manifest.nodes import node_terms
from fractal_k8s.manifest.settings import JobSettings, given_settings
from fractal_k8s.manifest.shape import Shape
from fractal_k8s.sweep.assignment import Plan

# the user that the image runs as, and whom a claim for outcomes must let write
USER: Final = 65532
# CoreWeave: may be asked to end, and is then given its grace period
INTERRUPTIBLE: Final = "qos.coreweave.com/graceful-interruptible"

_UNUSUAL: Final = re.compile(r"[^ -~]")
_PLAIN: Final = re.compile(r"[\n -~]*\n")


@dataclass(frozen=True)
class Manifest:
    """What is sent to a cluster for a sweep: the text, and the objects read from it."""

    text: str
    config_map: dict[str, Any]
    job: dict[str, Any]
    # the Job that puts outcomes together; None = none is wanted
    aggregator: dict[str, Any] | None = None


def render(
    plan: Plan,
    settings: JobSettings,
    *,
    name: str | None = None,
    component: str = labels.WORKER,
    avoid: Mapping[str, int] | None = None,
) -> Manifest:
    """The manifest that trains what a plan deals.

    Args:
        name: of the Job and the ConfigMap; None = the sweep's id.
        component: what its objects are for, one of the constants in `labels`.
        avoid: nodes that pods had better not go to, each with a weight from 1 to 100.

    Raises:
        SweepError: a cluster could not accept or run it; every reason.
    """
    name = name or plan.sweep.id
    shape = Shape.of(plan, settings)
    plan_text = plan.to_json()
    if problems := problems_of(plan, settings, shape, name=name, plan_text=plan_text):
        raise SweepError(problems, source=f"Job {name}")
    common = _labels(plan, component)
    values = {
        "name": name,
        "labels": common,
        "queue_labels": _queue_labels(settings, settings.queue),
        "pod_labels": {INTERRUPTIBLE: "true"} if settings.interruptible else {},
        "annotations": _annotations(plan, settings, shape),
        "plan_text": plan_text,
        "settings": settings,
        "shape": shape,
        "user": USER,
        "node_terms": node_terms(settings),
        "avoid": avoid or {},
        "arguments": pod.arguments(plan, settings),
        "variables": pod.variables(plan, settings),
        "secrets": pod.secrets(settings),
        "claims": pod.claims(plan.sweep, settings),
    }
    given = {"config_map": values, "job": values}
    if settings.aggregator:
        own = aggregator.template_values(plan, settings, job=name, common=common)
        given["aggregator"] = {
            "settings": settings,
            "user": USER,
            "queue_labels": _queue_labels(settings, settings.aggregator_queue),
            "pod_labels": values["pod_labels"],
            **own,
        }
    templates = _templates()
    parts = [
        templates.get_template(f"{part}.yaml.j2").render(content) for part, content in given.items()
    ]
    text = "\n---\n".join(part.rstrip("\n") for part in parts) + "\n"
    return Manifest(text, *yaml.load_all(text, Loader=_LOADER))


_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _labels(plan: Plan, component: str) -> dict[str, str]:
    return {
        labels.NAME: labels.PROGRAM,
        labels.MANAGED_BY: labels.PROGRAM,
        labels.VERSION: __version__.replace("+", "_"),
        labels.COMPONENT: component,
        labels.SWEEP: plan.sweep.id,
    }


def _queue_labels(settings: JobSettings, queue: str | None) -> dict[str, str]:
    """Kueue's labels of a Job in a queue."""
    if queue is None:
        return {}
    found = {labels.QUEUE: queue}
    if settings.queue_priority is not None:
        found[labels.QUEUE_PRIORITY] = settings.queue_priority
    return found


def _annotations(plan: Plan, settings: JobSettings, shape: Shape) -> dict[str, str]:
    found = {
        labels.DIGEST: hashlib.sha256(plan.sweep.canonical_json().encode()).hexdigest(),
        labels.STORE: settings.store or "",
        labels.GPUS: str(settings.gpus_per_pod),
        labels.SETTINGS: json.dumps(given_settings(settings), sort_keys=True),
    }
    if settings.client_store is not None:
        found[labels.CLIENT_STORE] = settings.client_store
    if settings.usd_per_gpu_hour is not None:
        found[labels.PRICE] = str(settings.usd_per_gpu_hour)
    fewest = settings.min_parallelism
    # Kueue takes only a number below the Job's own
    if settings.queue is not None and fewest is not None and fewest < shape.parallelism:
        found[labels.MIN_PARALLELISM] = str(fewest)
    return found


# --- templates ---


class _Yaml(str):
    """Text that is YAML already."""

    __slots__ = ()


def _quoted(value: object) -> str:
    """A value as a YAML scalar in ASCII, whatever it holds: text always in quotes.

    Every `{{ }}` of a template goes through here, so that none can be forgotten.
    """
    if isinstance(value, _Yaml):
        return value
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"a template cannot write {value!r}")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNUSUAL.sub(lambda found: f"\\U{ord(found[0]):08X}", text)


def _block(text: str, indent: int) -> str:
    """Lines of text as a block that people can read; quoted if it could not stand in one."""
    if not _PLAIN.fullmatch(text):
        return _Yaml(_quoted(text))
    return _Yaml("|\n" + "\n".join(" " * indent + line for line in text.splitlines()))


def _merged(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    return {**first, **second}


@lru_cache(maxsize=1)
def _templates() -> Environment:
    # no HTML is made here, and every value is quoted for YAML by `finalize`
    environment = Environment(
        loader=PackageLoader("fractal_k8s", "manifest/templates"),
        undefined=StrictUndefined,
        autoescape=False,
        finalize=_quoted,
        keep_trailing_newline=True,
    )
    environment.filters.update(block=_block, key=_Yaml, merged=_merged)
    environment.globals["paths"] = SimpleNamespace(**vars(labels))
    environment.globals["exits"] = errors
    return environment
