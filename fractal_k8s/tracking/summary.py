"""The W&B run of a whole sweep: its numbers, figures, page and table. One run, however often made.

The run's id is the sweep's, so that a later pass goes on with it; W&B keeps equal files once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fractal_k8s.environ import without_secrets
from fractal_k8s.tracking.child import kill, start
from fractal_k8s.tracking.modes import DEFAULT_MODE, ENTITY, MODE, PROJECT, Wish

# The most that a server may take, and that writing everything down for later may take.
_ONLINE_SECONDS: Final = 180
_OFFLINE_SECONDS: Final = 60
# by then the process ends itself, whatever has become of this one
_MARGIN_SECONDS: Final = 10
_NUMBERS: Final = (
    "trainable_fraction",
    "coverage",
    "complete",
    "dimension",
    "interval",
    "uncertainty_exponent",
    "boundary_pixels",
    "biased_points",
)


@dataclass(frozen=True)
class Logged:
    """What became of a summary."""

    # whether everything is where WANDB_MODE wants it: at a server, or in files
    done: bool
    # why not, without secrets
    reason: str = ""
    # the files, by name, that hold what no server has, for `wandb sync`
    kept: tuple[tuple[str, bytes], ...] = ()


def summary_wish() -> Wish | None:
    """Where the environment wants a sweep's summary tracked; None = nowhere."""
    project, mode = os.environ.get(PROJECT), os.environ.get(MODE) or DEFAULT_MODE
    if not project or mode == "off":
        return None
    return Wish(project, os.environ.get(ENTITY) or None, mode)


def log_summary(
    wish: Wish,
    sweep_id: str,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    keep: bool,
) -> Logged:
    """Tracks a sweep's summary, in minutes at most. Never raises for W&B's trouble.

    Args:
        files: the summary's files by name.
        keep: where no server takes it, write it down.
    """
    if importlib.util.find_spec("wandb") is None:
        return Logged(False, "the wandb library is not installed")
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            for name, data in files.items():
                Path(place, name).write_bytes(data)
            wanted = {
                "project": wish.project,
                "entity": wish.entity,
                "sweep": sweep_id,
                "config": dict(config),
                "numbers": _numbers(summary),
                "files": [str(Path(place, name)) for name in files],
            }
            return _logged(wanted, Path(place), keep)
    except OSError as error:
        return Logged(False, f"it cannot be written here ({error.strerror})")


def _logged(wanted: dict[str, Any], place: Path, keep: bool) -> Logged:
    """Online if that is wanted; where that fails, written down, all of it."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        problem = _run(wanted, place / "run", {}, _OFFLINE_SECONDS)
        return Logged(not problem, problem, _files(place / "run"))
    reason = _run(wanted, place / "run", {}, _ONLINE_SECONDS)
    if not reason or not keep:
        return Logged(not reason, reason)
    problem = _run(wanted, place / "later", {"WANDB_MODE": "offline"}, _OFFLINE_SECONDS)
    return Logged(False, reason, () if problem else _files(place / "later"))


def _run(wanted: dict[str, Any], folder: Path, more: Mapping[str, str], seconds: int) -> str:
    """Has it tracked by a process; why that was not done, or ""."""
    folder.mkdir()
    header = json.dumps({**wanted, "folder": str(folder), "seconds": seconds + _MARGIN_SECONDS})
    with start("summary_run", folder, more) as process:
        try:
            written = process.communicate(header.encode(), timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            return f"it was not done in {seconds} s"
        finally:
            kill(process)
    try:
        result = json.loads(written.splitlines()[-1])
    except (ValueError, IndexError):
        return "its client has ended too early"
    if result["said"]:
        return without_secrets(str(result["said"][0]).removeprefix("W&B: "))
    return "" if result["done"] else "not everything was uploaded"


def _files(folder: Path) -> tuple[tuple[str, bytes], ...]:
    """What W&B's client has written of an offline run, without logs of its own."""
    return tuple(
        (path.relative_to(folder / "wandb").as_posix(), path.read_bytes())
        for path in sorted((folder / "wandb").glob("offline-run-*/**/*"))
        if path.is_file() and not path.is_symlink() and "/logs/" not in path.as_posix()
    )


def _numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the run shows; also what there is none of, which an earlier pass may have had."""
    found = {name: summary.get(name) for name in _NUMBERS}
    return {**found, **{f"points/{name}": count for name, count in summary["counts"].items()}}
