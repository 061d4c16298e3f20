"""Documents to pretrain on, streamed from plain text, JSONL or parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from fractal_k8s.errors import CorruptError, UsageError

# a plain text is cut into documents of about this many characters, at a blank line if there is one
DOCUMENT_CHARACTERS: Final = 2_000
_LINE_CHARACTERS: Final = 65_536
_PARQUET_ROWS: Final = 256
# every so many documents one is kept from training, to measure with
HELD_OUT_EVERY: Final = 20


def text_files(path: Path) -> list[Path]:
    """The text files that a path means: itself, or those of a folder by name, sub-folders too.

    Raises:
        UsageError: there is none, or the file is of an unknown kind.
    """
    kinds = ", ".join(_READERS)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix in _READERS)
        if not found:
            raise UsageError(f"text {path}: the folder holds no file of {kinds}")
        return found
    if not path.is_file():
        raise UsageError(f"text {path}: no such file or folder")
    if path.suffix not in _READERS:
        raise UsageError(f"text {path}: unknown kind {path.suffix!r}; use {kinds}")
    return [path]


def documents(path: Path) -> Iterator[str]:
    """The documents of a file or folder in a fixed order; little of them is in memory at a time.

    A .txt file is cut at blank lines, a .jsonl line is a text or has one as `text`, a .parquet file
    has a column `text`. Empty documents are left out.

    Raises:
        UsageError: nothing there can be read as text.
        CorruptError: a file is damaged; says where.
    """
    for file in text_files(path):
        for text in _READERS[file.suffix](file):
            if text.strip():
                yield text


def training_part(texts: Iterable[str]) -> Iterator[str]:
    """All documents but every 20th."""
    return (text for number, text in enumerate(texts) if (number + 1) % HELD_OUT_EVERY)


def held_out_part(texts: Iterable[str]) -> Iterator[str]:
    """Every 20th document."""
    return (text for number, text in enumerate(texts) if not (number + 1) % HELD_OUT_EVERY)


def _read_plain(path: Path) -> Iterator[str]:
    lines: list[str] = []
    length = 0
    try:
        with path.open(encoding="utf-8") as file:
            while line := file.readline(_LINE_CHARACTERS):
                lines.append(line)
                length += len(line)
                long_enough = length >= DOCUMENT_CHARACTERS and not line.strip()
                if long_enough or length >= 2 * DOCUMENT_CHARACTERS:
                    yield "".join(lines)
                    lines, length = [], 0
    except UnicodeDecodeError as error:
        raise CorruptError(f"text {path}: is not UTF-8 ({error.reason})") from None
    yield "".join(lines)


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except ValueError as error:
                raise CorruptError(f"text {path} line {number}: not valid JSON ({error})") from None
            text = content.get("text") if isinstance(content, dict) else content
            if not isinstance(text, str):
                raise CorruptError(
                    f"text {path} line {number}: is neither a text nor a table with a text 'text'"
                )
            yield text


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise UsageError(f"text {path}: has no column 'text'")
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=["text"]):
                for text in batch.column("text").to_pylist():
                    if not isinstance(text, str):
                        raise CorruptError(f"text {path}: a row's text is {text!r}, not a text")
                    yield text
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"text {path}: damaged or not parquet ({error})") from None


_READERS: Final[dict[str, Callable[[Path], Iterator[str]]]] = {
    ".txt": _read_plain,
    ".md": _read_plain,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
