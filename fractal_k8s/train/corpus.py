"""What a pretraining reads: tokenizer, text and conversations, checked before any step is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from fractal_k8s.checkpoints.bpe import save_encoding, token_bytes, train_encoding
from fractal_k8s.checkpoints.tokenizer import Tokenizer
from fractal_k8s.data import forms, text
from fractal_k8s.data.conversations import Row, read_messages
from fractal_k8s.data.named import named_set, row_count
from fractal_k8s.errors import UsageError
from fractal_k8s.train.materials import read_dataset
from fractal_k8s.train.recipe import Recipe

Tell = Callable[[str], None]

# a tokenizer learns from this much text, as in nanochat's speedrun
_TOKENIZER_CHARACTERS: Final = 2_000_000_000
_HELD_OUT_DOCUMENTS: Final = 200
_HELD_OUT_ROWS: Final = 200
# made-up documents of a text named `forms` without a number
_DEFAULT_DOCUMENTS: Final = 20_000


@dataclass(frozen=True)
class Material:
    """What one pretraining reads, checked before anything is written."""

    tokenizer_folder: Path
    tokenizer: Tokenizer
    # UTF-8 bytes of each token, int32, (vocab,)
    token_bytes: Tensor
    texts: Callable[[], Iterator[str]]
    held_out: list[Row]
    conversations: list[Row]
    held_out_conversations: list[Row]


def read_material(recipe: Recipe, folder: Path, tell: Tell) -> Material:
    """Trains the tokenizer and reads what is held out and the conversations."""
    source = _text_source(recipe.text)
    if recipe.conversations is not None and named_set(recipe.conversations) is None:
        # a file that is not there is refused now, not after the tokenizer was trained
        next(read_messages(Path(recipe.conversations).expanduser()), None)
    held_out = _some(text.held_out_part(source()), _HELD_OUT_DOCUMENTS)
    if not held_out:
        raise UsageError(
            f"text {recipe.text}: has fewer than {text.HELD_OUT_EVERY} documents, of which one is "
            "held out to measure with; give more text"
        )
    began = time.perf_counter()
    encoding = train_encoding(
        text.training_part(source()), recipe.vocab_size, max_characters=_TOKENIZER_CHARACTERS
    )
    tokenizer = save_encoding(encoding, folder)
    tell(f"tokenizer  {tokenizer.vocab_size:,} tokens  {time.perf_counter() - began:.1f} s")
    sizes = token_bytes(encoding)
    rows = [_text_row(document, tokenizer, sizes, recipe.sequence_len) for document in held_out]
    trained, kept = _split_conversations(recipe, tokenizer, tell)
    return Material(
        folder,
        tokenizer,
        sizes,
        lambda: text.training_part(source()),
        [row for row in rows if any(row.trained[1:])],
        trained,
        kept,
    )


def _text_source(reference: str) -> Callable[[], Iterator[str]]:
    """A function that begins to read the text, as often as it is called."""
    if reference.partition(":")[0] == "forms":
        count = row_count(reference, _DEFAULT_DOCUMENTS)
        return lambda: forms.running_text(count)
    path = Path(reference).expanduser()
    text.text_files(path)  # refuses what is not there at once
    return lambda: text.documents(path)


def _some(texts: Iterator[str], count: int) -> list[str]:
    return [document for _, document in zip(range(count), texts, strict=False)]


def _text_row(document: str, tokenizer: Tokenizer, sizes: Tensor, length: int) -> Row:
    """The beginning of a document as a row whose labels are all tokens that have bytes."""
    ids = (tokenizer.special["<|bos|>"], *tokenizer.encode(document))[: length + 1]
    return Row(ids, tuple(bool(sizes[token]) for token in ids))


def _split_conversations(
    recipe: Recipe, tokenizer: Tokenizer, tell: Tell
) -> tuple[list[Row], list[Row]]:
    """Conversations to train on, shuffled by the seed, and every 20th to measure with."""
    if recipe.conversations is None:
        return [], []
    found = read_dataset(recipe.conversations, tokenizer, recipe.sequence_len)
    rows = found.rows
    if found.left_out:
        tell(
            f"left out   {found.left_out:,} of {len(rows) + found.left_out:,} conversations, whose "
            f"answers do not begin within the {recipe.sequence_len} positions of a row"
        )
    kept = rows[text.HELD_OUT_EVERY - 1 :: text.HELD_OUT_EVERY]
    trained = [row for k, row in enumerate(rows) if (k + 1) % text.HELD_OUT_EVERY]
    if not kept or len(trained) < recipe.batch_size:
        needed = max(recipe.batch_size + 1, text.HELD_OUT_EVERY)
        raise UsageError(
            f"conversations {recipe.conversations}: {len(rows)} of them fit, at least "
            f"{needed + needed // text.HELD_OUT_EVERY} are needed for a step of "
            f"{recipe.batch_size} and one to measure with"
        )
    order = np.random.RandomState(recipe.seed).permutation(len(trained))
    return [trained[k] for k in order], kept[:_HELD_OUT_ROWS]
