"""The best learning rate for a number of training tokens, and the fewest tokens for a rate.

For maps of a learning rate against tokens. Columns with equally many steps are one experiment and
count once; a column's tokens are those that its steps hold, not those that were asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.analysis.lines import Lines, band, lines_along, plain
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.analysis.trend import draw_blocks, theil_sen
from fractal_k8s.results.grid import Grid
from fractal_k8s.results.verdict import window_holds_first_loss

TITLE: Final = "Learning rate and tokens"

Floats = npt.NDArray[np.float64]

_MIN_COUNTS: Final = 5
_MIN_HELD_OUT: Final = 2
_DRAWS: Final = 500
# a prediction within this factor is right (the research plan's criterion)
_FACTOR: Final = 2.0


@dataclass(frozen=True)
class _Optima:
    """The best rate of each distinct number of tokens; arrays of shape (columns,)."""

    tokens: Floats
    # NaN where no point is trainable
    rates: Floats
    losses: Floats
    # the best rate is the first or the last of the map: the true one may lie outside
    censored: npt.NDArray[np.bool_]

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        return np.isfinite(self.rates) & ~self.censored


def analyse(subject: Subject) -> dict[str, Any] | None:
    """Optimum, its power law and the minimum of tokens; None for other axes.

    Keys: coverage, refused (why there is no power law), rate (the knob), optima (a table by token
    count), law {A, b, intervals}, held_out, minimum_tokens, biased_columns.
    """
    grid = subject.grid
    side = None if grid is None else _rate_side(grid)
    if grid is None or side is None:
        return None
    columns = lines_along(grid, side)
    optima = _best_rates(grid, columns)
    refused = _problem(optima)
    return {
        "coverage": subject.coverage,
        "refused": refused,
        "rate": columns.along,
        "optima": {
            "tokens": plain(optima.tokens),
            "rate": plain(optima.rates),
            "loss": plain(optima.losses),
            "censored": plain(optima.censored),
        },
        "biased_columns": _biased(grid, columns),
        "law": None if refused else _law(optima),
        "held_out": None if refused else _held_out(optima),
        "minimum_tokens": _minimum_tokens(grid, columns),
    }


def _rate_side(grid: Grid) -> Any:
    """The side of the rate if the other one is tokens, else None."""
    y, x = grid.sweep.y_knob, grid.sweep.x_knob
    if (y.kind, x.name) == ("rate", "tokens"):
        return "y"
    return "x" if (x.kind, y.name) == ("rate", "tokens") else None


def _by_line(columns: Lines, values: Floats) -> Floats:
    """An array of the grid as (lines, points of a line)."""
    return values.T if columns.side == "y" else values


def _best_rates(grid: Grid, columns: Lines) -> _Optima:
    losses = _by_line(columns, grid.last_mean_loss)
    losses = np.where(columns.trainable, losses, np.inf)[columns.distinct]
    rows = np.arange(len(losses))
    # of equally good rates the middle one
    ties = losses == losses.min(axis=1, keepdims=True)
    last = losses.shape[1] - 1
    first_best, last_best = np.argmax(ties, axis=1), last - np.argmax(ties[:, ::-1], axis=1)
    places = [
        (_vertex(columns.decades, row, low) + _vertex(columns.decades, row, high)) / 2
        for row, low, high in zip(losses, first_best, last_best, strict=True)
    ]
    some = np.isfinite(losses).any(axis=1)
    return _Optima(
        tokens=columns.held[columns.distinct],
        rates=np.where(some, 10.0 ** np.array(places), np.nan),
        losses=np.where(some, losses[rows, first_best], np.nan),
        censored=some & ((first_best == 0) | (last_best == last)),
    )


def _vertex(x: Floats, losses: Floats, best: int) -> float:
    """Where the parabola through the best point and its neighbours is lowest.

    The best point itself where a neighbour is missing or not trainable, or the pitch differs.
    """
    if not 0 < best < len(x) - 1:
        return float(x[best])
    below, here, above = losses[best - 1 : best + 2]
    bend = below - 2 * here + above
    left, right = x[best] - x[best - 1], x[best + 1] - x[best]
    if not np.isfinite(bend) or bend <= 0 or not np.isclose(left, right, rtol=0.05):
        return float(x[best])
    return float(x[best] + (below - above) / (2 * bend) * right)


def _problem(optima: _Optima) -> str | None:
    """Why no power law can be fitted, or None."""
    usable = optima.usable
    counts = len(np.unique(optima.tokens[usable]))
    if counts >= _MIN_COUNTS:
        return None
    censored = int(optima.censored.sum())
    return (
        f"a power law needs {_MIN_COUNTS} different numbers of steps with a best rate inside the "
        f"map, there are {counts} of {len(usable)} ({censored} have it at the map's end)"
    )


def _law(optima: _Optima) -> dict[str, Any]:
    """rate = A * tokens**-b by least squares of the logarithms.

    Intervals (95 %) from runs of neighbouring columns drawn with replacement: a rough estimate,
    since neighbours are alike and all columns share one seed.
    """
    x, y = np.log10(optima.tokens[optima.usable]), np.log10(optima.rates[optima.usable])
    slope, intercept = np.polyfit(x, y, 1)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(_DRAWS):
        chosen = draw_blocks(len(x), random)
        if len(np.unique(x[chosen])) > 1:
            drawn.append(np.polyfit(x[chosen] - x.mean(), y[chosen], 1))
    low, high = np.quantile(-np.array(drawn)[:, 0], [0.025, 0.975])
    level = np.quantile(np.array(drawn)[:, 1], [0.025, 0.975])
    middle = 10.0 ** x.mean()
    return {
        "A": float(10.0**intercept),
        "b": float(-slope),
        "b_interval": [float(low), float(high)],
        "columns": len(x),
        # A is far outside the data; the rate at the middle of it is what is known well
        "middle_tokens": float(middle),
        "middle_rate": float(10.0 ** (intercept + slope * x.mean())),
        "middle_interval": [float(10.0**end) for end in level],
        "scatter_decades": float(np.std(y - slope * x - intercept)),
    }


def _held_out(optima: _Optima) -> dict[str, Any] | None:
    """The law fitted to the smaller two thirds of the token counts, tried on the larger third.

    `constant_within` is what one rate for all (the median of the fitted ones) would reach.
    """
    tokens, rates = optima.tokens[optima.usable], optima.rates[optima.usable]
    order = np.argsort(tokens, kind="stable")
    x, y = np.log10(tokens[order]), np.log10(rates[order])
    cut = len(x) - max(_MIN_HELD_OUT, len(x) // 3)
    if len(np.unique(x[:cut])) < 3:
        return None
    slope, intercept = np.polyfit(x[:cut], y[:cut], 1)
    errors = np.abs(y[cut:] - intercept - slope * x[cut:])
    constant = np.abs(y[cut:] - np.median(y[:cut]))
    limit = np.log10(_FACTOR)
    return {
        "factor": _FACTOR,
        "fitted": int(cut),
        "tried": len(errors),
        "within": float((errors <= limit).mean()),
        "constant_within": float((constant <= limit).mean()),
        "median_error_factor": float(10.0 ** np.median(errors)),
    }


def _biased(grid: Grid, columns: Lines) -> int:
    """Columns with so few steps that the mean of the last losses holds the first one."""
    held = window_holds_first_loss(grid.rule, grid.num_losses)
    by_line = held.T if columns.side == "y" else held
    return int((by_line.any(axis=1) & columns.distinct).sum())


def _minimum_tokens(grid: Grid, columns: Lines) -> dict[str, Any]:
    """Fewest tokens from which each rate is trainable, and how that grows with the rate.

    Between the largest count that is not enough and the smallest that is (geometric mean), by the
    same cut as the critical rate. `censored`: trainable from the map's fewest tokens on.
    """
    rows = lines_along(grid, "x" if columns.side == "y" else "y")
    own = columns.distinct
    lower, _ = band(rows.trainable[:, own], rows.known[:, own])
    places = lower.positions(np.log10(columns.held[own]))
    law = None
    x, y = np.log10(rows.at)[lower.inside], places[lower.inside]
    if len(x) >= _MIN_COUNTS:
        slope, intercept = theil_sen(x, y)
        law = {"exponent": slope, "factor": float(10.0**intercept), "rates": len(x)}
    return {
        "rate": plain(rows.at),
        "tokens": plain(10.0**places),
        "censored": plain(lower.censored),
        # of the rates that were tried at all
        "never": int((~lower.found & rows.known[:, own].any(axis=1)).sum()),
        "law": law,
    }


# --- for people ---


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    knob = result["rate"]
    rows = []
    if result["refused"]:
        rows.append(("best rate by tokens", f"none: {result['refused']}"))
    else:
        rows += _law_rows(knob, result["law"], result["held_out"])
    if result["biased_columns"]:
        text = "columns have so few steps that their loss counts the first one"
        rows.append(("  caution", f"{result['biased_columns']} {text}"))
    return rows + _minimum_rows(knob, result["minimum_tokens"])


def _law_rows(
    knob: str, law: dict[str, Any], held_out: dict[str, Any] | None
) -> list[tuple[str, str]]:
    low, high = law["b_interval"]
    text = f"{law['A']:.3g} * tokens^{-law['b']:.3f}  (exponent {-high:.3f} to {-low:.3f}"
    rows = [(f"best {knob}", f"{text}, {law['columns']} distinct columns)")]
    if held_out:
        share = f"{held_out['within']:.0%} of {held_out['tried']} larger token counts"
        constant = f"one rate for all: {held_out['constant_within']:.0%}"
        text = f"{share} predicted within {held_out['factor']:g}x ({constant})"
        rows.append(("  held-out test", text))
    return rows


def _minimum_rows(knob: str, minimum: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = zip(minimum["tokens"], minimum["censored"], strict=True)
    inside = [tokens for tokens, censored in pairs if tokens is not None and not censored]
    if not inside:
        return [("minimum tokens", "no rate becomes trainable inside the map")]
    outside = f"{sum(minimum['censored'])} rates need fewer than the map has"
    text = f"{min(inside):,.0f} to {max(inside):,.0f} over {len(inside)} rates; {outside}"
    rows = [("minimum tokens", f"{text}, {minimum['never']} never train")]
    if minimum["law"]:
        rows.append(("  grows as", f"{knob}^{minimum['law']['exponent']:+.2f}"))
    return rows
