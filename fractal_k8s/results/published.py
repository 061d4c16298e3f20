"""A summary's files: replaced one by one under their names, read together as one pass made them.

    <store>/<sweep-id>/summary/<name>                    for people; each is always whole
    <store>/<sweep-id>/summary/manifest.json             written last: size and sha256 of the others
    <store>/<sweep-id>/aggregate/summary/<sha256>-<name>   the same bytes, never written again

A pass that is killed between two names leaves files of two passes beside each other in summary/.
What the manifest names then still lies below aggregate/, whole and of one pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fractal_k8s.errors import CorruptError
from fractal_k8s.results.files import Entry
from fractal_k8s.results.store import MANIFEST_FILE, SweepStore, to_json

_FOLDER: Final = ("aggregate", "summary")
# A reader may still want what a manifest named so long ago, and another pass may not yet have
# written the manifest of what it has put so long ago.
_KEPT_NS: Final = 15 * 60 * 1_000_000_000
# manifests that are tried where passes follow each other faster than a reader reads
_TRIES: Final = 3


@dataclass(frozen=True)
class Published:
    """The files of one pass, by name; the manifest is one of them."""

    files: dict[str, bytes]
    # files that the manifest names and that are nowhere as it says, in words
    problems: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of the manifest: the same for the same bytes in every file."""
        return _sha256(self.files[MANIFEST_FILE])


@dataclass(frozen=True)
class Written:
    """What became of a pass's files; sha256 of manifests."""

    digest: str
    # of the manifest that was replaced; None = there was none
    replaced: str | None


def publish_files(
    folder: SweepStore, files: Mapping[str, bytes], facts: Mapping[str, Any]
) -> Written:
    """Writes a summary's files and, last, the manifest.

    Until the manifest is written `published_files` gives the files of the pass before.

    Args:
        facts: what the manifest tells besides sizes and hashes.

    Raises:
        StoreError: something cannot be written.
    """
    manifest = to_json({**facts, "files": {name: _seal(data) for name, data in files.items()}})
    lasting = {_lasting(folder, name, _sha256(data)): data for name, data in files.items()}
    _put_missing(folder, lasting)
    for name, data in files.items():
        folder.put_summary(name, data)
    replaced = manifest_digest(folder)
    folder.put_summary(MANIFEST_FILE, manifest)
    # somebody who tidied up meanwhile knew nothing of this manifest
    _tidy(folder, _put_missing(folder, lasting), keep=set(lasting))
    return Written(_sha256(manifest), replaced)


def _manifest(folder: SweepStore) -> bytes | None:
    return folder.files.get(folder.key("summary", MANIFEST_FILE))


def manifest_digest(folder: SweepStore) -> str | None:
    """sha256 of the manifest that is in the store; None without one."""
    manifest = _manifest(folder)
    return None if manifest is None else _sha256(manifest)


def is_whole(folder: SweepStore, digest: str | None, listed: Iterable[Entry]) -> bool:
    """Whether that manifest is in the store, and under their names all files that it names.

    Args:
        listed: the files below summary/.
    """
    manifest = _manifest(folder)
    if manifest is None or _sha256(manifest) != digest:
        return False
    sizes = {entry.key: entry.size for entry in listed}
    try:
        seals = json.loads(manifest)["files"].items()
        return all(sizes.get(folder.key("summary", name)) == seal["size"] for name, seal in seals)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def published_files(folder: SweepStore, *, only: Collection[str] | None = None) -> Published | None:
    """What the last pass made that was not interrupted; None if no pass has ended.

    Args:
        only: names of the files that are wanted, besides the manifest; None = all.

    Raises:
        CorruptError: the manifest is none.
        StoreError: the store cannot be read.
    """
    manifest = _manifest(folder)
    for left in reversed(range(_TRIES)):
        if manifest is None:
            return None
        found = _named_by(folder, manifest, only)
        if not found.problems or not left:
            return found
        before, manifest = manifest, _manifest(folder)
        if manifest == before:
            return found
    raise AssertionError  # the last round returns


def named_files(folder: SweepStore) -> set[str]:
    """Names of the files that the manifest names; none where there is no sound one."""
    manifest = _manifest(folder)
    try:
        return set() if manifest is None else set(_expected(folder, manifest))
    except CorruptError:
        return set()


def _named_by(folder: SweepStore, manifest: bytes, only: Collection[str] | None) -> Published:
    """The files of a manifest."""
    files: dict[str, bytes] = {}
    problems = []
    for name, wanted in _expected(folder, manifest).items():
        if only is not None and name not in only:
            continue
        for key in (_lasting(folder, name, wanted), folder.key("summary", name)):
            data = folder.files.get(key)
            if data is not None and _sha256(data) == wanted:
                files[name] = data
                break
        else:
            problems.append(
                f"summary/{name} is missing or not the one of {MANIFEST_FILE}; aggregate the sweep "
                "again"
            )
    return Published({**files, MANIFEST_FILE: manifest}, tuple(problems))


def _expected(folder: SweepStore, manifest: bytes) -> dict[str, str]:
    """sha256 of each file by its name."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        named = {
            str(name): str(seal["sha256"]) for name, seal in json.loads(manifest)["files"].items()
        }
        # with a slash a name could lead out of the folder that it is copied to
        if not any("/" in name for name in named):
            return named
    raise CorruptError(
        f"{folder.where('summary', MANIFEST_FILE)}: not written by fractal-k8s; aggregate the "
        "sweep again"
    )


def _put_missing(folder: SweepStore, lasting: Mapping[str, bytes]) -> list[Entry]:
    """Writes what does not lie there yet; returns what did."""
    entries = folder.files.entries(folder.key(*_FOLDER))
    there = {(entry.key, entry.size) for entry in entries}
    for key, data in lasting.items():
        if (key, len(data)) not in there:
            folder.files.put(key, data)
    return entries


def _tidy(folder: SweepStore, entries: list[Entry], keep: set[str]) -> None:
    """Deletes what neither the manifest names nor anybody may still want."""
    old = time.time_ns() - _KEPT_NS
    unwanted = [entry.key for entry in entries if entry.key not in keep and entry.modified_ns < old]
    if not unwanted:
        return
    # of two passes at once the other one's manifest may be the last
    manifest = _manifest(folder)
    if manifest is None:
        return
    named = {_lasting(folder, *one) for one in _expected(folder, manifest).items()}
    folder.files.discard(key for key in unwanted if key not in named)


def _lasting(folder: SweepStore, name: str, digest: str) -> str:
    return folder.key(*_FOLDER, f"{digest}-{name}")


def _seal(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": _sha256(data)}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
