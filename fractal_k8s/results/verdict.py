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


def is_trainable(rule: VerdictRule, stable: Mask, ratio: Floats, final_loss: Floats) -> Mask:
    """The rule's verdict for each point; a point that is not stable never is trainable.

    Args:
        rule: the verdict rule.
        stable: from `is_stable`.
        ratio: mean of the last `rule.window` losses over the first loss.
        final_loss: the last recorded loss.
    """
    with np.errstate(invalid="ignore"):
        if rule.rule == "bound":
            return stable & (final_loss < rule.bound)
        return stable & (ratio < rule.threshold)


def window_holds_first_loss(rule: VerdictRule, num_losses: npt.ArrayLike) -> Mask:
    """Where the window reaches back to the first loss, so that the ratio is biased towards 1.

    With a single loss the ratio is 1 whatever the hyperparameters.
    """
    counts = np.asarray(num_losses)
    if rule.rule != "ratio":
        return np.zeros(counts.shape, dtype=bool)
    return np.asarray((counts > 0) & (counts <= rule.window))
