"""One launcher per sweep and store at a time.

In object storage it holds a lease (`results.lease`). In a local store the lock is held by an open
file description: the launcher's, which its workers inherit. It ends only when all of them are gone,
so a launcher that was killed cannot be joined by a second one while its workers still train.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from fractal_k8s.errors import ConflictError, StoreError
from fractal_k8s.results.files import LocalFiles, local_errors
from fractal_k8s.results.lease import Lease, launcher_of, refuse_job
from fractal_k8s.results.store import SweepStore
from fractal_k8s.sweep.definition import Sweep

_NAME: Final = ".lock"
_PATIENCE_S: Final = 4.0


class SweepLock:
    """Holds a sweep's lock for a `with` block.

    Args:
        sweep: what pods of a cluster must not be training too; None = they are let be.

    Attributes:
        handle: what workers inherit; None in object storage.
    """

    def __init__(self, folder: SweepStore, sweep: Sweep | None = None) -> None:
        self.folder = folder
        self.handle: int | None = None
        self._sweep = sweep
        self._lease = Lease(folder, sweep)

    def __enter__(self) -> SweepLock:
        """Takes the lock.

        Raises:
            ConflictError: another process trains this sweep, or a cluster; names it.
        """
        if self._sweep is not None:
            refuse_job(self.folder)
        path = _path(self.folder)
        if path is None:
            self._lease.__enter__()
            return self
        with local_errors("lock", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _open(path)
        if not _take(handle):
            owner = os.read(handle, 64).decode(errors="replace").strip()
            os.close(handle)
            raise ConflictError(
                f"{self.folder.sweep_id} is being trained by process {owner or 'unknown'}; "
                f"watch it with: {self.folder.command('status --watch')}"
            )
        with contextlib.suppress(OSError):  # another user's file may be read-only for us
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        self.handle = handle
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.handle is None:
            self._lease.__exit__(kind, error, trace)
        else:
            os.close(self.handle)
            self.handle = None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # a lock can be held on a file that may only be read
        return os.open(path, os.O_RDONLY)


def _take(handle: int) -> bool:
    """Takes the lock, waiting a moment: the workers of a killed launcher need one to notice."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        else:
            return True


def is_locked(folder: SweepStore) -> bool | None:
    """Whether a process trains the sweep; None where that cannot be known.

    Pods of a cluster train into object storage without a word there.
    """
    path = _path(folder)
    if path is None:
        return True if launcher_of(folder) is not None else None
    try:
        with local_errors("lock", path):
            handle = os.open(path, os.O_RDONLY)
    except StoreError:
        return False if not path.exists() else None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _path(folder: SweepStore) -> Path | None:
    if not isinstance(folder.files, LocalFiles):
        return None
    return folder.files.path(folder.key(_NAME))
