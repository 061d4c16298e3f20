"""What a cluster would refuse, or accept and never run: checked before anything is sent."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from fractal_k8s import buckets
from fractal_k8s.manifest import labels, pod
from fractal_k8s.manifest.nodes import INSTANCE_TYPES
from fractal_k8s.manifest.settings import SECRET_VALUE, JobSettings, Toleration
from fractal_k8s.manifest.shape import MANY_COMPLETIONS, MOST_OF_MANY, MOST_PARALLEL, Shape
from fractal_k8s.sweep.assignment import Plan

# host name of a pod, and value of a label
MOST_CHARACTERS: Final = 63
# of all of a ConfigMap's data together
CONFIG_MAP_BYTES: Final = 1 << 20
# runs of a W&B project that people can still look at
MOST_TRACKED_POINTS: Final = 1_000

_CLAIM_ADVICE: Final = f"--job store_claim=CLAIM and --store {labels.STORE_MOUNT}/runs"
# ://USER:PASSWORD@ or ://TOKEN@
_CREDENTIALS: Final = re.compile(r"(://|%3A%2F%2F)[^/?]*(@|%40)", re.IGNORECASE)
# a commit, as a folder in caches of the hub or behind a repository's @; it looks like a key of W&B
_COMMIT: Final = re.compile(r"[/@][0-9a-f]{40}(?=[/:]|$)")

_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?")
_LABEL_KEY: Final = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# variables that say who a pod is; another value would make a worker write in another's place
_RESERVED: Final = re.compile(
    r"JOB_COMPLETION_INDEX|POD_NAME|NODE_NAME|FRACTAL_K8S_(IMAGE|TERMINATION_LOG|STORE|GPUS|DEAL|WANDB_.*)"
    "|" + "|".join((*labels.AWS_KEYS, labels.WANDB_KEY))
)


def problems_of(
    plan: Plan, settings: JobSettings, shape: Shape, *, name: str, plan_text: str
) -> list[str]:
    """Every reason why a cluster could not accept or run the Job; none if there is none."""
    return [
        *_names(plan, shape, name),
        *_counts(settings, shape),
        *_size(plan, plan_text),
        *_store(settings),
        *_secrets(plan, settings),
        *_caches(plan, settings),
        *_labels(settings),
        *_variables(settings),
        *_tracking(plan, settings),
    ]


def _names(plan: Plan, shape: Shape, name: str) -> Iterator[str]:
    if not _DNS_LABEL.fullmatch(name):
        yield (
            f"name {name!r}: must be lower-case letters, digits and '-', "
            "with a letter or a digit at both ends"
        )
    longest = f"{name}-{max(0, shape.completions - 1)}"
    if len(longest) > MOST_CHARACTERS:
        excess = len(longest) - MOST_CHARACTERS
        yield (
            f"name: the host name of the last pod would be {longest}, of {len(longest)} "
            f"characters, and {MOST_CHARACTERS} are allowed; give the sweep a --name that is "
            f"{excess} shorter, or train more points in each index"
        )
    if len(plan.sweep.id) > MOST_CHARACTERS:
        yield f"name: the id {plan.sweep.id} is longer than a label's {MOST_CHARACTERS} characters"


def _counts(settings: JobSettings, shape: Shape) -> Iterator[str]:
    if shape.completions == 0:
        yield "nothing to train: the deal names no point"
    if settings.gpus_per_pod and settings.gpus % settings.gpus_per_pod:
        yield (
            f"gpus: {settings.gpus} cannot be had in pods of {settings.gpus_per_pod}; "
            f"give a multiple of {settings.gpus_per_pod}"
        )
    advice = "train more points in each: a larger --points-per-index"
    if shape.parallelism > MOST_PARALLEL:
        yield f"gpus: {shape.parallelism:,} pods at once, a Job may have {MOST_PARALLEL:,}"
    if shape.completions > MANY_COMPLETIONS:
        asked = settings.max_failed_indexes
        if shape.parallelism > MOST_OF_MANY:
            yield (
                f"gpus: a Job of {shape.completions:,} indexes may have {MOST_OF_MANY:,} pods at "
                f"once, not {shape.parallelism:,}; {advice}"
            )
        if asked is not None and asked > MOST_OF_MANY:
            yield (
                f"max_failed_indexes: a Job of {shape.completions:,} indexes may allow "
                f"{MOST_OF_MANY:,} of them to fail, not {asked:,}; {advice}"
            )
    fewest = settings.min_parallelism
    if settings.queue is not None and fewest is not None and fewest > settings.parallelism:
        yield (
            f"min_parallelism: {fewest:,} pods at least, but there are {settings.parallelism:,} "
            "at most"
        )


def _size(plan: Plan, plan_text: str) -> Iterator[str]:
    size = len(plan_text.encode())
    if size > CONFIG_MAP_BYTES:
        why = (
            "the list of the points that are to be trained is too long; deal the whole sweep, as "
            "workers skip what is stored"
            if plan.deal.only is not None
            else "its points are listed one by one; make it smaller"
        )
        yield f"ConfigMap: {size:,} bytes, and {CONFIG_MAP_BYTES:,} are allowed: {why}"


def _store(settings: JobSettings) -> Iterator[str]:
    uri = settings.store
    if uri is None:
        yield f"store: where do pods write to? Give --store s3://BUCKET/PREFIX, or {_CLAIM_ADVICE}"
        return
    scheme, separator, rest = uri.partition("://")
    if separator and scheme in buckets.OPTIONS:
        yield from _bucket(uri, settings)
    elif separator and scheme != "file":
        yield f"store: unknown scheme {scheme!r}; use s3://, gs://, or {_CLAIM_ADVICE}"
    elif settings.store_claim is None:
        yield (
            f"store: {uri} is a folder of this machine, which pods do not see; give --store "
            f"s3://BUCKET/PREFIX, or {_CLAIM_ADVICE}"
        )
    elif not _is_in(rest if separator else uri, labels.STORE_MOUNT):
        yield (
            f"store: {uri} does not lie in {labels.STORE_MOUNT}, where pods see the claim "
            f"{settings.store_claim}; give --store {labels.STORE_MOUNT}/runs"
        )


def _bucket(uri: str, settings: JobSettings) -> Iterator[str]:
    parts = urlsplit(uri)
    if not parts.netloc:
        yield f"store: {uri} names no bucket; write {parts.scheme}://BUCKET/PREFIX"
    known = buckets.OPTIONS[parts.scheme]
    # no values: what is unknown may be a key
    if unknown := sorted(set(parse_qs(parts.query)) - known):
        yield f"store: unknown option {', '.join(unknown)}; known: {', '.join(sorted(known))}"
    if parts.scheme == "gs" and settings.store_secret is not None:
        yield (
            "store_secret: holds keys of S3; Google's storage is reached as the pod's own "
            "identity (service_account)"
        )


def _secrets(plan: Plan, settings: JobSettings) -> Iterator[str]:
    """Texts that look like credentials; the messages do not show them."""
    texts = dict(_texts(settings.model_dump(exclude={"image", "env"})))
    texts |= {"checkpoint": plan.sweep.spec.checkpoint or "", "data": plan.sweep.spec.dataset}
    # their values were looked at for tokens before; a proxy or an index is reached by an address
    texts |= {f"env.{name}": value for name, value in settings.env.items()}
    for key, text in texts.items():
        if _CREDENTIALS.search(text) or SECRET_VALUE.search(_COMMIT.sub("/", text)):
            yield (
                f"{key}: looks like it holds credentials, which must not stand in a manifest; "
                "name a Secret with store_secret or wandb_secret"
            )


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested settings, with where it stands."""
    if isinstance(value, str):
        yield path, value
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        yield from _texts(item, f"{path}.{key}" if path else str(key))


def _caches(plan: Plan, settings: JobSettings) -> Iterator[str]:
    sweep = plan.sweep
    path = settings.model_path
    if not path.startswith("/"):
        yield f"model_path: {path!r} is no absolute path"
    if pod.reads_model(sweep) and settings.model_claim is None and _is_in(path, labels.MODEL_MOUNT):
        yield (
            "model_claim: the weights lie in a claim of the cluster; name it, as in "
            "--job model_claim=fractal-model"
        )
    data = settings.dataset.partition(":")[2]
    lies_there = _is_in(data, labels.DATASET_MOUNT)
    if pod.reads_data(sweep) and settings.dataset_claim is None and lies_there:
        yield (
            "dataset_claim: the data lie in a claim of the cluster; name it, as in "
            "--job dataset_claim=fractal-dataset"
        )


def _is_in(path: str, folder: str) -> bool:
    """Whether a pod's path lies in a folder of it."""
    return f"{posixpath.normpath(path)}/".startswith(f"{folder}/")


def _labels(settings: JobSettings) -> Iterator[str]:
    if (
        settings.nodes == "cks-instance"
        and settings.gpus_per_pod
        and settings.gpu not in INSTANCE_TYPES
    ):
        yield (
            f"nodes: the instance type of {settings.gpu!r} is not known; use cks-class or gfd, or "
            "none and a node_selector"
        )
    values = {"gpu": f"NVIDIA-{settings.gpu}"} | {
        f"node_selector.{key}": value for key, value in settings.node_selector.items()
    }
    queues = (settings.queue, settings.aggregator_queue)
    if any(queues) and settings.queue_priority is not None:
        values["queue_priority"] = settings.queue_priority
    for key, value in values.items():
        if not _is_label_value(value):
            yield f"{key}: {value!r} is no value of a label"
    for key in settings.node_selector:
        if not _LABEL_KEY.fullmatch(key):
            yield f"node_selector: {key!r} is no name of a label"
    for toleration in settings.tolerations:
        yield from _toleration(toleration)


def _toleration(toleration: Toleration) -> Iterator[str]:
    key, value = toleration.key, toleration.value
    if key is not None and not _LABEL_KEY.fullmatch(key):
        yield f"tolerations: {key!r} is no name of a taint"
    if key is None and toleration.operator == "Equal":
        yield "tolerations: one without a key stands every taint, so its operator must be Exists"
    if value is not None and toleration.operator == "Exists":
        yield f"tolerations: {key}: a value needs the operator Equal"
    if value is not None and not _is_label_value(value):
        yield f"tolerations: {value!r} is no value of a taint"


def _is_label_value(text: str) -> bool:
    return len(text) <= MOST_CHARACTERS and _LABEL_VALUE.fullmatch(text) is not None


def _variables(settings: JobSettings) -> Iterator[str]:
    for name in settings.env:
        if not _VARIABLE.fullmatch(name):
            yield f"env: {name!r} is no name of a variable"
        elif _RESERVED.fullmatch(name):
            yield f"env: {name} is set by fractal-k8s"


def _tracking(plan: Plan, settings: JobSettings) -> Iterator[str]:
    points = plan.sweep.num_points
    if (
        pod.is_tracked(settings)
        and settings.wandb_mode == "point"
        and points > MOST_TRACKED_POINTS
        and not settings.wandb_force
    ):
        yield (
            f"wandb_mode: point makes a W&B run of each of {points:,} points, and more than "
            f"{MOST_TRACKED_POINTS:,} swamp a project; use shard, or --job wandb_force=true"
        )
