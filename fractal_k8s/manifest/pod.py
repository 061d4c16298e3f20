"""What a worker's pod is given: arguments, variables, Secrets by name, claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fractal_k8s.environ import DEAL_VARIABLE, GPUS_VARIABLE
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.settings import JobSettings
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.training import DEPTH_FIELD

# where a worker copies the model to before it reads it
STAGE: Final = "FRACTAL_K8S_STAGE"

# data sets that are made in the pod from their name; all others are files
MADE_DATA: Final = ("forms", "statements")
# a model that is made where it is not, by its name
MADE_MODEL: Final = "pretrained:"

# The root file system is read-only: everything that libraries write goes to the pod's scratch.
_SCRATCH: Final = {
    "HOME": "home",
    "XDG_CACHE_HOME": "cache",
    "HF_HOME": "hf",
    "WANDB_CACHE_DIR": "wandb/cache",
    "WANDB_CONFIG_DIR": "wandb/config",
    "WANDB_DATA_DIR": "wandb/data",
    "WANDB_ARTIFACT_DIR": "wandb/artifacts",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "MPLCONFIGDIR": "matplotlib",
    "CUDA_CACHE_PATH": "cuda",
}


@dataclass(frozen=True)
class Mount:
    """A claim of a pod."""

    volume: str
    claim: str
    path: str
    read_only: bool


def reads_model(sweep: Sweep) -> bool:
    """Whether its weights are files that must be there before it trains."""
    return sweep.model == "gpt" and not (sweep.spec.checkpoint or "").startswith(MADE_MODEL)


def reads_data(sweep: Sweep) -> bool:
    """Whether its data are files that must be there before it trains."""
    return sweep.model == "gpt" and sweep.spec.dataset.partition(":")[0] not in MADE_DATA


def model_path(sweep: Sweep, settings: JobSettings) -> str:
    """Folder of the weights in a pod; with {depth} in it if there is one for each depth."""
    path = settings.model_path
    if DEPTH_FIELD in (sweep.spec.checkpoint or "") and DEPTH_FIELD not in path:
        path = f"{path.rstrip('/')}/d{DEPTH_FIELD}"
    return path


def claims(sweep: Sweep, settings: JobSettings) -> list[Mount]:
    """The claims that a pod of the sweep mounts."""
    found = []
    if reads_model(sweep) and settings.model_claim is not None:
        found.append(Mount("model", settings.model_claim, labels.MODEL_MOUNT, True))
    if reads_data(sweep) and settings.dataset_claim is not None:
        found.append(Mount("dataset", settings.dataset_claim, labels.DATASET_MOUNT, True))
    if settings.store_claim is not None:
        found.append(Mount("store", settings.store_claim, labels.STORE_MOUNT, False))
    return found


def arguments(plan: Plan, settings: JobSettings) -> list[str]:
    """The worker's command line; its index comes from the pod's environment."""
    sweep = plan.sweep
    given = ["worker", "--store", settings.store or ""]
    given += ["--sweep", f"{labels.PLAN_FOLDER}/{labels.PLAN_FILE}"]
    if reads_model(sweep):
        given += ["--checkpoint", model_path(sweep, settings)]
    if reads_data(sweep):
        given += ["--dataset", settings.dataset]
    if settings.processes > 1:
        given += ["--processes", str(settings.processes)]
    if settings.allow_mixed:
        given += ["--allow-mixed"]
    caches = [mount.path for mount in claims(sweep, settings) if mount.read_only]
    for path in caches:
        given += ["--cache", path]
    if caches:
        given += ["--cache-wait", str(settings.cache_wait_seconds)]
    return [literal(argument) for argument in given]


def variables(plan: Plan, settings: JobSettings) -> dict[str, str]:
    """The pod's environment, without Secrets; the settings' own variables come last and win."""
    scratch = {name: f"{labels.SCRATCH}/{folder}" for name, folder in _SCRATCH.items()}
    fixed = {
        "FRACTAL_K8S_IMAGE": settings.image,
        "FRACTAL_K8S_TERMINATION_LOG": labels.TERMINATION_LOG,
        # until a pod is killed that was asked to end
        "FRACTAL_K8S_GRACE_SECONDS": str(settings.grace_seconds),
        # a pod whose GPUs cannot be used must not train on its CPU
        GPUS_VARIABLE: str(settings.gpus_per_pod),
        # the plan that this Job's indexes count the shards of
        DEAL_VARIABLE: plan.deal.tag,
        # torch asks for a user's name, which a bare number has not
        "USER": labels.PROGRAM,
        "LOGNAME": labels.PROGRAM,
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        **scratch,
        # a folder that is there: W&B makes its own in it
        "WANDB_DIR": labels.SCRATCH,
        **({STAGE: f"{labels.SCRATCH}/model"} if settings.stage_model else {}),
        **_wandb(settings),
        **dict(sorted(settings.env.items())),
    }
    return {name: literal(value) for name, value in fixed.items()}


def is_tracked(settings: JobSettings) -> bool:
    """Whether the sweep is shown in W&B, by workers or by the aggregator alone."""
    return settings.wandb_project is not None and settings.wandb_mode != "off"


def _wandb(settings: JobSettings) -> dict[str, str]:
    if not is_tracked(settings):
        return {}
    given = {
        "FRACTAL_K8S_WANDB_PROJECT": settings.wandb_project,
        "FRACTAL_K8S_WANDB_ENTITY": settings.wandb_entity,
        "FRACTAL_K8S_WANDB_MODE": settings.wandb_mode,
    }
    return {name: value for name, value in given.items() if value is not None}


def secrets(settings: JobSettings, *, aggregator: bool = False) -> dict[str, str]:
    """Variable -> Secret that it is read from; `secret_key` tells the key.

    Args:
        aggregator: for its pod, which has W&B's key also where workers track nothing.
    """
    found = {}
    if settings.store_secret is not None:
        found = dict.fromkeys(labels.AWS_KEYS, settings.store_secret)
    tracks = is_tracked(settings) and (aggregator or settings.wandb_mode != "summary")
    if tracks and settings.wandb_secret is not None:
        found[labels.WANDB_KEY] = settings.wandb_secret
    return found


def secret_key(settings: JobSettings, variable: str) -> str:
    """The key in its Secret that a variable is read from: its own name, unless settings differ."""
    return settings.secret_keys.get(variable, variable)


def literal(text: str) -> str:
    """Text that a kubelet hands on as it is: it replaces $(NAME) by a variable, and $$ by $."""
    return text.replace("$", "$$")
