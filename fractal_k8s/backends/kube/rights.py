"""The rights on a cluster that the commands use: nothing more, as a test of every command checks.

`manifests/rbac.yaml` is this table as Kubernetes reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from fractal_k8s.backends.kube.client import (
    CLAIMS,
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    LIMIT_RANGES,
    LOCAL_QUEUES,
    NAMESPACES,
    NODES,
    PODS,
    PRIORITY_CLASSES,
    QUOTAS,
    SECRETS,
    SERVICE_ACCOUNTS,
    STORAGE_CLASSES,
    Cluster,
    Kind,
)
from fractal_k8s.backends.kube.connection import DEFAULT_NAMESPACE
from fractal_k8s.manifest.rbac import render_roles

# of the Role for those who run sweeps, of the ClusterRole for looking at nodes, of the account that
# pods run as, which has no rights
USER: Final = "fractal-k8s-user"
VIEWER: Final = "fractal-k8s-viewer"
WORKER: Final = "fractal-k8s-worker"
# how somebody gets the Role: of a chart it has the release's name, and its values say who has it
GRANTED: Final = (
    f"name you in the chart's rbac.users or rbac.groups, or, without the chart, to bind you to the "
    f"Role {USER} of manifests/rbac.yaml"
)
# of the account that puts outcomes together
AGGREGATOR: Final = "fractal-k8s-aggregator"

# Secrets as the documents name them: keys of the store, of W&B, of the registry
_SECRET_NAMES: Final = ("fractal-store", "fractal-wandb", "fractal-registry")

# requests at once; a review is answered from memory, so that the way there and back is its time
AT_ONCE: Final = 8

_SENDERS: Final = ("controls", "launch", "repro", "resume", "zoom")
_CHECKERS: Final = ("doctor", *_SENDERS)
# they ask where a sweep's store is
_READERS: Final = ("aggregate", "analyze", "fetch", "list", "report", "show")
_FINDERS: Final = (
    "cache",
    "cancel",
    "delete",
    "logs",
    "pause",
    "scale",
    "status",
)


@dataclass(frozen=True)
class Right:
    """A verb on a kind of object, and which commands use it."""

    verb: str
    kind: Kind
    commands: tuple[str, ...]
    subresource: str = ""
    # in all namespaces
    everywhere: bool = False
    # the commands do without it, and say what they cannot see
    optional: bool = False

    @property
    def resource(self) -> str:
        """As a rule of a Role names it, such as "pods/log"."""
        return "/".join(part for part in (self.kind.plural, self.subresource) if part)

    @property
    def is_wide(self) -> bool:
        """Whether only a ClusterRole can grant it."""
        return self.everywhere or not self.kind.namespaced

    def __str__(self) -> str:
        group = f".{self.kind.group}" if self.kind.group else ""
        return f"{self.verb} {self.resource}{group}{' everywhere' if self.everywhere else ''}"


RIGHTS: Final = (
    Right("create", JOBS, _SENDERS),
    Right("get", JOBS, (*_SENDERS, "logs")),
    Right("list", JOBS, (*_CHECKERS, *_FINDERS, *_READERS)),
    Right("patch", JOBS, ("pause", "resume", "scale")),
    Right("delete", JOBS, ("cancel", "delete", "repro")),
    Right("create", CONFIG_MAPS, _SENDERS),
    Right(
        "get",
        CONFIG_MAPS,
        (*_CHECKERS, *_READERS, "cache", "cancel", "delete", "logs", "render", "status"),
    ),
    Right("list", CONFIG_MAPS, ("delete",)),
    Right("patch", CONFIG_MAPS, _SENDERS),
    Right("delete", CONFIG_MAPS, (*_SENDERS, "delete")),
    Right("get", PODS, ("logs",)),
    Right("list", PODS, ("cache", "cluster", "delete", "logs", "status", *_CHECKERS)),
    Right("get", PODS, ("cache", "logs", "status"), subresource="log"),
    Right("list", EVENTS, ("status",)),
    Right("get", CLAIMS, ("cache", *_CHECKERS), optional=True),
    Right("get", SECRETS, _CHECKERS, optional=True),
    Right("get", SERVICE_ACCOUNTS, _CHECKERS, optional=True),
    Right("list", QUOTAS, _CHECKERS, optional=True),
    Right("list", LIMIT_RANGES, _CHECKERS, optional=True),
    Right("get", LOCAL_QUEUES, _CHECKERS, optional=True),
    Right("get", NAMESPACES, _CHECKERS, optional=True),
    Right("list", NODES, ("cluster", *_CHECKERS), optional=True),
    Right("list", PODS, ("cluster", *_CHECKERS), everywhere=True, optional=True),
    Right("get", PRIORITY_CLASSES, _CHECKERS, optional=True),
    Right("get", STORAGE_CLASSES, _CHECKERS, optional=True),
)

# what `aggregate` uses, and one Job by its name
_AGGREGATOR_RULES: Final = (
    {"apiGroups": [JOBS.group], "resources": [JOBS.plural], "verbs": ["get", "list"]},
)


def missing(cluster: Cluster, rights: Iterable[Right]) -> list[Right]:
    """Those rights that whoever this is does not have.

    Raises:
        ClusterError: the cluster does not answer.
    """
    asked = list(rights)
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        has = list(pool.map(lambda right: _has(cluster, right), asked))
    return [right for right, granted in zip(asked, has, strict=True) if not granted]


def _has(cluster: Cluster, right: Right) -> bool:
    return cluster.may(
        right.verb, right.kind, subresource=right.subresource, everywhere=right.everywhere
    )


def rules(rights: Iterable[Right], *, secrets: Iterable[str]) -> list[dict[str, Any]]:
    """The rules of a Role or ClusterRole that grant exactly these rights.

    Args:
        secrets: names of those that may be asked for their metadata.
    """
    verbs: dict[tuple[str, str], list[str]] = {}
    for right in rights:
        verbs.setdefault((right.kind.group, right.resource), []).append(right.verb)
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    named: list[dict[str, Any]] = []
    for (group, resource), found in verbs.items():
        if resource == SECRETS.plural:
            named.append(
                {
                    "apiGroups": [group],
                    "resources": [resource],
                    "resourceNames": list(secrets),
                    "verbs": found,
                }
            )
        else:
            together.setdefault((group, tuple(found)), []).append(resource)
    return [
        {"apiGroups": [group], "resources": resources, "verbs": list(found)}
        for (group, found), resources in together.items()
    ] + named


def roles_text() -> str:
    """`manifests/rbac.yaml`, for a namespace `fractal` and Secrets of the usual names."""
    return render_roles(
        rules([right for right in RIGHTS if not right.is_wide], secrets=_SECRET_NAMES),
        rules([right for right in RIGHTS if right.is_wide], secrets=()),
        _AGGREGATOR_RULES,
        names=(USER, VIEWER, WORKER, AGGREGATOR),
        namespace=DEFAULT_NAMESPACE,
    )
