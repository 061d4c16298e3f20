"""From outcomes to verdicts. A rule is data, so a new rule judges stored outcomes, not new runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fractal_k8s.sweep.rule import VerdictRule

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def is_stable(trained: Mask, final_loss: Floats) -> Mask:
    """Finished, with a finite final loss."""
    return trained & np.isfinite(final_loss)


def probe_ratio(before: npt.ArrayLike, after: npt.ArrayLike) -> Floats:
    """Loss on the probe rows after a run over the one before it; NaN where none was measured."""
    with np.errstate(all="ignore"):
        return np.asarray(np.divide(after, before), dtype=np.float64)


def judged_number(
    rule: VerdictRule, *, ratio: Floats, final_loss: Floats, probe_ratio: Floats
) -> Floats:
    """The number of each point that the rule looks at.

    Args:
        ratio: mean of the last `rule.window` losses over the first loss.
        final_loss: the last recorded loss.
        probe_ratio: from `probe_ratio`.
    """
    return {"ratio": ratio, "bound": final_loss, "probe": probe_ratio}[rule.rule]


def is_trainable(rule: VerdictRule, stable: Mask, number: Floats) -> Mask:
    """The rule's verdict for each point; a point that is not stable never is trainable.

    Args:
        stable: from `is_stable`.
        number: from `judged_number`.
    """
    with np.errstate(invalid="ignore"):
        return stable & (number < rule.limit)


def is_marginal(rule: VerdictRule, stable: Mask, number: Floats) -> Mask:
    """Whether a point lies in the rule's band of limit..marginal, the upper end not included."""
    if rule.marginal is None:
        return np.zeros(np.shape(stable), dtype=bool)
    with np.errstate(invalid="ignore"):
        return stable & (number >= rule.limit) & (number < rule.marginal)


def window_holds_first_loss(rule: VerdictRule, num_losses: npt.ArrayLike) -> Mask:
    """Where the window reaches back to the first loss, so that the ratio is biased towards 1.

    With a single loss the ratio is 1 whatever the hyperparameters.
    """
    counts = np.asarray(num_losses)
    if rule.rule != "ratio":
        return np.zeros(counts.shape, dtype=bool)
    return np.asarray((counts > 0) & (counts <= rule.window))
