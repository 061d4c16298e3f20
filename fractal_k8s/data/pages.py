"""Pages of documents with a question each, in the schema of pixparse/docvqa-single-page-questions.

A row has `question`, `answers` (a list of texts), `ocr_results` (a table whose `lines` are tables
with a `text`; None where nothing was read), and may have `question_id` and `other_metadata` with
`ucsf_document_id` and `ucsf_document_page_no`. Everything else, such as the image, is not read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fractal_k8s.errors import CorruptError, UsageError

COLUMNS: Final = ("question", "answers", "ocr_results", "question_id", "other_metadata")
NEEDED: Final = COLUMNS[:3]
_KINDS: Final = (".parquet", ".jsonl")
# word in the name of a file, or of a folder it lies in -> its split; others are training rows
_SPLIT_NAMES: Final = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_WORD: Final = re.compile(r"[a-z]+")
_BATCH_ROWS: Final = 64


@dataclass(frozen=True)
class Page:
    """A page as OCR read it, a question about it, and what people answered."""

    question_id: str | None
    question: str
    answers: tuple[str, ...]
    # in reading order
    lines: tuple[str, ...]
    document: str | None
    # as printed in the source: a text, mostly digits
    number: str | None


def page_of(row: Mapping[str, Any], place: str) -> Page:
    """A row of the schema as a page.

    Raises:
        CorruptError: something has another type than it must have; says what.
    """
    question, answers = row.get("question"), row.get("answers")
    if not isinstance(question, str):
        raise CorruptError(f"{place}: question is {question!r}, not a text")
    if answers is None:  # the test split has none
        answers = []
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise CorruptError(f"{place}: answers is no list of texts")
    other = row.get("other_metadata") or {}
    if not isinstance(other, dict):
        raise CorruptError(f"{place}: other_metadata is no table")
    return Page(
        question_id=_text(row, "question_id", place),
        question=_spaced(question),
        answers=tuple(text for answer in answers if (text := _spaced(answer))),
        lines=_lines_of(row.get("ocr_results"), place),
        document=_text(other, "ucsf_document_id", place),
        number=_text(other, "ucsf_document_page_no", place),
    )


def _lines_of(results: Any, place: str) -> tuple[str, ...]:
    """The texts of the lines; blank ones left out, white space made single."""
    if results is None:
        return ()
    if not isinstance(results, dict) or not isinstance(results.get("lines"), list | None):
        raise CorruptError(f"{place}: ocr_results is no table with a list 'lines'")
    texts = []
    for line in results.get("lines") or ():
        text = line.get("text") if isinstance(line, dict) else None
        if not isinstance(text, str):
            raise CorruptError(f"{place}: a line of ocr_results has no text")
        if cleaned := _spaced(text):
            texts.append(cleaned)
    return tuple(texts)


def _spaced(text: str) -> str:
    """The text with single spaces, and without what UTF-8 cannot say."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _text(row: Mapping[str, Any], name: str, place: str) -> str | None:
    """A name or a number as a text; a column of whole numbers with holes may have become one of
    floats."""
    value = row.get(name)
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CorruptError(f"{place}: {name} is {value!r}, neither a text nor a number")
    return _spaced(str(value)) or None


# --- files ---


def page_files(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """The files to read by split, in the order given; those of a folder by name.

    A file whose name, or else whose folder in what was given, has the word `validation` or `val`
    is of that split, one with `test` is left out, because its questions have no answers, and all
    others are to train on.

    Raises:
        UsageError: there is none, or one is of an unknown kind.
    """
    found: dict[str, list[Path]] = {}
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in _KINDS)
        for file in files:
            if not file.is_file():
                raise UsageError(f"source {file}: no such file or folder")
            if file.suffix not in _KINDS:
                raise UsageError(
                    f"source {file}: unknown kind {file.suffix!r}; use .parquet, .jsonl"
                )
            inside = file.relative_to(path).parent if path.is_dir() else Path()
            found.setdefault(_split_of(file.stem, *reversed(inside.parts)), []).append(file)
    found.pop("test", None)
    if "train" not in found:
        names = ", ".join(str(path) for path in paths)
        raise UsageError(f"source {names}: holds no .parquet or .jsonl file to train on")
    return found


def _split_of(*names: str) -> str:
    """The split that the first of the names with such a word in it says."""
    words = (word for name in names for word in _WORD.findall(name.lower()))
    return next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), "train")


def files_digest(files: Mapping[str, Sequence[Path]]) -> str:
    """sha256 over the contents of all files, in order, hex."""
    total = hashlib.sha256()
    for split in files:
        for path in files[split]:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_pages(files: Sequence[Path]) -> Iterator[Page]:
    """The pages of files, one after another.

    Raises:
        CorruptError: a file is damaged, or not of the schema; says where.
    """
    for path in files:
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
        for number, row in enumerate(rows, start=1):
            yield page_of(row, f"{path} row {number}")


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CorruptError(f"{path} line {number}: not valid JSON ({error})") from None
            if not isinstance(row, dict) or any(name not in row for name in NEEDED):
                raise CorruptError(f"{path} line {number}: lacks one of {', '.join(NEEDED)}")
            yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file; neither images nor the boxes of words are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in NEEDED if name not in names]:
                raise CorruptError(f"{path}: has no column {', '.join(missing)}")
            leaves = [file.schema.column(k).path for k in range(len(file.schema))]
            wanted = [leaf for leaf in leaves if _is_wanted(leaf)]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path}: damaged or not parquet ({error})") from None


def _is_wanted(leaf: str) -> bool:
    column, *inside = leaf.split(".")
    if column != "ocr_results":
        return column in COLUMNS
    return "lines" in inside and "words" not in inside and inside[-1] == "text"
