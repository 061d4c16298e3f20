"""Basin entropy: how mixed the labels are inside small boxes, and whether that is only noise.

Daza et al. (2016) take the mean Gibbs entropy of the labels in a box over all boxes (Sb) and over
those that hold an edge (Sbb). Their criterion for a fractal, Sbb > ln 2, cannot be met by two
labels. What one size of box can tell is noise: independent labels come close to ln 2 = 0.693, edges
of any dimension up to 1.9 stay below 0.55. Every position of a box counts, because a straight edge
along an axis splits all boxes of one grid alike, in the middle for instance.

Labels that are drawn from a smoothly changing probability escape that test but not the third one:
they have about one isolated point per eight cells of edge, other edges less than one per ten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.analysis.boundary import Mask, find_edge
from fractal_k8s.analysis.subject import Subject

TITLE: Final = "Basin entropy"

BOX: Final = 8
# beyond any of them the map is noise, or finer than its points
MAX_BOUNDARY_ENTROPY: Final = 0.6
MIN_CORRELATION: Final = 0.2
MAX_SPECKS: Final = 0.1

RESOLVED: Final = "resolved"
UNRESOLVED: Final = "noise or unresolved"
NO_EDGE: Final = "no edge"


@dataclass(frozen=True)
class Mixing:
    """What tells noise from an edge; None where nothing can be judged."""

    # Sb and Sbb
    entropy: float | None
    boundary_entropy: float | None
    # of neighbouring labels
    correlation: float | None
    # points that differ from all four neighbours, per cell of edge
    specks: float | None
    # share of the boxes whose labels are all known
    coverage: float

    @property
    def verdict(self) -> str:
        if self.correlation is None:
            return NO_EDGE
        noisy = (
            (self.boundary_entropy or 0.0) > MAX_BOUNDARY_ENTROPY
            or self.correlation < MIN_CORRELATION
            or (self.specks or 0.0) > MAX_SPECKS
        )
        return UNRESOLVED if noisy else RESOLVED


def measure_mixing(labels: Mask, known: Mask) -> Mixing:
    """Entropies over 8 x 8 boxes without a hole; correlation and specks of known points."""
    whole = _box_sums(known) == BOX * BOX
    trainable = np.bincount(_box_sums(labels & known)[whole], minlength=BOX * BOX + 1)
    shares = np.arange(BOX * BOX + 1) / (BOX * BOX)
    inner = shares[1:-1]
    entropies = -inner * np.log(inner) - (1 - inner) * np.log(1 - inner)
    total, mixed = trainable.sum(), trainable[1:-1].sum()
    summed = float(trainable[1:-1] @ entropies)
    return Mixing(
        entropy=summed / float(total) if total else None,
        boundary_entropy=summed / float(mixed) if mixed else None,
        correlation=_correlation(labels, known),
        specks=_specks(labels, known),
        coverage=float(whole.mean()) if whole.size else 0.0,
    )


def analyse(subject: Subject) -> dict[str, Any]:
    """Keys: box (side in points), entropy (Sb), boundary_entropy (Sbb), correlation, specks,
    verdict; coverage, refused.
    """
    found = measure_mixing(subject.labels & subject.known, subject.known)
    return {
        "box": BOX,
        "entropy": found.entropy,
        "boundary_entropy": found.boundary_entropy,
        "correlation": found.correlation,
        "specks": found.specks,
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
        ("isolated points per edge cell", f"{text('specks')}, noise above 0.1"),
    ]


def _box_sums(array: Mask) -> npt.NDArray[np.int32]:
    """Number of True points in the boxes at all positions, shape (rows - 7, columns - 7)."""
    table = np.zeros((array.shape[0] + 1, array.shape[1] + 1), dtype=np.int32)
    np.cumsum(array, axis=0, dtype=np.int32, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    found: npt.NDArray[np.int32] = (
        table[BOX:, BOX:] - table[:-BOX, BOX:] - table[BOX:, :-BOX] + table[:-BOX, :-BOX]
    )
    return found


def _specks(labels: Mask, known: Mask) -> float | None:
    """Points inside the map that differ from all four neighbours, per edge cell."""
    cells = find_edge(labels, known).count
    if not cells:
        return None
    centre = np.s_[1:-1, 1:-1]
    alone = known[centre].copy()
    sides = (np.s_[:-2, 1:-1], np.s_[2:, 1:-1], np.s_[1:-1, :-2], np.s_[1:-1, 2:])
    for side in sides:
        alone &= known[side] & (labels[side] ^ labels[centre])
    return float(np.count_nonzero(alone)) / cells


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
