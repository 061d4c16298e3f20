"""What lies in a sweep's folder, as one listing tells it, and what of it cannot change unseen.

A server that answers a page of a listing with nothing ends the listing there, and nobody is told.
A sweep's own `sweep.json` sorts behind its outcomes, notes and summary: a listing without it is
no whole one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fractal_k8s.errors import StoreError
from fractal_k8s.results.files import Entry
from fractal_k8s.results.store import PLAN_FILE, SweepStore

# of the aggregator
FOLDER: Final = "aggregate"
_SECOND_NS: Final = 1_000_000_000
# Object stores refuse requests of a machine whose clock differs from theirs by more.
_MOST_SKEW_NS: Final = 15 * 60 * _SECOND_NS
# a listing that ends too early is made again so often, after so long
_TRIES: Final = 3
_PAUSE_S: Final = 1.0


@dataclass(frozen=True)
class Listing:
    """All files of a sweep at one moment, by key."""

    folder: SweepStore
    entries: list[Entry]

    def below(self, *parts: str) -> list[Entry]:
        """Those in a folder of the sweep's."""
        prefix = self.folder.key(*parts, "")
        return [entry for entry in self.entries if entry.key.startswith(prefix)]

    @cached_property
    def plan(self) -> Entry | None:
        """The sweep's own file."""
        key = self.folder.key(PLAN_FILE)
        return next((entry for entry in self.entries if entry.key == key), None)

    @cached_property
    def outcomes(self) -> list[Entry]:
        return [entry for entry in self.below("outcomes") if entry.key.endswith(".parquet")]

    @cached_property
    def horizon(self) -> int:
        """Time of the store's clock before which nothing can be written any more, in ns."""
        return settled_before(self.below(FOLDER))


def list_sweep(folder: SweepStore) -> Listing:
    """Lists a sweep's folder once, and again where that cannot be all.

    Raises:
        StoreError: the store cannot be listed, or tells a part only, again and again.
    """
    for left in reversed(range(_TRIES)):
        listing = Listing(folder, folder.files.entries(folder.key()))
        if listing.plan is not None or folder.files.get(folder.key(PLAN_FILE)) is None:
            return listing
        if left:
            time.sleep(_PAUSE_S)
    raise StoreError(
        f"cannot list {folder.where()}: the server's listing ends before {PLAN_FILE}, which is "
        "there; the trouble may pass: try again later"
    )


def settled_before(left: Iterable[Entry]) -> int:
    """Time of the store's clock before which nothing can be written any more, in ns.

    Where times are whole seconds, an object that was written in the present one may be written
    again and look the same. What an earlier pass has left tells that a time is past; this machine's
    clock may be wrong.

    Args:
        left: what earlier passes have left, as it was listed before or with the objects.
    """
    times = [entry.modified_ns for entry in left]
    return max([time.time_ns() - _MOST_SKEW_NS, *times]) - _SECOND_NS


def are_settled(entries: Iterable[Entry], horizon: int) -> bool:
    """Whether none of the objects could be written again and look the same."""
    return all(is_settled(entry, horizon) for entry in entries)


def is_settled(entry: Entry, horizon: int) -> bool:
    """Whether an object could not be written again and look the same."""
    return entry.modified_ns % _SECOND_NS != 0 or entry.modified_ns < horizon
