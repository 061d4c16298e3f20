"""Two maps and their difference, side by side."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fractal_k8s.analysis.subject import Subject
from fractal_k8s.errors import UsageError
from fractal_k8s.report.colours import BINARY_COLOURS, NO_VALUE_COLOUR
from fractal_k8s.report.view import axis_views

FORMATS: Final = (".png", ".pdf")
# of a point: neither map can train it, only A, only B, both (Okabe and Ito's palette for the two
# that matter, so that no one confuses them)
_DIFFERENCE: Final = ("#5A5A5A", "#E69F00", "#0072B2", "#B8B8B8")
_DIFFERENCE_NAMES: Final = ("neither", "only A", "only B", "both")

Numbers = npt.NDArray[np.float64]


def check_figure(path: Path) -> None:
    """Refuses a figure that could not be written, before anything is computed.

    Raises:
        UsageError: unknown format, or no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"figure {path}: unknown kind {path.suffix!r}; use .png or .pdf")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"figure {path}: no file can be written there; create {path.parent} first")


def write_comparison(path: Path, a: Subject, b: Subject, names: tuple[str, str]) -> None:
    """Draws map A, map B and where they differ, as PNG or PDF by the file's ending."""
    figure = Figure(figsize=(17, 6), dpi=150, layout="constrained")
    panels = figure.subplots(1, 3)
    titles = (f"A: {names[0]}", f"B: {names[1]}")
    for panel, subject, title in zip(panels[:2], (a, b), titles, strict=True):
        _draw(panel, a, _binary(subject), BINARY_COLOURS)
        panel.set_title(title)
    both = a.known & b.known
    difference = np.where(both, a.labels + 2.0 * b.labels, np.nan)
    _draw(panels[2], a, difference, _DIFFERENCE)
    agreement = float((a.labels == b.labels)[both].mean()) if both.any() else float("nan")
    panels[2].set_title(f"trainable in: same verdict at {agreement:.2%} of the points")
    _legends(panels, bool((~both).any()))
    sink = io.BytesIO()
    form = path.suffix.lower()[1:]
    # without a date the same maps give the same bytes
    metadata = {"Software": None} if form == "png" else {"CreationDate": None}
    figure.savefig(sink, format=form, metadata=metadata)
    path.write_bytes(sink.getvalue())


def _binary(subject: Subject) -> Numbers:
    return np.where(subject.known, subject.labels.astype(float), np.nan)


def _draw(panel: Axes, subject: Subject, values: Numbers, colours: tuple[str, ...]) -> None:
    """One panel: a colour per whole number, nearest sampling, unknown points left grey."""
    panel.set_facecolor(NO_VALUE_COLOUR)
    rows, columns = values.shape
    if subject.grid is None:
        y_edges, x_edges = np.arange(rows + 1) - 0.5, np.arange(columns + 1) - 0.5
        panel.set_xlabel("column")
        panel.set_ylabel("row")
    else:
        y, x = axis_views(subject.grid.sweep)
        y_edges, x_edges = y.edges, x.edges
        panel.set_xlabel(x.label)
        panel.set_ylabel(y.label)
    panel.pcolormesh(
        x_edges,
        y_edges,
        np.ma.masked_invalid(values),
        cmap=ListedColormap(list(colours)),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        rasterized=True,
    )
    if subject.grid is None:
        panel.invert_yaxis()  # a picture's first row is its top


def _legends(panels: npt.NDArray[np.object_], holes: bool) -> None:
    unknown = [Patch(color=NO_VALUE_COLOUR, label="unknown")] if holes else []
    binary = [
        Patch(color=BINARY_COLOURS[1], label="trainable"),
        Patch(color=BINARY_COLOURS[0], label="not trainable"),
    ]
    kinds = [
        Patch(color=colour, label=name)
        for colour, name in zip(_DIFFERENCE, _DIFFERENCE_NAMES, strict=True)
    ]
    for panel, patches in zip(panels, (binary, binary, kinds), strict=True):
        panel.legend(
            handles=[*patches, *unknown],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            ncols=5,
            frameon=False,
        )
