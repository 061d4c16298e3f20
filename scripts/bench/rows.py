"""Rows as long as DocVQA's, and a checkpoint that was never trained to train them with.

DocVQA's rows have 393 ids on average and a long tail, cut at 1,024; 5 to 7 of them are trained on.
Lengths here are quantiles of a log-normal distribution cut there, in a random order, so that a
batch of any size has the mean of the whole.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np

from fractal_k8s.checkpoints.save import save_checkpoint
from fractal_k8s.checkpoints.standin import save_encoding, stand_in_encoding
from fractal_k8s.data.conversations import Row
from fractal_k8s.models.init import config_of_depth, random_weights
from fractal_k8s.train.trial import VOCABULARY

LONGEST = 1024
# of the logarithm of a length: chosen so that the mean, after cutting, is 393
_MIDDLE, _SPREAD = 5.817, 0.6
_LABELS = (5, 6, 7)
# ids of a rendered question and answer that are neither: who speaks, and where it ends
_FRAME = 5


def row_lengths(count: int, longest: int = LONGEST, seed: int = 0) -> list[int]:
    """Ids of each of `count` rows; other maxima than 1,024 scale the rows."""
    normal = NormalDist(_MIDDLE, _SPREAD)
    quantiles = [math.exp(normal.inv_cdf((k + 0.5) / count)) for k in range(count)]
    shortest = _FRAME + max(_LABELS)
    cut = [max(shortest, round(min(q, LONGEST) * longest / LONGEST)) for q in quantiles]
    return [cut[k] for k in np.random.RandomState(seed).permutation(count)]


def sample_rows(count: int, longest: int = LONGEST, vocab_size: int = VOCABULARY) -> list[Row]:
    """Rows of random ids; the last few of each are trained on."""
    random = np.random.RandomState(1)
    rows = []
    for number, length in enumerate(row_lengths(count, longest)):
        labels = _LABELS[number % len(_LABELS)]
        ids = random.randint(0, vocab_size, size=length).tolist()
        rows.append(Row(tuple(ids), (False,) * (length - labels) + (True,) * labels))
    return rows


def write_conversations(path: Path, count: int, longest: int = LONGEST) -> None:
    """Questions and answers of random letters; with the stand-in tokenizer as long as DocVQA's.

    Two letters are one id there.
    """
    random = np.random.RandomState(1)

    def text(ids: int) -> str:
        return "".join(chr(97 + letter) for letter in random.randint(0, 26, size=2 * ids))

    with path.open("w") as file:
        for number, length in enumerate(row_lengths(count, longest)):
            answer = _LABELS[number % len(_LABELS)] - 1  # and the id that ends it
            messages = [
                {"role": "user", "content": text(length - _FRAME - answer)},
                {"role": "assistant", "content": text(answer)},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def write_checkpoint(folder: Path, depth: int) -> None:
    """A nanochat model of that depth with random weights and the stand-in tokenizer."""
    config = config_of_depth(depth, vocab_size=VOCABULARY)
    tokenizer = folder / "tokenizer"
    save_encoding(stand_in_encoding(VOCABULARY), tokenizer)
    save_checkpoint(
        folder,
        0,
        random_weights(config, seed=0),
        {"model_config": {name: getattr(config, name) for name in config.field_names()}},
        tokenizer,
    )
