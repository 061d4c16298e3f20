"""Outcomes as parquet: one row a point, the schema's version in the file's metadata."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fractal_k8s.errors import CorruptError
from fractal_k8s.results.outcome import RESULT_COLUMNS, Environment, Outcome
from fractal_k8s.results.soundness import check_rows
from fractal_k8s.sweep.definition import Sweep

# Raised when a column changes its meaning; adding a column does not raise it.
VERSION: Final = 1
_VERSION_KEY: Final = b"fractal_k8s.schema"
_SWEEP_KEY: Final = b"fractal_k8s.sweep"
_OBJECT_KEY: Final = b"fractal_k8s.object"

# of a version; a longer one is none
_MOST_DIGITS: Final = 9

_LABEL = pa.dictionary(pa.int32(), pa.string())

# Columns that every release has written, besides the axes and those of a result.
_NEEDED: Final = ("sweep", "i", "j", "seconds", "numerics_class", "time")


def outcome_schema(sweep: Sweep) -> pa.Schema:
    """The columns of an outcomes file; the two axes are named as their knobs."""
    fields = [
        pa.field("sweep", _LABEL),
        pa.field("i", pa.int32()),
        pa.field("j", pa.int32()),
        pa.field(sweep.y_knob.name, pa.float64()),
        pa.field(sweep.x_knob.name, pa.float64()),
        pa.field("state", _LABEL),
        *(
            pa.field(name, pa.float64())
            for name in ("first_loss", "last_mean_loss", "ratio", "final_loss", "mean_loss")
        ),
        *(
            pa.field(name, pa.int64())
            for name in ("steps", "tokens_seen", "supervised_tokens", "run_seed")
        ),
        pa.field("probe_before", pa.float64()),
        pa.field("probe_after", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("tokens_per_s", pa.float64()),
        pa.field("peak_bytes", pa.int64()),
        pa.field("data_hash", _LABEL),
        pa.field("error", pa.string()),
        pa.field("losses", pa.list_(pa.float32())),
        *(
            pa.field(name, _LABEL)
            for name in (
                "numerics_class",
                "fingerprint",
                "gpu",
                "node",
                "pod",
                "image",
                "git_commit",
                "versions",
            )
        ),
        pa.field("time", pa.timestamp("ms", tz="UTC")),
    ]
    return pa.schema(fields, metadata={_VERSION_KEY: str(VERSION), _SWEEP_KEY: sweep.id})


def to_table(
    sweep: Sweep,
    outcomes: Sequence[Outcome],
    times: Sequence[datetime],
    environment: Environment,
) -> pa.Table:
    """Outcomes of one attempt as a table, one row each, in the given order.

    Args:
        times: when each outcome was known, shape (outcomes,).
    """
    schema = outcome_schema(sweep)
    count = len(outcomes)
    columns: dict[str, pa.Array] = {
        sweep.y_knob.name: pa.array([outcome.y for outcome in outcomes], pa.float64()),
        sweep.x_knob.name: pa.array([outcome.x for outcome in outcomes], pa.float64()),
        "losses": _loss_lists(outcomes),
        "sweep": _repeated(sweep.id, count),
        "time": pa.array(times, pa.timestamp("ms", tz="UTC")),
    }
    for field in schema:
        if field.name in columns:
            continue
        if hasattr(environment, field.name):
            columns[field.name] = _repeated(getattr(environment, field.name), count)
        else:
            values = [getattr(outcome, field.name) for outcome in outcomes]
            columns[field.name] = pa.array(
                values, pa.string() if field.type == _LABEL else field.type
            )
    arrays = [
        array.dictionary_encode() if field.type == _LABEL and array.type != _LABEL else array
        for field, array in ((field, columns[field.name]) for field in schema)
    ]
    return pa.Table.from_arrays(
        [array.cast(field.type) for field, array in zip(schema, arrays, strict=True)], schema=schema
    )


def _repeated(value: str | None, count: int) -> pa.Array:
    indices = pa.array([0] * count if value is not None else [None] * count, pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array([value or ""], pa.string()))


def _loss_lists(outcomes: Sequence[Outcome]) -> pa.Array:
    lengths = [len(outcome.losses) for outcome in outcomes]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    parts = [outcome.losses for outcome in outcomes]
    values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32()))


def to_bytes(table: pa.Table, name: str | None = None) -> bytes:
    """A table as a parquet file.

    Args:
        name: of the object that it will be, without its folder; a reader that is given this file
            under another name refuses it.
    """
    if name is not None:
        metadata = {**(table.schema.metadata or {}), _OBJECT_KEY: name.encode()}
        table = table.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    # a checksum a page: no other part of the file would notice a flipped byte in a number
    pq.write_table(table, sink, compression="zstd", compression_level=3, write_page_checksum=True)
    return sink.getvalue()


def from_bytes(
    data: bytes | pa.NativeFile,
    *,
    sweep: Sweep,
    source: str,
    columns: Collection[str] | None = None,
    use_threads: bool = True,
) -> pa.Table:
    """Reads an outcomes file back.

    Args:
        data: the file, or one that is open: then only the parts that hold the columns are read.
        source: its key, or another name to show.
        columns: only these, and those that tell the points; None = all.
        use_threads: False = in this thread alone, for who reads many files at once.

    Raises:
        CorruptError: not parquet, truncated, of another sweep, of a newer schema, or with rows
            that no worker writes; see `soundness.check_rows`.
    """
    try:
        table = _read(data, sweep, source, columns, use_threads)
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CorruptError(f"{source}: not a readable outcomes file ({reason})") from None
    check_rows(sweep, table, source)
    return table


def _read(
    data: bytes | pa.NativeFile,
    sweep: Sweep,
    source: str,
    columns: Collection[str] | None,
    use_threads: bool,
) -> pa.Table:
    """The columns as `outcome_schema` has them. What pyarrow raises is not only its own errors."""
    in_memory = isinstance(data, bytes)
    file = pq.ParquetFile(
        pa.BufferReader(data) if in_memory else data,
        pre_buffer=not in_memory,  # columns that lie together are had in one request
        page_checksum_verification=True,
    )
    stored = file.schema_arrow
    _check_header(stored, sweep, source)
    points = {"i", "j", sweep.y_knob.name, sweep.x_knob.name}
    wanted = None if columns is None else points | set(columns)
    table = file.read(
        [name for name in stored.names if wanted is None or name in wanted],
        use_threads=use_threads,
    )
    schema = outcome_schema(sweep)
    for field in schema:  # columns that a later release added are empty in an earlier one's files
        if field.name not in stored.names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    if wanted is not None:
        schema = pa.schema([field for field in schema if field.name in wanted], schema.metadata)
    table = table.select(schema.names)
    if not table.schema.equals(schema):
        table = table.cast(schema)
    table = table.replace_schema_metadata(schema.metadata)  # without the object's name
    table.validate(full=True)  # texts are texts, and labels those of the dictionary
    return table


def _check_header(stored: pa.Schema, sweep: Sweep, source: str) -> None:
    """Refuses a file of another sweep or schema."""
    metadata = stored.metadata or {}
    check_version(metadata.get(_VERSION_KEY), source)
    owner = metadata.get(_SWEEP_KEY, b"").decode(errors="replace")
    if owner != sweep.id:
        raise CorruptError(
            f"{source}: holds outcomes of {owner or 'something else'}, not of {sweep.id}"
        )
    name = metadata.get(_OBJECT_KEY, b"").decode(errors="replace")
    if name and name != source.rpartition("/")[2]:
        raise CorruptError(f"{source}: holds the rows of {name}")
    axes = {sweep.y_knob.name, sweep.x_knob.name}
    absent = sorted(({*_NEEDED, *RESULT_COLUMNS} | axes) - set(stored.names))
    if absent:
        raise CorruptError(f"{source}: lacks the columns {', '.join(absent)}")
    if len(set(stored.names)) < len(stored.names):
        raise CorruptError(f"{source}: has several columns of one name")


def check_version(version: bytes | None, source: str) -> None:
    """Refuses a file written by a newer release.

    Raises:
        CorruptError: the version is unknown or newer than this release's.
    """
    if version is None:
        raise CorruptError(f"{source}: not an outcomes file of fractal-k8s (no schema version)")
    is_number = version.isdigit() and len(version) <= _MOST_DIGITS
    if not is_number or int(version) > VERSION:
        shown = version[:_MOST_DIGITS].decode(errors="replace")
        raise CorruptError(
            f"{source}: written with schema version {shown}, this release reads up to {VERSION}; "
            "upgrade fractal-k8s"
        )
