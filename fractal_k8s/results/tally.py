"""How far a sweep is, read again and again: only what is new, and no losses.

A `TallyReader` knows the objects that it has read and reads those that are new or were written
again, in part: the columns that a verdict and the counts need. What it knows can be kept in a file,
so that the next process goes on from there: on this machine, or beside the sweep as

    <store>/<sweep-id>/aggregate/tally/<hash>.npz
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fractal_k8s.errors import CorruptError, StoreError
from fractal_k8s.results import schema
from fractal_k8s.results.files import Entry, Files, LocalFiles
from fractal_k8s.results.grid import DIVERGED, FAILED, MISSING, count_states, state_codes, texts
from fractal_k8s.results.hashes import COMPARED, labels_of, result_hashes
from fractal_k8s.results.listing import FOLDER, Listing, is_settled, settled_before
from fractal_k8s.results.retries import Deadline, in_time
from fractal_k8s.results.store import SweepStore
from fractal_k8s.results.verdict import probe_ratio
from fractal_k8s.sweep.definition import Sweep

# raised when what the kept file holds changes its meaning
_FORMAT: Final = 3
_SECOND_NS: Final = 1_000_000_000
# of what is kept, before it
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_READERS: Final = 32
_DISK_READERS: Final = 4
# objects between two looks at the clock
_WAVE: Final = 64
# rows of others that are taken over at once
_LEARNT: Final = 1 << 16
# A smaller object is had in one request; of a larger one only parts are asked for.
_WHOLE_BYTES: Final = 128 * 1024

# What is known of a stored row, that is of one attempt's outcome of one point.
_ROW: Final = np.dtype(
    [
        ("point", "<i8"),
        ("code", "u1"),
        # trained for another sweep
        ("copied", "?"),
        # place of its numerics class among the reader's names
        ("numerics", "<i4"),
        ("steps", "<i8"),
        # ms since 1970
        ("time", "<i8"),
        ("seconds", "<f8"),
        # of everything that makes two rows the same result but the losses
        ("result", "<u8"),
    ]
)
_COLUMNS: Final = (*COMPARED, "sweep", "numerics_class", "seconds", "time")

Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Tally:
    """What a store held of a sweep when it was looked at. States follow the sweep's own rule."""

    sweep: Sweep
    # code of each point's state as in `results.grid`, shape (rows, columns)
    states: npt.NDArray[np.uint8]
    # the row that counts of each point that has one, by point; fields of `_ROW`
    rows: Rows
    # as `Grid.problems` and `Grid.classes`, as far as can be told without the losses
    problems: tuple[str, ...]
    classes: tuple[str, ...]
    # outcome objects in the store, and how many of them have not been read yet
    objects: int
    unread: int

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Where the verdict is known: neither missing nor failed."""
        return np.greater_equal(self.states, DIVERGED)

    def counts(self) -> dict[str, int]:
        """Points by state, as `Grid.counts`."""
        return count_states(self.states, self.sweep.verdict)

    def newest(self) -> float | None:
        """When the last outcome was known, in seconds since 1970; None without any."""
        times = self.rows["time"]
        return float(times.max()) / 1000 if len(times) else None

    def rate(self, recent_s: float, workers: int | None = None) -> float | None:
        """Points per second over that time before the last outcome; None if it cannot be told.

        Args:
            workers: how many train at once. Points that become known many at a time then count
                with the seconds that they took, of which so many pass at once.
        """
        times = self.rows["time"].astype(np.float64) / 1000
        if not len(times):
            return None
        is_recent = times >= times.max() - recent_s
        recent, rates = times[is_recent], []
        if (span := recent.max() - recent.min()) > 0:
            rates.append((len(recent) - 1) / span)
        spent = np.nansum(self.rows["seconds"][is_recent])
        if workers and spent > 0:
            rates.append(workers * len(recent) / spent)
        return float(min(rates)) if rates else None


class TallyReader:
    """Reads a sweep's outcomes as they come. Of one thread; `keep` may be another one's."""

    def __init__(
        self, folder: SweepStore, sweep: Sweep, *, keep_in: Path | SweepStore | None = None
    ) -> None:
        """
        Args:
            keep_in: where what was read is kept for the next process: a folder of this machine, or
                the sweep's own in its store; None = nowhere.
        """
        self.folder = folder
        self.sweep = sweep
        self._kept = None if keep_in is None else self._place(keep_in)
        self._read: dict[Entry, Rows] = {}
        self._damaged: dict[Entry, str] = {}
        self._classes: list[str] = []
        # read while they could still be written again and look the same
        self._young: set[Entry] = set()
        self._listed: list[Entry] = []
        self._is_new = False
        # objects that were read so far, by this reader
        self.num_read = 0
        self._lock = threading.Lock()  # over what is read while it is changed or copied
        if self._kept is not None:
            self._recall(*self._kept)

    def _place(self, keep_in: Path | SweepStore) -> tuple[Files, str]:
        """The file of what is kept."""
        if isinstance(keep_in, SweepStore):
            return keep_in.files, keep_in.key(FOLDER, "tally", f"{self._identity()[:32]}.npz")
        # a folder of this machine is that of many stores
        name = hashlib.sha256(f"{self.folder.files.uri}\n{self._identity()}".encode()).hexdigest()
        return LocalFiles(keep_in), f"{name[:32]}.npz"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known, not even from an earlier process."""
        return not self._read

    @property
    def unread(self) -> int:
        """How many objects have not been read yet."""
        return sum(1 for entry in self._listed if not self._knows(entry))

    def refresh(self, budget_s: float | None = None, *, listing: Listing | None = None) -> Tally:
        """Lists the outcomes and reads what is new, the newest first.

        Args:
            budget_s: stop reading after so many seconds; some objects are read all the same.
            listing: of the sweep, if it was made just now.

        Raises:
            StoreError: the store cannot be listed or read; what was read before that is not lost.
        """
        deadline = None if budget_s is None else time.monotonic() + budget_s
        self._listed = self.folder.outcome_entries() if listing is None else listing.outcomes
        self._forget(set(self._listed) - self._young)
        self._young = self._may_change(listing)
        fresh = [entry for entry in self._listed if not self._knows(entry)]
        fresh.sort(key=lambda entry: -entry.modified_ns)
        # of a disk more readers give nothing but memory
        count = _DISK_READERS if isinstance(self.folder.files, LocalFiles) else _READERS
        with ThreadPoolExecutor(count) as readers:
            for start in range(0, len(fresh), _WAVE):
                wave = fresh[start : start + _WAVE]
                self._take(dict(zip(wave, readers.map(self._load, wave), strict=True)))
                self.num_read += len(wave)
                if deadline is not None and time.monotonic() >= deadline:
                    break
        return self.tally()

    def tally(self) -> Tally:
        """What is known by now."""
        entries = [entry for entry in self._listed if entry in self._read]
        parts = [self._read[entry] for entry in entries]
        rows = np.concatenate(parts) if parts else np.zeros(0, _ROW)
        chosen, differing = _one_per_point(rows, self.sweep.num_points)
        states = np.full(self.sweep.num_points, MISSING, dtype=np.uint8)
        states[chosen["point"]] = chosen["code"]
        used = np.unique(chosen["numerics"][chosen["code"] != FAILED])
        return Tally(
            sweep=self.sweep,
            states=states.reshape(self.sweep.rows, self.sweep.columns),
            rows=chosen,
            problems=(
                *(self._damaged[entry] for entry in self._listed if entry in self._damaged),
                *(_differing(self.sweep, point, count) for point, count in differing),
            ),
            classes=tuple(sorted(self._classes[number] for number in used)),
            objects=len(self._listed),
            unread=self.unread,
        )

    def learn(self, parts: Sequence[tuple[Entry, int]], table: pa.Table, listing: Listing) -> None:
        """Takes over what somebody else has read whole, instead of what was known.

        Args:
            parts: the objects as they were listed, and how many rows each has.
            table: their rows in that order.
            listing: of the sweep, made before they were read.
        """
        # by and by: texts of a million rows at once would take much memory
        rows = [self._rows(table.slice(at, _LEARNT)) for at in range(0, len(table), _LEARNT)]
        ends = np.cumsum([length for _, length in parts])[:-1]
        known = np.split(np.concatenate([np.zeros(0, _ROW), *rows]), ends) if parts else []
        with self._lock:
            self._read = dict(zip((entry for entry, _ in parts), known, strict=True))
            self._damaged = {}
            self._is_new = True
        self._listed = [entry for entry, _ in parts]
        self._young = self._may_change(listing)

    def keep(self) -> None:
        """Writes what was read for the next process; does nothing if it cannot be written."""
        if self._kept is None or not self._is_new:
            return
        files, key = self._kept
        with contextlib.suppress(StoreError):
            files.put(key, self._packed())
            self._is_new = False

    def _may_change(self, listing: Listing | None) -> set[Entry]:
        """The listed objects that may be written again and look the same."""
        if not any(entry.modified_ns % _SECOND_NS == 0 for entry in self._listed):
            return set()  # such a store tells finer times
        if listing is not None:
            horizon = listing.horizon
        else:
            horizon = settled_before(self.folder.files.entries(self.folder.key(FOLDER)))
        return {entry for entry in self._listed if not is_settled(entry, horizon)}

    # --- one object ---

    def _knows(self, entry: Entry) -> bool:
        return entry in self._read or entry in self._damaged

    def _forget(self, listed: set[Entry]) -> None:
        """Drops what was deleted or written again: an entry is its key, size and time."""
        with self._lock:
            self._read = {entry: rows for entry, rows in self._read.items() if entry in listed}
        self._damaged = {entry: text for entry, text in self._damaged.items() if entry in listed}

    def _load(self, entry: Entry) -> bytes | pa.Table | None:
        """A small object whole, of a larger one the table without losses; None if it is gone."""
        if entry.size > _WHOLE_BYTES:
            # written again while its parts were read, it would look damaged
            with contextlib.suppress(CorruptError, TimeoutError):
                file = self.folder.files.open(entry.key)
                return (
                    None if file is None else in_time(partial(self._parts, file, entry), Deadline())
                )
        return self.folder.files.get(entry.key)

    def _parts(self, file: pa.NativeFile, entry: Entry, deadline: Deadline) -> pa.Table:
        """What is needed of a large object."""
        deadline.allow(entry.size)
        with file:
            return self._parse(file, entry)

    def _parse(self, data: bytes | pa.NativeFile, entry: Entry) -> pa.Table:
        return schema.from_bytes(
            data, sweep=self.sweep, source=entry.key, columns=_COLUMNS, use_threads=False
        )

    def _table(self, entry: Entry, found: bytes | pa.Table | None) -> pa.Table | None:
        """The rows of what was loaded; None if it is gone.

        Raises:
            CorruptError: it is damaged, also when it is read once more: an object that is written
                again while it is read looks damaged too.
        """
        if found is None or isinstance(found, pa.Table):
            return found
        try:
            return self._parse(found, entry)
        except CorruptError:
            again = self.folder.files.get(entry.key)
            return None if again is None else self._parse(again, entry)

    def _take(self, loaded: dict[Entry, bytes | pa.Table | None]) -> None:
        """Remembers what is in some objects. One thread parses them all faster than several."""
        tables: dict[Entry, pa.Table] = {}
        for entry, found in loaded.items():
            try:
                if (table := self._table(entry, found)) is not None:
                    tables[entry] = table
            except CorruptError as error:
                self._damaged[entry] = str(error)
        if tables:
            rows = self._rows(pa.concat_tables(tables.values()))
            ends = np.cumsum([len(table) for table in tables.values()])
            # copies, or a part that is kept would keep the whole
            parts = [part.copy() for part in np.split(rows, ends[:-1])]
            with self._lock:
                self._read.update(zip(tables, parts, strict=True))
                self._is_new = True

    def _rows(self, table: pa.Table) -> Rows:
        """What is known of the rows of a table."""
        rows = np.zeros(len(table), _ROW)
        i, j = (table.column(name).to_numpy().astype(np.int64) for name in ("i", "j"))
        rows["point"] = i * self.sweep.columns + j
        rows["code"] = state_codes(
            self.sweep.verdict,
            texts(table, "state"),
            final_loss=table.column("final_loss").to_numpy(),
            ratio=table.column("ratio").to_numpy(),
            probe_ratio=probe_ratio(
                table.column("probe_before").to_numpy(), table.column("probe_after").to_numpy()
            ),
        )
        owners, which = labels_of(table, "sweep")
        rows["copied"] = np.array([owner != self.sweep.id for owner in owners])[which]
        names, which = labels_of(table, "numerics_class")
        rows["numerics"] = np.array([self._class_number(name) for name in names])[which]
        rows["steps"] = table.column("steps").to_numpy()
        rows["time"] = table.column("time").to_numpy().astype(np.int64)
        rows["seconds"] = table.column("seconds").to_numpy()
        rows["result"] = result_hashes(table)
        return rows

    def _class_number(self, name: str) -> int:
        if name not in self._classes:
            self._classes.append(name)
        return self._classes.index(name)

    # --- the kept file ---

    def _identity(self) -> str:
        """Of the sweep that the kept file is about, and of what the file means."""
        text = f"{_FORMAT}\n{self.sweep.canonical_json()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _packed(self) -> bytes:
        with self._lock:
            read = {entry: one for entry, one in self._read.items() if entry not in self._young}
        entries = [*read]
        head = {
            "identity": self._identity(),
            "classes": self._classes,
            "keys": [entry.key for entry in entries],
        }
        sink = io.BytesIO()
        np.savez_compressed(
            sink,
            head=np.frombuffer(json.dumps(head).encode(), np.uint8),
            sizes=np.array([entry.size for entry in entries], np.int64),
            times=np.array([entry.modified_ns for entry in entries], np.int64),
            lengths=np.array([len(rows) for rows in read.values()], np.int64),
            rows=np.concatenate([np.zeros(0, _ROW), *read.values()]),
        )
        data = sink.getvalue()
        return hashlib.sha256(data).digest() + data

    def _recall(self, files: Files, key: str) -> None:
        """Takes over what an earlier process kept; a file that is damaged or foreign is ignored."""
        try:
            written = files.get(key) or b""
            digest, data = written[:_DIGEST_BYTES], written[_DIGEST_BYTES:]
            if hashlib.sha256(data).digest() != digest:
                return
            with np.load(io.BytesIO(data), allow_pickle=False) as kept:
                head = json.loads(kept["head"].tobytes())
                rows, lengths = kept["rows"], kept["lengths"]
                columns = (head["keys"], kept["sizes"].tolist(), kept["times"].tolist())
                entries = [Entry(*one) for one in zip(*columns, strict=True)]
            sound = (
                head["identity"] == self._identity()
                and rows.dtype == _ROW
                and int(lengths.sum()) == len(rows)
                and len(lengths) == len(entries)
                and _all_below(rows["point"], self.sweep.num_points)
                and _all_below(rows["numerics"], len(head["classes"]))
            )
        except (StoreError, OSError, ValueError, KeyError, TypeError):
            return
        if sound:
            parts = np.split(rows, np.cumsum(lengths)[:-1]) if entries else []
            self._read = dict(zip(entries, parts, strict=True))
            self._classes = [str(name) for name in head["classes"]]


def _one_per_point(rows: Rows, num_points: int) -> tuple[Rows, list[tuple[int, int]]]:
    """The row that counts of each point, as `grid.build_grid` chooses it.

    Also (point, number of results) where results of one point differ.
    """
    row_of = np.full(num_points, -1, dtype=np.int64)
    row_of[rows["point"]] = np.arange(len(rows))
    # most points have one row, and sorting a million takes its time
    several = np.flatnonzero(np.bincount(rows["point"], minlength=num_points)[rows["point"]] > 1)
    first, differing = _first_of_each(rows[several])
    row_of[rows["point"][several[first]]] = several[first]
    return rows[row_of[row_of >= 0]], differing


def _first_of_each(rows: Rows) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]]]:
    """Place of the row that counts of each point; (point, number of results) that differ."""
    failed = rows["code"] == FAILED
    order = np.lexsort((rows["result"], rows["time"], failed, rows["point"]))
    rows, failed = rows[order], failed[order]
    points, first = np.unique(rows["point"], return_index=True)
    results = np.add.reduceat(~failed, first, dtype=np.int64) if len(first) else first
    # a failed row says nothing; among the others each is compared with the first
    start = np.repeat(first, np.diff([*first, len(rows)]))
    other = ~failed & (rows["result"] != rows["result"][start])
    found = np.unique(np.searchsorted(points, rows["point"][other]))
    return order[first], [(int(points[k]), int(results[k])) for k in found]


def _differing(sweep: Sweep, point: int, count: int) -> str:
    i, j = divmod(point, sweep.columns)
    return f"point ({i}, {j}) has {count} results that differ; the first counts"


def _all_below(numbers: npt.NDArray[Any], limit: int) -> bool:
    return not len(numbers) or (int(numbers.min()) >= 0 and int(numbers.max()) < limit)
