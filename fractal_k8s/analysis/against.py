"""Two maps over the same points: where they agree, how far the edge moved, what else differs."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from fractal_k8s.analysis.boundary import Mask, find_edge
from fractal_k8s.analysis.dimension import measure_dimension
from fractal_k8s.analysis.lines import Lines, band, rate_lines
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.errors import UsageError
from fractal_k8s.results.grid import STATE_NAMES, Grid
from fractal_k8s.sweep.definition import Sweep

_MASK_STATES: Final = ("unknown", "not trainable", "trainable")


def compare(a: Subject, b: Subject) -> dict[str, Any]:
    """How map B differs from map A.

    Keys: coverage (share of points that both know), refused, settings (what the sweeps differ in),
    agreement (share of those points with the same verdict), changed ({gained, lost}: points that
    only B, or only A, can train), confusion ({state in A: {state in B: points}}), edge
    ({a, b: cells; moved: share of A's edge cells that are none in B; shift: median distance in
    cells from B's edge to A's}), dimension ({a, b, difference}, None where refused), critical
    ({knob: {factor: B / A in the median, low, high: the quartiles, lines}}).

    Raises:
        UsageError: the maps have other axes or another size.
    """
    _check_alike(a, b)
    both = a.known & b.known
    common = {
        "coverage": float(both.mean()),
        "settings": [] if a.grid is None or b.grid is None else _settings(a.grid, b.grid),
        "confusion": _confusion(a, b),
    }
    if not both.any():
        return {**common, "refused": "no point is known in both maps"}
    in_a, in_b = a.labels & both, b.labels & both
    return {
        **common,
        "refused": None,
        "agreement": float((in_a == in_b)[both].mean()),
        "changed": {"gained": int((in_b & ~in_a).sum()), "lost": int((in_a & ~in_b).sum())},
        "edge": _edges(in_a, in_b, both),
        "dimension": _dimensions(in_a, in_b, both),
        "critical": {} if a.grid is None or b.grid is None else _critical(a.grid, b.grid),
    }


def _check_alike(a: Subject, b: Subject) -> None:
    if a.labels.shape != b.labels.shape:
        sizes = " and ".join(
            f"{rows} x {columns}" for rows, columns in (a.labels.shape, b.labels.shape)
        )
        raise UsageError(f"maps of {sizes} points cannot be laid over each other")
    if a.grid is None or b.grid is None:
        return
    first, second = a.grid.sweep, b.grid.sweep
    for side in ("y", "x"):
        knobs = [_knob(sweep, side) for sweep in (first, second)]
        if knobs[0] != knobs[1]:
            raise UsageError(
                f"the {side} axis is {knobs[0]} in {first.id} and {knobs[1]} in {second.id}; "
                "only maps over the same points can be compared"
            )
        ours, theirs = (getattr(sweep, f"{side}_values") for sweep in (first, second))
        for place, (own, other) in enumerate(zip(ours, theirs, strict=True)):
            if own != other:
                raise UsageError(
                    f"value {place} of the {side} axis ({knobs[0]}) is {own!r} in {first.id} and "
                    f"{other!r} in {second.id}; only maps over the same points can be compared"
                )


def _knob(sweep: Sweep, side: str) -> str:
    return sweep.y_knob.name if side == "y" else sweep.x_knob.name


# --- what differs ---


def _settings(a: Grid, b: Grid) -> list[dict[str, Any]]:
    """Keys of the sweeps that differ, with both values; the verdicts are those in use."""
    ours, theirs = (_flat(_described(grid)) for grid in (a, b))
    return [
        {"key": key, "a": ours.get(key), "b": theirs.get(key)}
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]


def _described(grid: Grid) -> dict[str, Any]:
    content = grid.sweep.to_dict()
    for key in ("name", "axes", "resolution"):
        del content[key]
    for knob in (grid.sweep.y_knob, grid.sweep.x_knob):
        for key in knob.writes if knob.replaces else ():
            content["training"].pop(key, None)
    return {
        **content,
        "verdict": grid.rule.model_dump(mode="json"),
        "numerics_class": "; ".join(grid.classes),
    }


def _flat(content: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[path + key] = value
    return flat


def _confusion(a: Subject, b: Subject) -> dict[str, dict[str, int]]:
    (names, ours), (_, theirs) = _states(a), _states(b)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (ours.ravel(), theirs.ravel()), 1)
    return {
        name: dict(zip(names, row.tolist(), strict=True))
        for name, row in zip(names, counts, strict=True)
        if row.any()
    }


def _states(subject: Subject) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Names of the states, and each point's number among them."""
    if subject.grid is not None:
        return STATE_NAMES, subject.grid.states.astype(np.int64)
    return _MASK_STATES, np.where(subject.known, 1 + subject.labels, 0).astype(np.int64)


# --- the edge ---


def _edges(in_a: Mask, in_b: Mask, both: Mask) -> dict[str, Any]:
    ours, theirs = find_edge(in_a, both), find_edge(in_b, both)
    edges: dict[str, Any] = {"a": ours.count, "b": theirs.count, "moved": None, "shift": None}
    if ours.count:
        edges["moved"] = float((ours.cells & ~theirs.cells).sum() / ours.count)
    if ours.count and theirs.count:
        away = distance_transform_edt(~ours.cells)
        edges["shift"] = float(np.median(away[theirs.cells]))
    return edges


def _dimensions(in_a: Mask, in_b: Mask, both: Mask) -> dict[str, Any]:
    """Dimension, interval and slope of both edges, over the points that both maps know."""
    measured = [measure_dimension(labels & both, both) for labels in (in_a, in_b)]
    ours, theirs = (
        {key: part[key] for key in ("dimension", "interval", "raw_slope")} for part in measured
    )
    unknown = ours["dimension"] is None or theirs["dimension"] is None
    difference = None if unknown else theirs["dimension"] - ours["dimension"]
    return {"a": ours, "b": theirs, "difference": difference}


def _critical(a: Grid, b: Grid) -> dict[str, Any]:
    """How the critical rate of each line moved, over lines that have it inside both maps."""
    moved = {}
    for ours, theirs in zip(rate_lines(a), rate_lines(b), strict=True):
        shift = _upper(theirs) - _upper(ours)
        shift = shift[np.isfinite(shift) & ours.distinct]
        if len(shift):
            low, middle, high = 10.0 ** np.quantile(shift, [0.25, 0.5, 0.75])
            moved[ours.along] = {
                "factor": float(middle),
                "low": float(low),
                "high": float(high),
                "lines": len(shift),
            }
    return moved


def _upper(lines: Lines) -> npt.NDArray[np.float64]:
    """log10 of each line's critical rate, NaN where it is not inside the map."""
    _, upper = band(lines.trainable, lines.known)
    return np.where(upper.inside, upper.positions(lines.decades), np.nan)


# --- for people ---


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The comparison as (label, text) rows."""
    rows = [("points known in both", f"{result['coverage']:.1%}")]
    if result["settings"]:
        texts = [f"{part['key']}: {part['a']} | {part['b']}" for part in result["settings"]]
        rows += [("differ in (A | B)" if k == 0 else "", text) for k, text in enumerate(texts)]
    if result["refused"]:
        return [*rows, ("comparison", f"none: {result['refused']}")]
    changed = result["changed"]
    text = f"{result['agreement']:.2%}; B gains {changed['gained']:,}, loses {changed['lost']:,}"
    rows.append(("same verdict", text))
    for state, others in result["confusion"].items():
        moved = [f"{count:,} {name}" for name, count in others.items() if count and name != state]
        if moved:
            rows.append((f"  {state} in A", f"in B {', '.join(moved)}"))
    return [*rows, *_edge_rows(result)]


def _edge_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    edge, dimension = result["edge"], result["dimension"]
    text = f"{edge['a']:,} in A, {edge['b']:,} in B"
    if edge["moved"] is not None:
        text += f"; {edge['moved']:.1%} of A's are not in B"
    if edge["shift"] is not None:
        text += f"; median shift {edge['shift']:.2g} cells"
    rows = [("edge cells", text)]
    for label, key in (("edge dimension", "dimension"), ("slope of boxes", "raw_slope")):
        numbers = [
            "none" if dimension[side][key] is None else f"{dimension[side][key]:.3f}"
            for side in ("a", "b")
        ]
        rows.append((label, f"{numbers[0]} in A, {numbers[1]} in B"))
    for knob, moved in result["critical"].items():
        text = f"x {moved['factor']:.3g} (quartiles {moved['low']:.3g} to {moved['high']:.3g})"
        rows.append((f"critical {knob}", f"{text} over {moved['lines']} lines"))
    return rows
