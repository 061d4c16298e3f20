"""How an axis is drawn: positions of its points, edges of its cells, label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fractal_k8s.sweep.definition import Sweep

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AxisView:
    """One axis in drawing coordinates: log10 of the value on a log axis, else the value."""

    name: str
    label: str
    is_log: bool
    # where the points lie, shape (n,), and where their cells begin and end, shape (n + 1,)
    centres: Floats
    edges: Floats

    @property
    def is_regular(self) -> bool:
        """Whether all cells have the same width, to drawing precision."""
        widths = np.diff(self.edges)
        return bool(np.allclose(widths, widths[0], rtol=1e-3, atol=0))


def axis_views(sweep: Sweep) -> tuple[AxisView, AxisView]:
    """The row axis (y) and the column axis (x) of a sweep."""
    y = _view(
        sweep.y_knob.name,
        sweep.y_knob.label,
        sweep.spec.axes.y.spacing(sweep.y_knob),
        sweep.y_values,
    )
    x = _view(
        sweep.x_knob.name,
        sweep.x_knob.label,
        sweep.spec.axes.x.spacing(sweep.x_knob),
        sweep.x_values,
    )
    return y, x


def _view(name: str, label: str, scale: str, values: tuple[float, ...]) -> AxisView:
    numbers = np.array(values)
    is_log = scale == "log" and bool((numbers > 0).all())
    centres = np.log10(numbers) if is_log else numbers
    text = f"log10 {label}" if is_log else label
    return AxisView(name, text, is_log, centres, _cell_edges(centres))


def _cell_edges(centres: Floats) -> Floats:
    """Halfway between neighbours; the outer cells are as wide outside as inside."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middles = (centres[1:] + centres[:-1]) / 2
    first = centres[0] - (middles[0] - centres[0])
    last = centres[-1] + (centres[-1] - middles[-1])
    return np.concatenate([[first], middles, [last]])
