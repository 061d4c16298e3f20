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
from fractal_k8s.results.store import PLAN_FILE, SweepStore
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

    def to_dict(self) -> dict[str, Any]:
        """As the same keys of the sweep's definition."""
        origin = None if self.parent is None else {"parent": self.parent, "box": self.box}
        return {"resolution": self.resolution, "origin": origin}


Family = dict[str, Relative]


def read_families(files: Files) -> Family:
    """All sweeps of a store with where they come from; unreadable ones are left out."""
    names = files.folders()
    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        found = readers.map(lambda name: read_relative(files, name), names)
        return {member.sweep_id: member for member in found if member is not None}


def read_relative(files: Files, sweep_id: str) -> Relative | None:
    """A sweep with where it comes from; None where that cannot be read."""
    try:
        content = json.loads(files.get(f"{sweep_id}/{PLAN_FILE}") or b"")
        return as_relative(sweep_id, content["sweep"])
    except (ValueError, KeyError, TypeError):
        return None


def as_relative(sweep_id: str, sweep: Any) -> Relative | None:
    """What a definition, or `Relative.to_dict`, says of where a sweep comes from."""
    try:
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


class Kin:
    """The families of a store's sweeps, and the numbers of their last summaries, read once."""

    def __init__(self, files: Files, members: Family | None = None) -> None:
        """
        Args:
            members: all sweeps of the store, if they are known; None = they are read now.
        """
        self.files = files
        self.members = read_families(files) if members is None else members
        self._summaries: dict[str, dict[str, Any]] = {}

    def entry(self, sweep_id: str) -> dict[str, Any]:
        """A member with its numbers as they were when they were first asked for."""
        if sweep_id not in self._summaries:
            self._summaries[sweep_id] = stored_summary(self.files, sweep_id)
        member = self.members.get(sweep_id, Relative(sweep_id, None, None, None))
        return entry(member, self._summaries[sweep_id])

    def forget(self, sweep_id: str) -> None:
        """Has the numbers of a sweep read again, which has a new summary."""
        self._summaries.pop(sweep_id, None)

    def numbers_around(self, sweep_id: str) -> list[dict[str, Any]]:
        """What a sweep's own page tells of its ancestors and of the zooms into it."""
        own = self.members.get(sweep_id)
        line = [] if own is None else ancestors(self.members, sweep_id, own.parent)
        return [self.entry(one) for one in (*line, *children(self.members, sweep_id))]


def family(plan: Plan, summary: dict[str, Any], kin: Kin) -> dict[str, Any] | None:
    """Ancestors (root first), the sweep itself and its children; None where it is alone.

    Each is `{"id", "resolution", "box", "dimension", "interval", "refused", "coverage"}`; the
    numbers are those of the last summary of that sweep, None where there is none.

    Args:
        summary: the sweep's own numbers, which are not in the store yet.
        kin: the families of the store's sweeps.
    """
    origin = plan.sweep.spec.origin
    line = ancestors(kin.members, plan.sweep.id, origin.parent if origin else None)
    below = children(kin.members, plan.sweep.id)
    if not line and not below:
        return None
    box = origin.model_dump(mode="json")["box"] if origin else None
    own = Relative(plan.sweep.id, None, box, list(plan.sweep.spec.resolution))
    return {
        "ancestors": [kin.entry(one) for one in reversed(line)],
        "self": entry(own, summary),
        "children": [kin.entry(one) for one in below],
    }


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
