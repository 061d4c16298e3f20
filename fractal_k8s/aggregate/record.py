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
from fractal_k8s.results.collect import FOLDER, are_settled, settled_before
from fractal_k8s.results.files import Entry
from fractal_k8s.results.lineage import Family, family
from fractal_k8s.results.published import is_whole
from fractal_k8s.results.store import SweepStore
from fractal_k8s.sweep.assignment import Plan

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


def inputs_of(
    folder: SweepStore,
    plan: Plan,
    entries: list[Entry],
    options: object,
    families: Family | None = None,
) -> Inputs:
    """What a summary would be made of now.

    Args:
        entries: the outcome objects as listed just now.
        options: of the pass.
        families: all sweeps of the store, if they were read just now.
    """
    notes = folder.files.entries(folder.key("notes"))
    horizon = settled_before(folder)
    if not are_settled(notes, horizon):
        return Inputs(None, None)
    sweep = plan.sweep
    # with the numbers of the others, which their next passes may change
    kin = None if sweep.is_scattered else family(folder, plan, {}, families)
    text = json.dumps([__version__, sweep.canonical_json(), _listed(notes), kin, repr(options)])
    others = hashlib.sha256(text.encode()).hexdigest()
    if not are_settled(entries, horizon):
        return Inputs(None, others)
    text = json.dumps([others, _listed(entries)])
    return Inputs(hashlib.sha256(text.encode()).hexdigest(), others)


def _listed(entries: list[Entry]) -> list[list[object]]:
    return [[entry.key, entry.size, entry.modified_ns] for entry in entries]


def is_unchanged(folder: SweepStore, record: Mapping[str, Any], inputs: Inputs) -> bool:
    """Whether the last pass made its summary of the same, and it is still there."""
    if inputs.whole is None or record.get("inputs") != inputs.whole:
        return False
    return has_summary(folder, record)


def has_summary(folder: SweepStore, record: Mapping[str, Any]) -> bool:
    """Whether the summary in the store is the one that is remembered, with all its files."""
    return is_whole(folder, record.get("manifest"))
