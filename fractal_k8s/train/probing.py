"""Probe rows: rows that no run trains on, whose loss is measured before and after each run.

A run's own losses are of other rows at its end than at its beginning, so their ratio also says how
hard those rows are. The loss of the probe rows is of the same rows both times.
"""

from __future__ import annotations

import torch

from fractal_k8s.models.gpt import GPT
from fractal_k8s.train.batches import Batch


class Probe:
    """The probe rows of a worker as one batch, laid out once."""

    def __init__(self, model: GPT, batch: Batch) -> None:
        self.model = model
        self.batch = batch

    @torch.no_grad()
    def loss(self) -> float:
        """Mean loss over the rows' labels under the model's weights, in nats, not smoothed."""
        total = torch.zeros((), device=self.batch.parts[0].ids.device)
        for part in self.batch.parts:
            total += self.model.loss_sum(part.ids, part.labels, part.places, part.layout)
        return float(total / self.batch.num_labels)
