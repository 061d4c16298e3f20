"""The folder for files that can be made or fetched again."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fractal_k8s.errors import UsageError

VARIABLE: Final = "FRACTAL_K8S_CACHE"


def cache_folder() -> Path:
    """$FRACTAL_K8S_CACHE, else fractal-k8s in $XDG_CACHE_HOME, which is ~/.cache if not set."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    home = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return home / "fractal-k8s"


@contextlib.contextmanager
def cache_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock beside a cache entry; only one process of this machine makes an entry.

    Args:
        path: the entry; its folder is made.
        waiting: called once if another process holds the lock.

    Raises:
        UsageError: the cache cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(
            f"cannot write the cache {path.parent}: {error.strerror}; "
            f"set {VARIABLE} to a folder that can be written"
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
