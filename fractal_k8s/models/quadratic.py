"""A quadratic of two coordinates, plain or rippled: the null model whose edge is known.

    plain           L = w1^2 + w2^2 + c w1 w2
    additive        L + e sum_k (1 + cos(2 pi w_k / l))
    multiplicative  sum_k w_k^2 (1 + e cos(2 pi w_k / l)) + c w1 w2

The ripples are those of arXiv:2406.13971, one per coordinate; the constant that the additive one
has here keeps the loss from being negative and changes no gradient.

All copies ("lanes") of a batch are worked on element by element, so a lane never meets another
lane's numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

_INIT_STREAM = 0


def initial_weights(seed: int) -> npt.NDArray[np.float64]:
    """A point of uniform direction on the unit circle, shape (2,)."""
    random = np.random.RandomState([seed, _INIT_STREAM])
    first, second = (float(number) for number in random.standard_normal(2))
    length = math.sqrt(first * first + second * second)
    return np.array([first / length, second / length])


@dataclass(frozen=True)
class Quadratic:
    """The loss and its gradient."""

    coupling: float
    ripple: Literal["additive", "multiplicative"] | None
    amplitude: float
    wavelength: float

    def loss_and_gradient(self, weights: Floats) -> tuple[Floats, Floats]:
        """Loss of shape (lanes,) and gradient of shape (2, lanes).

        Args:
            weights: shape (2, lanes).
        """
        square = weights * weights
        gradient = 2 * weights
        if self.ripple is not None:
            turn = 2 * math.pi / self.wavelength
            cosine, sine = np.cos(turn * weights), np.sin(turn * weights)
            if self.ripple == "additive":
                square = square + self.amplitude * (1 + cosine)
                gradient = gradient - self.amplitude * turn * sine
            else:
                swing = 1 + self.amplitude * cosine
                gradient = gradient * swing - square * (self.amplitude * turn) * sine
                square = square * swing
        first, second = weights
        loss = square[0] + square[1] + self.coupling * first * second
        return loss, gradient + self.coupling * weights[::-1]
