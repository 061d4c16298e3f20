"""Every exception of the package and the exit code each one means.

    FractalError                     1
    ├── UsageError                   2   what was asked for cannot be: unknown name, missing file
    │   └── SweepError               2   the sweep is wrong; every problem at once, one a line
    ├── CorruptError                65   weights, tokenizer or data are not what they claim to be
    ├── StoreError                   2   the store cannot be read or written
    │   └── ConflictError            2   the store holds something else under the same name
    │       └── MixedNumericsError   2   a machine of another numerics class would add points
    │           └── OtherBitsError   2   a machine of the same class computes other bits
    ├── ClusterError                 2   a cluster cannot be reached, or does not accept something
    │   ├── ForbiddenError           2   a right is missing
    │   └── ExistsError              2   there is an object of that name already
    ├── IncompleteError              1   the sweep ended with points missing or failed
    ├── UnrepeatableError            1   a run that was made again did something else
    └── RetryError                  75   trouble that may pass: device, hub, network
        └── NotReadyError           75   somebody else has not done yet what is waited for

A person's command exits with `exit_code`. A worker exits with `worker_code`, which a Job's
podFailurePolicy matches: 64 and 65 mean "wrong for every shard, stop the Job", 69 "not the shard's
fault, try it again however often it takes", anything else "this shard may be tried again" (after
sysexits.h: 64 usage, 65 data, 69 unavailable, 70 software, which is the watchdog's, 75 temporary
failure).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

EXIT_COMPLETE: Final = 0
EXIT_SETTINGS: Final = 64
EXIT_CORRUPT: Final = 65
EXIT_NOT_READY: Final = 69
EXIT_HUNG: Final = 70
EXIT_RETRY: Final = 75
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell reports it
EXIT_TERMINATED: Final = 143  # 128 + SIGTERM, after a clean flush

# what follows the path of an address
_QUERY: Final = re.compile(r"\?[^\s'\")>]*=[^\s'\")>]*")
# of what another program says
_MOST_QUOTED: Final = 400


class FractalError(Exception):
    """Base of everything this package raises on purpose: one sentence, cause and next step."""

    exit_code: ClassVar[int] = 1
    worker_code: ClassVar[int] = EXIT_RETRY


class UsageError(FractalError):
    """What was asked for cannot be done as asked."""

    exit_code = 2
    worker_code = EXIT_SETTINGS


class SweepError(UsageError):
    """A sweep that is wrong. Holds every problem found, each as `path: what is wrong`."""

    def __init__(self, problems: Sequence[str], *, source: str = "sweep") -> None:
        self.problems = tuple(problems)
        self.source = source
        head = (
            f"{source}: "
            if len(self.problems) == 1
            else f"{source}: {len(self.problems)} problems\n  "
        )
        super().__init__(head + "\n  ".join(self.problems))


class CorruptError(FractalError):
    """Weights, tokenizer or data that are damaged, truncated or belong to something else."""

    exit_code = EXIT_CORRUPT
    worker_code = EXIT_CORRUPT


class StoreError(FractalError):
    """The store cannot be reached, read or written."""

    exit_code = 2
    worker_code = EXIT_RETRY


class ConflictError(StoreError):
    """The store already holds a different thing under this name, or someone else is writing it."""

    worker_code = EXIT_SETTINGS


class MixedNumericsError(ConflictError):
    """This machine computes other bits than the one that began the sweep; another one may not."""

    worker_code = EXIT_RETRY


class OtherBitsError(MixedNumericsError):
    """This machine's class is the sweep's, but the same steps give other numbers here.

    A faulty device, or something that the class does not name, such as the code. Another machine
    may do, so a worker asks for another attempt and does not stop the Job.
    """


class ClusterError(FractalError):
    """A cluster that cannot be reached, or that does not accept what it is sent."""

    exit_code = 2


class ForbiddenError(ClusterError):
    """A right is missing on the cluster; the message says which."""


class ExistsError(ClusterError):
    """An object of that name exists already.

    `perhaps_ours` is True where an earlier try of the same request may have created it, because the
    connection was lost before there was an answer.
    """

    def __init__(self, message: str, *, perhaps_ours: bool = False) -> None:
        self.perhaps_ours = perhaps_ours
        super().__init__(message)


class IncompleteError(FractalError):
    """The sweep ended, but not every point has an outcome."""


class UnrepeatableError(FractalError):
    """A run that was made again unchanged did not give the same numbers."""


class RetryError(FractalError):
    """Trouble that has nothing to do with the point and may be gone on the next attempt."""

    exit_code = EXIT_RETRY
    worker_code = EXIT_RETRY


class NotReadyError(RetryError):
    """What a worker needs is being made by somebody else, such as a cache by the Job that fills it.

    However long that takes, it says nothing of the shard, and uses up none of its tries.
    """

    worker_code = EXIT_NOT_READY


def first_line(error: BaseException) -> str:
    """What an error says, without what lets whoever knows a signed address read a file."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _QUERY.sub("?...", lines[0])[:_MOST_QUOTED]


def unreadable(path: Path, error: OSError) -> FractalError:
    """What to raise where a file cannot be read.

    One that is missing or forbidden stays so. A disk or a network file system that fails may answer
    the next time, or on another node: no reason to end the work of all.
    """
    text = f"cannot read {path}: {error.strerror or error}"
    lasts = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    return UsageError(text) if isinstance(error, lasts) else RetryError(text)
