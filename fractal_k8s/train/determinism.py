"""The settings of torch that make a run repeatable bit for bit, and the record of where it ran.

Those of the environment are in `fractal_k8s.environ`, because they must come before any import.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path


def make_deterministic() -> None:
    """Switches torch to deterministic kernels, without TF32 and on one thread.

    Filling uninitialised memory, which torch's strict mode adds, costs time and changes no result.
    Products of 16-bit numbers are summed up in float32 however they are split.
    """
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
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
    """Name, family and model of the processor: kernels are chosen by it, and with them the bits."""
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    if "model name" not in found:
        return platform.processor() or platform.machine()
    numbers = "-".join(found[key] for key in ("cpu family", "model") if key in found)
    return f"{found['model name']} {numbers}".strip()


def python_version() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])
