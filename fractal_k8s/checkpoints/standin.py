"""A tokenizer that was never trained, for models whose weights were not either."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Final

import tiktoken

from fractal_k8s.checkpoints.tokenizer import FILE_NAME, SPECIAL_TOKENS

_BYTES: Final = 256
# any two characters are one piece, which is one id
_PIECES: Final = r"[\s\S]{1,2}"


def stand_in_encoding(vocab_size: int) -> tiktoken.Encoding:
    """Ids for every byte, then for pairs of bytes in order, and nanochat's special tokens.

    With nanochat's 65,536 ids every pair of ASCII characters is one id: a text of 2 n characters
    has n ids.

    Raises:
        ValueError: the vocabulary has no room for the bytes, or more ids than there are pairs.
    """
    num_pairs = vocab_size - _BYTES - len(SPECIAL_TOKENS)
    if not 0 <= num_pairs <= _BYTES**2:
        raise ValueError(f"no tokenizer of bytes and pairs of bytes has {vocab_size:,} ids")
    ranks = {bytes([value]): value for value in range(_BYTES)}
    ranks |= {bytes(divmod(pair, _BYTES)): _BYTES + pair for pair in range(num_pairs)}
    special = {name: len(ranks) + number for number, name in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding(
        "stand-in", pat_str=_PIECES, mergeable_ranks=ranks, special_tokens=special
    )


def save_encoding(encoding: tiktoken.Encoding, folder: Path) -> None:
    """Writes `tokenizer.pkl` as nanochat does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_bytes(pickle.dumps(encoding))
