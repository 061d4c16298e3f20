"""Pass after pass over a sweep: what each makes anew.

Outcomes that were read once are not read again. Where next to nothing is new in a large map, a pass
may leave numbers and pictures as they are and tell the counts only:

    <store>/<sweep-id>/summary/progress.json

The file is there only while it knows more than the summary beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fractal_k8s.aggregate.record import (
    Inputs,
    has_summary,
    inputs_of,
    is_unchanged,
    read_record,
    seal_of_summary,
    update_record,
)
from fractal_k8s.results.collect import Collected, collect
from fractal_k8s.results.lineage import Kin
from fractal_k8s.results.listing import Listing, list_sweep
from fractal_k8s.results.problems import in_summary
from fractal_k8s.results.published import manifest_digest
from fractal_k8s.results.store import PROGRESS_FILE, SweepStore, to_json
from fractal_k8s.results.tally import Tally, TallyReader
from fractal_k8s.sweep.assignment import Plan

if TYPE_CHECKING:
    from fractal_k8s.aggregate.one_pass import Aggregation

Say = Callable[[str], None]

# a map of fewer points is drawn in a few seconds
_LARGE: Final = 10_000
# Points that are worth new pictures, as a share of those that the last ones show.
_WORTH_DRAWING: Final = 0.02
# A pass that others overtake is made again so often: they go on, and end with the same.
_MOST_TIMES: Final = 2
# whether the last pass was told to accept several numerics classes as one map
_ACCEPTED: Final = "allow_mixed"


def accepts_mixed(record: Mapping[str, Any]) -> bool:
    """Whether a pass was told to accept several numerics classes, so that others may, too."""
    return record.get(_ACCEPTED) is True


@dataclass(frozen=True)
class Look:
    """What a pass found that left the summary as it was: a little more of a large, partial map."""

    counts: dict[str, int]
    # points with a verdict, of how many
    known: int
    points: int
    problems: tuple[str, ...]
    num_read: int

    @property
    def coverage(self) -> float:
        """Share of the points whose verdict is known."""
        return self.known / self.points


class Passes:
    """Passes over one sweep; each leaves in the store what the next one, anywhere, goes on from."""

    def __init__(
        self,
        folder: SweepStore,
        plan: Plan,
        *,
        allow_mixed: bool,
        say: Say,
        kin: Kin | None = None,
    ) -> None:
        """
        Args:
            allow_mixed: accept points of different numerics classes as one map.
            say: told what a person must know of a pass and no file of the summary tells.
            kin: the families of the store's sweeps; None = each pass reads them anew.
        """
        self.folder = folder
        self.plan = plan
        self.allow_mixed = allow_mixed
        self.say = say
        self._shared_kin = kin
        self._kin = kin or Kin(folder.files, {})
        self._reader: TallyReader | None = None

    def whole(self, listing: Listing | None = None) -> Aggregation:
        """Makes everything anew.

        Args:
            listing: of the sweep, if it was made just now.
        """
        record = read_record(self.folder)
        listing = self._believed(listing or list_sweep(self.folder), record)
        return self._aggregate(listing, self._inputs(listing), record)

    def next(
        self, listing: Listing | None = None, *, may_look: bool = True
    ) -> Aggregation | Look | None:
        """Makes anew what has changed; None if nothing has.

        After a `Look` with nothing new since everything is made anew, so that the summary is never
        behind for long.

        Args:
            listing: of the sweep, if it was made just now.
            may_look: False = everything is made anew if anything has changed.
        """
        record = read_record(self.folder)
        listing = self._believed(listing or list_sweep(self.folder), record)
        inputs = self._inputs(listing)
        if is_unchanged(listing, record, inputs):
            return None
        if may_look and (look := self._look(listing, inputs, record)) is not None:
            return look
        return self._aggregate(listing, inputs, record)

    def _believed(self, listing: Listing, record: Mapping[str, Any]) -> Listing:
        """The listing, or another one where it has fewer outcome objects than the last pass saw."""
        before = record.get("objects")
        if not isinstance(before, int) or len(listing.outcomes) >= before:
            return listing
        listing = list_sweep(self.folder)
        if (fewer := before - len(listing.outcomes)) > 0:
            self.say(
                f"{self.folder.sweep_id}: {fewer:,} of {before:,} outcome objects that the last "
                "pass saw are gone from the store; the map is made of the others"
            )
        return listing

    def _inputs(self, listing: Listing) -> Inputs:
        if self._shared_kin is None and not self.plan.sweep.is_scattered:
            self._kin = Kin(self.folder.files)
        return inputs_of(listing, self.allow_mixed, self._kin)

    def _aggregate(
        self, listing: Listing, inputs: Inputs, record: Mapping[str, Any]
    ) -> Aggregation:
        for left in reversed(range(1 + _MOST_TIMES)):
            before = manifest_digest(self.folder)
            done = self._drawn(listing)
            if not left or not self._is_overtaken(done, before):
                break
            # of two passes at once the one that has read more must be the last
            listing = list_sweep(self.folder)
            inputs = self._inputs(listing)
        self._kin.forget(self.folder.sweep_id)
        known = int(done.grid.known.sum())
        if isinstance(last := record.get("known"), int) and known < last:
            self.say(
                f"{self.folder.sweep_id}: {last - known:,} points fewer have a verdict than when "
                "it was drawn last: outcomes are gone, damaged or were written again with less"
            )
        self._remember(done, listing, inputs)
        return done

    def _remember(self, done: Aggregation, listing: Listing, inputs: Inputs) -> None:
        member = self._kin.members.get(self.folder.sweep_id)
        facts = {
            "inputs": inputs.whole,
            "others": inputs.others,
            "manifest": done.digest,
            "shown": seal_of_summary(self.folder, done.digest),
            "complete": done.summary["complete"],
            "coverage": done.summary["coverage"],
            "known": int(done.grid.known.sum()),
            "objects": len(listing.outcomes),
            **in_summary(done.grid.problems),
            "problems_hash": _hash_of(done.grid.problems),
            "member": None if member is None else member.to_dict(),
            "looked": None,
            _ACCEPTED: self.allow_mixed,
        }
        update_record(self.folder, facts)

    def _drawn(self, listing: Listing) -> Aggregation:
        from fractal_k8s.aggregate.one_pass import aggregate

        return aggregate(
            self.folder,
            self.plan,
            allow_mixed=self.allow_mixed,
            read=lambda: self._collected(listing),
            kin=self._kin,
        )

    def _is_overtaken(self, done: Aggregation, before: str | None) -> bool:
        """Whether another pass has written a summary since this one began.

        Args:
            before: sha256 of the manifest that was there then.
        """
        theirs = {done.replaced, manifest_digest(self.folder)} - {before, done.digest}
        return bool(theirs)

    def _collected(self, listing: Listing) -> Collected:
        """All outcomes; the next pass need not read them again."""
        collected = collect(self.folder, self.plan.sweep, listing=listing)
        if self._is_large:
            reader = self._tally_reader()
            reader.learn(collected.parts, collected.table, listing)
            reader.keep()
        return collected

    @property
    def _is_large(self) -> bool:
        return self.plan.sweep.num_points >= _LARGE

    def _tally_reader(self) -> TallyReader:
        if self._reader is None:
            self._reader = TallyReader(self.folder, self.plan.sweep, keep_in=self.folder)
        return self._reader

    def _look(self, listing: Listing, inputs: Inputs, record: Mapping[str, Any]) -> Look | None:
        """The counts, where they are all that is worth to be made anew."""
        if not self._is_large or inputs.others is None or record.get("others") != inputs.others:
            return None
        # nothing is new since the last look
        if inputs.whole is not None and record.get("looked") == inputs.whole:
            return None
        reader = self._tally_reader()
        if reader.is_empty or not has_summary(listing, record):
            return None
        read_before = reader.num_read
        tally = reader.refresh(listing=listing)
        if not self._is_little(tally, record):
            return None
        known, points = int(tally.known.sum()), tally.known.size
        look = Look(tally.counts(), known, points, tally.problems, reader.num_read - read_before)
        self.folder.put_summary(PROGRESS_FILE, to_json(_progress(self.plan, look)))
        if manifest_digest(self.folder) != record.get("manifest"):  # another pass has drawn
            self.folder.files.discard([self.folder.key("summary", PROGRESS_FILE)])
        update_record(self.folder, {"looked": inputs.whole, "objects": len(listing.outcomes)})
        return look

    def _is_little(self, tally: Tally, record: Mapping[str, Any]) -> bool:
        """Whether the map that was drawn last shows nearly the same."""
        drawn = record.get("known")
        if not isinstance(drawn, int) or _hash_of(tally.problems) != record.get("problems_hash"):
            return False
        if tally.known.all() or (len(tally.classes) > 1 and not self.allow_mixed):
            return False
        return 0 < int(tally.known.sum()) - drawn < _WORTH_DRAWING * drawn


def _hash_of(problems: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(problems).encode()).hexdigest()


def _progress(plan: Plan, look: Look) -> dict[str, Any]:
    """As the same keys of analysis.json."""
    return {
        "sweep": plan.sweep.id,
        "counts": look.counts,
        "coverage": look.coverage,
        "complete": False,
        "problems": in_summary(look.problems)["problems"],
    }
