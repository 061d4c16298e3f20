"""What a pretraining makes, as plain data. Imports no torch: `plan` reads recipes too."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fractal_k8s.checkpoints.cache import cache_folder
from fractal_k8s.errors import UsageError

SCHEME: Final = "pretrained:"

# raised when the same recipe would give another model
_VERSION: Final = 1


@dataclass(frozen=True)
class Recipe:
    """Text to tokenizer to base model to chat model. The depth decides the model's width.

    Steps of the base stage are tokens / (batch_size * sequence_len), those of the second stage are
    whole passes over the conversations.
    """

    # a file or folder, or `forms`: made up
    text: str
    # a file, or a data set that is made up (data.forms); None = the base model is the result
    conversations: str | None
    depth: int
    # tokens of the vocabulary, special ones included
    vocab_size: int = 4_096
    # positions of a row; the rotary tables reach ten times as far
    sequence_len: int = 256
    # rows of a step
    batch_size: int = 16
    # tokens of the base stage
    tokens: int = 1_000_000
    # passes over the conversations
    epochs: int = 1
    seed: int = 42

    @property
    def base_steps(self) -> int:
        return max(1, self.tokens // (self.batch_size * self.sequence_len))

    def key(self) -> str:
        """Ten hex digits that stand for the recipe."""
        text = json.dumps([_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


# models that a sweep can ask for by name, made once and kept in the cache
RECIPES: Final[dict[str, Recipe]] = {
    "tiny": Recipe(
        text="forms",
        conversations="statements:1600",
        depth=2,
        vocab_size=1_024,
        sequence_len=192,
        batch_size=8,
        tokens=600_000,
    ),
}


def recipe_named(name: str) -> Recipe:
    """The recipe behind `pretrained:NAME`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in RECIPES:
        raise UsageError(
            f"no pretrained model {name!r}; known: {', '.join(RECIPES)}; "
            "any other model is made with: fractal-k8s pretrain"
        )
    return RECIPES[name]


def cached_folder(name: str) -> Path:
    """Where the cache keeps the model of that name, whether it is there or not."""
    return cache_folder() / "pretrained" / f"{name}-{recipe_named(name).key()}"


def pretrained_folder(name: str) -> Path:
    """Where the model of that name is.

    Raises:
        UsageError: this machine's cache does not have it.
    """
    folder = cached_folder(name)
    if not folder.is_dir():
        raise UsageError(
            f"the model {SCHEME}{name} is not in this machine's cache ({folder}); copy that folder "
            "from the machine that launched the sweep, or make it with: "
            f"fractal-k8s pretrain --preset {name}"
        )
    return folder
