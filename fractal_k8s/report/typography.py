"""How figures for a paper look: sizes that fit a column or a page, embedded fonts, stable bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure

# widths in inches
COLUMN: Final = 3.3
PAGE: Final = 6.9

# of PNG files, and of maps inside vector files
DPI: Final = 300

_STYLE: Final[dict[str, Any]] = {
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "figure.titlesize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    # whole TrueType fonts in PDF, which journals ask for
    "pdf.fonttype": 42,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """The look of our figures, whatever the reader's own matplotlib settings are."""
    with rc_context():
        rcdefaults()
        for name, value in _STYLE.items():
            rcParams[name] = value  # type: ignore[index]
        yield


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same content."""
    return _saved(figure, "png", {"Software": None})


def pdf(figure: Figure) -> bytes:
    """The figure as vector PDF without a date: the same bytes for the same content."""
    return _saved(figure, "pdf", {"CreationDate": None})


def _saved(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    with paper_style():
        figure.savefig(sink, format=kind, metadata=metadata)
    return sink.getvalue()
