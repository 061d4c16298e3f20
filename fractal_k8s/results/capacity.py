"""How many rows fit into a machine's memory: what `probe-batch` measured, kept in the store.

    <store>/machines/<hash>.json

One note per machine, shape of the model and whatever of the training config decides memory; a new
measurement of the same replaces the last.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from fractal_k8s.errors import CorruptError
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.training import GPTTraining

_FOLDER: Final = "machines"
# Keys of a training config that change no tensor's size; `batch_size` is what was searched for.
_WEIGHTLESS: Final = frozenset(
    {
        "tokens",
        "batch_size",
        "device_batch_size",
        "token_accounting",
        "allow_repeats",
        "flops",
        "flops_per_token",
        "matrix_lr",
        "embedding_lr",
        "unembedding_lr",
        "attention_lr",
        "mlp_lr",
        "weight_decay",
        "schedule",
        "warmup_frac",
        "final_lr_frac",
        "data_order",
        "probe_rows",
    }
)


@dataclass(frozen=True)
class Capacity:
    """The largest batch that was seen to survive real training steps on a machine."""

    # the GPU's name, or the processor's
    device: str
    # the model's sizes, keys of `sweep.memory.Shape`
    shape: dict[str, int]
    # the keys of the training config that decide memory, see `decisive`
    training: dict[str, Any]
    # rows that go through the model together
    rows: int
    # the fewest rows that did not fit; None = the search ended before that
    too_many: int | None
    # steps that each size had to survive
    steps: int
    # labels of a row: where logits are made
    labels: int
    # most memory in use with `rows`, and what was allowed, headroom taken off
    peak_bytes: int
    allowed_bytes: int
    headroom: float
    # ISO time
    measured: str


def decisive(training: GPTTraining) -> dict[str, Any]:
    """What of a training config decides the memory of a row."""
    content = training.model_dump(mode="json")
    return {key: value for key, value in content.items() if key not in _WEIGHTLESS}


def record_capacity(store: Store, capacity: Capacity) -> str:
    """Keeps a measurement; returns where."""
    identity = json.dumps(
        [capacity.device, capacity.shape, capacity.training], sort_keys=True, allow_nan=False
    )
    key = f"{_FOLDER}/{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    text = json.dumps(asdict(capacity), indent=1, allow_nan=False) + "\n"
    store.files.put(key, text.encode())
    return f"{store.uri}/{key}"


def stored_capacities(store: Store, shape: dict[str, int], training: GPTTraining) -> list[Capacity]:
    """What was measured for that model and config, one entry per machine, by the machine's name.

    Raises:
        CorruptError: a note is damaged.
    """
    wanted = decisive(training)
    found = []
    for entry in store.files.entries(_FOLDER):
        try:
            capacity = Capacity(**json.loads(store.files.get(entry.key) or b""))
        except (ValueError, TypeError):
            raise CorruptError(
                f"{store.uri}/{entry.key}: damaged; remove it and run probe-batch again"
            ) from None
        if capacity.shape == shape and capacity.training == wanted:
            found.append(capacity)
    return sorted(found, key=lambda capacity: capacity.device)
