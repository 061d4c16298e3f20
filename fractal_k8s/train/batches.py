"""Rows into batches: which rows, laid out how. A function of the data and the step alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fractal_k8s.data.conversations import Row
from fractal_k8s.models.attention import Padded
from fractal_k8s.models.gpt import IGNORED_LABEL
from fractal_k8s.train.packing import MicroBatch as MicroBatch
from fractal_k8s.train.packing import pack, shifted


@dataclass(frozen=True)
class Batch:
    """The rows of one step, in one or several parts whose gradients are added up."""

    parts: tuple[MicroBatch, ...]
    # positions that are not padding, and labels that are trained, over all parts
    num_tokens: int
    num_labels: int
    # sha256 of the rows, bytes
    digest: bytes


class Batches:
    """Batch k holds rows k * size ... of the file, wrapped around at its end.

    Args:
        size: rows of a step.
        pad_id: fills what is no row; nanochat takes `<|assistant_end|>`.
        part_size: rows that go through the model together; must divide `size`.
        packing: the rows of a part end to end, or side by side, padded to the longest of them.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        size: int,
        pad_id: int,
        device: torch.device,
        *,
        part_size: int | None = None,
        packing: Literal["packed", "padded"] = "packed",
    ) -> None:
        self.rows = rows
        self.size = size
        self.part_size = part_size or size
        self.pad_id = pad_id
        self.device = device
        self.packing = packing
        self.longest = max(len(row.ids) for row in rows) - 1
        self.period = len(rows) // math.gcd(len(rows), size)
        self._made: dict[int, Batch] = {}

    def __getitem__(self, step: int) -> Batch:
        key = step % self.period
        if key not in self._made:
            start = key * self.size
            chosen = [self.rows[(start + k) % len(self.rows)] for k in range(self.size)]
            self._made[key] = self._collate(chosen)
        return self._made[key]

    def _collate(self, rows: list[Row]) -> Batch:
        parts = tuple(
            self._lay_out(rows[start : start + self.part_size])
            for start in range(0, len(rows), self.part_size)
        )
        return Batch(
            parts,
            num_tokens=sum(len(row.ids) - 1 for row in rows),
            num_labels=sum(part.num_labels for part in parts),
            digest=digest_of(rows),
        )

    def _lay_out(self, rows: list[Row]) -> MicroBatch:
        if self.packing == "packed":
            return pack(rows, self.pad_id, self.device, longest=self.longest)
        return pad(rows, self.pad_id, self.device)

    def data_hash(self, steps: int) -> str:
        """sha256 over the batches of the first `steps` steps, in order."""
        total = hashlib.sha256()
        for step in range(steps):
            total.update(self[step].digest)
        return total.hexdigest()


def digest_of(rows: Sequence[Row]) -> bytes:
    """sha256 over the ids of rows and what of them is trained, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(torch.tensor(row.ids, dtype=torch.int64).numpy().tobytes())
        digest.update(torch.tensor(row.trained[1:]).numpy().tobytes())
    return digest.digest()


def pad(rows: Sequence[Row], pad_id: int, device: torch.device) -> MicroBatch:
    """Rows side by side with a label or -1 at every position, as nanochat lays them out."""
    width = max(len(row.ids) for row in rows) - 1
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED_LABEL, dtype=torch.int64)
    for number, row in enumerate(rows):
        length = len(row.ids) - 1
        ids[number, :length], labels[number, :length] = shifted(row)
    count = int((labels != IGNORED_LABEL).sum())
    return MicroBatch(ids.to(device), labels.flatten().to(device), None, Padded(), count)
