"""Gaussian regression data of the original study (arXiv:2402.06184): noise fitted by noise.

NumPy's `RandomState` streams are frozen for good (NEP 19), so a sweep continued years later or on
another machine sees the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_DATA_STREAM: Final = 1
_BATCH_STREAM: Final = 2


def regression_data(seed: int, num_examples: int, num_inputs: int) -> tuple[Floats, Floats]:
    """Standard normal inputs and targets.

    Returns:
        inputs of shape (num_examples, num_inputs) and targets of shape (num_examples, 1).
    """
    random = np.random.RandomState([seed, _DATA_STREAM])
    inputs = random.standard_normal((num_examples, num_inputs))
    return inputs, random.standard_normal((num_examples, 1))


def minibatches(seed: int, steps: int, size: int, num_examples: int) -> npt.NDArray[np.int64]:
    """Row numbers of each step's minibatch, drawn with replacement. Shape (steps, size)."""
    random = np.random.RandomState([seed, _BATCH_STREAM])
    return random.randint(0, num_examples, size=(steps, size), dtype=np.int64)


def data_hash(*arrays: npt.NDArray[np.generic] | None) -> str:
    """sha256 over the arrays' shapes and bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None:
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
