"""Trains nanochat's tokenizer (karpathy/nanochat at 8f979a8, tokenizer.py and tok_train.py)."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import tiktoken
import torch
from torch import Tensor

from fractal_k8s.checkpoints.tokenizer import BYTES_FILE_NAME, FILE_NAME, SPECIAL_TOKENS, Tokenizer
from fractal_k8s.errors import UsageError

MIN_VOCAB_SIZE: Final = 256 + len(SPECIAL_TOKENS)
# as GPT-4's, but digits go in pairs: a small vocabulary has no room for a thousand triples
_SPLIT_PATTERN: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# a long document counts with its beginning only
_DOCUMENT_CHARACTERS: Final = 10_000


def train_encoding(
    texts: Iterable[str], vocab_size: int, *, max_characters: int | None = None
) -> tiktoken.Encoding:
    """A byte-pair encoding of the texts, special tokens included in its size.

    Ties between pairs are broken by their ids, so the same texts give the same encoding.

    Args:
        max_characters: stop reading after so many; None = read all.

    Raises:
        UsageError: the texts have too few different pieces for that many tokens.
    """
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(
        _cut(texts, max_characters), vocab_size - len(SPECIAL_TOKENS), pattern=_SPLIT_PATTERN
    )
    merged = sorted(trainer.get_mergeable_ranks(), key=lambda pair: int(pair[1]))
    ranks = {bytes(token): rank for token, rank in merged}
    size = len(ranks) + len(SPECIAL_TOKENS)
    if size < vocab_size:
        raise UsageError(
            f"the text gives a vocabulary of {size:,} tokens, {vocab_size:,} were asked for; "
            f"give more text, or --vocab {size}"
        )
    special = {name: len(ranks) + place for place, name in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding(
        "rustbpe", pat_str=_SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def _cut(texts: Iterable[str], max_characters: int | None) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text[:_DOCUMENT_CHARACTERS]
        seen += min(len(text), _DOCUMENT_CHARACTERS)
        if max_characters is not None and seen >= max_characters:
            return


def token_bytes(encoding: tiktoken.Encoding) -> Tensor:
    """UTF-8 bytes of each token's text, 0 for special tokens, int32, shape (vocab,).

    A token that is half a character counts as the replacement character it decodes to, as in
    nanochat's own table.
    """
    special = {encoding.encode_single_token(name) for name in SPECIAL_TOKENS}
    sizes = [
        0 if token in special else len(encoding.decode([token]).encode())
        for token in range(encoding.n_vocab)
    ]
    return torch.tensor(sizes, dtype=torch.int32)


def save_encoding(encoding: tiktoken.Encoding, folder: Path) -> Tokenizer:
    """Writes `tokenizer.pkl` and `token_bytes.pt`, the two files of nanochat's tokenizer folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_bytes(pickle.dumps(encoding))
    torch.save(token_bytes(encoding), folder / BYTES_FILE_NAME)
    return Tokenizer(encoding)
