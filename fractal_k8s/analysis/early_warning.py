"""Early warning: which statistics of the first m losses tell whether a run will be trainable.

Only runs that are still undecided after m losses are judged: one that has diverged by then needs no
warning. The losses that a statistic may use end before the window that the verdict averages.
What is chosen (the statistic, its threshold) is chosen on one half of the map and tried on the
other; the halves are a checkerboard of blocks, since neighbouring points are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.distance import signed_distance
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.results.grid import Grid
from fractal_k8s.sweep.deal import representatives

TITLE: Final = "Early warning"

Floats = npt.NDArray[np.float64]

# bands of distance from the edge, in cells: from, up to
BANDS: Final = ((0.0, 2.0), (2.0, 8.0), (8.0, np.inf))
STATISTICS: Final = ("ratio", "slope", "max", "variance")
# points of each outcome that an AUC needs
# Losses that are looked at together.
_BLOCK_LOSSES: Final = 1 << 20
_MIN_EACH: Final = 10
# the map is cut into this many blocks a side
_BLOCKS: Final = 8
_GOOD: Final = 0.9
# stands for the logarithm of a loss of zero
_TINY: Final = 1e-300


@dataclass(frozen=True)
class _Runs:
    """The distinct runs with a verdict; arrays of shape (runs,)."""

    # all losses end to end, and where each run's begin
    losses: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    # finite losses before the first one that is not
    finite: npt.NDArray[np.int64]
    # the verdict to be foretold: not trainable
    fails: Mask
    # cells from the edge, and which half of the map is for trying
    distance: Floats
    held_out: Mask

    def __len__(self) -> int:
        return len(self.counts)


def analyse(subject: Subject) -> dict[str, Any] | None:
    """AUC of each statistic by m and by distance band; None for a bare picture.

    Keys: coverage, refused, runs, steps (list by m: {m, undecided, ended, too_short, auc:
    {statistic: AUC}, chosen, held_out: {auc, balanced_accuracy}, bands: [{low, high, auc}]}),
    earliest (the first m whose held-out AUC is 0.9 or more). AUC is the probability that a run that
    fails has the larger value, ties half: 0.5 tells nothing, 0 as much as 1. For `chosen` and
    `bands` it is turned so that more than 0.5 is right.
    """
    if subject.grid is None:
        return None
    runs = _runs(subject.grid)
    common = {"coverage": subject.coverage, "runs": 0 if runs is None else len(runs)}
    if runs is None:
        return {**common, "refused": "no edge between known neighbours"}
    lengths = _early_lengths(subject.grid, runs)
    if not lengths:
        reason = (
            f"no two losses come before the {_window(subject.grid)} that the verdict is made of"
        )
        return {**common, "refused": reason}
    steps = [_at(runs, m, _window(subject.grid)) for m in lengths]
    if all(step["chosen"] is None for step in steps):
        reason = f"each half of the map needs {_MIN_EACH} undecided runs of each outcome"
        return {**common, "refused": reason}
    good = [
        step["m"]
        for step in steps
        if step["held_out"] is not None and step["held_out"]["auc"] >= _GOOD
    ]
    return {
        **common,
        "refused": None,
        "run_losses": int(runs.counts.max()),
        "earliest": good[0] if good else None,
        "steps": steps,
    }


def _runs(grid: Grid) -> _Runs | None:
    """The distinct runs with a verdict; None where there is no edge."""
    distance = signed_distance(grid.trainable & grid.known, grid.known)
    if distance is None:
        return None
    losses, offsets = grid.losses()
    index = grid.point_indexes()
    own = representatives(grid.sweep)[index] == index
    chosen = own & grid.known.ravel()[index] & (np.diff(offsets)[: len(index)] > 0)
    counts = np.diff(offsets)[: len(index)][chosen]
    starts = offsets[: len(index)][chosen]
    points = index[chosen]
    # the first non-finite loss at or after each start, of whichever run
    bad = np.append(np.flatnonzero(~np.isfinite(losses)), len(losses))
    first_bad = bad[np.searchsorted(bad, starts)]
    return _Runs(
        losses=losses,
        starts=starts,
        counts=counts,
        finite=np.minimum(first_bad - starts, counts),
        fails=~grid.trainable.ravel()[points],
        distance=np.abs(distance.ravel()[points]),
        held_out=_checkerboard(grid.states.shape).ravel()[points],
    )


def _checkerboard(shape: tuple[int, ...]) -> Mask:
    """Blocks of the map, every second one True."""
    i, j = np.indices(shape)
    size = max(1, min(shape) // _BLOCKS)
    return np.asarray((i // size + j // size) % 2 == 1)


def _early_lengths(grid: Grid, runs: _Runs) -> list[int]:
    """Numbers of losses to look at: powers of two up to half of the longest run."""
    longest = int(runs.counts.max())
    last = min(longest // 2, longest - _window(grid))
    return [1 << k for k in range(1, last.bit_length()) if 1 << k <= last]


def _window(grid: Grid) -> int:
    """How many of the last losses the verdict is made of."""
    return grid.rule.window if grid.rule.rule == "ratio" else 1


def _at(runs: _Runs, m: int, window: int) -> dict[str, Any]:
    """What the first m losses tell.

    A run that ended by then is decided; one whose verdict averages some of the m losses, or that
    has no more than m, is too short. Both are counted and left out.
    """
    ended = runs.finite < m
    # of a diverged run every loss comes before its verdict
    complete = runs.finite == runs.counts
    too_short = ~ended & complete & (runs.counts < m + window)
    used = ~ended & ~too_short
    step: dict[str, Any] = {
        "m": m,
        "undecided": int(used.sum()),
        "failing": int(runs.fails[used].sum()),
        "ended": int(ended.sum()),
        "too_short": int(too_short.sum()),
        "auc": dict.fromkeys(STATISTICS),
        "chosen": None,
        "held_out": None,
        "bands": [],
    }
    values = statistics(runs.losses, runs.starts[used], m)
    fails, held = runs.fails[used], runs.held_out[used]
    step["auc"] = {name: auc(value, fails) for name, value in values.items()}
    fitted = {name: auc(value[~held], fails[~held]) for name, value in values.items()}
    known = {name: area for name, area in fitted.items() if area is not None}
    if not known or auc(values["ratio"][held], fails[held]) is None:
        return step
    chosen = max(known, key=lambda name: abs(known[name] - 0.5))
    turned = values[chosen] if known[chosen] >= 0.5 else -values[chosen]
    step["chosen"] = chosen
    step["held_out"] = {
        "auc": auc(turned[held], fails[held]),
        "balanced_accuracy": _tried(turned, fails, held),
    }
    distance = runs.distance[used]
    step["bands"] = [
        _band(turned, fails, held & (distance > low) & (distance <= high), (low, high))
        for low, high in BANDS
    ]
    return step


def _band(turned: Floats, fails: Mask, inside: Mask, limits: tuple[float, float]) -> dict[str, Any]:
    low, high = limits
    return {
        "low": low,
        "high": high if np.isfinite(high) else None,
        "runs": int(inside.sum()),
        "auc": auc(turned[inside], fails[inside]),
    }


def statistics(
    losses: npt.NDArray[np.floating], starts: npt.NDArray[np.int64], m: int
) -> dict[str, Floats]:
    """Statistics of the first m losses of each run, all of ln(loss / first loss). Shapes (runs,).

    ratio: at loss m; slope: of the least-squares line; max: the largest; variance: about the mean.

    Args:
        losses: all losses end to end; the m of each run are finite.
        starts: where each run's begin, shape (runs,).
    """
    steps = np.arange(m) - (m - 1) / 2
    names = ("ratio", "slope", "max", "variance")
    found = {name: np.empty(len(starts)) for name in names}
    rows = max(1, _BLOCK_LOSSES // m)  # a million runs at once would not fit in memory
    for begin in range(0, len(starts), rows):
        block = slice(begin, begin + rows)
        first = losses[starts[block, None] + np.arange(m)].astype(np.float64)
        logs = np.log(np.maximum(first, _TINY))
        logs -= logs[:, :1]
        values = (logs[:, -1], logs @ steps / (steps @ steps), logs.max(axis=1), logs.var(axis=1))
        for name, value in zip(names, values, strict=True):
            found[name][block] = value
    return found


def auc(values: Floats, fails: Mask) -> float | None:
    """Probability that a failing run has the larger value, ties counting half (Mann-Whitney).

    None with fewer than 10 runs of either outcome.
    """
    positive = int(fails.sum())
    negative = len(fails) - positive
    if min(positive, negative) < _MIN_EACH:
        return None
    ranks = rankdata(values)
    return float((ranks[fails].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _tried(turned: Floats, fails: Mask, held: Mask) -> float:
    """Mean of the two shares told right on the held-out half, with the other half's threshold."""
    order = np.argsort(turned[~held], kind="stable")
    values, wrong = turned[~held][order], fails[~held][order]
    # warn above a value: share of the failing above it, and of the others at or below it
    right = np.cumsum(~wrong) / (~wrong).sum() + 1 - np.cumsum(wrong) / wrong.sum()
    last_of_ties = np.append(np.diff(values) > 0, True)
    threshold = values[np.argmax(np.where(last_of_ties, right, -np.inf))]
    warned = turned[held] > threshold
    return float((warned[fails[held]].mean() + (~warned[~fails[held]]).mean()) / 2)


# --- for people ---


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    if result["refused"]:
        return [("early warning", f"none: {result['refused']}")]
    total = result["run_losses"]
    earliest = result["earliest"]
    text = f"not within the first half of {total} losses"
    if earliest is not None:
        text = f"after {earliest} of {total} losses"
    rows = [(f"outcome foretold (AUC {_GOOD})", text)]
    told = [step for step in result["steps"] if step["chosen"] is not None]
    return rows + [(f"  first {step['m']}", _step_text(step)) for step in told]


def _step_text(step: dict[str, Any]) -> str:
    bands = [band["auc"] for band in step["bands"]]
    near = " / ".join("-" if area is None else f"{area:.2f}" for area in bands)
    return (
        f"AUC {step['held_out']['auc']:.2f} by {step['chosen']} "
        f"(within 2 / 8 / more cells of the edge: {near}); {step['ended']} had ended"
    )
