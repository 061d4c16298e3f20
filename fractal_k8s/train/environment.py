"""Where training happens: the device, and what of it decides the bits."""

from __future__ import annotations

import json
import os
import platform

import numpy as np
import torch

from fractal_k8s import __version__
from fractal_k8s.results.outcome import Environment
from fractal_k8s.train.determinism import cpu_name, git_commit, python_version


def training_device() -> torch.device:
    """The GPU this process may see, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def describe(device: torch.device, *, dtype: str, mode: str) -> Environment:
    """The environment of an attempt on a device.

    Args:
        dtype: dtype of activations and products.
        mode: how points or rows are batched, as in "padded" or "batched-240-gemm".
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    versions = {
        "fractal-k8s": __version__,
        "python": python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if gpu is not None:
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        hardware = f"{gpu} cuda {torch.version.cuda}"
    else:
        hardware = f"{cpu_name()} {torch.backends.cpu.get_cpu_capability()} numpy {np.__version__}"
    return Environment(
        numerics_class=f"{hardware} torch {torch.__version__} {dtype} {mode}",
        gpu=gpu,
        node=os.environ.get("NODE_NAME") or platform.node(),
        pod=os.environ.get("POD_NAME"),
        image=os.environ.get("FRACTAL_K8S_IMAGE"),
        git_commit=git_commit(),
        versions=json.dumps(versions, sort_keys=True),
    )
