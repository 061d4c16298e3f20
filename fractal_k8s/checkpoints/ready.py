"""Waits for caches that somebody else fills: a mounted folder is whole once it holds `READY`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fractal_k8s.errors import NotReadyError
from fractal_k8s.sealed import READY

_POLL_SECONDS: Final = 5.0


def wait_until_ready(folders: Sequence[Path], seconds: float, tell: Callable[[str], None]) -> None:
    """Returns once every folder holds the file that is written last.

    Args:
        seconds: how long to wait for all of them together.
        tell: gets one line if there is something to wait for.

    Raises:
        NotReadyError: some are not whole by then.
    """
    deadline = time.monotonic() + seconds
    waiting = [folder for folder in folders if not _is_ready(folder)]
    if waiting and seconds:
        tell(f"waiting up to {seconds:.0f} s for a file {READY} in {_names(waiting)}")
    while waiting and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(_POLL_SECONDS, left))
        waiting = [folder for folder in waiting if not _is_ready(folder)]
    if waiting:
        raise NotReadyError(
            f"no file {READY} in {_names(waiting)} after {seconds:.0f} s: the cache is not filled "
            "yet, see `fractal-k8s cache status`; this worker is tried again"
        )


def _is_ready(folder: Path) -> bool:
    """Lists the folder: a network file system may go on denying a name that it did not find."""
    try:
        return READY in os.listdir(folder)
    except OSError:
        return False


def _names(folders: Sequence[Path]) -> str:
    return " and ".join(str(folder) for folder in folders)
