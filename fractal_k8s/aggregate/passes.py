"""Pass after pass over a sweep: what each makes anew.

Outcomes that were read once are not read again. Where next to nothing is new in a large map, a pass
may leave numbers and pictures as they are and tell the counts only:

    <store>/<sweep-id>/summary/progress.json

The file is there only while it knows more than the summary beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fractal_k8s.aggregate.record import (
    Inputs,
    has_summary,
    inputs_of,
    is_unchanged,
    read_record,
    update_record,
)
from fractal_k8s.results.collect import Collected, collect
from fractal_k8s.results.files import Entry
from fractal_k8s.results.lineage import Family
from fractal_k8s.results.published import manifest_digest
from fractal_k8s.results.store import PROGRESS_FILE, SweepStore, to_json
from fractal_k8s.results.tally import Tally, TallyReader
from fractal_k8s.sweep.assignment import Plan

if TYPE_CHECKING:
    from fractal_k8s.aggregate.one_pass import Aggregation

# a map of fewer points is drawn in a few seconds
_LARGE: Final = 10_000
# Points that are worth new pictures, as a share of those that the last ones show.
_WORTH_DRAWING: Final = 0.02


# A pass that others overtake is made again so often: they go on, and end with the same.
_MOST_TIMES: Final = 2
# whether the last pass was told to accept several numerics classes as one map
_ACCEPTED: Final = "allow_mixed"


def accepts_mixed(folder: SweepStore) -> bool:
    """Whether a pass was told to accept several numerics classes, so that others may, too."""
    return read_record(folder).get(_ACCEPTED) is True


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
        families: Family | None = None,
    ) -> None:
        """
        Args:
            allow_mixed: accept points of different numerics classes as one map.
            families: all sweeps of the store, if they were read just now.
        """
        self.folder = folder
        self.plan = plan
        self.allow_mixed = allow_mixed
        self.families = families
        self._reader: TallyReader | None = None

    def whole(self) -> Aggregation:
        """Makes everything anew."""
        entries = self.folder.outcome_entries()
        return self._aggregate(entries, self._inputs(entries))

    def next(self, *, may_look: bool = True) -> Aggregation | Look | None:
        """Makes anew what has changed; None if nothing has.

        After a `Look` with nothing new since everything is made anew, so that the summary is never
        behind for long.

        Args:
            may_look: False = everything is made anew if anything has changed.
        """
        entries = self.folder.outcome_entries()
        inputs = self._inputs(entries)
        record = read_record(self.folder)
        if is_unchanged(self.folder, record, inputs):
            return None
        if may_look and (look := self._look(entries, inputs, record)) is not None:
            return look
        return self._aggregate(entries, inputs)

    def _inputs(self, entries: list[Entry]) -> Inputs:
        return inputs_of(self.folder, self.plan, entries, self.allow_mixed, self.families)

    def _aggregate(self, entries: list[Entry], inputs: Inputs) -> Aggregation:
        for left in reversed(range(1 + _MOST_TIMES)):
            before = manifest_digest(self.folder)
            done = self._drawn(entries)
            if not left or not self._is_overtaken(done, before):
                break
            # of two passes at once the one that has read more must be the last
            entries = self.folder.outcome_entries()
            inputs = self._inputs(entries)
        facts = {
            "inputs": inputs.whole,
            "others": inputs.others,
            "manifest": done.digest,
            "complete": done.summary["complete"],
            "known": int(done.grid.known.sum()),
            "problems": done.summary["problems"],
            "looked": None,
            _ACCEPTED: self.allow_mixed,
        }
        update_record(self.folder, facts)
        return done

    def _drawn(self, entries: list[Entry]) -> Aggregation:
        from fractal_k8s.aggregate.one_pass import aggregate

        return aggregate(
            self.folder,
            self.plan,
            allow_mixed=self.allow_mixed,
            read=lambda: self._collected(entries),
            families=self.families,
        )

    def _is_overtaken(self, done: Aggregation, before: str | None) -> bool:
        """Whether another pass has written a summary since this one began.

        Args:
            before: sha256 of the manifest that was there then.
        """
        theirs = {done.replaced, manifest_digest(self.folder)} - {before, done.digest}
        return bool(theirs)

    def _collected(self, entries: list[Entry]) -> Collected:
        """All outcomes; the next pass need not read them again."""
        collected = collect(self.folder, self.plan.sweep, entries=entries)
        if self._is_large:
            reader = self._tally_reader()
            reader.learn(collected.parts, collected.table)
            reader.keep()
        return collected

    @property
    def _is_large(self) -> bool:
        return self.plan.sweep.num_points >= _LARGE

    def _tally_reader(self) -> TallyReader:
        if self._reader is None:
            self._reader = TallyReader(self.folder, self.plan.sweep, keep_in=self.folder)
        return self._reader

    def _look(self, entries: list[Entry], inputs: Inputs, record: Mapping[str, Any]) -> Look | None:
        """The counts, where they are all that is worth to be made anew."""
        if not self._is_large or inputs.others is None or record.get("others") != inputs.others:
            return None
        # nothing is new since the last look
        if inputs.whole is not None and record.get("looked") == inputs.whole:
            return None
        reader = self._tally_reader()
        if reader.is_empty or not has_summary(self.folder, record):
            return None
        read_before = reader.num_read
        tally = reader.refresh(entries=entries)
        if not self._is_little(tally, record):
            return None
        known, points = int(tally.known.sum()), tally.known.size
        look = Look(tally.counts(), known, points, tally.problems, reader.num_read - read_before)
        self.folder.put_summary(PROGRESS_FILE, to_json(_progress(self.plan, look)))
        if not has_summary(self.folder, record):  # another pass has drawn meanwhile
            self.folder.files.discard([self.folder.key("summary", PROGRESS_FILE)])
        update_record(self.folder, {"looked": inputs.whole})
        return look

    def _is_little(self, tally: Tally, record: Mapping[str, Any]) -> bool:
        """Whether the map that was drawn last shows nearly the same."""
        drawn = record.get("known")
        if not isinstance(drawn, int) or list(tally.problems) != record.get("problems"):
            return False
        if tally.known.all() or (len(tally.classes) > 1 and not self.allow_mixed):
            return False
        return 0 < int(tally.known.sum()) - drawn < _WORTH_DRAWING * drawn


def _progress(plan: Plan, look: Look) -> dict[str, Any]:
    """As the same keys of analysis.json."""
    return {
        "sweep": plan.sweep.id,
        "counts": look.counts,
        "coverage": look.coverage,
        "complete": False,
        "problems": list(look.problems),
    }
