"""Families of sweeps: which zoom was cut out of which map of the same store."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, cast

from fractal_k8s.errors import FractalError
from fractal_k8s.results.files import Files
from fractal_k8s.results.store import SweepStore
from fractal_k8s.sweep.assignment import Plan

_READERS: Final = 32


@dataclass(frozen=True)
class Relative:
    """What a family knows of one of its members."""

    sweep_id: str
    # None for the root
    parent: str | None
    # [[i0, i1], [j0, j1]] in the parent's cells, both ends included
    box: list[list[int | float]] | None
    # rows, columns; None where the sweep is not in the store
    resolution: list[int] | None


Family = dict[str, Relative]


def read_families(files: Files) -> Family:
    """All sweeps of a store with where they come from; unreadable ones are left out."""
    names = files.folders()
    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        texts = readers.map(lambda name: files.get(f"{name}/sweep.json"), names)
        found = (_relative(name, text) for name, text in zip(names, texts, strict=True))
        return {member.sweep_id: member for member in found if member is not None}


def _relative(sweep_id: str, text: bytes | None) -> Relative | None:
    try:
        sweep = json.loads(text or b"")["sweep"]
        # points scattered over a zoom's plane, such as its controls, are no zoom themselves
        origin = None if sweep.get("scatter") else sweep.get("origin")
        resolution = cast(list[int], _pair(sweep["resolution"]))
        if not origin:
            return Relative(sweep_id, None, None, resolution)
        box = [_pair(ends) for ends in _two(origin["box"])]
        if not isinstance(origin["parent"], str):
            return None
        return Relative(sweep_id, origin["parent"], box, resolution)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _pair(found: Any) -> list[int | float]:
    """Two finite numbers, as they were read."""
    pair: list[int | float] = _two(found)
    if not all(math.isfinite(number) for number in pair):
        raise ValueError
    return pair


def _two(found: Any) -> list[Any]:
    if not isinstance(found, list) or len(found) != 2:
        raise TypeError
    return found


def ancestors(families: Family, sweep_id: str, parent: str | None) -> list[str]:
    """The parent, its parent and so on. One that is not stored ends the line, but is named."""
    line: list[str] = []
    while parent is not None and parent not in (sweep_id, *line):
        line.append(parent)
        parent = families[parent].parent if parent in families else None
    return line


def children(families: Family, sweep_id: str) -> list[str]:
    """Ids of the zooms that were cut out of a map: by box, then by id."""
    found = [member for member in families.values() if member.parent == sweep_id]
    return [m.sweep_id for m in sorted(found, key=lambda m: (m.box or [], m.sweep_id))]


def descendants(families: Family, sweep_id: str) -> Iterator[tuple[int, str]]:
    """A map and everything below it, each parent before its children, with the depth below it."""
    seen: set[str] = set()
    waiting = [(0, sweep_id)]
    while waiting:
        depth, current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        yield depth, current
        waiting += [(depth + 1, child) for child in reversed(children(families, current))]


def deepest_line(families: Family, root: str) -> list[str]:
    """The longest line of zooms from a map down, itself first; of equal ones the first."""
    deepest = max(descendants(families, root), key=lambda one: one[0])[1]
    line = [deepest, *ancestors(families, deepest, families[deepest].parent)]
    return line[line.index(root) :: -1]


def relatives(families: Family, sweep_id: str, parent: str | None) -> list[str]:
    """Every stored member of the sweep's family but itself: ancestors first, nearest first."""
    line = ancestors(families, sweep_id, parent)
    root = line[-1] if line else sweep_id
    others = [member for _, member in descendants(families, root)]
    ordered = dict.fromkeys([*line, *others])
    return [member for member in ordered if member in families and member != sweep_id]


def family(
    folder: SweepStore, plan: Plan, summary: dict[str, Any], families: Family | None = None
) -> dict[str, Any] | None:
    """Ancestors (root first), the sweep itself and its children; None where it is alone.

    Each is `{"id", "resolution", "box", "dimension", "interval", "refused", "coverage"}`; the
    numbers are those of the last summary of that sweep, None where there is none.

    Args:
        summary: the sweep's own numbers, which are not in the store yet.
        families: all sweeps of the store, if they were read just now.
    """
    families = read_families(folder.files) if families is None else families
    origin = plan.sweep.spec.origin
    line = ancestors(families, plan.sweep.id, origin.parent if origin else None)
    below = children(families, plan.sweep.id)
    if not line and not below:
        return None
    box = origin.model_dump(mode="json")["box"] if origin else None
    own = Relative(plan.sweep.id, None, box, list(plan.sweep.spec.resolution))
    return {
        "ancestors": [_stored(folder.files, families, one) for one in reversed(line)],
        "self": entry(own, summary),
        "children": [_stored(folder.files, families, one) for one in below],
    }


def _stored(files: Files, families: Family, sweep_id: str) -> dict[str, Any]:
    member = families.get(sweep_id, Relative(sweep_id, None, None, None))
    return entry(member, stored_summary(files, sweep_id))


def stored_summary(files: Files, sweep_id: str) -> dict[str, Any]:
    """The numbers of a sweep's last summary; none where there is none that can be read."""
    try:
        return SweepStore(files, sweep_id).read_summary() or {}
    except FractalError:
        return {}


def entry(member: Relative, summary: dict[str, Any]) -> dict[str, Any]:
    """One member as plain data."""
    numbers = ("dimension", "interval", "refused", "coverage")
    return {
        "id": member.sweep_id,
        "resolution": member.resolution,
        "box": member.box,
        **{key: summary.get(key) for key in numbers},
    }
