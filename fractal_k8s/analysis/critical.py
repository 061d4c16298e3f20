"""Critical learning rates: where training stops to work, how sharply, and what is safe below it.

Each column (or row) of the map along a learning rate is cut where the fewest points are
misclassified; the lowest rate that fails would be biased by every stray point. A column has a lower
edge too, below which nothing was learnt in the given steps: that is a matter of the budget and has
another law, so the two are kept apart.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from fractal_k8s.analysis.edge_width import Width, edge_width
from fractal_k8s.analysis.lines import Lines, Splits, band, plain, rate_lines, step
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.analysis.trend import slope_interval, theil_sen
from fractal_k8s.results.grid import DIVERGED, NOT_TRAINABLE, STATE_NAMES

TITLE: Final = "Critical learning rates"

# what is called safe, as a share of the critical rate
SAFE: Final = 0.5
# probabilities of not being trainable that rates are given for
RISKS: Final = (0.01, 0.05)
_MIN_TREND: Final = 5
# Of the points that "all alike" would misclassify, at most this share may be left wrong: pure noise
# leaves 0.7 and more.
_MAX_WRONG: Final = 0.5

# what a refused rate has instead of numbers
_NOTHING: Final[dict[str, Any]] = {
    "untrainable_lines": None,
    "upper": None,
    "lower": None,
    "diverging": None,
    "width_decades": None,
    "width_resolved": None,
    "safe": None,
    "risks": [],
    "trend": None,
}


def analyse(subject: Subject) -> dict[str, Any] | None:
    """Edges along each axis that is a learning rate; None where there is none.

    Keys: coverage, refused, rates: {knob: `_along`'s}. A value is a rate; `censored` counts lines
    whose edge may lie outside the map. A rate may be refused by itself; it then has no medians, and
    its table holds what the cuts of single lines are worth.
    """
    if subject.grid is None:
        return None
    rates = {lines.along: _along(lines) for lines in rate_lines(subject.grid)}
    if not rates:
        return None
    reasons = [f"{knob}: {rate['refused']}" for knob, rate in rates.items() if rate["refused"]]
    refused = "; ".join(reasons) if len(reasons) == len(rates) else None
    return {"coverage": subject.coverage, "refused": refused, "rates": rates}


def _along(lines: Lines) -> dict[str, Any]:
    """Everything about the edges along one rate."""
    lower, upper = band(lines.trainable, lines.known)
    diverging = step(lines.states != DIVERGED, lines.known)
    wrong = _misclassified(lines, lower, upper)
    refused = _problem(lines, lower, upper, wrong)
    common = {
        "refused": refused,
        "side": lines.side,
        "across": lines.across,
        "lines": int(lines.distinct.sum()),
        "misclassified": wrong,
        "table": _table(lines, lower, upper, diverging),
    }
    if refused is not None:
        return {**common, **_NOTHING}
    width = edge_width(lines, lower, upper)
    return {
        **common,
        # lines without any trainable point have no edge
        "untrainable_lines": int((lines.distinct & ~upper.found).sum()),
        "upper": {**_edge(lines, upper), "beyond": _beyond(lines, upper)},
        "lower": _edge(lines, lower),
        "diverging": _edge(lines, diverging),
        "width_decades": None if width is None else width.decades,
        "width_resolved": None if width is None else width.resolved,
        "safe": _safe(lines, lower, upper),
        "risks": [_at_risk(lines, upper, width, risk) for risk in RISKS] if width else [],
        "trend": _trend(lines, upper),
    }


def _problem(lines: Lines, lower: Splits, upper: Splits, wrong: float | None) -> str | None:
    """Why the lines have no common edge, or None."""
    if wrong is None:
        return "no point is known"
    if not (upper.inside | lower.inside).any():
        return "no edge in the map"
    share = float(lines.trainable[lines.known].mean())
    if wrong > _MAX_WRONG * min(share, 1 - share):
        return f"noise or islands and no edge: the best cuts misclassify {wrong:.1%} of the points"
    return None


def _rates(lines: Lines, splits: Splits) -> Any:
    """Rate of each line's cut, shape (m,), NaN where there is none."""
    return 10.0 ** splits.positions(lines.decades)


def _edge(lines: Lines, splits: Splits) -> dict[str, Any]:
    """How many distinct lines have the edge in the map, and where it lies in the median.

    A censored line counts with the nearest value it can have, as long as fewer lines are censored
    than not; else the median is that of the lines that have the edge (`median_of` says which).
    """
    rates = _rates(lines, splits)
    inside = splits.inside & lines.distinct
    censored = splits.censored & lines.distinct
    few = censored.sum() < inside.sum()
    counted = inside | censored if few else inside
    return {
        "median": float(10.0 ** np.median(np.log10(rates[counted]))) if counted.any() else None,
        "median_of": "found and censored" if few else "found",
        "found": int(inside.sum()),
        "censored": int(censored.sum()),
    }


def _beyond(lines: Lines, upper: Splits) -> dict[str, int]:
    """What happened at the first known point above the edge, of the lines that have it inside."""
    counts = dict.fromkeys((STATE_NAMES[DIVERGED], STATE_NAMES[NOT_TRAINABLE]), 0)
    for line in np.flatnonzero(upper.inside & lines.distinct):
        above = lines.states[line, upper.last[line] :]
        worse = above[(above == DIVERGED) | (above == NOT_TRAINABLE)]
        if len(worse):
            counts[STATE_NAMES[worse[0]]] += 1
    return counts


def _misclassified(lines: Lines, lower: Splits, upper: Splits) -> float | None:
    """Share of the known points that the edges put on the wrong side."""
    x = lines.decades[None, :]
    predicted = (x > _below(lines, lower)) & (x < _above(lines, upper)) & upper.found[:, None]
    known = lines.known
    return float((predicted != lines.trainable)[known].mean()) if known.any() else None


def _below(lines: Lines, lower: Splits) -> Any:
    """log10 of each line's lower edge, shape (m, 1): minus infinity where it is not in the map."""
    at = np.where(lower.inside, lower.positions(lines.decades), -np.inf)
    return at[:, None]


def _above(lines: Lines, upper: Splits) -> Any:
    at = np.where(upper.inside, upper.positions(lines.decades), np.inf)
    return at[:, None]


def _safe(lines: Lines, lower: Splits, upper: Splits) -> dict[str, Any]:
    """Half the critical rate: what share of the points from the lower edge up to it is trainable.

    `keeps` is the share of all trainable points that lie at or below the safe rate.
    """
    used = upper.inside & lines.distinct
    if not used.any():
        return {"median": None, "trainable_below": None, "keeps": None}
    median = _edge(lines, upper)["median"]
    limit = upper.positions(lines.decades) + math.log10(SAFE)
    x = lines.decades[None, :]
    trainable = lines.trainable[used]
    inside = ((x > _below(lines, lower)) & (x <= limit[:, None]) & lines.known)[used]
    below = (x <= limit[:, None])[used]
    return {
        "median": SAFE * median,
        "trainable_below": float(trainable[inside].mean()) if inside.any() else None,
        "keeps": float(trainable[below].sum() / max(1, trainable.sum())),
    }


def risk_factor(width: float, risk: float) -> float:
    """Share of the critical rate at which training fails with probability `risk`.

    10**(-w ln((1 - p) / p)), from the logistic edge of scale w decades.
    """
    return float(10.0 ** (-width * math.log((1 - risk) / risk)))


def _at_risk(lines: Lines, upper: Splits, width: Width, risk: float) -> dict[str, Any]:
    median = _edge(lines, upper)["median"]
    factor = risk_factor(width.decades, risk)
    return {"risk": risk, "factor": factor, "median": median and median * factor}


def _trend(lines: Lines, upper: Splits) -> dict[str, Any] | None:
    """log10 of the critical rate against the other axis; None with too few edges in the map."""
    used = upper.inside & lines.distinct
    places = lines.places[used]
    if used.sum() < _MIN_TREND or len(np.unique(places)) < 2:
        return None
    edges = upper.positions(lines.decades)[used]
    slope, intercept = theil_sen(places, edges)
    return {
        "slope": slope,
        "intercept": intercept,
        "interval": list(slope_interval(places, edges)),
        # per decade of the other axis, or per unit of it
        "per_decade": lines.log_across,
        "lines": int(used.sum()),
        "caveat": "the interval knows only this map's columns and is too narrow where the edge "
        "is rough; take it from other seeds",
    }


def _table(lines: Lines, lower: Splits, upper: Splits, diverging: Splits) -> dict[str, list[Any]]:
    """One entry per line, in the order of the other axis."""
    known = lines.known.mean(axis=1)
    table: dict[str, list[Any]] = {
        "at": plain(lines.at),
        # what the line really trains with: the tokens of whole steps
        "held": plain(lines.held),
        "distinct": plain(lines.distinct),
        "coverage": plain(known),
    }
    for name, splits in (("upper", upper), ("lower", lower), ("diverging", diverging)):
        table[name] = plain(_rates(lines, splits))
        table[f"{name}_censored"] = plain(splits.censored)
    return table


# --- for people ---


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    if result["refused"]:
        return [("critical rate", f"none: {result['refused']}")]
    rows: list[tuple[str, str]] = []
    for knob, rate in result["rates"].items():
        rows += _rate_rows(knob, rate)
    return rows


def _rate_rows(knob: str, rate: dict[str, Any]) -> list[tuple[str, str]]:
    word = "columns" if rate["side"] == "y" else "rows"
    if rate["refused"]:
        return [(f"critical {knob}", f"none: {rate['refused']}")]
    upper, lower, diverging = rate["upper"], rate["lower"], rate["diverging"]
    rows = [(f"critical {knob}", _edge_text(upper, rate["lines"], word))]
    if upper["found"]:
        parts = [f"{count} {name}" for name, count in upper["beyond"].items() if count]
        rows.append(("  just above it", f"{', '.join(parts)} ({word})"))
    if diverging["found"]:
        rows.append(("  diverges from", _edge_text(diverging, rate["lines"], word)))
    if lower["found"]:
        rows.append(("  nothing learnt below", _edge_text(lower, rate["lines"], word)))
    rows += _safety_rows(rate)
    if rate["trend"]:
        rows.append(("  trend", _trend_text(knob, rate)))
    return rows


def _edge_text(edge: dict[str, Any], total: int, word: str) -> str:
    found, censored = edge["found"], edge["censored"]
    if not found:
        return f"outside the map ({censored} of {total} {word} censored)"
    if edge["median_of"] == "found":
        counted = f"{censored} of {censored + found} {word}"
        return f"{edge['median']:.3g} (median over {found}; outside the map in {counted})"
    return f"{edge['median']:.3g} (median over {found + censored} {word}, {censored} censored)"


def _safety_rows(rate: dict[str, Any]) -> list[tuple[str, str]]:
    safe = rate["safe"]
    rows = []
    if safe["median"] is not None:
        text = f"{safe['median']:.3g} (half the critical rate)"
        if safe["trainable_below"] is not None:
            text += f"; {safe['trainable_below']:.2%} trainable from the lower edge up to it"
        rows.append(("  safe", text))
    if rate["risks"]:
        width = f"{rate['width_decades']:.3f} decades"
        width = f"edge {width} wide" if rate["width_resolved"] else f"edge sharper than {width}"
        parts = " / ".join(f"{risk['risk']:.0%}" for risk in rate["risks"])
        values = " / ".join(f"{risk['median']:.3g}" for risk in rate["risks"])
        rows.append((f"  at a risk of {parts}", f"{values} ({width})"))
    return rows


def _trend_text(knob: str, rate: dict[str, Any]) -> str:
    trend = rate["trend"]
    low, high = trend["interval"]
    numbers = f"{trend['slope']:+.3f} ({low:+.3f} to {high:+.3f} from {trend['lines']} lines"
    unit = f"~ {rate['across']}^" if trend["per_decade"] else f"decades per unit {rate['across']}: "
    return f"{knob} {unit}{numbers}; less sure where the edge is rough)"
