"""Basin entropy: how mixed the labels are inside small boxes, and whether that is only noise.

Daza et al. (2016) take the mean Gibbs entropy of the labels in a box over all boxes (Sb) and over
those that hold an edge (Sbb). Their criterion for a fractal, Sbb > ln 2, cannot be met by two
labels. What one size of box can tell is noise: independent labels come close to ln 2 = 0.693, edges
of any dimension up to 1.9 stay below 0.55.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.subject import Subject

TITLE: Final = "Basin entropy"

BOX: Final = 8
# above the first or below the second the map is noise, or finer than its points
MAX_BOUNDARY_ENTROPY: Final = 0.6
MIN_CORRELATION: Final = 0.2

RESOLVED: Final = "resolved"
UNRESOLVED: Final = "noise or unresolved"
NO_EDGE: Final = "no edge"


@dataclass(frozen=True)
class Mixing:
    """Sb, Sbb and the correlation of neighbouring labels; None where nothing can be judged."""

    entropy: float | None
    boundary_entropy: float | None
    correlation: float | None
    # share of the boxes whose labels are all known
    coverage: float

    @property
    def verdict(self) -> str:
        if self.correlation is None:
            return NO_EDGE
        mixed = (self.boundary_entropy or 0.0) > MAX_BOUNDARY_ENTROPY
        return UNRESOLVED if mixed or self.correlation < MIN_CORRELATION else RESOLVED


def measure_mixing(labels: Mask, known: Mask) -> Mixing:
    """Entropies over 8 x 8 boxes without a hole, and the correlation of known neighbours."""
    boxes, whole = _boxes(labels), _boxes(known).all(axis=-1)
    coverage = float(whole.mean()) if whole.size else 0.0
    shares = boxes[whole].mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(p > 0, -p * np.log(p), 0.0) for p in (shares, 1 - shares)]
    entropies = terms[0] + terms[1]
    mixed = entropies > 0
    return Mixing(
        entropy=float(entropies.mean()) if len(entropies) else None,
        boundary_entropy=float(entropies[mixed].mean()) if mixed.any() else None,
        correlation=_correlation(labels, known),
        coverage=coverage,
    )


def analyse(subject: Subject) -> dict[str, Any]:
    """Keys: box (side in points), entropy (Sb), boundary_entropy (Sbb), correlation, verdict;
    coverage, refused.
    """
    found = measure_mixing(subject.labels & subject.known, subject.known)
    return {
        "box": BOX,
        "entropy": found.entropy,
        "boundary_entropy": found.boundary_entropy,
        "correlation": found.correlation,
        "verdict": found.verdict,
        "coverage": found.coverage,
        "refused": None if found.entropy is not None else "no box of known labels",
    }


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    def text(name: str) -> str:
        return "none" if result[name] is None else f"{result[name]:.3f}"

    return [
        ("labels of neighbours", f"{result['verdict']}, correlation {text('correlation')}"),
        (f"entropy of {result['box']} x {result['box']} boxes", f"{text('entropy')} (Sb)"),
        ("of those at the edge", f"{text('boundary_entropy')} (Sbb), noise above 0.6"),
    ]


def _boxes(array: Mask) -> Mask:
    """The whole boxes of an array, shape (boxes, BOX * BOX)."""
    rows, columns = (length // BOX for length in array.shape)
    cut = array[: rows * BOX, : columns * BOX].reshape(rows, BOX, columns, BOX)
    return cut.swapaxes(1, 2).reshape(rows * columns, BOX * BOX)


def _correlation(labels: Mask, known: Mask) -> float | None:
    """1 - (share of neighbours that differ) / (that of independent labels)."""
    differ = pairs = 0
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        both = known[one] & known[other]
        pairs += int(np.count_nonzero(both))
        differ += int(np.count_nonzero((labels[one] ^ labels[other]) & both))
    if not pairs or not differ:
        return None
    trainable = float(labels[known].mean())
    return 1 - (differ / pairs) / (2 * trainable * (1 - trainable))
