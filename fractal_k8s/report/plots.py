"""The dimension plot of the page, drawn as SVG so that it needs no script and prints well."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fractal_k8s.report.fit import Fit

_WIDTH: Final = 640
_LEFT: Final = 84
_RIGHT: Final = 14
# top and height of the three panels, in the drawing's units
_COUNTS: Final = (26, 230)
_RESIDUALS: Final = (290, 90)
_SLOPES: Final = (414, 120)
_HEIGHT: Final = 580


@dataclass(frozen=True)
class _Panel:
    """A rectangle of the drawing and what its sides stand for."""

    top: float
    height: float
    # log10 of the box sides at its left and right, and the values at its bottom and top
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, size: float) -> float:
        share = (math.log10(size) - self.x[0]) / (self.x[1] - self.x[0])
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return self.top + (1 - share) * self.height


def dimension_plot(fit: Fit) -> str:
    """Counts with their line, residuals, and local slopes with the interval, one above another."""
    x = (math.log10(fit.sizes[0]) - 0.06, math.log10(fit.sizes[-1]) + 0.06)
    logs = [math.log10(count) for count in (*fit.counts, *fit.line)]
    far = max(0.02, *(abs(value) for value in fit.residuals)) * 1.25
    slopes = [*fit.local_slopes, *(fit.interval or ()), *fit.baselines.values(), 1.0]
    counts = _Panel(*_COUNTS, x, (min(logs) - 0.12, max(logs) + 0.12))
    residuals = _Panel(*_RESIDUALS, x, (-far, far))
    local = _Panel(*_SLOPES, x, (min(slopes) - 0.12, max(slopes) + 0.12))
    parts = [
        *_frame(counts, "boxes with edge", _decades(counts.y)),
        *_counts(counts, fit),
        *_frame(residuals, "residual, log10", [(v, f"{v:+.2g}") for v in (-far / 2, 0, far / 2)]),
        *_residuals(residuals, fit),
        *_frame(local, "local slope", [(v, f"{v:g}") for v in (1.0, 1.5, 2.0) if v < local.y[1]]),
        *_slopes(local, fit),
        *_size_labels(local, fit.sizes),
        _text(_LEFT, 14, f"{fit.title}; slope of boxes {fit.slope:.3f}", "plot-title"),
    ]
    label = html.escape(f"Boxes against box side: {fit.title}")
    return (
        f'<svg class="fit" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def _counts(panel: _Panel, fit: Fit) -> list[str]:
    log_line = [math.log10(value) for value in fit.line]
    return [
        _path(panel, fit.sizes, log_line, "fit-line"),
        *(
            _dot(panel, size, math.log10(count), f"side {size:g}: {count:,.1f} boxes")
            for size, count in zip(fit.sizes, fit.counts, strict=True)
        ),
    ]


def _residuals(panel: _Panel, fit: Fit) -> list[str]:
    zero = panel.up(0)
    parts = [_line(_LEFT, zero, _WIDTH - _RIGHT, zero, "fit-line")]
    for size, residual in zip(fit.sizes, fit.residuals, strict=True):
        x = panel.across(size)
        parts.append(_line(x, zero, x, panel.up(residual), "stem"))
        parts.append(_dot(panel, size, residual, f"side {size:g}: {residual:+.4f}"))
    return parts


def _slopes(panel: _Panel, fit: Fit) -> list[str]:
    parts = []
    right = _WIDTH - _RIGHT
    if fit.interval is not None:
        low, high = (panel.up(value) for value in fit.interval)
        parts.append(
            f'<rect class="band" x="{_LEFT}" y="{high:.2f}" width="{right - _LEFT}" '
            f'height="{low - high:.2f}"><title>95 % interval</title></rect>'
        )
    if fit.dimension is not None:
        parts.append(
            _line(_LEFT, panel.up(fit.dimension), right, panel.up(fit.dimension), "fit-line")
        )
    for name, value in fit.baselines.items():
        y = panel.up(value)
        parts.append(_line(_LEFT, y, right, y, "baseline"))
        parts.append(_text(right, y - 4, f"{name} baseline {value:.2f}", "tick end"))
    parts.append(_path(panel, fit.middles, fit.local_slopes, "local"))
    parts += [
        _dot(panel, size, slope, f"side {size:.3g}: slope {slope:.3f}")
        for size, slope in zip(fit.middles, fit.local_slopes, strict=True)
    ]
    return parts


def _frame(panel: _Panel, label: str, ticks: Sequence[tuple[float, str]]) -> list[str]:
    width = _WIDTH - _LEFT - _RIGHT
    middle = panel.top + panel.height / 2
    frame = (
        f'<rect class="frame" x="{_LEFT}" y="{panel.top}" width="{width}" height="{panel.height}"/>'
    )
    name = (
        f'<text class="label" transform="translate(14 {middle:.1f}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(label)}</text>'
    )
    parts = [frame, name]
    for value, text in ticks:
        y = panel.up(value)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"))
        parts.append(_text(_LEFT - 6, y + 4, text, "tick end"))
    return parts


def _size_labels(panel: _Panel, sizes: Sequence[float]) -> list[str]:
    bottom = panel.top + panel.height
    step = max(1, len(sizes) // 8)
    parts = [
        _text(panel.across(size), bottom + 16, f"{size:g}", "tick middle") for size in sizes[::step]
    ]
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    return [*parts, _text(centre, bottom + 36, "box side, points", "label middle")]


def _decades(span: tuple[float, float]) -> list[tuple[float, str]]:
    """Powers of ten within the span; halves of decades where there are few."""
    whole = range(math.ceil(span[0]), math.floor(span[1]) + 1)
    ticks = [(float(power), f"{10**power:,}" if power >= 0 else f"1e{power}") for power in whole]
    if len(ticks) > 2:
        return ticks
    values = [factor * 10.0**power for power in range(-9, 10) for factor in (1, 2, 5)]
    return [(math.log10(v), f"{v:,g}") for v in values if span[0] <= math.log10(v) <= span[1]]


def _path(panel: _Panel, sizes: Sequence[float], values: Sequence[float], kind: str) -> str:
    points = " ".join(
        f"{panel.across(size):.2f},{panel.up(value):.2f}"
        for size, value in zip(sizes, values, strict=True)
    )
    return f'<polyline class="{kind}" points="{points}"/>'


def _dot(panel: _Panel, size: float, value: float, title: str) -> str:
    return (
        f'<circle class="dot" cx="{panel.across(size):.2f}" cy="{panel.up(value):.2f}" r="3.2">'
        f"<title>{html.escape(title)}</title></circle>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'
