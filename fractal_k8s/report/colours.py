"""Colours of the three-panel figure, as the fractal-llm README defines them."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_hex

from fractal_k8s.results.grid import FAILED, MISSING, TRAINABLE, Grid

# value -> colour: -1 not trainable, 0.3 trainable with the highest loss, 1 with the lowest; nothing
# lies between -1 and 0.3, where the scale runs through pink and white
STOPS: Final = (
    (-1.0, "#8B0000"),
    (-0.5, "#FFC0CB"),
    (0.0, "#FFFFFF"),
    (0.3, "#ADD8E6"),
    (0.65, "#4169E1"),
    (1.0, "#00008B"),
)
# Every stop is a multiple of 1/40 of the scale, so a table of 4001 colours holds each exactly.
_TABLE_SIZE: Final = 4001

FAILED_COLOUR: Final = "#F2A900"
NO_VALUE_COLOUR: Final = "#EFEFEF"
BINARY_COLOURS: Final = ("#8B0000", "#00008B")

Floats = npt.NDArray[np.float64]


def trainability_colormap() -> ListedColormap:
    """The colormap of the first panel, for values from -1 to 1."""
    positions = [((value + 1) / 2, colour) for value, colour in STOPS]
    smooth = LinearSegmentedColormap.from_list("trainability", positions, N=_TABLE_SIZE)
    return ListedColormap(smooth(np.linspace(0, 1, _TABLE_SIZE)), name="trainability")


def plotly_scale() -> list[list[float | str]]:
    """The same scale as plotly writes it: [position, colour]."""
    return [[(value + 1) / 2, to_hex(colour)] for value, colour in STOPS]


def trainability_values(grid: Grid) -> Floats:
    """-1 where a point is not trainable (or diverged), 0.3..1 where it is: 1 for the lowest loss.

    NaN where there is no verdict: missing and failed points. Shape (rows, columns).
    """
    values = np.where(grid.known, -1.0, np.nan)
    trainable = grid.states == TRAINABLE
    if trainable.any():
        losses = grid.final_loss[trainable]
        low, high = losses.min(), losses.max()
        spread = (losses - low) / (high - low) if high > low else np.zeros_like(losses)
        values[trainable] = 1.0 - 0.7 * spread
    return values


def unjudged(grid: Grid) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Where points are missing, and where they failed."""
    return grid.states == MISSING, grid.states == FAILED
