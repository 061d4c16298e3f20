"""Rows end to end instead of side by side, in a few sizes. A function of the rows alone.

Rows of a question with a short answer are of very different lengths: padded to the longest, more
than half of a batch is padding. Packed, the rows of a micro-batch follow each other as documents
that do not see each other, and logits are computed where a label is.

The bits of a matrix product depend on its shape, and every shape costs a compilation, so lengths
are rounded up to buckets, `BUCKET_RULE`: of positions to a multiple of a sixteenth of the power of
two below (19,000 to 19,456), of labels to a multiple of a quarter (300 to 320, but to no more than
there are positions), of both at least to 16. At least one position is padding; the spare labels are
-1 and lie on the last one, so that no gradient comes from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fractal_k8s.data.conversations import Row
from fractal_k8s.models.attention import Layout, Packed
from fractal_k8s.models.gpt import IGNORED_LABEL

# Changes whenever the shapes of a packed batch do: other shapes, other bits.
BUCKET_RULE: Final = "v1: positions + 1 by 16ths, labels by 4ths of a power of two, at least 16"

_POSITION_PARTS: Final = 16
_LABEL_PARTS: Final = 4
_SMALLEST: Final = 16
# The flash kernel's backward pass splits its sums if there are fewer blocks of heads and documents
# than the 132 multiprocessors of an H200; a d20 has 10 heads.
_FEWEST_DOCUMENTS: Final = 14


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together; the arguments of `GPT.loss_sum`."""

    # (B, T), int64
    ids: Tensor
    # what to predict, int64: at every position, (B * T,), -1 = nothing; or at `places`, (N,)
    labels: Tensor
    # rising indices into the flattened B * T, (N,), int64; None = every position
    places: Tensor | None
    layout: Layout
    # how many labels are not -1
    num_labels: int


def bucket(count: int, parts: int) -> int:
    """The count rounded up to a multiple of the power of two below it / parts, and of 16."""
    step = max(_SMALLEST, (1 << (count.bit_length() - 1)) // parts)
    return -(-count // step) * step


def pack(
    rows: Sequence[Row],
    pad_id: int,
    device: torch.device,
    *,
    longest: int | None = None,
    at_labels: bool = True,
) -> MicroBatch:
    """Rows as the documents of one packed micro-batch, in their order.

    Args:
        longest: most positions of any row of the data; None = of these rows. Micro-batches of a
            run must have the same.
        at_labels: logits where a label is; False = at every position.
    """
    parts = [shifted(row) for row in rows]
    lengths = [len(ids) for ids, _ in parts]
    total = bucket(sum(lengths) + 1, _POSITION_PARTS)
    spare = total - sum(lengths)
    ids = torch.cat([*(ids for ids, _ in parts), torch.full((spare,), pad_id)])[None].to(device)
    nothing = torch.full((spare,), IGNORED_LABEL)
    labels = torch.cat([*(labels for _, labels in parts), nothing])
    layout = _layout(lengths, spare, max(longest or 0, *lengths, _SMALLEST), device)
    count = int((labels != IGNORED_LABEL).sum())
    if not at_labels:
        return MicroBatch(ids, labels.to(device), None, layout, count)
    places, labels = _at_labels(labels)
    return MicroBatch(ids, labels.to(device), places.to(device), layout, count)


def shifted(row: Row) -> tuple[Tensor, Tensor]:
    """A row's inputs and labels, int64, one shorter than it: position t predicts id t + 1."""
    ids = torch.tensor(row.ids, dtype=torch.int64)
    return ids[:-1], torch.where(torch.tensor(row.trained[1:]), ids[1:], IGNORED_LABEL)


def _layout(lengths: list[int], spare: int, longest: int, device: torch.device) -> Packed:
    """Documents of these lengths and `spare` positions of padding, which are documents as well.

    Padding is a sixteenth of the rows at most, so of their number a sixteenth is room for it.
    """
    positions = [torch.arange(length) for length in lengths]
    positions.append(torch.zeros(spare, dtype=torch.int64))
    padding = [min(longest, spare - start) for start in range(0, spare, longest)]
    number = max(_FEWEST_DOCUMENTS, len(lengths) + len(lengths) // _POSITION_PARTS + 1)
    documents = [*lengths, *padding]
    documents += [0] * (number - len(documents))
    offsets = torch.zeros(number + 1, dtype=torch.int32)
    offsets[1:] = torch.tensor(documents).cumsum(0)
    return Packed(torch.cat(positions).to(device), offsets.to(device), longest)


def _at_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where there is a label, and the labels there, filled up to a bucket.

    Args:
        labels: at every position, (T,); the last one is -1.
    """
    found = (labels != IGNORED_LABEL).nonzero().squeeze(1)
    size = min(bucket(max(len(found), 1), _LABEL_PARTS), len(labels))
    places = torch.full((size,), len(labels) - 1)
    places[: len(found)] = found
    return places, labels[places]
