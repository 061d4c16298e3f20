"""What a source of weights or data holds, and how its files are had."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

Check = Literal["sha256", "md5", "git-sha1"]

_CHUNK: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a source: path, bytes, and a sum that the source knows of it, if it does."""

    path: str
    size: int
    check: Check | None = None
    # hex
    digest: str = ""


@dataclass(frozen=True)
class Listing:
    """Everything that a source holds at one moment."""

    # exact reference, see `references`; of a folder its whole path
    exact: str
    blobs: dict[str, Blob]
    # writes one file to a path; raises RetryError for what may pass, UsageError or CorruptError
    get: Callable[[Blob, Path], None]
    # the one that was asked for; the blobs are of the whole source
    folder: str = ""
    # of a source on this machine: a blob's path -> its file
    files: Mapping[str, Path] = field(default_factory=dict)


def from_base64(digest: str) -> str:
    """A digest in base64 as hex."""
    return base64.b64decode(digest).hex()


@dataclass(frozen=True, slots=True)
class Sums:
    """What a file turned out to hold."""

    size: int
    sha256: str
    # None where nothing was to be compared
    matches: bool | None


def sums_of(path: Path, blob: Blob) -> Sums:
    """Reads a file once: its sha256, and whether it is what the source says."""
    size = path.stat().st_size
    total, other = hashlib.sha256(), _hasher(blob.check, size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
            if other is not None:
                other.update(chunk)
    matches = None
    if blob.check == "sha256":
        matches = total.hexdigest() == blob.digest
    elif other is not None:
        matches = other.hexdigest() == blob.digest
    return Sums(size, total.hexdigest(), matches)


def _hasher(check: Check | None, size: int) -> Any:
    if check == "md5":
        return hashlib.md5(usedforsecurity=False)
    if check == "git-sha1":  # of git's object: a header, then the content
        return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    return None
