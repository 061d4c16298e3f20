"""What of a map is the hyperparameters', and what is round-off or the seed's.

Noise imitates fractals: a straight edge with noise of a pixel measures 1.2 to 1.98. So cells of the
map are trained again unchanged (nothing may change), with rates one representable number away, and
with other seeds; and whole maps with other seeds, its replicas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from fractal_k8s.analysis.boundary import Mask, find_edge
from fractal_k8s.analysis.dimension import measure_dimension
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.results.grid import Grid
from fractal_k8s.sweep.scatter import Cells

TITLE: Final = "Controls"

Note = dict[str, Any]

EDGE: Final = "edge"
RANDOM: Final = "random"
_SAMPLE_STREAM: Final = 5
# Fewer dimensions than this have no interval.
_MIN_DIMENSIONS: Final = 3
# From this share on, a change of the last digit decides what the edge looks like.
_ROUND_OFF_RULES: Final = 0.1


# --- which cells ---


def sample_cells(grid: Grid, number: int) -> dict[str, list[int]]:
    """Point indexes to train again: points at the edge, and points drawn from all the others.

    At most `number` of each group, rising; the same map gives the same sample. A map without an
    edge has no edge group.
    """
    random = np.random.RandomState([grid.sweep.spec.seed, _SAMPLE_STREAM])
    free = grid.known.copy()  # a point in both groups would be trained twice
    sample = {}
    for group, mask in ((EDGE, _edge_points(grid)), (RANDOM, free)):
        candidates = np.flatnonzero(mask & free)
        if len(candidates):
            chosen = random.choice(candidates, min(number, len(candidates)), replace=False)
            free.flat[chosen] = False
            sample[group] = sorted(int(index) for index in chosen)
    return sample


def _edge_points(grid: Grid) -> Mask:
    """The points of all edge cells, shape (rows, columns)."""
    cells = find_edge(grid.trainable, grid.known).cells
    points = np.zeros(grid.states.shape, dtype=bool)
    for down in (0, 1):
        for right in (0, 1):
            points[down : down + cells.shape[0], right : right + cells.shape[1]] |= cells
    return points


# --- what came of them ---


def count_flips(grid: Grid, controls: Sequence[Grid], column: int) -> Note:
    """group -> {"cells", "flipped"} over all the given grids of controls.

    A cell counts where both runs were judged; it is flipped if one is trainable and one is not.

    Args:
        grid: the map.
        controls: sweeps of its cells.
        column: which move of the rates.
    """
    flips: Note = {}
    for control in controls:
        for row, (group, index) in enumerate(_cells(control).rows):
            if not (grid.known.flat[index] and control.known[row, column]):
                continue
            entry = flips.setdefault(group, {"cells": 0, "flipped": 0})
            entry["cells"] += 1
            changed = grid.trainable.flat[index] != control.trainable[row, column]
            entry["flipped"] += int(changed)
    return flips


def count_equal_series(grid: Grid, control: Grid, column: int) -> tuple[int, int]:
    """How many cells have the same loss series bit for bit, and how many were compared."""
    before, again = _series(grid), _series(control)
    equal = compared = 0
    for row, (_, index) in enumerate(_cells(control).rows):
        other = row * control.sweep.columns + column
        if grid.known.flat[index] and control.known[row, column]:
            compared += 1
            equal += before[index] == again[other]
    return equal, compared


def _cells(control: Grid) -> Cells:
    scatter = control.sweep.spec.scatter
    assert isinstance(scatter, Cells)  # controls are made of cells
    return scatter


def _series(grid: Grid) -> dict[int, bytes]:
    """Point index -> bytes of its loss series."""
    values, offsets = grid.losses()
    return {
        int(index): values[start:stop].tobytes()
        for index, start, stop in zip(grid.point_indexes(), offsets, offsets[1:], strict=False)
    }


def note_of_controls(grid: Grid, repeat: Grid, others: Sequence[Grid]) -> Note:
    """The note of kind "controls".

    Args:
        grid: the map.
        repeat: its cells unchanged in column 0 and, where there is a column 1, one ulp away.
        others: its cells with other seeds.
    """
    equal, compared = count_equal_series(grid, repeat, 0)
    seeds = [control.sweep.spec.seed for control in others]
    return {
        "sweep": repeat.sweep.id,
        "same_class": grid.classes == repeat.classes,
        "unchanged": {
            **count_flips(grid, [repeat], 0),
            "bit_equal": equal,
            "compared": compared,
        },
        "ulp": count_flips(grid, [repeat], 1) if repeat.sweep.columns > 1 else None,
        "seeds": {**count_flips(grid, others, 0), "seeds": seeds} if others else None,
        "seed_sweeps": [control.sweep.id for control in others],
    }


def fault_of(note: Note) -> str | None:
    """Why the unchanged cells of a controls note are not what they were, or None."""
    unchanged = note["unchanged"]
    cells, flipped = _total(unchanged)
    differing = unchanged["compared"] - unchanged["bit_equal"]
    if not flipped and not differing:
        return None
    reason = (
        "the same run does not give the same numbers here"
        if note["same_class"]
        else "this machine belongs to another numerics class than the map's"
    )
    return (
        f"of {cells} cells that were trained again unchanged {flipped} flipped and {differing} "
        f"have other losses: {reason}"
    )


# --- replicas ---


def note_of_replicas(grids: Sequence[Grid]) -> Note:
    """The note of kind "replicas": maps that differ in nothing but the seed, the first included.

    `trainable` and `known` count, for each cell, in how many maps it is trainable and judged.
    """
    known = np.sum([grid.known for grid in grids], axis=0)
    trainable = np.sum([grid.trainable & grid.known for grid in grids], axis=0)
    judged = known == len(grids)
    split = judged & (trainable > 0) & (trainable < known)
    measured = [measure_dimension(grid.trainable & grid.known, grid.known) for grid in grids]
    dimensions, slopes = ([part[key] for part in measured] for key in ("dimension", "raw_slope"))
    return {
        "sweeps": [grid.sweep.id for grid in grids],
        "seeds": [grid.sweep.spec.seed for grid in grids],
        "trainable": trainable.tolist(),
        "known": known.tolist(),
        "coverage": float(judged.mean()),
        "flip_share": float(split.sum() / judged.sum()) if judged.any() else None,
        "dimensions": dimensions,
        "interval": _dimension_interval(dimensions),
        "slopes": slopes,
        "slope_interval": mean_interval([value for value in slopes if value is not None]),
    }


def mean_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean by Student's t; None for fewer than three values."""
    if len(values) < _MIN_DIMENSIONS:
        return None
    numbers: npt.NDArray[np.float64] = np.array(values)
    error = float(numbers.std(ddof=1)) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.975)) * error
    return [float(numbers.mean()) - half, float(numbers.mean()) + half]


def _dimension_interval(dimensions: Sequence[float | None]) -> list[float] | None:
    """`mean_interval` of those there are, within what a dimension can be."""
    found = mean_interval([value for value in dimensions if value is not None])
    return found and [max(1.0, found[0]), min(2.0, found[1])]


# --- the analysis ---


def analyse(subject: Subject) -> dict[str, Any] | None:
    """What the notes about controls and replicas say; None where there are none."""
    controls, replicas = subject.notes.get("controls"), subject.notes.get("replicas")
    if controls is None and replicas is None:
        return None
    return {
        "coverage": subject.coverage,
        "refused": None,
        "controls": controls,
        "replicas": _without_maps(replicas) if replicas else None,
        "fault": fault_of(controls) if controls else None,
        "ceiling": _ceiling(controls) if controls else None,
    }


def _without_maps(note: Note) -> Note:
    """A replicas note without its two maps, which stay in the note."""
    return {key: value for key, value in note.items() if key not in ("trainable", "known")}


def _ceiling(note: Note) -> str | None:
    """How far the edge's texture can be trusted, in one sentence."""
    parts = []
    if note["ulp"] and EDGE in note["ulp"]:
        share = _share(note["ulp"][EDGE])
        rules = "decides the edge's texture" if share >= _ROUND_OFF_RULES else "hardly matters"
        parts.append(f"round-off {rules} at this resolution ({share:.1%} of the edge cells)")
    if note["seeds"] and EDGE in note["seeds"]:
        share = _share(note["seeds"][EDGE])
        parts.append(
            f"another seed changes {share:.1%} of the edge cells, and no feature of the edge that "
            "small is the hyperparameters' own"
        )
    return "; ".join(parts) or None


def _share(entry: Note) -> float:
    return float(entry["flipped"] / entry["cells"]) if entry["cells"] else 0.0


def _total(part: Note) -> tuple[int, int]:
    """Cells and flipped cells of all groups."""
    groups = [part[group] for group in (EDGE, RANDOM) if group in part]
    return sum(entry["cells"] for entry in groups), sum(entry["flipped"] for entry in groups)


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if controls := result["controls"]:
        unchanged = controls["unchanged"]
        same = f"{unchanged['bit_equal']} of {unchanged['compared']} loss series equal bit for bit"
        rows.append(("trained again unchanged", f"{_flips(unchanged)}; {same}"))
        if controls["ulp"]:
            rows.append(("rates one representable number up", _flips(controls["ulp"])))
        if controls["seeds"]:
            rows.append(
                (_named("other seeds", controls["seeds"]["seeds"]), _flips(controls["seeds"]))
            )
    if replicas := result["replicas"]:
        rows += _replica_lines(replicas)
    for label, key in (("fault", "fault"), ("noise ceiling", "ceiling")):
        if result[key]:
            rows.append((label, result[key]))
    return rows


def _replica_lines(replicas: Note) -> list[tuple[str, str]]:
    share = replicas["flip_share"]
    found = ", ".join("none" if d is None else f"{d:.3f}" for d in replicas["dimensions"])
    slopes = replicas["slopes"]
    rows = [
        (
            _named("maps of seeds", replicas["seeds"]),
            "no cell is judged in all of them"
            if share is None
            else f"{share:.2%} of the cells are trainable in some and not in others",
        ),
        ("dimension of each", found),
        ("slope of each", ", ".join("none" if s is None else f"{s:.3f}" for s in slopes)),
    ]
    if replicas["slope_interval"]:
        low, high = replicas["slope_interval"]
        rows.append(("mean slope", f"{(low + high) / 2:.3f} (95 %: {low:.3f} to {high:.3f})"))
    if replicas["interval"]:
        low, high = replicas["interval"]
        judged = [value for value in replicas["dimensions"] if value is not None]
        mean = sum(judged) / len(judged)
        rows.append(("mean dimension", f"{mean:.3f} (95 %: {low:.3f} to {high:.3f})"))
    return rows


def _named(label: str, seeds: Sequence[int]) -> str:
    return f"{label} {', '.join(str(seed) for seed in seeds)}"


def _flips(part: Note) -> str:
    texts = [
        f"{part[group]['flipped']} of {part[group]['cells']} {group} cells"
        for group in (EDGE, RANDOM)
        if group in part
    ]
    return " and ".join(texts) + " flipped"
