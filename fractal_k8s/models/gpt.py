"""nanochat's GPT (karpathy/nanochat at 8f979a8, nanochat/gpt.py), compatible weight for weight.

What is unlike a textbook transformer:

- RMSNorm without weights, right after the embedding too, and over each head's q and k.
- Rotary embedding turns by minus theta, pairs (k, k + head_dim / 2), and comes before the q/k norm.
  Its tables are bfloat16 whatever the dtype of the rest.
- relu squared in the MLP, no biases, untied head, logits capped at +-15 by tanh.
- The vocabulary is padded to a multiple of 64; the padding's logits are cut off.

The residual stream has the compute dtype whatever the torch version: the norm is computed in
float32 and cast back, and no autocast is used, whose op lists differ between releases.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fractal_k8s.models.attention import Layout, Padded, attend, positions_of
from fractal_k8s.models.gather import gather_at

SOFTCAP: Final = 15.0
_ROPE_BASE: Final = 10_000.0
_ROPE_FACTOR: Final = 10  # tables reach this many times sequence_len
_VOCAB_MULTIPLE: Final = 64
_NORM_EPS: Final = 1.1920928955078125e-07  # float32's machine epsilon, also under bfloat16
IGNORED_LABEL: Final = -1
_PADDED: Final = Padded()


@dataclass(frozen=True)
class GPTConfig:
    """Shape of the model; the field names are the keys of a checkpoint's `model_config`."""

    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

    @property
    def max_positions(self) -> int:
        return self.sequence_len * _ROPE_FACTOR

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def problem(self) -> str | None:
        """Why no model can have this shape, or None."""
        if any(getattr(self, name) < 1 for name in self.field_names()):
            return "every size must be at least 1"
        if self.n_embd % self.n_head or self.head_dim % 2:
            return f"n_embd {self.n_embd} is not n_head {self.n_head} times an even number"
        if self.n_head % self.n_kv_head:
            return f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}"
        return None


def rms_norm(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, computed in float32, in x's dtype."""
    return F.rms_norm(x.float(), (x.size(-1),), eps=_NORM_EPS).to(x.dtype)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """The product in x's dtype; the layer's weights stay in theirs."""
    return F.linear(x, layer.weight.to(x.dtype))


def rotary_tables(positions: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, bfloat16, each of shape (positions, 1, head_dim / 2)."""
    channel = torch.arange(0, head_dim, 2, dtype=torch.float32)
    frequency = 1.0 / (_ROPE_BASE ** (channel / head_dim))
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), frequency)[:, None, :]
    return angle.cos().bfloat16(), angle.sin().bfloat16()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, T, heads, head_dim) with tables of shape (T, 1, head_dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query, key = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.c_q = nn.Linear(config.n_embd, query, bias=False)
        self.c_k = nn.Linear(config.n_embd, key, bias=False)
        self.c_v = nn.Linear(config.n_embd, key, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attends to what: (B, T, n_embd) -> q, k, v, each (B, T, heads, head_dim)."""
        q, k, v = (
            linear(x, layer).view(*x.shape[:2], -1, self.head_dim)
            for layer in (self.c_q, self.c_k, self.c_v)
        )
        q, k = (rms_norm(rotate(part, cos, sin)) for part in (q, k))
        return q, k, v

    def merge(self, attended: Tensor) -> Tensor:
        """The heads' results, (B, T, heads, head_dim) -> (B, T, n_embd)."""
        return linear(attended.flatten(2), self.c_proj)


class FeedForward(nn.Module):
    """Two layers with relu squared between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, n_embd) -> (B, T, n_embd)."""
        return linear(F.relu(linear(x, self.c_fc)).square(), self.c_proj)


class Block(nn.Module):
    """Attention and MLP, each on the normalised residual stream.

    What lies before and after the attention itself are functions of their own, because they can be
    compiled whatever the layout.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        q, k, v = self.before(x, cos, sin)
        return self.after(x, attend(q, k, v, layout))

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream's q, k and v."""
        return self.attn.project(rms_norm(x), cos, sin)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream with attention and MLP added."""
        x = x + self.attn.merge(attended)
        out: Tensor = x + self.mlp(rms_norm(x))
        return out


class GPT(nn.Module):
    """The whole model; the names of its parameters are those in nanochat's checkpoints."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        config: GPTConfig,
        *,
        compute_dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
    ) -> None:
        """A model with torch's own initial weights.

        Args:
            compute_dtype: dtype of activations and products.
            gradient_checkpointing: keep of each block its input only, and compute the rest again
                in the backward pass. Changes no bit.
        """
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        cos, sin = rotary_tables(config.max_positions, config.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @classmethod
    def from_weights(
        cls,
        config: GPTConfig,
        weights: dict[str, Tensor],
        *,
        compute_dtype: torch.dtype,
        gradient_checkpointing: bool = False,
    ) -> GPT:
        """A model around given weights, in their own dtypes, without initialising any.

        Raises:
            ValueError: a tensor is missing, left over, or of another shape.
        """
        with torch.device("meta"):
            model = cls(
                config,
                compute_dtype=compute_dtype,
                gradient_checkpointing=gradient_checkpointing,
            )
        if reason := misfit(model.state_dict(), weights):
            raise ValueError(reason)
        model.load_state_dict(weights, strict=True, assign=True)
        model.cos, model.sin = rotary_tables(config.max_positions, config.head_dim)
        return model

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.transformer["h"]
        assert isinstance(blocks, nn.ModuleList)  # as the constructor made it
        return blocks

    def hidden(self, ids: Tensor, layout: Layout = _PADDED) -> Tensor:
        """Normalised final residual stream of ids (B, T), shape (B, T, n_embd), compute dtype."""
        length = ids.size(1) if isinstance(layout, Padded) else layout.longest
        if length > self.config.max_positions:
            raise ValueError(
                f"{length} positions, the rotary tables have {self.config.max_positions}"
            )
        places = positions_of(ids, layout)
        cos, sin = self.cos[places], self.sin[places]
        x = rms_norm(self.transformer["wte"](ids).to(self.compute_dtype))
        for block in self.blocks:
            x = self._through(block, x, cos, sin, layout)
        return rms_norm(x)

    def _through(self, block: nn.Module, *arguments: Tensor | Layout) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(  # nothing is drawn at random in a block
                block, *arguments, use_reentrant=False, preserve_rng_state=False
            )
        else:
            out = block(*arguments)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits capped at +-15. (..., n_embd) -> (..., vocab_size)."""
        raw = linear(hidden, self.lm_head)[..., : self.config.vocab_size].float()
        return SOFTCAP * torch.tanh(raw / SOFTCAP)

    def forward(self, ids: Tensor, layout: Layout = _PADDED) -> Tensor:
        """Logits of ids (B, T): shape (B, T, vocab_size), float32."""
        return self.logits(self.hidden(ids, layout))

    def loss_sum(
        self,
        ids: Tensor,
        labels: Tensor,
        places: Tensor | None = None,
        layout: Layout = _PADDED,
        *,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross-entropy summed over the labels, in nats, a float32 scalar.

        Without `places` logits are computed at every position, as nanochat does. With them, where
        there is a label and nowhere else: of questions with short answers that is half a percent
        of the positions. The two agree to rounding, not in every bit.

        Args:
            ids: (B, T), int64.
            labels: the ids to predict, int64: (B * T,) with -1 where nothing is, or (N,).
            places: where the N labels are, as rising indices into the flattened B * T, (N,),
                int64. The last may occur again, with label -1, to fill a batch up.
        """
        hidden = self.hidden(ids, layout).flatten(0, 1)
        return F.cross_entropy(
            self.logits(hidden if places is None else gather_at(hidden, places)),
            labels,
            ignore_index=IGNORED_LABEL,
            reduction="sum",
            label_smoothing=label_smoothing,
        )


def misfit(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """How `found` differs from the tensors a model needs, or None if it does not."""
    if missing := sorted(expected.keys() - found.keys()):
        return f"lacks {_some(missing)}"
    if unknown := sorted(found.keys() - expected.keys()):
        return f"has {_some(unknown)}, which nanochat 8f979a8 does not have"
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            return f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
    return None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def config_from_dict(raw: dict[str, Any]) -> GPTConfig:
    """The config in a checkpoint's `model_config`.

    Raises:
        ValueError: a key is missing, unknown or not a whole number, or no model has that shape.
    """
    names = GPTConfig.field_names()
    if missing := [name for name in names if name not in raw]:
        raise ValueError(f"lacks {', '.join(missing)}")
    if unknown := sorted(set(raw) - set(names)):
        raise ValueError(f"has unknown keys {', '.join(unknown)}")
    if wrong := [name for name in names if type(raw[name]) is not int]:
        raise ValueError(f"{wrong[0]} is {raw[wrong[0]]!r}, not a whole number")
    config = GPTConfig(**raw)
    if reason := config.problem():
        raise ValueError(reason)
    return config
