"""Data sets that a sweep names and that are made, not read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fractal_k8s.data import forms
from fractal_k8s.errors import UsageError

_DEFAULT_ROWS: Final = 2_000
_MAX_ROWS: Final = 1_000_000

_SETS: Final[dict[str, Callable[[int], Iterator[forms.Messages]]]] = {
    "forms": forms.forms,
    "statements": forms.statements,
}
NAMES: Final = tuple(_SETS)


@dataclass(frozen=True)
class NamedSet:
    """A data set that is made and not read: `forms`, `forms:500`, `statements`."""

    name: str
    rows: int

    def messages(self) -> Iterator[forms.Messages]:
        return _SETS[self.name](self.rows)

    def digest(self) -> str:
        """sha256 over all its conversations, hex."""
        total = hashlib.sha256()
        for messages in self.messages():
            total.update(json.dumps(messages).encode())
        return total.hexdigest()


def named_set(reference: str) -> NamedSet | None:
    """The data set NAME or NAME:ROWS; None if it is none of ours.

    Raises:
        UsageError: what follows the colon is no number of rows.
    """
    name = reference.partition(":")[0]
    return NamedSet(name, row_count(reference, _DEFAULT_ROWS)) if name in _SETS else None


def row_count(reference: str, default: int) -> int:
    """The number behind the colon of NAME:NUMBER.

    Raises:
        UsageError: there is something else.
    """
    name, colon, text = reference.partition(":")
    if not colon:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_ROWS:
        raise UsageError(
            f"{reference!r}: {text!r} is no number of rows; give {name}, or {name}:ROWS "
            f"with 1 to {_MAX_ROWS:,} rows"
        )
    return int(text)
