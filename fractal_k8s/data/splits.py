"""The files of a data set of conversations: one for each split, written aside and put in place
together. What a folder of them holds is noted as `sealed` says.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fractal_k8s import sealed
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.sealed import FileFacts, Seal

TRAIN: Final = "train.jsonl"
VALIDATION: Final = "validation.jsonl"
SPLITS: Final = {"train": TRAIN, "validation": VALIDATION}


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from."""

    # as given by the user
    source: str
    # what that meant when it was read: repository@commit, or the digest of what was read
    resolved: str
    # whatever else is worth knowing of it: counts, settings
    facts: Mapping[str, Any] = field(default_factory=dict)


class Writing:
    """Writes the lines of a data set beside those of before, which stay until `finish`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, int] = {}
        self._parts = folder / f"{sealed.FILLING}{secrets.token_hex(5)}"
        self._parts.mkdir()

    def write(self, split: str, lines: Iterable[bytes]) -> int:
        """Writes a split's lines; returns how many there were."""
        count = 0
        with (self._parts / SPLITS[split]).open("wb") as file:
            for line in lines:
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)  # workers may be another user
        self.rows[split] = count
        return count

    def finish(self, origin: Origin) -> Seal:
        """Puts the files in place, then the manifest, then READY."""
        files = {SPLITS[split]: sealed.facts_of(self._parts / SPLITS[split]) for split in self.rows}
        digest = files[TRAIN].sha256
        facts = {"rows": self.rows, **origin.facts}
        earlier = _earlier(self.folder)
        if earlier is not None and earlier.digest == digest:
            files |= {name: earlier.files[name] for name in _made_of_rows(earlier)}
        seal = Seal("dataset", origin.source, origin.resolved, digest, files, sealed.now(), facts)
        # from here until the end there is no READY: what is half replaced is not used
        (self.folder / sealed.READY).unlink(missing_ok=True)
        for name in {*SPLITS.values(), *(earlier.files if earlier else ())} - {*files}:
            (self.folder / name).unlink(missing_ok=True)
        # the manifest comes first: who is killed now leaves files that are known to be ours
        sealed.write_manifest(self.folder, seal)
        for split in self.rows:
            self._place(SPLITS[split], files[SPLITS[split]])
        sealed.write_ready(self.folder, seal)
        return seal

    def _place(self, name: str, facts: FileFacts) -> None:
        """Moves a file to its place, unless the very same is there, which readers may have open."""
        target = self.folder / name
        if target.is_file() and sealed.facts_of(target) == facts:
            return
        (self._parts / name).replace(target)

    def drop(self) -> None:
        """Removes what was begun and not finished."""
        shutil.rmtree(self._parts, ignore_errors=True)


@contextlib.contextmanager
def written(folder: Path, *, alone: bool) -> Iterator[Writing]:
    """A `Writing` into a folder that is being filled; what is not finished goes at the end.

    Args:
        alone: nobody else can be at it, so that what others have left are leavings of the dead.
    """
    if alone:
        sealed.drop_all(folder.glob(f"{sealed.FILLING}*"))
    writing = Writing(folder)
    try:
        yield writing
    finally:
        writing.drop()


def _earlier(folder: Path) -> Seal | None:
    """The seal of the files of before, if it can be read."""
    with contextlib.suppress(CorruptError):
        return sealed.read_seal(folder)
    return None


def refuse_strangers(folder: Path) -> None:
    """Refuses a folder with files of our names that are not ours.

    Raises:
        UsageError: there are some.
    """
    known = _earlier(folder)
    for name in SPLITS.values():
        if (folder / name).exists() and (known is None or name not in known.files):
            raise UsageError(
                f"{folder / name} is there, and not by this command; move it away, or name another "
                "folder"
            )


def _made_of_rows(seal: Seal) -> list[str]:
    """Files beside the splits, such as their tokens: of use as long as the rows are the same."""
    return [name for name in seal.files if name not in SPLITS.values()]


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSONL: the same bytes on every machine."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
