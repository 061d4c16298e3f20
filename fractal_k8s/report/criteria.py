"""The research plan's four success criteria (its section 10), judged by a map's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Judgement = Literal["passed", "failed", "not judged"]

# criterion 2: where the plan expects the dimension
DIMENSION_RANGE: Final = (1.3, 2.0)
# criterion 3: how far a predicted optimum may be off
OPTIMUM_FACTOR: Final = 2.0
# dimension of an edge without any roughness
_SMOOTH: Final = 1.0


@dataclass(frozen=True)
class Criterion:
    """One criterion of the plan, how it was judged, and by which number."""

    name: str
    question: str
    judgement: Judgement
    reason: str


def criteria(summary: Mapping[str, Any]) -> list[Criterion]:
    """All four, in the plan's order. What cannot be known from the summary is not judged."""
    return [_visual(summary), _quantitative(summary), _practical(summary), _ood()]


def _visual(summary: Mapping[str, Any]) -> Criterion:
    """An edge that is rougher than a smooth one by more than its error bar."""
    judged, reason = _against_smooth(summary)
    return Criterion("Visual", "A clear fractal-like boundary in the map", judged, reason)


def _against_smooth(summary: Mapping[str, Any]) -> tuple[Judgement, str]:
    if not summary.get("boundary_pixels") and summary.get("coverage", 1) < 1:
        known = f"{summary['coverage']:.1%} of the points are known"
        return "not judged", f"{known}: {summary.get('refused') or 'no edge between them'}"
    if not summary.get("boundary_pixels"):
        return "failed", str(summary.get("refused") or "no edge")
    if summary.get("dimension") is None:
        return "not judged", f"no dimension: {summary.get('refused')}"
    number = _number(summary)
    interval = summary.get("interval")
    if interval is None:
        return "not judged", f"{number} has no error bar to tell it from a smooth edge's"
    if interval[0] > _SMOOTH:
        return "passed", f"{number} lies above a smooth edge's {_SMOOTH:g}"
    return "failed", f"{number} cannot be told from a smooth edge's {_SMOOTH:g}"


def _quantitative(summary: Mapping[str, Any]) -> Criterion:
    low, high = DIMENSION_RANGE
    judged, reason = _in_range(summary, low, high)
    question = f"A fractal dimension between {low} and {high}"
    return Criterion("Quantitative", question, judged, reason)


def _in_range(summary: Mapping[str, Any], low: float, high: float) -> tuple[Judgement, str]:
    dimension = summary.get("dimension")
    if dimension is None:
        return "not judged", f"no dimension: {summary.get('refused')}"
    number = _number(summary)
    first, last = summary.get("interval") or (dimension, dimension)
    if low <= first and last <= high:
        return "passed", number
    if last < low or first > high:
        return "failed", number
    return "not judged", f"{number}: the interval reaches over the end of the range"


def _practical(summary: Mapping[str, Any]) -> Criterion:
    judged, reason = _held_out(summary)
    question = (
        f"A formula that predicts the optimal rate within {OPTIMUM_FACTOR:g}x for new data sizes"
    )
    return Criterion("Practical", question, judged, reason)


def _held_out(summary: Mapping[str, Any]) -> tuple[Judgement, str]:
    """By the analysis `optimal`: all held-out data sizes must be predicted well."""
    optimal = summary.get("analyses", {}).get("optimal")
    if optimal is None:
        return "not judged", "needs a map of a learning rate against training tokens"
    if optimal.get("refused"):
        return "not judged", str(optimal["refused"])
    held_out = optimal.get("held_out")
    if not held_out:
        return "not judged", "too few data sizes to hold some out"
    share = float(held_out["within"])
    reason = f"{share:.0%} of {held_out['tried']} held-out data sizes within {OPTIMUM_FACTOR:g}x"
    return ("passed" if share == 1 else "failed"), reason


def _ood() -> Criterion:
    return Criterion(
        "OOD insight",
        "A correlation between closeness to the boundary and generalisation",
        "not judged",
        "no point of this map was evaluated on other tasks",
    )


def _number(summary: Mapping[str, Any]) -> str:
    text = f"D = {summary['dimension']:.3f}"
    if interval := summary.get("interval"):
        text += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return text
