"""What the aggregator remembers of a sweep in its store: the last pass, and what it was made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fractal_k8s import __version__
from fractal_k8s.errors import StoreError
from fractal_k8s.results.files import Entry
from fractal_k8s.results.lineage import Kin
from fractal_k8s.results.listing import FOLDER, Listing, are_settled
from fractal_k8s.results.published import is_whole
from fractal_k8s.results.store import PROGRESS_FILE, SweepStore

_FILE: Final = "state.json"


def read_record(folder: SweepStore) -> dict[str, Any]:
    """What was remembered; nothing where that is missing or damaged."""
    data = folder.files.get(folder.key(FOLDER, _FILE))
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def update_record(folder: SweepStore, changes: Mapping[str, Any]) -> None:
    """Remembers more; where the store cannot be written to, nothing."""
    text = json.dumps({**read_record(folder), **changes}, indent=1, sort_keys=True) + "\n"
    with contextlib.suppress(StoreError):
        folder.files.put(folder.key(FOLDER, _FILE), text.encode())


@dataclass(frozen=True)
class Inputs:
    """Hashes of what a summary is made of; None while that may change unseen."""

    # all of it
    whole: str | None
    # all but the outcomes
    others: str | None


def inputs_of(listing: Listing, allow_mixed: bool, kin: Kin) -> Inputs:
    """What a summary would be made of now.

    Args:
        allow_mixed: whether the pass accepts points of different numerics classes as one map.
        kin: the families of the store's sweeps.
    """
    notes = listing.below("notes")
    if listing.plan is None or not are_settled(notes, listing.horizon):
        return Inputs(None, None)
    # with the numbers of the others, which their next passes may change
    others = kin.numbers_around(listing.folder.sweep_id)
    text = json.dumps([__version__, _listed([listing.plan]), _listed(notes), others, allow_mixed])
    rest = hashlib.sha256(text.encode()).hexdigest()
    if not are_settled(listing.outcomes, listing.horizon):
        return Inputs(None, rest)
    text = json.dumps([rest, _listed(listing.outcomes)])
    return Inputs(hashlib.sha256(text.encode()).hexdigest(), rest)


def _listed(entries: list[Entry]) -> list[list[object]]:
    return [[entry.key, entry.size, entry.modified_ns] for entry in entries]


def is_unchanged(listing: Listing, record: Mapping[str, Any], inputs: Inputs) -> bool:
    """Whether the last pass made its summary of the same, and it is still there."""
    if inputs.whole is None or record.get("inputs") != inputs.whole:
        return False
    return has_summary(listing, record)


def has_summary(listing: Listing, record: Mapping[str, Any]) -> bool:
    """Whether the summary in the store is the one that is remembered, with all its files."""
    shown = _shown(listing.below("summary"))
    if are_settled(shown, listing.horizon) and _hashed(shown) == record.get("shown"):
        return True
    return is_whole(listing.folder, record.get("manifest"), shown)


def seal_of_summary(folder: SweepStore, digest: str) -> str | None:
    """What tells from a listing that a summary is still there; None if it is not even now.

    Args:
        digest: sha256 of its manifest.
    """
    shown = _shown(folder.files.entries(folder.key("summary")))
    return _hashed(shown) if is_whole(folder, digest, shown) else None


def _shown(summary: list[Entry]) -> list[Entry]:
    """What is listed of a summary, without the counts that may be ahead of it."""
    return [entry for entry in summary if not entry.key.endswith(f"/{PROGRESS_FILE}")]


def _hashed(entries: list[Entry]) -> str:
    return hashlib.sha256(json.dumps(_listed(entries)).encode()).hexdigest()
