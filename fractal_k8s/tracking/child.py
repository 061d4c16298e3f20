"""A process of its own for W&B's client: it may hang or die, and its memory goes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fractal_k8s.environ import is_secret


def start(
    module: str, folder: Path, more: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a module of this package, with pipes to and from it.

    Args:
        folder: where it writes its files.
        more: variables that differ from this process's.
    """
    return subprocess.Popen(
        [sys.executable, "-m", f"fractal_k8s.tracking.{module}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**_environment(folder), **(more or {})},
        start_new_session=True,  # to be killed with what it has started
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that `start` gave, if it still runs, and whatever it has started."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """What the process sees: no secret but W&B's own, no GPU, and a place for its files."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("WANDB_") or not is_secret(name)
    }
    return {
        **kept,
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_DIR": str(folder),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",  # of the client to its makers
        "WANDB_DATA_DIR": os.environ.get("WANDB_DATA_DIR", str(folder / "data")),
        "WANDB_CACHE_DIR": os.environ.get("WANDB_CACHE_DIR", str(folder / "cache")),
    }
