"""Rows into batches: which rows, cut and padded how. A function of the data and the step alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_k8s.data.conversations import Row
from fractal_k8s.models.gpt import IGNORED_LABEL


@dataclass(frozen=True)
class Batch:
    """Inputs and labels, both (B, T) int64; labels are -1 where nothing is trained."""

    ids: Tensor
    labels: Tensor
    # positions that are not padding, and labels that are trained
    num_tokens: int
    num_labels: int
    # sha256 of the rows, bytes
    digest: bytes


class Batches:
    """Batch k holds rows k * size ... of the file, wrapped around at its end.

    A batch is padded on the right to its longest row with `<|assistant_end|>`; attention is causal
    and padding has no label, so padding changes no loss.
    """

    def __init__(self, rows: list[Row], size: int, pad_id: int, device: torch.device) -> None:
        self.rows = rows
        self.size = size
        self.pad_id = pad_id
        self.device = device
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
        width = max(len(row.ids) for row in rows) - 1
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        labels = torch.full((len(rows), width), IGNORED_LABEL, dtype=torch.int64)
        digest = hashlib.sha256()
        for number, row in enumerate(rows):
            length = len(row.ids) - 1
            tokens = torch.tensor(row.ids, dtype=torch.int64)
            mask = torch.tensor(row.trained[1:])
            ids[number, :length] = tokens[:-1]
            labels[number, :length] = torch.where(mask, tokens[1:], IGNORED_LABEL)
            digest.update(tokens.numpy().tobytes() + mask.numpy().tobytes())
        return Batch(
            ids.to(self.device),
            labels.to(self.device),
            num_tokens=sum(len(row.ids) - 1 for row in rows),
            num_labels=int((labels != IGNORED_LABEL).sum()),
            digest=digest.digest(),
        )

    def data_hash(self, steps: int) -> str:
        """sha256 over the batches of the first `steps` steps, in order."""
        total = hashlib.sha256()
        for step in range(steps):
            total.update(self[step].digest)
        return total.hexdigest()
