"""Where and how the pods of a sweep run. Says nothing about what is trained.

The values come from the defaults here, then the site's ConfigMap or a file like it, then options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
)

from fractal_k8s import __version__
from fractal_k8s.buckets import place_in_bucket
from fractal_k8s.errors import SweepError
from fractal_k8s.manifest import labels
from fractal_k8s.sweep.axes import near
from fractal_k8s.sweep.base import Spec

_DAY: Final = 24 * 3600

# RFC 1123: of a namespace, and of the names that Kubernetes makes host names of
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
# RFC 1123 subdomain: of a claim, a Secret, a class
Name = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)
]
# resource.Quantity, as far as people write it: 14, 500m, 220Gi, 1.5e9
Quantity = Annotated[
    str,
    StringConstraints(pattern=r"^\d+(\.\d+)?([eE]\d+|m|k|[KMGTPE]i?)?$"),
]

_SECRET_NAME: Final = re.compile(r"(key|token|secret|password|passwd|credential)", re.IGNORECASE)
# an access key, a token of a hub, a key of W&B, a JSON web token
SECRET_VALUE: Final = re.compile(
    r"(AKIA[A-Z0-9]{12,}|hf_\w{20,}|(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])|eyJ[\w-]{20,}\.)"
)


def _no_secrets(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if _SECRET_NAME.search(name) or SECRET_VALUE.search(value):
            raise ValueError(
                f"{name} looks like a secret, which must not stand in a manifest; name a Secret "
                "with store_secret or wandb_secret instead"
            )
    return variables


_SECRET_VARIABLES: Final = (*labels.AWS_KEYS, labels.WANDB_KEY)
_KEY: Final = re.compile(r"[A-Za-z0-9._-]+")


def _keys_of_secrets(keys: dict[str, str]) -> dict[str, str]:
    for name, key in keys.items():
        if name not in _SECRET_VARIABLES:
            known = ", ".join(_SECRET_VARIABLES)
            raise ValueError(f"{name} does not come from a Secret; known: {known}")
        if not _KEY.fullmatch(key):
            raise ValueError(f"{name}: a key has letters, digits, '-', '_' and '.' only")
    return keys


# distribution/reference: [host[:port]/]path[:tag][@digest]
_IMAGE: Final = re.compile(
    r"([A-Za-z0-9.-]+(:\d+)?/)?[a-z0-9._/-]+(:(?P<tag>[\w][\w.-]{0,127}))?"
    r"(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def _pinned_image(image: str) -> str:
    reference = _IMAGE.fullmatch(image)
    if reference is None:
        raise ValueError("must be NAME:TAG or, better, NAME@sha256: and 64 hex digits")
    if reference["digest"] is None and reference["tag"] in (None, "latest"):
        raise ValueError(
            "can change between two pods; name a version (NAME:TAG) or, better, a digest "
            "(NAME@sha256:...)"
        )
    return image


class Toleration(Spec):
    """A taint that pods may stand."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


# soft on CoreWeave, hard elsewhere; and capacity that may be taken back
_TOLERATIONS: Final = (
    Toleration(key="nvidia.com/gpu", effect="NoSchedule"),
    Toleration(key="qos.coreweave.cloud/interruptable", effect="NoExecute"),
)


class JobSettings(Spec):
    """Settings of the Job that trains a sweep; every key can stand in a site's ConfigMap.

    Sizes are Kubernetes quantities, times are seconds, prices are USD.
    """

    # `cpu: 14` is a quantity as well as `cpu: "14"`
    model_config = ConfigDict(coerce_numbers_to_str=True)

    namespace: Label = "fractal"
    image: Annotated[str, AfterValidator(_pinned_image)] = f"fractal-k8s:{__version__}"
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secret: Name | None = None
    # None = the namespace's default; never given a token
    service_account: Name | None = None
    # variable -> its key in its Secret, where the two have different names
    secret_keys: Annotated[dict[str, str], AfterValidator(_keys_of_secrets)] = Field(
        default_factory=dict
    )

    # --- outcomes ---
    # URI that pods write to; None must be given at launch
    store: str | None = None
    # URI of the same store for machines outside the cluster; None = the same
    client_store: str | None = None
    # Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; None = the pod's own identity
    store_secret: Name | None = None
    # claim that is mounted writable at /store, for a store like /store/runs
    store_claim: Name | None = None

    # --- weights and data, read-only ---
    model_claim: Name | None = None
    # folder of the weights in a pod; {depth} stands for a depth
    model_path: str = labels.MODEL_MOUNT
    # copy the model to the pod's own disk first: where the claim is slow to map and read in parts
    stage_model: bool = False
    dataset_claim: Name | None = None
    # the sweep's data in a pod
    dataset: str = f"conversations:{labels.DATASET_MOUNT}/train.jsonl"

    # --- how much of what ---
    # GPUs of all pods together
    gpus: PositiveInt = 8
    # 0 = pods without GPUs
    gpus_per_pod: Literal[0, 1, 2, 4, 8] = 1
    gpu: str = "H200"
    # which labels of a node tell its GPU: any that is known, CoreWeave's instance type or class,
    # NVIDIA's feature discovery, or none
    nodes: Literal["auto", "cks-instance", "cks-class", "gfd", "none"] = "auto"
    node_selector: dict[str, str] = Field(default_factory=dict)
    # nodes come when pods wait for them: that there are none yet is no reason to refuse a launch
    autoscaled: bool = False
    tolerations: tuple[Toleration, ...] = _TOLERATIONS
    # of one GPU's share; a pod of 8 GPUs asks for 8 times as much
    cpu: Quantity = "14"
    memory: Quantity = "220Gi"
    ephemeral_storage: Quantity = "100Gi"
    shared_memory: Quantity = "8Gi"
    # may be asked to end, with a grace period (CoreWeave)
    interruptible: bool = True
    queue: Label | None = None
    queue_priority: Name | None = None
    # Kueue may admit fewer pods, down to so many
    min_parallelism: PositiveInt | None = None
    priority_class: Name | None = None

    # --- failure ---
    retries_per_index: NonNegativeInt = 3
    # the Job ends when more indexes than this have failed; None = a tenth of them, at least 4
    max_failed_indexes: NonNegativeInt | None = None
    # of the whole Job; None = none
    deadline_seconds: PositiveInt | None = None
    # how long a finished Job and its pods are kept
    keep_seconds: NonNegativeInt = 7 * _DAY
    grace_seconds: PositiveInt = 120
    # a worker of another numerics class than the sweep's adds its points all the same
    allow_mixed: bool = False
    # how long a worker waits for a cache that is being filled before it gives up for now, and its
    # GPUs with it; such a try does not count, and the pause before the next grows to ten minutes
    cache_wait_seconds: NonNegativeInt = 120

    # --- tracking ---
    wandb_project: str | None = None
    wandb_entity: str | None = None
    wandb_mode: Literal["off", "summary", "shard", "point"] = "shard"
    # one W&B run per point, however many there are
    wandb_force: bool = False
    # Secret with WANDB_API_KEY
    wandb_secret: Name | None = None

    # --- the Job that puts outcomes together ---
    aggregator: bool = True
    # account that may get and list Jobs; None = it asks no cluster, and ends when every point is
    # known or nothing new comes for an hour
    aggregator_account: Name | None = None
    # LocalQueue of it, where Kueue holds every Job without one; None = it is in none and starts at
    # once. Not the sweep's own queue: an aggregator that is admitted first waits for the sweep, and
    # the sweep for what the aggregator holds of the quota
    aggregator_queue: Label | None = None
    aggregator_cpu: Quantity = "1"
    aggregator_memory: Quantity = "4Gi"
    # Secret whose key `url` is a webhook that is told when a sweep ends
    notify_secret: Name | None = None

    # --- more ---
    env: Annotated[dict[str, str], AfterValidator(_no_secrets)] = Field(default_factory=dict)
    usd_per_gpu_hour: NonNegativeFloat | None = None

    @property
    def parallelism(self) -> int:
        """Pods at once."""
        return max(1, -(-self.gpus // max(1, self.gpus_per_pod)))

    @property
    def processes(self) -> int:
        """Worker processes, and so shards at once, of a pod."""
        return max(1, self.gpus_per_pod)


def given_settings(settings: JobSettings) -> dict[str, Any]:
    """What settings say beyond the defaults, as plain data; without the namespace."""
    return settings.model_dump(mode="json", exclude_defaults=True, exclude={"namespace"})


def make_settings(*layers: tuple[str, Mapping[str, Any]]) -> JobSettings:
    """The settings that several layers make up, later ones overriding earlier ones.

    Args:
        layers: what to call each in a message, and its values by key.

    Raises:
        SweepError: unknown keys or wrong values; all of them, each with its layer.
    """
    problems: list[str] = []
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    paired: Any = None  # the store that a layer gave together with `client_store`
    for source, values in layers:
        if paired is not None and values.get("store", paired) != paired:
            # where machines outside find the store of an earlier layer says nothing of this one
            del merged["client_store"]
            paired = None
        if "client_store" in values:
            paired = values.get("store")
        for key, value in values.items():
            if key not in JobSettings.model_fields:
                problems.append(f"{source}: {key}: unknown{near(key, [*JobSettings.model_fields])}")
                continue
            merged[key], origin[key] = value, source
    try:
        settings = JobSettings.model_validate(merged)
    except ValidationError as error:
        problems += [_readable(dict(problem), origin) for problem in error.errors()]
    else:
        if _are_two_stores(settings):
            problems.append(
                f"{origin['client_store']}: client_store: is another bucket or prefix than store: "
                "pods would write to one, and everyone else would look into the other; give both "
                "the same, with other options where the way there differs"
            )
    if problems:
        raise SweepError(problems, source="settings of the cluster")
    return settings


def _are_two_stores(settings: JobSettings) -> bool:
    """Whether the URIs of pods and of everyone else name two places, as far as buckets tell."""
    places = {place_in_bucket(uri or "") for uri in (settings.store, settings.client_store)}
    return len(places - {None}) > 1


def _readable(problem: dict[str, Any], origin: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if _SECRET_NAME.search(key) or "secret" in message else f", got {given!r}"
    return f"{origin.get(str(problem['loc'][0]), 'settings')}: {key}: {message}{shown}"
