"""What can be known before a sweep is sent: everything that is wrong, at once.

Nothing is created, and no content of a Secret is read: of Secrets only the metadata are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from fractal_k8s.backends.checks import Check, Findings
from fractal_k8s.backends.kube import rights, room
from fractal_k8s.backends.kube.cachejobs import AGAIN, cache_claims, fills_of
from fractal_k8s.backends.kube.client import (
    CLAIMS,
    LIMIT_RANGES,
    LOCAL_QUEUES,
    NAMESPACES,
    PRIORITY_CLASSES,
    QUOTAS,
    SECRETS,
    SERVICE_ACCOUNTS,
    STORAGE_CLASSES,
    Cluster,
    Kind,
    Object,
)
from fractal_k8s.backends.kube.inventory import read_inventory
from fractal_k8s.backends.kube.send import kubectl
from fractal_k8s.backends.kube.waiting import summary
from fractal_k8s.errors import ClusterError, ForbiddenError
from fractal_k8s.manifest import pod
from fractal_k8s.manifest.settings import JobSettings
from fractal_k8s.results.reach import are_keys_wrong, why_unreadable
from fractal_k8s.sweep.definition import Sweep

# backoffLimitPerIndex and podReplacementPolicy are on by default since
OLDEST: Final = (1, 29)
# pods of other people that are counted before free GPUs are left unknown
_MOST_PODS: Final = 3000
_QUEUES: Final = (Kind("localqueues", "/apis/kueue.x-k8s.io/v1beta2"), LOCAL_QUEUES)


@dataclass(frozen=True)
class Subject:
    """What the checks are about."""

    cluster: Cluster
    settings: JobSettings
    sweep: Sweep | None
    # whose rights matter; None = every command's
    command: str | None

    @property
    def place(self) -> str:
        return f"namespace {self.cluster.namespace}"

    @property
    def kubectl(self) -> str:
        return kubectl(self.cluster)


Look = Callable[[Subject], Check]


def preflight(
    cluster: Cluster,
    settings: JobSettings,
    sweep: Sweep | None,
    *,
    command: str | None = None,
) -> Findings:
    """Looks at everything that a sweep with these settings needs. Raises nothing.

    Args:
        sweep: None = any; then all claims of the settings are looked for.
        command: the one whose rights must be there, such as "launch"; None = those of all.
    """
    subject = Subject(cluster, settings, sweep, command)
    first = _guarded("API", _api, subject)
    if first.state == "problem":
        return Findings([first])  # nothing else can be asked
    with ThreadPoolExecutor(max_workers=rights.AT_ONCE) as pool:
        found = pool.map(lambda look: _guarded(look[0], look[1], subject), _looks(subject))
        return Findings([first, *found])


def _looks(subject: Subject) -> Iterator[tuple[str, Look]]:
    """What there is to look at with the settings, in the order of the table."""
    settings = subject.settings
    yield "namespace", _namespace
    yield "rights", _rights
    for name in _claims(subject):
        yield f"claim {name}", partial(_claim, name=name)
    if caches := _cache_claims(subject):
        yield "caches", partial(_caches, claims=caches)
    for name, making in _secrets(settings):
        yield f"secret {name}", partial(_secret, name=name, making=making)
    yield "service account", _service_account
    if settings.aggregator and settings.aggregator_account:
        yield "aggregator's account", _aggregator_account
    if settings.priority_class:
        yield "priority class", _priority_class
    if settings.queue:
        yield "queue", partial(_queue, of="queue", name=settings.queue)
    if settings.aggregator and settings.aggregator_queue:
        of = "aggregator's queue"
        yield of, partial(_queue, of=of, name=settings.aggregator_queue)
    yield "nodes", _nodes
    yield "quotas", _quotas
    yield "limits", _limits
    # launch and its kin try to read the store themselves
    if subject.command is None and (settings.client_store or settings.store):
        yield "store", _store


def _guarded(name: str, look: Look, subject: Subject) -> Check:
    try:
        return look(subject)
    except ForbiddenError as error:
        return Check(name, "skipped", f"may not be looked at ({_right(error)})")
    except ClusterError as error:
        return Check(name, "problem", str(error))


def _right(error: ForbiddenError) -> str:
    """The missing right, as the API server words it."""
    found = re.search(r'cannot (\w+) resource "([^"]+)"', str(error))
    return "needs the right to " + " ".join(found.groups()) if found else str(error)


# --- the cluster and what one may do ---


def _api(subject: Subject) -> Check:
    version = subject.cluster.version()
    found = re.match(r"v(\d+)\.(\d+)", version)
    if found and tuple(map(int, found.groups())) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Check(
            "API",
            "problem",
            f"cluster {subject.cluster.context!r} is Kubernetes {version}; retries of single "
            f"indexes need {oldest} or newer",
        )
    return Check("API", "ok", f"Kubernetes {version}")


def _namespace(subject: Subject) -> Check:
    name = subject.cluster.namespace
    try:
        found = subject.cluster.get(NAMESPACES, name)
    except ForbiddenError:
        return _namespace_by_account(subject)
    if found is None:
        return Check(
            "namespace",
            "problem",
            f"namespace {name} is missing; create it with: {subject.kubectl} create namespace "
            f"{name}, or name another with -n",
        )
    if (found.get("status") or {}).get("phase") == "Terminating":
        return Check(
            "namespace", "problem", f"namespace {name} is being deleted; name another with -n"
        )
    return Check("namespace", "ok", name)


def _namespace_by_account(subject: Subject) -> Check:
    """Every namespace has a service account `default`; its name alone may not be looked up."""
    name = subject.cluster.namespace
    if subject.cluster.get(SERVICE_ACCOUNTS, "default") is None:
        return Check(
            "namespace",
            "problem",
            f"namespace {name} is missing, or has just been created; name another with -n",
        )
    return Check("namespace", "ok", f"{name}, as its service account shows")


def _rights(subject: Subject) -> Check:
    asked = [
        right
        for right in rights.RIGHTS
        if not right.optional and subject.command in (None, *right.commands)
    ]
    lacking = rights.missing(subject.cluster, asked)
    if not lacking:
        return Check("rights", "ok", f"all {len(asked)} that {_whose(subject.command)}")
    verbs: dict[str, list[str]] = {}
    for right in lacking:
        verbs.setdefault(str(right).partition(" ")[2], []).append(right.verb)
    what = "; ".join(f"{'/'.join(found)} {resource}" for resource, found in verbs.items())
    commands = sorted({command for right in lacking for command in right.commands})
    return Check(
        "rights",
        "problem",
        f"in {subject.place} you may not {what} (used by {', '.join(commands)}); ask whoever runs "
        f"the cluster to {rights.GRANTED}",
    )


def _whose(command: str | None) -> str:
    return "the commands use" if command is None else f"{command} uses"


# --- what must be in the namespace ---


def _claims(subject: Subject) -> list[str]:
    settings = subject.settings
    if subject.sweep is not None:
        return [mount.claim for mount in pod.claims(subject.sweep, settings)]
    every = (settings.model_claim, settings.dataset_claim, settings.store_claim)
    return [*dict.fromkeys(name for name in every if name)]


def _claim(subject: Subject, *, name: str) -> Check:
    title = f"claim {name}"
    found = subject.cluster.get(CLAIMS, name)
    if found is None:
        return Check(
            title,
            "problem",
            f"claim {name} is missing in {subject.place}; create it, or name another with "
            f"--job {_setting(subject.settings, name)}=NAME",
        )
    phase = (found.get("status") or {}).get("phase", "Pending")
    if found["metadata"].get("deletionTimestamp"):
        return Check(title, "problem", f"claim {name} is being deleted; wait, and create it anew")
    if phase == "Bound":
        return _bound(subject, title, name, found)
    if phase == "Pending":
        return _pending(subject, title, name, found)
    return Check(
        title,
        "problem",
        f"claim {name} is {phase}: its volume is gone; see: {subject.kubectl} describe pvc {name}",
    )


def _cache_claims(subject: Subject) -> list[str]:
    """Claims of weights and data, which somebody must have filled."""
    if subject.sweep is not None:
        return [
            mount.claim for mount in pod.claims(subject.sweep, subject.settings) if mount.read_only
        ]
    return [*cache_claims(vars(subject.settings)).values()]


def _caches(subject: Subject, *, claims: list[str]) -> Check:
    """How the Jobs stand that fill the claims: workers wait for them, and hold their GPUs."""
    fills = fills_of(subject.cluster, claims)
    for fill in fills:
        if fill.is_failed:
            return Check(
                "caches",
                "problem",
                f"the Job {fill.name}, which fills {' and '.join(fill.claims)}, has "
                f"{summary(fill)}; remove the cause, then fill again: {AGAIN}; or, if the claim "
                f"holds what you want, {subject.kubectl} delete job {fill.name}",
            )
    for fill in fills:
        if not fill.is_complete:
            return Check(
                "caches",
                "note",
                f"the Job {fill.name} is not done with {' and '.join(fill.claims)} "
                f"({summary(fill)}); pods wait for it, with their GPUs, and are tried again",
            )
    if not fills:
        text = "no Job fills them now; pods read them once they find the file READY"
        return Check("caches", "ok", text)
    return Check("caches", "ok", f"filled by {', '.join(fill.name for fill in fills)}")


def _setting(settings: JobSettings, claim: str) -> str:
    keys = ("model_claim", "dataset_claim", "store_claim")
    return next(key for key in keys if getattr(settings, key) == claim)


def _bound(subject: Subject, title: str, name: str, claim: Object) -> Check:
    modes = claim["spec"].get("accessModes") or []
    size = (claim.get("status") or {}).get("capacity", {}).get("storage", "size unknown")
    if subject.settings.parallelism > 1 and not any(mode.endswith("Many") for mode in modes):
        return Check(
            title,
            "note",
            f"claim {name} is {', '.join(modes)}: pods on a second node cannot mount it and wait",
        )
    return Check(title, "ok", f"bound, {size}, {', '.join(modes)}")


def _pending(subject: Subject, title: str, name: str, claim: Object) -> Check:
    wanted = claim["spec"].get("storageClassName")
    try:
        found = subject.cluster.get(STORAGE_CLASSES, wanted) if wanted else None
    except ForbiddenError:
        return Check(title, "note", f"claim {name} is not bound; it may wait for its first pod")
    if found and found.get("volumeBindingMode") == "WaitForFirstConsumer":
        return Check(title, "ok", "waits for its first pod, as its storage class says")
    reason = "" if found or not wanted else f": there is no storage class {wanted}"
    return Check(
        title,
        "problem",
        f"claim {name} is not bound{reason}; see: {subject.kubectl} describe pvc {name}",
    )


def _secrets(settings: JobSettings) -> Iterator[tuple[str, str]]:
    """Secrets that pods refer to, and how to create each: from files, because shells keep what is
    typed.
    """
    keys: dict[str, list[str]] = {}
    for key, name in pod.secrets(settings, aggregator=settings.aggregator).items():
        keys.setdefault(name, []).append(pod.secret_key(settings, key))
    for name, found in keys.items():
        lines = " and ".join(f"{key}=..." for key in found)
        yield name, f"generic {name} --from-env-file=FILE, a file with {lines}"
    if settings.aggregator and settings.notify_secret:
        secret = settings.notify_secret
        yield secret, f"generic {secret} --from-file=url=FILE, a file with the webhook's address"
    if settings.image_pull_secret:
        kind = f"docker-registry {settings.image_pull_secret}"
        yield settings.image_pull_secret, f"{kind} --from-file=$HOME/.docker/config.json"


def _secret(subject: Subject, *, name: str, making: str) -> Check:
    title = f"secret {name}"
    if subject.cluster.metadata(SECRETS, name) is None:
        return Check(
            title,
            "problem",
            f"Secret {name} is missing in {subject.place}; create it with: "
            f"{subject.kubectl} create secret {making}",
        )
    return Check(title, "ok", "there; its keys and values are not read")


def _service_account(subject: Subject) -> Check:
    name = subject.settings.service_account or "default"
    return _account(subject, "service account", name, "service_account")


def _aggregator_account(subject: Subject) -> Check:
    name = subject.settings.aggregator_account or ""
    return _account(subject, "aggregator's account", name, "aggregator_account")


def _account(subject: Subject, title: str, name: str, setting: str) -> Check:
    if subject.cluster.get(SERVICE_ACCOUNTS, name) is None:
        return Check(
            title,
            "problem",
            f"service account {name} is missing in {subject.place}, so that no pod can be made; "
            f"create it with: {subject.kubectl} create serviceaccount {name}, "
            f"or name another with --job {setting}=NAME",
        )
    return Check(title, "ok", name)


def _priority_class(subject: Subject) -> Check:
    name = subject.settings.priority_class or ""
    if subject.cluster.get(PRIORITY_CLASSES, name) is None:
        return Check(
            "priority class",
            "problem",
            f"priority class {name} is missing, so that no pod can be made; "
            "see: kubectl get priorityclasses",
        )
    return Check("priority class", "ok", name)


def _queue(subject: Subject, of: str, name: str) -> Check:
    found = next(filter(None, (subject.cluster.get(kind, name) for kind in _QUEUES)), None)
    if found is None:
        return Check(
            of,
            "problem",
            f"there is no local queue {name} of Kueue in {subject.place}, so that the Job would "
            f"never start; see: {subject.kubectl} get localqueues",
        )
    for condition in (found.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Active" and condition["status"] != "True":
            said = condition.get("message", "it says no reason")
            return Check(of, "note", f"local queue {name} admits nothing now: {said}")
    return Check(of, "ok", name)


# --- room ---


def _nodes(subject: Subject) -> Check:
    settings = subject.settings
    inventory = read_inventory(subject.cluster, most_pods=_MOST_PODS)
    wanted = room.wants(settings)
    check = _check("nodes", room.judge_nodes(inventory, wanted, settings))
    if check.state == "problem" and (settings.autoscaled or settings.queue):
        # a queue's flavours may bring nodes, too
        return Check(check.name, "note", check.detail)
    return check


def _quotas(subject: Subject) -> Check:
    wanted = room.wants(subject.settings)
    found = subject.cluster.list(QUOTAS)
    return _check("quotas", room.judge_quotas(found, wanted, subject.settings.parallelism))


def _limits(subject: Subject) -> Check:
    wanted = room.wants(subject.settings)
    return _check("limits", room.judge_limits(subject.cluster.list(LIMIT_RANGES), wanted))


def _check(name: str, verdict: room.Verdict) -> Check:
    if verdict.problem:
        return Check(name, "problem", verdict.problem)
    if verdict.note:
        return Check(name, "note", verdict.note)
    return Check(name, "ok", verdict.fine)


def _store(subject: Subject) -> Check:
    settings = subject.settings
    uri = settings.client_store or settings.store or ""
    place = uri.partition("?")[0]
    if settings.client_store is None and settings.store_claim is not None:
        return Check(
            "store",
            "note",
            f"{place} is a folder of a claim, which only pods see; progress comes from the Job",
        )
    if reason := why_unreadable(uri):
        if are_keys_wrong(reason):
            return Check("store", "problem", f"{place} refuses this machine's keys ({reason})")
        return Check(
            "store",
            "note",
            f"{place} cannot be read from here ({reason}); pods may all the same",
        )
    return Check("store", "ok", f"{place} can be read from here")
