"""Chat conversations as training rows, rendered as nanochat does (8f979a8, tokenizer.py).

A file is JSONL, a line a conversation: {"messages": [{"role", "content"}, ...]} or the bare list;
or parquet with a `messages` column.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from fractal_k8s.errors import CorruptError, UsageError, unreadable

_ORDER_STREAM: Final = 4

_PARTS: Final = {
    # kind of part -> (token before, token after, trained)
    "text": (None, None, True),
    "python": ("<|python_start|>", "<|python_end|>", True),
    "python_output": ("<|output_start|>", "<|output_end|>", False),
}


class Encoder(Protocol):
    """What rendering needs of a tokenizer."""

    special: dict[str, int]

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """A rendered conversation: ids, and for each whether it is trained on."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True)
class Rows:
    """Rows to train on, in file order, and what was cut off of the others."""

    rows: list[Row]
    # left out: answers that begin behind the cut, and conversations without an answer
    lost: int = 0
    unanswered: int = 0
    # kept, but cut inside an answer
    cut: int = 0

    @property
    def left_out(self) -> int:
        return self.lost + self.unanswered


class _Rendering:
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.ids: list[int] = []
        self.trained: list[bool] = []

    def token(self, name: str, trained: bool) -> None:
        self.ids.append(self.encoder.special[name])
        self.trained.append(trained)

    def text(self, text: str, trained: bool) -> None:
        ids = self.encoder.encode(text)
        self.ids += ids
        self.trained += [trained] * len(ids)

    def answer(self, content: Any) -> None:
        self.token("<|assistant_start|>", trained=False)
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise ValueError("an assistant's content must be text or a list of parts")
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _PARTS or not isinstance(part.get("text"), str):
                raise ValueError(
                    f"a part must be one of {', '.join(_PARTS)} with a text, got {part!r}"
                )
            before, after, trained = _PARTS[kind]
            if before is not None:
                self.token(before, trained)
            self.text(part["text"], trained)
            if after is not None:
                self.token(after, trained)
        self.token("<|assistant_end|>", trained=True)


def render(messages: Any, encoder: Encoder) -> Row:
    """One conversation as ids and loss mask, whole.

    A leading system message joins the first user message, two newlines between. Only what the
    assistant says is trained on, its end token included, and not the output of its tools.

    Raises:
        ValueError: the messages are not a conversation; says which one is wrong.
    """
    rendering = _Rendering(encoder)
    rendering.token("<|bos|>", trained=False)
    for number, (role, content) in enumerate(_turns(messages)):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            raise ValueError(f"message {number} is from {role!r}, expected {expected!r}")
        if role == "assistant":
            rendering.answer(content)
            continue
        if not isinstance(content, str):
            raise ValueError(f"message {number}: a user's content must be text")
        rendering.token("<|user_start|>", trained=False)
        rendering.text(content, trained=False)
        rendering.token("<|user_end|>", trained=False)
    return Row(tuple(rendering.ids), tuple(rendering.trained))


def _turns(messages: Any) -> list[tuple[str, Any]]:
    """(role, content) of each message, with a leading system message merged away."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list with at least one message")
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {number} needs a role and a content")
        turns.append((str(message["role"]), message["content"]))
    if turns[0][0] != "system":
        return turns
    if len(turns) < 2 or turns[1][0] != "user":
        raise ValueError("a system message must be followed by a user message")
    if not all(isinstance(content, str) for _, content in turns[:2]):
        raise ValueError("a system message and the user message after it must be text")
    return [("user", f"{turns[0][1]}\n\n{turns[1][1]}"), *turns[2:]]


def read_rows(path: Path, encoder: Encoder, max_seq_len: int) -> Rows:
    """The file's conversations, rendered and cut to `max_seq_len` ids, in file order.

    A row that after cutting has fewer than two ids or nothing to train on is left out and counted.

    Raises:
        UsageError: the file is missing, of an unknown kind, or nothing in it can be trained on.
        CorruptError: a line or row is damaged; says which.
    """
    return render_rows(read_messages(path), encoder, max_seq_len, source=str(path))


def render_rows(
    conversations: Iterable[tuple[str, Any]], encoder: Encoder, max_seq_len: int, *, source: str
) -> Rows:
    """`read_rows` of conversations from anywhere, each with its place in the source."""
    return usable_rows(_rendered(conversations, encoder, source), max_seq_len, source=source)


def usable_rows(whole: Iterable[Row], max_seq_len: int, *, source: str) -> Rows:
    """`cut_rows`, which must leave something.

    Raises:
        UsageError: there is nothing to train on.
    """
    rows = cut_rows(whole, max_seq_len)
    if not rows.rows and not rows.left_out:
        raise UsageError(f"{source}: is empty; give a file with one conversation a line")
    if not rows.rows:
        raise UsageError(
            f"{source}: none of its {rows.left_out} conversations has anything to train on within "
            f"max_seq_len {max_seq_len}; an answer must begin before that, see training.max_seq_len"
        )
    return rows


def _rendered(
    conversations: Iterable[tuple[str, Any]], encoder: Encoder, source: str
) -> Iterator[Row]:
    for place, messages in conversations:
        try:
            yield render(messages, encoder)
        except ValueError as error:
            raise CorruptError(f"{source} {place}: {error}") from None


def cut_rows(whole: Iterable[Row], max_seq_len: int) -> Rows:
    """Whole conversations cut to `max_seq_len` ids; those with nothing left to train on counted."""
    rows: list[Row] = []
    lost = unanswered = cut = 0
    for row in whole:
        kept = Row(row.ids[:max_seq_len], row.trained[:max_seq_len])
        if any(kept.trained[1:]):
            rows.append(kept)
            cut += any(row.trained[max_seq_len:])
        elif any(row.trained):
            lost += 1
        else:
            unanswered += 1
    return Rows(rows, lost=lost, unanswered=unanswered, cut=cut)


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows in the order that a run's seed draws."""
    order = np.random.RandomState([seed, _ORDER_STREAM]).permutation(len(rows))
    return [rows[k] for k in order]


def read_messages(path: Path) -> Iterator[tuple[str, Any]]:
    """Each conversation of a file, with its place; nothing of it is checked yet."""
    if path.is_dir():
        raise UsageError(f"data set {path}: is a folder; give a .jsonl or .parquet file")
    if not path.is_file():
        raise UsageError(f"data set {path}: no such file")
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif path.suffix in (".jsonl", ".json", ".ndjson"):
        yield from _read_jsonl(path)
    else:
        raise UsageError(f"data set {path}: unknown kind {path.suffix!r}; use .jsonl or .parquet")


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"line {number}"
            try:
                content = json.loads(line)
            except ValueError as error:
                raise CorruptError(
                    f"{path} {place}: not valid JSON ({error}); repair or remove the line"
                ) from None
            yield place, content["messages"] if _has_messages(content) else content


def _has_messages(content: Any) -> bool:
    return isinstance(content, dict) and "messages" in content


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if "messages" not in file.schema_arrow.names:
            raise UsageError(f"data set {path}: has no column 'messages'")
        number = 0
        for batch in file.iter_batches(columns=["messages"]):
            for messages in batch.column("messages").to_pylist():
                number += 1
                yield f"row {number}", messages
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # without: arrow's word for what is damaged
            raise unreadable(path, error) from None
        raise CorruptError(f"{path}: damaged or not parquet ({error})") from None
