"""A number for each stored row that tells whether two of them are the same result."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fractal_k8s.results.outcome import LATER_RESULT_COLUMNS, RESULT_COLUMNS

# what makes two rows the same result, but for the losses
COMPARED: Final = tuple(
    name for name in (*RESULT_COLUMNS, *LATER_RESULT_COLUMNS) if name != "losses"
)


def labels_of(table: pa.Table, name: str) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """The different values of a column, and which of them each row has."""
    column = table.column(name).cast(pa.string()).combine_chunks().dictionary_encode("encode")
    return column.dictionary.to_pylist(), column.indices.to_numpy().astype(np.int64)


def result_hashes(table: pa.Table) -> npt.NDArray[np.uint64]:
    """A number for each row that is the same where the compared columns are, NaN like NaN."""
    total = np.zeros(len(table), np.uint64)
    for name in COMPARED:
        kind = table.schema.field(name).type
        if pa.types.is_dictionary(kind) or pa.types.is_string(kind):
            values, which = labels_of(table, name)
            bits = np.array([_text_hash(value) for value in values], np.uint64)[which]
        elif pa.types.is_floating(kind):
            numbers = table.column(name).to_numpy().astype(np.float64)
            bits = np.where(np.isnan(numbers), np.nan, numbers).view(np.uint64)
        else:
            bits = table.column(name).to_numpy().astype(np.int64).view(np.uint64)
        total = _mixed(total ^ bits)
    return total


def _text_hash(text: str | None) -> int:
    digest = hashlib.blake2b(repr(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spreads every bit of the input over the output, one to one (the finaliser of SplitMix64)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
