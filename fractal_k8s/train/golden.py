"""Three training steps of a fixed small model, hashed: what a machine really computes.

A numerics class is a list of names. Whether two machines of one class compute the same bits is
seen by letting both do the same work, with the code, optimizers, dtype and layout of the sweep.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fractal_k8s.data.conversations import Row
from fractal_k8s.models.gpt import GPT, GPTConfig
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.batches import Batches
from fractal_k8s.train.step import open_stepper

STEPS: Final = 3

# Two layers with heads of 128 channels, as nanochat's, so that the same kernels are chosen.
_CONFIG: Final = GPTConfig(
    sequence_len=128, vocab_size=500, n_layer=2, n_head=2, n_kv_head=2, n_embd=256
)
_ROW_LENGTHS: Final = (97, 33, 64, 12)
_SEED: Final = 3
_RATES: Final = {
    "matrix_lr": 0.02,
    "embedding_lr": 0.2,
    "unembedding_lr": 0.004,
    "attention_lr": None,
    "mlp_lr": None,
}


def hash_of(losses: npt.NDArray[np.floating]) -> str:
    """sha256 of the bytes of a series of losses; every NaN counts as the same."""
    series = np.where(np.isnan(losses), np.array(np.nan, losses.dtype), losses)
    return hashlib.sha256(series.tobytes()).hexdigest()


def gpt_losses(training: GPTTraining, device: torch.device) -> npt.NDArray[np.float32]:
    """Losses before, between and after three steps of a small GPT, shape (STEPS + 1,).

    Optimizer, trained groups, dtype, layout and execution are those of `training`, the rates are
    fixed.
    """
    training = training.model_copy(update=_RATES)
    model = GPT.from_weights(
        _CONFIG, golden_weights(), compute_dtype=getattr(torch, training.dtype)
    ).to(device)
    stepper = open_stepper(model, training)
    batches = Batches(golden_rows(), len(_ROW_LENGTHS), 0, device, packing=training.packing)
    batch = batches[0]  # of all rows, as every later one
    stepper.prepare(batch)
    stepper.reset(training)
    losses = []
    for step in range(STEPS + 1):
        losses.append(stepper.gradients(batch).clone())
        if step < STEPS:
            stepper.update(1.0)
    series: npt.NDArray[np.float32] = torch.stack(losses).float().cpu().numpy()
    return series


def golden_weights() -> dict[str, Tensor]:
    """The small model's weights, float32, the same bits on every machine.

    They are whole numbers times a power of two, because a normal distribution takes logarithms,
    whose last bits differ between processors. No matrix is zero, so every part of the model counts.
    """
    random = np.random.RandomState(_SEED)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(_CONFIG).state_dict().items()}
    return {
        name: torch.tensor(random.randint(-(2**15), 2**15, shape), dtype=torch.float32) * 2.0**-18
        for name, shape in sorted(shapes.items())
    }


def golden_rows() -> list[Row]:
    """Rows of several lengths, of which the second half is trained on."""
    random = np.random.RandomState(_SEED + 1)
    return [
        Row(
            ids=tuple(random.randint(0, _CONFIG.vocab_size, length).tolist()),
            trained=tuple(k >= length // 2 for k in range(length)),
        )
        for length in _ROW_LENGTHS
    ]
