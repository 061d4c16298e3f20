"""Environment variables: those that decide bits, set before libraries load; those that are secret.

Imports nothing, so that a worker can call it first of all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

# One thread: the way a sum is split over threads decides its last bits.
FIXED: Final[Mapping[str, str]] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "TORCHINDUCTOR_DETERMINISTIC": "1",
}

# Switches that make the same machine compute other bits without any trace in the versions.
REMOVED: Final = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLASLT_WORKSPACE_SIZE",
    "DISABLE_ADDMM_CUDA_LT",
    "DNNL_MAX_CPU_ISA",
    "MKL_DYNAMIC",
    "TORCHINDUCTOR_EMULATE_PRECISION_CASTS",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TORCH_BLAS_PREFER_CUBLASLT",
)


def prepare_environment() -> None:
    """Makes the process compute what every other process on this machine computes."""
    for name in REMOVED:
        os.environ.pop(name, None)
    os.environ.update(FIXED)


# How many GPUs a pod was given; 0 or not set = whatever there is will do.
GPUS_VARIABLE: Final = "FRACTAL_K8S_GPUS"
# Tag of the deal (`sweep.deal.Deal.tag`) that a Job was made for.
DEAL_VARIABLE: Final = "FRACTAL_K8S_DEAL"
# Address of a chat's webhook, for messages about sweeps.
WEBHOOK_VARIABLE: Final = "FRACTAL_K8S_WEBHOOK"


def given_gpus() -> int:
    """How many GPUs this process's pod was given."""
    return int(os.environ.get(GPUS_VARIABLE) or 0)


# Parts of the names of variables whose values must never be shown or handed on.
_SECRET_NAMES: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "WEBHOOK")
# A shorter value is no secret, and would be found in ordinary words.
_SECRET_LENGTH: Final = 8


def is_secret(name: str) -> bool:
    """Whether a variable of that name holds a secret, as far as its name tells."""
    return any(part in name.upper() for part in _SECRET_NAMES)


def without_secrets(text: str) -> str:
    """A text with `***` for every secret of this process's environment that it quotes."""
    for name, value in os.environ.items():
        secret = value.strip()  # of a file, often with the end of a line
        if is_secret(name) and len(secret) >= _SECRET_LENGTH:
            text = text.replace(secret, "***")
    return text
