"""Colours of figures and page: the fractal-llm README's own, and a colour-blind-safe set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, to_hex

from fractal_k8s.results.grid import FAILED, MARGINAL, MISSING, TRAINABLE, Grid

Floats = npt.NDArray[np.float64]

NO_VALUE_COLOUR: Final = "#EFEFEF"
# not trainable, trainable
BINARY_COLOURS: Final = ("#8B0000", "#00008B")
# Every stop is a multiple of 1/40 of the scale, so a table of 40 k + 1 colours holds each exactly.
_TABLE_SIZE: Final = 4001


@dataclass(frozen=True)
class Scheme:
    """One set of colours for all panels."""

    title: str
    # (value, colour) of the trainability panel: -1 not trainable, 0.3 trainable with the highest
    # loss, 1 with the lowest; no point lies between -1 and 0.3
    stops: tuple[tuple[float, str], ...]
    # not trainable, trainable
    binary: tuple[str, str]
    # of a failed point and of a marginal one, which no other colour of the scheme comes near
    failed: str
    marginal: str
    # colormaps by matplotlib's names: final loss, convergence measure, steps, share of replicas
    loss: str
    measure: str
    steps: str
    share: str

    def trainability(self) -> ListedColormap:
        """The colormap of the first panel, for values from -1 to 1."""
        positions = [((value + 1) / 2, colour) for value, colour in self.stops]
        smooth = LinearSegmentedColormap.from_list("trainability", positions, N=_TABLE_SIZE)
        return ListedColormap(smooth(np.linspace(0, 1, _TABLE_SIZE)), name="trainability")


# The diverging scale of the first release's README: dark red, through pink and white, to blues.
ORIGINAL: Final = Scheme(
    title="original",
    stops=(
        (-1.0, "#8B0000"),
        (-0.5, "#FFC0CB"),
        (0.0, "#FFFFFF"),
        (0.3, "#ADD8E6"),
        (0.65, "#4169E1"),
        (1.0, "#00008B"),
    ),
    binary=BINARY_COLOURS,
    failed="#F2A900",
    marginal="#3C8D40",
    loss="viridis",
    measure="Spectral",
    steps="inferno",
    share="RdBu",
)
# Orange against blue, which differ in every kind of colour vision, and in brightness too.
SAFE: Final = Scheme(
    title="colour-blind safe",
    stops=(
        (-1.0, "#E8923C"),
        (-0.5, "#F6CFA5"),
        (0.0, "#FFFFFF"),
        (0.3, "#B9D6F2"),
        (0.65, "#3D7FBF"),
        (1.0, "#08306B"),
    ),
    binary=("#E8923C", "#08306B"),
    failed="#000000",
    marginal="#735639",
    loss="cividis",
    measure="PuOr",
    steps="cividis",
    share="PuOr",
)
SCHEMES: Final = {"original": ORIGINAL, "safe": SAFE}
DEFAULT_SCHEME: Final = "original"


def colour_table(colormap: Colormap | str, size: int) -> str:
    """`size` colours from the lowest to the highest value as hex digits, six each, end to end."""
    found = matplotlib.colormaps[colormap] if isinstance(colormap, str) else colormap
    return "".join(to_hex(colour)[1:] for colour in found(np.linspace(0, 1, size)))


def trainability_values(grid: Grid) -> Floats:
    """-1 where a point is not trainable (or diverged), 0.3..1 where it is: 1 for the lowest loss.

    NaN where it is neither: marginal points, and those without a verdict. Shape (rows, columns).
    """
    values = np.where(grid.known & (grid.states != MARGINAL), -1.0, np.nan)
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
