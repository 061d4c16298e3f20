"""A copy of a stored sweep on this machine, checked, and gone on with where it was left.

The copy lies as in the store, so that its folder is a store itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.results import schema
from fractal_k8s.results.files import Entry, LocalFiles
from fractal_k8s.results.listing import Listing, is_settled, list_sweep
from fractal_k8s.results.published import named_files, published_files
from fractal_k8s.results.store import MANIFEST_FILE, PLAN_FILE, PROGRESS_FILE, SweepStore
from fractal_k8s.sweep.assignment import Plan

_READERS: Final = 16
# what is copied besides sweep.json; not what the aggregator can make again
_PARTS: Final = ("outcomes", "logs", "notes", "deals", "classes", "files", "wandb", "summary")
# which objects lie here as they were listed in the store
_RECEIPT: Final = ".fetched.json"


@dataclass
class Copied:
    """What a copy came to."""

    place: Path
    num_files: int = 0
    # of those, how many were here already
    num_skipped: int = 0
    num_bytes: int = 0
    # files that are not what they should be, in words
    problems: list[str] = field(default_factory=list)
    # what the reader should know of a sound copy
    remarks: list[str] = field(default_factory=list)


def copy_sweep(folder: SweepStore, plan: Plan, target: Path) -> Copied:
    """Copies a sweep below a folder; what lies there already as it is listed is not read again.

    A file comes to its name when it is whole. Outcomes are parsed; the files of the summary are
    those of one pass, also while another one replaces them.

    Raises:
        UsageError: another sweep of the same id lies there, or the folder is the store itself.
        StoreError: something cannot be read or written; the same call goes on.
    """
    files = LocalFiles(target)
    _check_target(folder, plan, files)
    copied = Copied(files.root / folder.sweep_id)
    # counts that are ahead of the summary are gone with the next one; here they would stay
    others = {*_copy_summary(folder, files, copied), folder.key("summary", PROGRESS_FILE)}
    listing = list_sweep(folder)
    receipt = _Receipt(files, listing)
    found = [entry for part in _PARTS for entry in listing.below(part)]
    listed = [entry for entry in found if entry.key not in others and _is_ours(entry, copied)]
    copied.num_files += len(listed) + 1
    todo = [entry for entry in listed if not receipt.has(entry)]
    copied.num_skipped += len(listed) - len(todo)
    copied.remarks += _remarks(folder, found, receipt.gone(listed))
    if files.get(folder.key(PLAN_FILE)) == (text := plan.to_json().encode()):
        copied.num_skipped += 1
    else:
        files.put(folder.key(PLAN_FILE), text)
    try:
        _copy_objects(folder, plan, files, todo, copied, receipt)
    finally:  # also of a copy that is stopped, which then goes on
        receipt.write()
    return copied


def _copy_objects(
    folder: SweepStore,
    plan: Plan,
    files: LocalFiles,
    todo: list[Entry],
    copied: Copied,
    receipt: _Receipt,
) -> None:
    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        for entry, data in zip(
            todo, readers.map(lambda entry: folder.files.get(entry.key), todo), strict=True
        ):
            if data is None:
                continue  # deleted since it was listed
            files.put(entry.key, data)
            copied.num_bytes += len(data)
            if (problem := _problem(folder, plan, entry, data)) is not None:
                copied.problems.append(problem)
            else:
                receipt.add(entry, data)


def _is_ours(entry: Entry, copied: Copied) -> bool:
    """Whether an object's name stays below the folder that it is copied to."""
    if {"", ".", ".."}.isdisjoint(entry.key.split("/")):
        return True
    copied.problems.append(f"{entry.key}: not a name that fractal-k8s gives; left out")
    return False


def _check_target(folder: SweepStore, plan: Plan, files: LocalFiles) -> None:
    if isinstance(folder.files, LocalFiles) and folder.files.root.resolve() == files.root.resolve():
        raise UsageError(f"{files.root} is the store itself; give another folder with --to")
    there = SweepStore(files, folder.sweep_id).read_plan()
    if there is not None and there.sweep.canonical_json() != plan.sweep.canonical_json():
        raise UsageError(
            f"{files.root / folder.sweep_id} holds another sweep of the same id; give another "
            "folder with --to"
        )


def _problem(folder: SweepStore, plan: Plan, entry: Entry, data: bytes) -> str | None:
    """What is wrong with outcomes; None if nothing is, or they are no outcomes."""
    if not entry.key.startswith(folder.key("outcomes/")) or not entry.key.endswith(".parquet"):
        return None
    try:
        schema.from_bytes(data, sweep=plan.sweep, source=entry.key)
    except CorruptError as error:
        return str(error)
    return None


def _copy_summary(folder: SweepStore, files: LocalFiles, copied: Copied) -> set[str]:
    """Copies the files that the summary's manifest names; returns their keys and its own.

    Those that lie here as the manifest in the store says are not read again.
    """
    here = SweepStore(files, folder.sweep_id)
    manifest = folder.files.get(folder.key("summary", MANIFEST_FILE))
    if manifest is None:
        return set()
    try:
        found = None
        if manifest == files.get(folder.key("summary", MANIFEST_FILE)):
            found = published_files(here)
        is_new = found is None or bool(found.problems)
        if is_new:
            found = published_files(folder)
    except CorruptError as error:
        copied.problems.append(str(error))
        return set()
    if found is None:  # deleted meanwhile
        return set()
    copied.num_files += len(found.files)
    copied.problems += found.problems
    if not is_new:
        copied.num_skipped += len(found.files)
    if is_new:
        before = named_files(here)
        for name, data in found.files.items():
            here.put_summary(name, data)  # the manifest is the last one
            copied.num_bytes += len(data)
        files.discard(folder.key("summary", name) for name in before - found.files.keys())
    return {folder.key("summary", name) for name in found.files}


def _remarks(folder: SweepStore, listed: list[Entry], gone: list[str]) -> Iterator[str]:
    """Whether the summary is behind, and files are here that the store has no more."""
    outcomes = [entry for entry in listed if entry.key.startswith(folder.key("outcomes/"))]
    name = folder.key("summary", MANIFEST_FILE)
    made = [entry for entry in listed if entry.key == name]
    again = f"{folder.command('aggregate')} makes one of all"
    if outcomes and not made:
        yield f"no summary is stored with these outcomes yet: {again}"
    elif outcomes and max(entry.modified_ns for entry in outcomes) > made[0].modified_ns:
        yield f"outcomes have come since the summary was made: {again}"
    if gone:
        yield f"{len(gone):,} files lie here that the store has no more, such as {gone[0]}"


class _Receipt:
    """Which objects have come, as they were listed, and the sha256 of what came."""

    def __init__(self, files: LocalFiles, listing: Listing) -> None:
        self._files = files
        self._key = listing.folder.key(_RECEIPT)
        self._horizon = listing.horizon
        self._had: dict[str, Any] = {}
        try:
            found = json.loads(files.get(self._key) or b"{}")
            self._had = found if isinstance(found, dict) else {}
        except ValueError:
            pass

    def has(self, entry: Entry) -> bool:
        """Whether the object lies here as it is listed now, and as it came."""
        known = self._had.get(entry.key)
        data = self._files.get(entry.key) if known else None
        if data is None:
            return False
        return known == [entry.size, entry.modified_ns, hashlib.sha256(data).hexdigest()]

    def gone(self, listed: list[Entry]) -> list[str]:
        """Keys of what came once, still lies here, and is not listed any more."""
        names = {entry.key for entry in listed}
        return [
            key
            for key in sorted(self._had)
            if key not in names and self._files.get(key) is not None
        ]

    def add(self, entry: Entry, data: bytes) -> None:
        """Notes an object, unless it may become another one that looks the same."""
        if not is_settled(entry, self._horizon):
            return
        digest = hashlib.sha256(data).hexdigest()
        self._had[entry.key] = [entry.size, entry.modified_ns, digest]
        if len(self._had) % 256 == 0:
            self.write()

    def write(self) -> None:
        text = json.dumps(self._had, indent=0, sort_keys=True) + "\n"
        self._files.put(self._key, text.encode())
