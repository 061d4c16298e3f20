"""Points that were trained again against what is stored of them, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s import __version__
from fractal_k8s.errors import UnrepeatableError
from fractal_k8s.results.outcome import RESULT_COLUMNS, State

# Kind of the note in the sweep's store.
NOTE: Final = "certificate"

# Columns that an earlier release did not have, and may be empty in its files.
_LATER: Final = ("probe_before", "probe_after")
_NUMBERS: Final = tuple(name for name in RESULT_COLUMNS if name != "losses")
# Differences that an error names.
_MOST_TOLD: Final = 3


@dataclass(frozen=True)
class Repeat:
    """One point that was trained again."""

    i: int
    j: int
    # which shard of the repetition, how many points it had, and the point's place in it, from 0
    shard: int
    size: int
    place: int
    # whether the place is another one than the first time; None = that is not known
    moved: bool | None
    # whether on another node than the first time; None = one of the two is not known
    elsewhere: bool | None
    # trained alone in a process of its own, besides the shards
    cold: bool
    state: str
    steps: int
    # None = not finite
    first_loss: float | None
    final_loss: float | None
    numerics_class: str
    same_class: bool
    # what is not the same; None = nothing
    difference: str | None


def compare(before: dict[str, Any], after: dict[str, Any], **where: Any) -> Repeat:
    """What came of a point, from its two rows.

    Args:
        before: the stored row, every column by name.
        after: the new one; not a failure.
        where: the fields of `Repeat` that say where it was trained again.
    """
    assert after["state"] != State.FAILED.value  # the caller names failures
    return Repeat(
        **where,
        elsewhere=_are_two(before["node"], after["node"]),
        state=after["state"],
        steps=after["steps"],
        first_loss=_finite(after["first_loss"]),
        final_loss=_finite(after["final_loss"]),
        numerics_class=after["numerics_class"],
        same_class=before["numerics_class"] == after["numerics_class"],
        difference=difference_of(before, after),
    )


def difference_of(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """What is not the same bit for bit in two rows of one point, or None.

    The first loss that differs is named with its step; without one, the first number that does.
    """
    old, new = (np.asarray(row["losses"], dtype=np.float32) for row in (before, after))
    both = min(len(old), len(new))
    unequal = np.flatnonzero(_bits(old[:both]) != _bits(new[:both]))
    if len(unequal):
        step = int(unequal[0])
        return f"loss of step {step}: {old[step]!s} then, {new[step]!s} now"
    if len(old) != len(new):
        return f"number of losses: {len(old)} then, {len(new)} now"
    later = [name for name in _LATER if before[name] is not None and after[name] is not None]
    for name in (*_NUMBERS, *later):
        if repr(before[name]) != repr(after[name]):
            return f"{name}: {before[name]!r} then, {after[name]!r} now"
    return None


def _bits(losses: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """The series as bit patterns, every NaN as the same one."""
    return np.where(np.isnan(losses), np.float32(np.nan), losses).view(np.int32)


def _are_two(first: str | None, second: str | None) -> bool | None:
    """Whether two machines are not the same one."""
    return first != second if first and second else None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def certificate(repeats: Sequence[Repeat], *, seed: int) -> dict[str, Any]:
    """The note of kind "certificate".

    Keys: line (what people read), is_certificate (False = machines of different classes were
    compared), equal and compared (points), shards (their sizes), moved (points at another place
    than the first time), elsewhere (on another node than the first time), cold (points trained
    alone besides), numerics_class, seed (of the sample), time, version, points (a `Repeat` each).
    """
    points = {(repeat.i, repeat.j) for repeat in repeats}
    wrong = {(repeat.i, repeat.j) for repeat in repeats if repeat.difference}
    warm = [repeat for repeat in repeats if not repeat.cold]
    note = {
        "is_certificate": all(repeat.same_class for repeat in repeats),
        "equal": len(points - wrong),
        "compared": len(points),
        "shards": list({repeat.shard: repeat.size for repeat in warm}.values()),
        "moved": sum(bool(repeat.moved) for repeat in warm),
        "elsewhere": sum(bool(repeat.elsewhere) for repeat in warm),
        "cold": len(repeats) - len(warm),
        "numerics_class": "; ".join(sorted({repeat.numerics_class for repeat in repeats})),
        "seed": seed,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "points": [asdict(repeat) for repeat in repeats],
    }
    return {"line": _line(note), **note}


def counts_more(note: Mapping[str, Any], kept: Mapping[str, Any] | None) -> bool:
    """Whether a note is to be kept in place of an earlier one of its sweep.

    A difference that was found stays until its points are compared again, and the larger of two
    samples without one counts.
    """
    if not kept or kept.get("numerics_class") != note["numerics_class"]:
        return True
    differed = _places(point for point in kept.get("points", ()) if point["difference"])
    if differed:
        return differed <= _places(note["points"])
    differs = bool(note["equal"] < note["compared"])
    return differs or bool(note["compared"] >= kept.get("compared", 0))


def _places(points: Iterable[Mapping[str, Any]]) -> set[tuple[int, int]]:
    return {(point["i"], point["j"]) for point in points}


def _line(note: dict[str, Any]) -> str:
    how = f"retrained in {_shards(note['shards'])}"
    how += f", {note['moved']} at another place than the first time"
    if note["elsewhere"]:
        how += f", {note['elsewhere']} on another node"
    if note["cold"]:
        how += ", each once more alone in a fresh process"
    result = f"{note['equal']} of {note['compared']} points bit-equal, {how}"
    tail = f"class {note['numerics_class']}; {note['time'][:10]}"
    if not note["is_certificate"]:
        return f"comparison of two numerics classes, no certificate: {result}; here {tail}"
    title = "certificate" if note["equal"] == note["compared"] else "no certificate"
    return f"{title}: {result}; {tail}"


def _shards(sizes: Sequence[int]) -> str:
    """Such as "1 shard of 5", "2 shards of 2 and 3", "8 shards of 7 to 8"."""
    distinct = sorted(set(sizes))
    if len(sizes) <= 2:
        text = " and ".join(str(size) for size in sizes)
    else:
        text = " to ".join(str(size) for size in dict.fromkeys((distinct[0], distinct[-1])))
    return f"{len(sizes)} shard{'s' if len(sizes) > 1 else ''} of {text}"


def fault_of(note: dict[str, Any]) -> UnrepeatableError | None:
    """The error of a note whose points are not all equal.

    Machines of different classes may differ, so a comparison of them has none.
    """
    wrong = [point for point in note["points"] if point["difference"]]
    if not wrong or not note["is_certificate"]:
        return None
    told = [
        f"point ({point['i']}, {point['j']}){' alone' if point['cold'] else ''}, "
        f"{point['difference']}"
        for point in wrong[:_MOST_TOLD]
    ]
    if len(wrong) > _MOST_TOLD:
        told.append(f"and {len(wrong) - _MOST_TOLD} more")
    return UnrepeatableError(
        f"{note['compared'] - note['equal']} of {note['compared']} points gave other numbers than "
        f"the first time: {'; '.join(told)}"
    )
