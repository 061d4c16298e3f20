"""All outcomes of a sweep, read again and again: only what is new, nothing lost, nothing twice.

What a pass has read it leaves in the store, so that the next one reads new objects only:

    <store>/<sweep-id>/aggregate/rows/<sha256>.arrow

Each holds the rows of some outcome objects and names them as they were listed: key, size, time of
the last write. One that is damaged, foreign or of another release is left out, and so are rows of
objects that are listed differently now; the objects are read instead. Nothing in the folder is
needed: it may be deleted at any time, and several passes may write it at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from fractal_k8s.errors import CorruptError, StoreError
from fractal_k8s.results import schema
from fractal_k8s.results.files import Entry
from fractal_k8s.results.listing import FOLDER, Listing, is_settled, list_sweep
from fractal_k8s.results.store import Outcomes, SweepStore
from fractal_k8s.sweep.definition import Sweep

_ROWS: Final = "rows"
_SUFFIX: Final = ".arrow"
# raised when what is kept changes its meaning
_FORMAT: Final = 1
_HEADER: Final = b"fractal_k8s.collected"
_READERS: Final = 32
# Objects that are read before their rows are kept: a pass that is killed loses no more.
_WAVE: Final = 1024
# Kept parts beyond which they are made one.
_MOST_PARTS: Final = 24
_PART_READERS: Final = 4


@dataclass
class Collected(Outcomes):
    """Rows of all attempts, and how they were come by."""

    # outcome objects as they were listed
    entries: list[Entry] = field(default_factory=list)
    # how many of them were read now; the others were known
    num_read: int = 0
    # the sound ones and how many rows each has, in the order of the table
    parts: list[tuple[Entry, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """Rows of some objects, in their order."""

    entries: list[Entry]
    lengths: list[int]
    table: pa.Table
    # where it is kept; "" = nowhere
    name: str = ""

    def only(self, wanted: set[Entry]) -> _Part:
        """The rows of those objects."""
        if wanted.issuperset(self.entries):
            return self
        slices, entries, lengths, start = [], [], [], 0
        for entry, length in zip(self.entries, self.lengths, strict=True):
            if entry in wanted:
                slices.append(self.table.slice(start, length))
                entries.append(entry)
                lengths.append(length)
            start += length
        table = pa.concat_tables([self.table.schema.empty_table(), *slices])
        return _Part(entries, lengths, table, self.name)


def collect(
    folder: SweepStore, sweep: Sweep, *, listing: Listing | None = None, keep: bool = True
) -> Collected:
    """The union of all outcome objects, unreadable ones named and left out.

    Args:
        listing: of the sweep, if it was made just now; None = it is made.
        keep: leave what is read for the next pass, where the store can be written to.

    Raises:
        StoreError: the store cannot be listed or read.
    """
    listing = list_sweep(folder) if listing is None else listing
    listed, horizon = listing.outcomes, listing.horizon
    # what earlier passes have kept
    stored = [entry for entry in listing.below(FOLDER, _ROWS) if entry.key.endswith(_SUFFIX)]
    parts = list(_kept(folder, sweep, stored, set(listed)))
    known = {entry for part in parts for entry in part.entries}
    fresh = [entry for entry in listed if entry not in known]
    problems: dict[str, str] = {}
    for start in range(0, len(fresh), _WAVE):
        part = _read(folder, sweep, fresh[start : start + _WAVE], problems)
        if keep:
            part = _keep(folder, sweep, part, horizon)
        parts.append(part)
    if keep and len(stored) > _MOST_PARTS:
        parts = [_keep(folder, sweep, _joined(parts), horizon)]
        if parts[0].name:
            folder.files.discard(entry.key for entry in stored if not _is(entry, parts[0].name))
    tables = [schema.outcome_schema(sweep).empty_table(), *(part.table for part in parts)]
    return Collected(
        table=pa.concat_tables(tables),
        objects=len(listed),
        problems=[problems[entry.key] for entry in listed if entry.key in problems],
        entries=listed,
        num_read=len(fresh),
        parts=[one for part in parts for one in zip(part.entries, part.lengths, strict=True)],
    )


# --- outcome objects ---


def _read(
    folder: SweepStore, sweep: Sweep, entries: list[Entry], problems: dict[str, str]
) -> _Part:
    """The rows of some objects; adds what is wrong with an object to `problems`, by key."""

    def read(entry: Entry) -> tuple[Entry, pa.Table] | str | None:
        try:
            return _table(folder, sweep, entry)
        except CorruptError as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        found = dict(zip(entries, readers.map(read, entries), strict=True))
    problems |= {entry.key: text for entry, text in found.items() if isinstance(text, str)}
    tables = {one[0]: one[1] for one in found.values() if isinstance(one, tuple)}
    empty = schema.outcome_schema(sweep).empty_table()
    table = pa.concat_tables([empty, *tables.values()]).unify_dictionaries().combine_chunks()
    return _Part([*tables], [len(one) for one in tables.values()], table)


def _table(folder: SweepStore, sweep: Sweep, entry: Entry) -> tuple[Entry, pa.Table] | None:
    """The rows of an object, and the object as it was read; None if it is gone.

    What is not of the listed size is another one than was listed, and not to be remembered as it.

    Raises:
        CorruptError: it is damaged, also when it is read once more: an object that is written
            again while it is read looks damaged too.
    """
    for is_last in (False, True):
        data = folder.files.get(entry.key)
        if data is None:
            return None
        try:
            table = schema.from_bytes(data, sweep=sweep, source=entry.key, use_threads=False)
        except CorruptError:
            if is_last:
                raise
        else:
            return replace(entry, size=len(data)), table
    raise AssertionError  # the second round returns or raises


# --- what is kept ---


def _identity(sweep: Sweep) -> str:
    """Of everything that decides what kept rows mean."""
    columns = schema.outcome_schema(sweep).to_string(show_schema_metadata=False)
    text = f"{_FORMAT}\n{schema.VERSION}\n{columns}\n{sweep.canonical_json()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(
    folder: SweepStore, sweep: Sweep, stored: list[Entry], listed: set[Entry]
) -> Iterator[_Part]:
    """Kept parts with the rows of objects that are still listed the same, no object twice."""
    left = set(listed)
    # a larger one may hold what smaller ones do
    ordered = sorted(stored, key=lambda entry: (-entry.size, entry.key))
    with ThreadPoolExecutor(max_workers=_PART_READERS) as readers:
        for part in readers.map(lambda entry: _recall(folder, sweep, entry), ordered):
            if part is not None and (wanted := left.intersection(part.entries)):
                left -= wanted
                yield part.only(wanted)


def _recall(folder: SweepStore, sweep: Sweep, stored: Entry) -> _Part | None:
    """A part as it was kept; None if it is not what its name and header say."""
    try:
        data = folder.files.get(stored.key)
    except StoreError:
        return None
    if data is None or not _is(stored, name := _name(data)):
        return None
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        header = json.loads((table.schema.metadata or {}).get(_HEADER, b"null"))
        if header["identity"] != _identity(sweep):
            return None
        entries = [Entry(*fields) for fields in header["entries"]]
        lengths = [int(length) for length in header["lengths"]]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    if sum(lengths) != len(table) or len(lengths) != len(entries):
        return None
    wanted = schema.outcome_schema(sweep)
    return _Part(
        entries, lengths, table.cast(wanted).replace_schema_metadata(wanted.metadata), name
    )


def _keep(folder: SweepStore, sweep: Sweep, part: _Part, horizon: int) -> _Part:
    """Writes a part, without objects that may still change unseen; returns the whole part."""
    settled = part.only({entry for entry in part.entries if is_settled(entry, horizon)})
    if not settled.entries:
        return part
    data = _packed(sweep, settled)
    try:
        folder.files.put(folder.key(FOLDER, _ROWS, _name(data)), data)
    except StoreError:  # who may only read draws its own picture
        return part
    return _Part(part.entries, part.lengths, part.table, _name(data))


def _packed(sweep: Sweep, part: _Part) -> bytes:
    entries = [[entry.key, entry.size, entry.modified_ns] for entry in part.entries]
    header = {"identity": _identity(sweep), "entries": entries, "lengths": part.lengths}
    table = part.table.unify_dictionaries().combine_chunks()
    table = table.replace_schema_metadata({_HEADER: json.dumps(header).encode()})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()}{_SUFFIX}"


def _is(entry: Entry, name: str) -> bool:
    return entry.key.rpartition("/")[2] == name


def _joined(parts: Iterable[_Part]) -> _Part:
    given = list(parts)
    table = pa.concat_tables([part.table for part in given]).unify_dictionaries().combine_chunks()
    entries = [entry for part in given for entry in part.entries]
    return _Part(entries, [length for part in given for length in part.lengths], table)
