"""The fingerprint: everything that is known to decide a run's bits, part by part.

The numerics class names what decides them in one readable line; the fingerprint holds more than
that, such as the driver and the code, so that two machines of one class can be compared when their
numbers differ after all.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from fractal_k8s import environ
from fractal_k8s.train.determinism import cpu_name

# Variables beside those of `environ` that choose kernels, and are not a process's own to change.
_WATCHED: Final = ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",)
# Folders whose code turns data and hyperparameters into losses.
_CODE: Final = ("data", "models", "train")
_DRIVER: Final = Path("/proc/driver/nvidia/version")


def fingerprint(
    device: torch.device, *, dtype: str, mode: str, bucket_rule: str | None = None
) -> dict[str, Any]:
    """What decides the bits of runs on a device, as plain data; what does not exist is left out.

    Args:
        dtype: dtype of activations and products.
        mode: how points or rows are batched and how the step is run.
        bucket_rule: how packed rows are padded, which decides the shapes of all products.
    """
    parts = {
        "device": device.type,
        "dtype": dtype,
        "mode": mode,
        "bucket_rule": bucket_rule,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "triton": version_of("triton"),
        "code": _own_code(),
        "switches": _switches(),
        "settings": _settings(),
        **(_gpu(device) if device.type == "cuda" else {}),
    }
    return {name: part for name, part in sorted(parts.items()) if part is not None}


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "sms": properties.multi_processor_count,
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "cublas": cublas_version(),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _switches() -> dict[str, str]:
    """Environment variables that choose kernels, as far as they are set."""
    names = sorted({*environ.FIXED, *environ.REMOVED, *_WATCHED})
    return {name: os.environ[name] for name in names if name in os.environ}


def _settings() -> dict[str, bool | int]:
    """The switches of torch that `make_deterministic` sets."""
    matmul = torch.backends.cuda.matmul
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "threads": torch.get_num_threads(),
        "tf32": bool(matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
        "reduced_precision_sums": bool(matmul.allow_bf16_reduced_precision_reduction),
    }


@cache
def _own_code() -> str:
    return code_hash(Path(__file__).resolve().parents[1])


def code_hash(package: Path) -> str:
    """sha256 over a package's source files that decide the bits, by name, first 16 digits."""
    total = hashlib.sha256()
    for folder in _CODE:
        for path in sorted((package / folder).rglob("*.py")):
            total.update(f"{path.relative_to(package).as_posix()}\n".encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


@cache
def driver_version() -> str | None:
    """Version of the NVIDIA kernel module, or None."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _DRIVER.read_text())
    except OSError:
        return None
    return found[0] if found else None


@cache
def cublas_version() -> str | None:
    """Version of the cuBLAS that this process has loaded, as "12.8.4", or None."""
    try:
        loaded = re.search(r"\S*/libcublas\.so\S*", Path("/proc/self/maps").read_text())
        if loaded is None:
            return None
        library = ctypes.CDLL(loaded[0])
        numbers = []
        for part in range(3):  # major, minor, patch level
            value = ctypes.c_int()
            if library.cublasGetProperty(part, ctypes.byref(value)) != 0:
                return None
            numbers.append(str(value.value))
    except (OSError, AttributeError):
        return None
    return ".".join(numbers)


def version_of(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
