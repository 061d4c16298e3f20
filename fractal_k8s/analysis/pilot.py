"""Fractal or not, from random pairs: what a pilot of a few thousand runs can tell.

The share f of pairs whose verdicts differ grows with their distance as f = C eps^alpha, and the
edge has dimension D = 2 - alpha (Grebogi et al. 1983, McDonald et al. 1985): alpha is 1 for a
smooth edge and 0 where no distance is small enough to be sure of an outcome.

C and alpha are fitted by maximum likelihood to the counts, taken as Poisson, so that a distance at
which no pair differs counts for what it is. Pairs of one base share its verdict, so the interval
comes from drawing whole bases anew, not from the fit.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.sweep.scatter import Pairs

TITLE: Final = "Pilot from random pairs"

Floats = npt.NDArray[np.float64]

_DRAWS: Final = 400
_INTERVAL: Final = (2.5, 97.5)
# Below this many pairs that differ there is no fit.
_MIN_DIFFERING: Final = 20
# Labels this weakly related at the smallest distance are noise, or an edge that is finer still.
_MIN_CORRELATION: Final = 0.2
# From this on an edge is called fractal, and up to that smooth.
_ROUGH: Final = 1.05
_SMOOTH: Final = 1.15
# The half-width of D's interval that settles most questions.
_GOOD_HALF_WIDTH: Final = 0.1
# Over two decades a power law holds only roughly: level sets of known D come out up to this much
# too low. Widens the interval.
_LAW_ERROR: Final = 0.08
_NEWTON_STEPS: Final = 30


def analyse(subject: Subject) -> dict[str, Any] | None:
    """The pilot of a sweep of pairs, or the one that is noted about a map; else None."""
    if subject.grid is None:
        return None
    scatter = subject.grid.sweep.spec.scatter
    if isinstance(scatter, Pairs):
        return judge_pairs(subject.labels, subject.known, scatter.distances)
    noted = subject.notes.get("pilot")
    return None if noted is None else dict(noted)


def judge_pairs(labels: Mask, known: Mask, distances: tuple[float, ...]) -> dict[str, Any]:
    """What pairs tell about the edge, as plain data.

    Args:
        labels: verdicts, shape (bases, 1 + distances): column 0 is the base, then its partners.
        known: where there is a verdict.
        distances: of the partners, rising, as shares of the plane.
    """
    paired = known[:, 1:] & known[:, :1]
    differs = paired & (labels[:, 1:] != labels[:, :1])
    trainable = float(labels[known].mean()) if known.any() else 0.0
    chance = 2 * trainable * (1 - trainable)
    counts, totals = differs.sum(axis=0), paired.sum(axis=0)
    shares = counts / np.maximum(totals, 1)
    result: dict[str, Any] = {
        "coverage": float(known.mean()) if known.size else 0.0,
        "refused": None,
        "runs": int(known.sum()),
        "pairs": int(totals.sum()),
        "trainable_fraction": trainable,
        "distances": list(distances),
        "differing": counts.tolist(),
        "known_pairs": totals.tolist(),
        "shares": shares.tolist(),
        "correlation": 1 - float(shares[0]) / chance if chance and totals[0] else None,
        "exponent": None,
        "exponent_interval": None,
        "half_exponents": None,
        "bends": None,
        "dimension": None,
        "interval": None,
        "pairs_needed": None,
    }
    if counts.sum() < _MIN_DIFFERING or totals.min() == 0:
        return _without_fit(result)
    logs, drawn = np.log(distances), _draw_bases(differs, paired)
    alpha, low, high = _exponent(logs, *drawn, chance)
    half = max((high - low) / 2, 1e-9)
    result |= {
        "exponent": alpha,
        "exponent_interval": [low, high],
        **_halves(logs, *drawn),
        "dimension": 2 - alpha,
        "interval": [2 - high, 2 - low],
        "pairs_needed": math.ceil(totals.sum() * max(1.0, (half / _GOOD_HALF_WIDTH) ** 2)),
    }
    return _with_verdict(result)


def _without_fit(result: dict[str, Any]) -> dict[str, Any]:
    differing, pairs = sum(result["differing"]), result["pairs"]
    if not pairs or min(result["known_pairs"]) == 0:
        verdict, sentence = "unclear", "cannot tell: there are distances without a judged pair"
    elif result["trainable_fraction"] in (0.0, 1.0):
        verdict = "no edge"
        sentence = f"no edge: {'every' if result['trainable_fraction'] else 'no'} run is trainable"
    elif not differing:
        result["pairs_needed"] = _round_up(pairs * 4)
        verdict = "unclear"
        sentence = (
            f"cannot tell: none of {pairs:,} pairs differs, though "
            f"{result['trainable_fraction']:.2%} of the runs are trainable; "
            f"give --pairs {result['pairs_needed']}"
        )
    else:
        needed = _round_up(pairs * 4 * _MIN_DIFFERING / differing)
        result["pairs_needed"] = needed
        verdict = "unclear"
        sentence = (
            f"cannot tell: only {differing} of {pairs:,} pairs differ; "
            f"give --pairs {needed}, or a plane with more edge in it"
        )
    return {**result, "refused": sentence, "verdict": verdict, "sentence": sentence}


def _with_verdict(result: dict[str, Any]) -> dict[str, Any]:
    low, high = result["interval"]
    found = f"D about {result['dimension']:.2f} (95 %: {low:.2f} to {high:.2f})"
    if result["correlation"] < _MIN_CORRELATION:
        verdict = "noise"
        sentence = (
            "noise, or an edge finer than the pilot resolves: verdicts of the closest pairs are "
            f"hardly related (correlation {result['correlation']:.2f})"
        )
        return {
            **result,
            "dimension": None,
            "interval": None,
            "refused": sentence,
            "verdict": verdict,
            "sentence": sentence,
        }
    if low > _ROUGH:
        verdict, sentence = "fractal", f"fractal: {found}"
    elif high < _SMOOTH:
        verdict, sentence = "smooth", f"not fractal at these scales: {found}"
    else:
        verdict = "unclear"
        needed = _round_up(result["pairs_needed"])
        sentence = f"cannot tell smooth from fractal: {found}; about {needed:,} pairs would"
    if result["bends"]:
        closer, wider = (2 - exponent for exponent in result["half_exponents"])
        sentence += (
            f"; no single law holds: the closer pairs alone say {closer:.2f}, the wider {wider:.2f}"
        )
    return {**result, "verdict": verdict, "sentence": sentence}


def _round_up(number: float) -> int:
    """To two leading digits."""
    unit: int = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return math.ceil(number / unit) * unit


# --- the exponent ---


def _draw_bases(differs: Mask, paired: Mask) -> tuple[Floats, Floats]:
    """Differing and known pairs by distance: as counted, and with the bases drawn anew.

    Both have shape (1 + _DRAWS, distances).
    """
    random = np.random.RandomState(0)
    bases = len(differs)
    draws = random.multinomial(bases, np.full(bases, 1 / bases), size=_DRAWS)
    weights = np.vstack([np.ones(bases), draws]).astype(np.float64)
    return weights @ differs, weights @ paired


def _exponent(
    logs: Floats, counts: Floats, totals: Floats, chance: float
) -> tuple[float, float, float]:
    """The exponent and the ends of its 95 % interval."""
    used = _below_saturation(counts[0] / totals[0], chance)
    alphas = fit_power(logs[used], counts[:, used], totals[:, used])
    alpha, ends = float(alphas[0]), np.percentile(alphas[1:], _INTERVAL)
    low, high = (math.hypot(alpha - float(end), _LAW_ERROR) for end in ends)
    return alpha, alpha - low, alpha + high


def _halves(logs: Floats, counts: Floats, totals: Floats) -> dict[str, Any]:
    """Exponents of the closer and of the wider distances, and whether they surely differ.

    Both None where one of them has hardly any differing pairs, or fewer than three distances.
    """
    middle = len(logs) // 2
    halves = slice(None, middle), slice(middle, None)
    if middle < 3 or min(counts[0, half].sum() for half in halves) < _MIN_DIFFERING / 2:
        return {"half_exponents": None, "bends": None}
    closer, wider = (fit_power(logs[half], counts[:, half], totals[:, half]) for half in halves)
    low, high = np.percentile((closer - wider)[1:], _INTERVAL)
    return {
        "half_exponents": [float(closer[0]), float(wider[0])],
        "bends": bool(low > 0 or high < 0),
    }


def _below_saturation(shares: Floats, chance: float) -> Mask:
    """Distances at which the share is not yet near that of unrelated labels; all if that is few."""
    used = shares < chance / 2
    return used if used.sum() >= len(shares) // 2 else np.ones(len(shares), dtype=bool)


def fit_power(logs: Floats, counts: Floats, totals: Floats) -> Floats:
    """alpha of counts ~ Poisson(totals C eps^alpha) by Newton's method, shape (fits,).

    Args:
        logs: ln eps, shape (distances,).
        counts, totals: shape (fits, distances); a fit without any count gets alpha 1.
    """
    alpha = np.ones(len(counts))
    level = np.log(np.maximum(counts.sum(axis=1), 0.5) / (totals * np.exp(logs)).sum(axis=1))
    for _ in range(_NEWTON_STEPS):
        expected = totals * np.exp(level[:, None] + alpha[:, None] * logs)
        excess = counts - expected
        gradient = excess.sum(axis=1), (excess * logs).sum(axis=1)
        m0, m1, m2 = ((expected * logs**power).sum(axis=1) for power in range(3))
        spread = np.maximum(m0 * m2 - m1 * m1, 1e-12)
        level += np.clip((m2 * gradient[0] - m1 * gradient[1]) / spread, -2, 2)
        alpha += np.clip((m0 * gradient[1] - m1 * gradient[0]) / spread, -0.5, 0.5)
    return alpha


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("verdict", result["sentence"])]
    rows.append(("pairs", f"{result['pairs']:,} from {result['runs']:,} runs"))
    if result["exponent"] is not None:
        low, high = result["exponent_interval"]
        rows.append(
            ("uncertainty exponent", f"{result['exponent']:.3f} (95 %: {low:.3f} to {high:.3f})")
        )
    if result["half_exponents"]:
        closer, wider = result["half_exponents"]
        rows.append(("of closer / wider pairs", f"{closer:.3f} / {wider:.3f}"))
    rows += [
        (f"distance {distance:g}", f"{count} of {total} pairs differ ({share:.1%})")
        for distance, count, total, share in zip(
            result["distances"],
            result["differing"],
            result["known_pairs"],
            result["shares"],
            strict=True,
        )
    ]
    return rows
