"""How a batch lies in memory, and causal attention over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Padded:
    """Rows side by side, (B, T), each from position 0 on, padded on the right.

    Attention is causal and what is padded has no label, so padding changes no loss.
    """


Layout = Padded


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Causal attention within each row: (B, T, heads, head_dim) each -> the same of q.

    k and v may have fewer heads, each of which serves several of q.
    """
    attended = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=True,
        enable_gqa=k.size(2) != q.size(2),
    )
    return attended.transpose(1, 2)


def positions_of(ids: Tensor, layout: Layout) -> slice | Tensor:
    """The place of every id in its row, as an index into the rotary tables."""
    return slice(0, ids.size(1))
