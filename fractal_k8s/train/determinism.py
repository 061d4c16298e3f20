"""The settings that make a run repeatable bit for bit, and the record of where it ran.

Some act only before torch is imported: call `prepare_environment` first.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

# One thread: the way a sum is split over threads decides its last bits.
ENVIRONMENT: Final[Mapping[str, str]] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "TORCHINDUCTOR_DETERMINISTIC": "1",
    "PYTHONHASHSEED": "0",
}


def prepare_environment() -> None:
    """Sets what torch and its libraries read when they are loaded."""
    os.environ.update(ENVIRONMENT)


def make_deterministic() -> None:
    """Switches torch to deterministic kernels, without TF32 and on one thread.

    Filling uninitialised memory, which torch's strict mode adds, costs time and changes no result.
    """
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)


@cache
def git_commit() -> str | None:
    """Commit of this package: from the image's build argument, or from the checkout it runs in."""
    if commit := os.environ.get("FRACTAL_K8S_COMMIT"):
        return commit
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def cpu_name() -> str:
    """Model of the processor: kernels are chosen by it, and with them the last bits."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def python_version() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])
