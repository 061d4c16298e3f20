"""How much memory a worker needs, roughly. Formulas, and no library that trains.

gpt, bytes, with P_g parameters in group g, T the trained ones, M positions that go through the
model together, N of them with logits, L layers, n channels, V padded vocabulary, s bytes of an
activation:

    weights      4 * sum P_g                          float32 masters
    pristine     4 * T                                the copy that resets a point
    gradients    4 * T
    optimizer    8 * (AdamW's) + 4 * (Muon's)         two moments, or one momentum
    cast         s * (matrices + unembedding)         if s < 4: weights in the dtype of the products
    activations  M * L * n * (14 s + 17)              what the backward pass keeps of a layer
    logits       N * V * (16 + s)                     logits, their cap, log-softmax and gradients

With gradient checkpointing one layer at a time is kept and cast, and of the others only the input,
M * L * n * s. The factors 14 s + 17 are counted from what autograd saves; 8 of the 16 + s are
saved, the rest is the peak of the cross-entropy.

Padded rows are taken at their full length, M = N = rows * max_seq_len. Packed rows have their own
lengths, and logits where a label is. Where the data is not known, they are taken at their full
length with a label at every eighth position: more than questions with short answers need, whose
rows are 40 % full with 6 labels, and too few labels for chats of which most is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from fractal_k8s.errors import CorruptError
from fractal_k8s.sweep.pace import CHUNKS_PER_GROUP
from fractal_k8s.sweep.training import GPTTraining, MLPTraining, QuadraticTraining, Training

_VOCAB_MULTIPLE: Final = 64
_MASTER: Final = 4
_ITEM: Final = {"float32": 4, "float64": 8, "bfloat16": 2}
# nanochat's shapes by depth: 64 channels a layer, heads of 128 channels, 2**16 tokens.
_CHANNELS_PER_LAYER: Final = 64
_HEAD_CHANNELS: Final = 128
_VOCABULARY: Final = 65_536
# share of the positions with a label in data that is not known
_LABEL_SHARE: Final = 1 / 8
# torch with its libraries in memory
_BASE_BYTES: Final = 400_000_000
# lanes of a chunk on a CPU: the hidden layer fills a core's cache
_CACHE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Shape:
    """Shape of a nanochat model; the field names are the keys of a checkpoint's `model_config`."""

    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int

    @classmethod
    def of_depth(cls, depth: int) -> Shape:
        """nanochat's model of that many layers (d20 has 20)."""
        channels = depth * _CHANNELS_PER_LAYER
        heads = max(1, -(-channels // _HEAD_CHANNELS))
        return cls(_VOCABULARY, depth, heads, heads, channels)

    @classmethod
    def of_config(cls, config: Mapping[str, Any], *, source: str) -> Shape:
        """The shape in a checkpoint's `model_config`.

        Raises:
            CorruptError: a size is missing or is not a whole number above 0.
        """
        sizes: dict[str, Any] = {field.name: config.get(field.name) for field in fields(cls)}
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise CorruptError(f"{source}: model_config's {name} is {size!r}, not a size")
        return cls(**sizes)

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

    def parameters(self) -> dict[str, int]:
        """Number of parameters by group."""
        kv = self.n_embd * self.n_kv_head // self.n_head
        layer = 2 * self.n_embd * self.n_embd + 2 * self.n_embd * kv + 8 * self.n_embd**2
        table = self.padded_vocab * self.n_embd
        return {"matrix": self.n_layer * layer, "embedding": table, "unembedding": table}


def gpt_memory(
    shape: Shape,
    training: GPTTraining,
    *,
    row_positions: float | None = None,
    row_labels: float | None = None,
) -> dict[str, int]:
    """Bytes of a fine-tuning worker by kind, see the formulas above.

    Args:
        row_positions: mean length of the data's rows, after they were cut; None = not known.
        row_labels: mean number of labels of a row; None = not known.
    """
    count = shape.parameters()
    trained = {group: count[group] for group in training.trainable_param_groups}
    muon = trained.get("matrix", 0) if training.optimizer == "muon+adamw" else 0
    adamw = sum(trained.values()) - muon
    item = _ITEM[training.dtype]
    positions, with_logits = _positions(training, row_positions, row_labels)
    layers = 1 if training.gradient_checkpointing else shape.n_layer
    cast = count["matrix"] * layers // shape.n_layer + count["unembedding"]
    stream = positions * shape.n_embd
    inputs = stream * shape.n_layer * item if training.gradient_checkpointing else 0
    parts = {
        "weights": _MASTER * sum(count.values()),
        "pristine": _MASTER * sum(trained.values()),
        "gradients": _MASTER * sum(trained.values()),
        "optimizer": 2 * _MASTER * adamw + _MASTER * muon,
        "cast": item * cast if item < _MASTER else 0,
        "activations": stream * layers * (14 * item + 17) + inputs,
        "logits": with_logits * shape.padded_vocab * (16 + item),
    }
    return {**parts, "total": sum(parts.values())}


def _positions(
    training: GPTTraining, row_positions: float | None, row_labels: float | None
) -> tuple[int, int]:
    """Positions that go through the model together, and how many of them have logits."""
    rows = training.device_batch_size or training.batch_size
    if training.packing == "padded":
        return rows * training.max_seq_len, rows * training.max_seq_len
    length = training.max_seq_len if row_positions is None else row_positions
    labels = length * _LABEL_SHARE if row_labels is None else row_labels
    return math.ceil(rows * length), math.ceil(rows * labels)


def mlp_memory(training: MLPTraining, lanes: int | None = None) -> dict[str, int]:
    """Bytes of a worker of the batched trainer.

    chunk = lanes * examples * (2 * width + 1) items; group = 8 chunks of weights and losses; base
    is the program itself.

    Args:
        lanes: nets of a chunk; None = as many as fill a core's cache.
    """
    item = _ITEM[training.dtype]
    hidden = training.num_examples * training.width
    lanes = lanes or max(1, _CACHE_BYTES // (hidden * item))
    nets = lanes * CHUNKS_PER_GROUP
    parts = {
        "chunk": item * lanes * (2 * hidden + training.num_examples),
        "group": item * nets * (training.num_parameters + training.steps),
        "base": _BASE_BYTES,
    }
    return {**parts, "total": sum(parts.values())}


def memory(training: Training, shape: Shape | None, lanes: int | None) -> dict[str, Any] | None:
    """Memory of a worker; None where the model's shape is not known."""
    if isinstance(training, MLPTraining):
        return mlp_memory(training, lanes)
    if isinstance(training, QuadraticTraining):  # a few numbers a point beside the program
        return {"base": _BASE_BYTES, "total": _BASE_BYTES}
    return None if shape is None else gpt_memory(shape, training)
