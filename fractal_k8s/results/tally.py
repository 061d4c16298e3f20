"""How far a sweep is, read again and again: only what is new, and no losses.

A `TallyReader` knows the objects that it has read and reads those that are new or were written
again, in part: the columns that a verdict and the counts need. What it knows can be kept in a file,
so that the next process goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fractal_k8s.errors import CorruptError
from fractal_k8s.results import schema
from fractal_k8s.results.files import Entry, LocalFiles, unsettled
from fractal_k8s.results.grid import DIVERGED, FAILED, MISSING, count_states, state_codes
from fractal_k8s.results.hashes import COMPARED, labels_of, result_hashes
from fractal_k8s.results.store import SweepStore
from fractal_k8s.results.verdict import probe_ratio
from fractal_k8s.sweep.definition import Sweep

# raised when what the kept file holds changes its meaning
_FORMAT: Final = 2
# of what is kept, before it
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_READERS: Final = 32
_DISK_READERS: Final = 4
# objects between two looks at the clock
_WAVE: Final = 64
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

    def rate(self, recent_s: float) -> float | None:
        """Points per second over that time before the last outcome; None if it cannot be told."""
        times = self.rows["time"].astype(np.float64) / 1000
        if len(times) < 2:
            return None
        recent = times[times >= times.max() - recent_s]
        span = recent.max() - recent.min()
        return float((len(recent) - 1) / span) if span > 0 else None


class TallyReader:
    """Reads a sweep's outcomes as they come. Of one thread; `keep` may be another one's."""

    def __init__(self, folder: SweepStore, sweep: Sweep, *, keep_in: Path | None = None) -> None:
        """
        Args:
            keep_in: folder where what was read is kept for the next process; None = nowhere.
        """
        self.folder = folder
        self.sweep = sweep
        self._kept = None if keep_in is None else keep_in / f"{self._identity()[:32]}.npz"
        self._read: dict[Entry, Rows] = {}
        self._damaged: dict[Entry, str] = {}
        self._classes: list[str] = []
        # read while they could still be written again and look the same
        self._unsettled: set[Entry] = set()
        self._listed: list[Entry] = []
        self._is_new = False
        self._lock = threading.Lock()  # over what is read while it is changed or copied
        if self._kept is not None:
            self._recall(self._kept)

    @property
    def unread(self) -> int:
        """How many objects have not been read yet."""
        return sum(1 for entry in self._listed if not self._knows(entry))

    def refresh(self, budget_s: float | None = None) -> Tally:
        """Lists the outcomes and reads what is new, the newest first.

        Args:
            budget_s: stop reading after so many seconds; some objects are read all the same.

        Raises:
            StoreError: the store cannot be listed or read; what was read before that is not lost.
        """
        deadline = None if budget_s is None else time.monotonic() + budget_s
        now_ns = time.time_ns()
        self._listed = self.folder.outcome_entries()
        self._forget(set(self._listed) - self._unsettled)
        self._unsettled = unsettled(self._listed, now_ns)
        fresh = [entry for entry in self._listed if not self._knows(entry)]
        fresh.sort(key=lambda entry: -entry.modified_ns)
        # of a disk more readers give nothing but memory
        count = _DISK_READERS if isinstance(self.folder.files, LocalFiles) else _READERS
        with ThreadPoolExecutor(count) as readers:
            for start in range(0, len(fresh), _WAVE):
                wave = fresh[start : start + _WAVE]
                self._take(dict(zip(wave, readers.map(self._load, wave), strict=True)))
                if deadline is not None and time.monotonic() >= deadline:
                    break
        return self.tally()

    def tally(self) -> Tally:
        """What is known by now."""
        entries = [entry for entry in self._listed if entry in self._read]
        parts = [self._read[entry] for entry in entries]
        rows = np.concatenate(parts) if parts else np.zeros(0, _ROW)
        chosen, differing = _one_per_point(rows)
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

    def keep(self) -> None:
        """Writes what was read for the next process; does nothing if it cannot be written."""
        if self._kept is None or not self._is_new:
            return
        with contextlib.suppress(OSError):
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._kept.with_name(f".{secrets.token_hex(6)}")
            try:
                temporary.write_bytes(self._packed())
                os.replace(temporary, self._kept)
                self._is_new = False
            finally:
                temporary.unlink(missing_ok=True)

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
            with contextlib.suppress(CorruptError):
                file = self.folder.files.open(entry.key)
                if file is None:
                    return None
                with file:
                    return self._parse(file, entry)
        return self.folder.files.get(entry.key)

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
            np.array(table.column("state").to_pylist(), dtype=object),
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
        """Of the store and the sweep that the kept file is about."""
        text = f"{_FORMAT}\n{self.folder.files.uri}\n{self.sweep.canonical_json()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _packed(self) -> bytes:
        with self._lock:
            young = self._unsettled
            read = {entry: rows for entry, rows in self._read.items() if entry not in young}
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

    def _recall(self, path: Path) -> None:
        """Takes over what an earlier process kept; a file that is damaged or foreign is ignored."""
        try:
            written = path.read_bytes()
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
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return
        if sound:
            parts = np.split(rows, np.cumsum(lengths)[:-1]) if entries else []
            self._read = dict(zip(entries, parts, strict=True))
            self._classes = [str(name) for name in head["classes"]]


def _one_per_point(rows: Rows) -> tuple[Rows, list[tuple[int, int]]]:
    """The row that counts of each point, as `grid.build_grid` chooses it.

    Also (point, number of results) where results of one point differ.
    """
    failed = rows["code"] == FAILED
    order = np.lexsort((rows["result"], rows["time"], failed, rows["point"]))
    rows, failed = rows[order], failed[order]
    points, first = np.unique(rows["point"], return_index=True)
    results = np.add.reduceat(~failed, first, dtype=np.int64) if len(first) else first
    # a failed row says nothing; among the others each is compared with the first
    start = np.repeat(first, np.diff([*first, len(rows)]))
    other = ~failed & (rows["result"] != rows["result"][start])
    found = np.unique(np.searchsorted(points, rows["point"][other]))
    return rows[first], [(int(points[k]), int(results[k])) for k in found]


def _differing(sweep: Sweep, point: int, count: int) -> str:
    i, j = divmod(point, sweep.columns)
    return f"point ({i}, {j}) has {count} results that differ; the first counts"


def _all_below(numbers: npt.NDArray[Any], limit: int) -> bool:
    return not len(numbers) or (int(numbers.min()) >= 0 and int(numbers.max()) < limit)
