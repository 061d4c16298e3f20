"""Which rows a step trains on, and which of them are whose when several processes share it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

from fractal_k8s.data.conversations import Row


class Loader:
    """Steps of `size` rows each, one after another, from the first row again after the last.

    A step is the same rows whatever the number of ranks; each takes its part of them.

    Args:
        rows: in the order of the run.
        size: rows of a step, of all ranks together; a multiple of `ranks`.
    """

    def __init__(self, rows: Sequence[Row], size: int, *, rank: int = 0, ranks: int = 1) -> None:
        self._rows = rows
        self._size = size
        self._labels = [sum(row.trained[1:]) for row in rows]
        # the rank's rows, step after step: batches of size / ranks of them are its parts
        self.share: Sequence[Row] = rows if ranks == 1 else _Share(rows, size, rank, ranks)
        self.share_size = size // ranks

    def __len__(self) -> int:
        return len(self._rows)

    def places(self, step: int) -> list[int]:
        """Indices of the rows of a step."""
        return [(step * self._size + k) % len(self._rows) for k in range(self._size)]

    def rows_of(self, step: int) -> list[Row]:
        """The rows of a step, of all ranks."""
        return [self._rows[place] for place in self.places(step)]

    def last_rows(self, count: int) -> list[Row]:
        """The last rows of the run's order, as many as there are."""
        return list(self._rows[-count:]) if count else []

    def num_labels(self, step: int) -> int:
        """How many labels a step trains on, over all ranks."""
        return sum(self._labels[place] for place in self.places(step))

    def state(self, step: int) -> dict[str, int]:
        """Where the rows stand before a step, for a checkpoint."""
        epoch, next_row = divmod(step * self._size, len(self._rows))
        return {"rows": len(self._rows), "epoch": epoch, "next_row": next_row}


class _Share(Sequence[Row]):
    """A rank's rows of every step, laid one step after another until the steps repeat."""

    def __init__(self, rows: Sequence[Row], size: int, rank: int, ranks: int) -> None:
        self._rows = rows
        self._size = size
        self._part = size // ranks
        self._first = rank * self._part
        self._steps = len(rows) // math.gcd(len(rows), size)

    def __len__(self) -> int:
        return self._steps * self._part

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        step, k = divmod(place, self._part)
        return self._rows[(step * self._size + self._first + k) % len(self._rows)]
