"""Rendered conversations kept beside their file, so that a worker need not make them again.

`train.jsonl` may have `train.tokens-<12 digits>.npz` beside it, the digits being the tokenizer's
sha256. It holds whole rows, uncut, and the sha256 of the file that they were rendered from: used
only where both are the same, it gives the very rows that rendering gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from fractal_k8s import sealed
from fractal_k8s.data.conversations import Encoder, Row, read_messages, render
from fractal_k8s.errors import CorruptError

# raised when the same conversation would be rendered to other ids
_RENDERING: Final = 1


def tokens_name(path: Path, tokenizer_sha256: str) -> str:
    """Name of the file with the rows of another one, as a tokenizer makes them."""
    return f"{path.stem}.tokens-{tokenizer_sha256[:12]}.npz"


def save_tokens(path: Path, encoder: Encoder, tokenizer_sha256: str, target: Path) -> int:
    """Renders every conversation of a file into another one; returns how many there are.

    Raises:
        CorruptError: a conversation is none; says which.
    """
    ids: list[np.ndarray] = []
    trained: list[np.ndarray] = []
    for place, messages in read_messages(path):
        try:
            row = render(messages, encoder)
        except ValueError as error:
            raise CorruptError(f"{path} {place}: {error}") from None
        ids.append(np.array(row.ids, dtype=np.int32))
        trained.append(np.array(row.trained, dtype=bool))
    empty = np.zeros(0, dtype=np.int32)
    with target.open("wb") as file:
        np.savez(
            file,
            rendering=np.array(_RENDERING),
            source=np.array(sealed.file_sha256(path)),
            tokenizer=np.array(tokenizer_sha256),
            lengths=np.array([len(row) for row in ids], dtype=np.int64),
            ids=np.concatenate([empty, *ids]),
            trained=np.packbits(np.concatenate([empty.astype(bool), *trained])),
        )
    return len(ids)


def load_tokens(path: Path, tokenizer_sha256: str) -> Iterator[Row] | None:
    """The rows of a file, whole, if they are kept beside it; else None.

    What is damaged, of another release or of other contents counts as not kept, and so does what
    the seal of its folder does not name with the same sum.
    """
    kept = path.with_name(tokens_name(path, tokenizer_sha256))
    if not kept.is_file():
        return None
    try:
        seal = sealed.read_seal(kept.parent)
        if seal is None or seal.files.get(kept.name) != sealed.facts_of(kept):
            return None
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if int(archive["rendering"]) != _RENDERING:
                return None
            if str(archive["tokenizer"]) != tokenizer_sha256:
                return None
            if str(archive["source"]) != sealed.file_sha256(path):
                return None
            lengths, ids = archive["lengths"], archive["ids"]
            trained = np.unpackbits(archive["trained"], count=int(lengths.sum())).astype(bool)
    except Exception:  # a damaged archive can raise almost anything, and nothing is lost
        return None
    if len(ids) != len(trained):
        return None
    return _rows(lengths, ids, trained)


def _rows(lengths: np.ndarray, ids: np.ndarray, trained: np.ndarray) -> Iterator[Row]:
    ends = np.cumsum(lengths)
    for begin, end in itertools.pairwise([0, *ends.tolist()]):
        yield Row(tuple(ids[begin:end].tolist()), tuple(trained[begin:end].tolist()))
