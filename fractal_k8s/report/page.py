"""The web page: one file, no server, no request to anywhere."""

from __future__ import annotations

import html
import json
from importlib import resources
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from fractal_k8s import __version__
from fractal_k8s.analysis.measure import convergence_measure, rank_colours
from fractal_k8s.analysis.registry import load
from fractal_k8s.report.colours import plotly_scale, trainability_values
from fractal_k8s.report.view import AxisView, axis_views
from fractal_k8s.results.grid import NOT_TRAINABLE, STATE_NAMES, TRAINABLE, Grid
from fractal_k8s.results.verdict import window_holds_first_loss

Rows = list[tuple[str, str]]


def render_page(grid: Grid, summary: dict[str, Any]) -> str:
    """The report of a map as HTML, with everything it needs inside.

    The same grid and summary give the same text.
    """
    import plotly.offline

    template = Template((resources.files("fractal_k8s.report") / "page.html").read_text())
    return template.substitute(
        title=html.escape(grid.sweep.id),
        headline=_headline(grid, summary),
        notices=_notices(grid, summary),
        counts=_table(_count_rows(summary)),
        edge=_table(_edge_rows(summary)),
        ledger=_table(load("ledger").lines(summary["analyses"]["ledger"])),
        settings=_table(_setting_rows(grid)),
        provenance=_table(_provenance_rows(grid)),
        definition=html.escape(json.dumps(grid.sweep.to_dict(), indent=2)),
        data=_script_safe(json.dumps(_data(grid, summary), separators=(",", ":"))),
        plotly=plotly.offline.get_plotlyjs(),
        script=(resources.files("fractal_k8s.report") / "page.js").read_text(),
    )


def _script_safe(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("<", "\\u003c")


def _headline(grid: Grid, summary: dict[str, Any]) -> str:
    dimension = summary["dimension"]
    share = summary["trainable_fraction"]
    edge = summary["refused"] if dimension is None else f"edge dimension <b>{dimension:.3f}</b>"
    trainable = "" if share is None else f"<b>{share:.1%}</b> trainable · "
    size = f"{grid.sweep.rows} × {grid.sweep.columns}"
    return f"{size} points · {trainable}{edge}"


def _notices(grid: Grid, summary: dict[str, Any]) -> str:
    notices: list[str] = []
    if not summary["complete"]:
        notices.append(
            f"Partial map: {summary['coverage']:.1%} of the points have a verdict. "
            "Nothing is filled in; every number is of the known points only."
        )
    if summary["biased_points"]:
        rows, columns = _biased_places(grid)
        notices.append(
            f"{summary['biased_points']:,} points made so few steps that the verdict's window of "
            f"{grid.rule.window} losses holds the first loss, which biases the ratio towards 1 "
            f"({rows} rows and {columns} columns are affected)."
        )
    notices += summary["problems"]
    if len(summary["numerics_classes"]) > 1:
        notices.append(f"Mixed numerics classes: {'; '.join(summary['numerics_classes'])}")
    return "".join(f'<p class="notice">{html.escape(text)}</p>' for text in notices)


def _biased_places(grid: Grid) -> tuple[int, int]:
    finished = grid.states >= NOT_TRAINABLE
    biased = window_holds_first_loss(grid.rule, grid.num_losses) & finished
    return int(biased.any(axis=1).sum()), int(biased.any(axis=0).sum())


def _table(rows: Rows) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _count_rows(summary: dict[str, Any]) -> Rows:
    return [(name, f"{count:,}") for name, count in reversed(summary["counts"].items())]


def _edge_rows(summary: dict[str, Any]) -> Rows:
    return load("dimension").lines(summary["analyses"]["dimension"])


def _setting_rows(grid: Grid) -> Rows:
    spec = grid.sweep.spec
    rule = grid.rule
    verdict = (
        f"mean of last {rule.window} losses < {rule.threshold:g} × first loss"
        if rule.rule == "ratio"
        else f"final loss < {rule.bound:g}"
    )
    axes = [
        (f"{name} axis", f"{knob.name}: {len(values)} values, {values[0]!r} to {values[-1]!r}")
        for name, knob, values in (
            ("y", grid.sweep.y_knob, grid.sweep.y_values),
            ("x", grid.sweep.x_knob, grid.sweep.x_values),
        )
    ]
    training = spec.training.model_dump(mode="json", exclude_none=True)
    return [
        ("model", spec.model),
        ("checkpoint", spec.checkpoint or "none"),
        ("data", spec.dataset),
        *axes,
        ("verdict", verdict),
        ("seed", f"{spec.seed}, {spec.seed_policy}"),
        *((name, str(value)) for name, value in training.items()),
    ]


def _provenance_rows(grid: Grid) -> Rows:
    def distinct(column: str) -> str:
        values = grid.table.column(column).unique().to_pylist()
        return ", ".join(sorted(str(value) for value in values if value)) or "none"

    rows = [
        (name.replace("_", " "), distinct(name))
        for name in (
            "numerics_class",
            "versions",
            "git_commit",
            "node",
            "gpu",
            "image",
            "data_hash",
        )
    ]
    digests = [
        ("checkpoint sha256", grid.sweep.spec.checkpoint_digest or "none"),
        ("data set sha256", grid.sweep.spec.dataset_digest or "none"),
    ]
    return [("sweep", grid.sweep.id), *digests, *rows, ("report by", f"fractal-k8s {__version__}")]


def _data(grid: Grid, summary: dict[str, Any]) -> dict[str, Any]:
    y, x = axis_views(grid.sweep)
    trainable = grid.states == TRAINABLE
    return {
        "id": grid.sweep.id,
        "axes": {"y": _axis(y, grid.sweep.y_values), "x": _axis(x, grid.sweep.x_values)},
        "stateNames": STATE_NAMES,
        "states": grid.states.tolist(),
        "scale": plotly_scale(),
        "trainability": _numbers(trainability_values(grid), 4),
        "loss": _numbers(np.where(trainable, grid.final_loss, np.nan), 6),
        "binary": _numbers(np.where(grid.known, trainable.astype(float), np.nan), 1),
        "measure": _numbers(rank_colours(convergence_measure(grid)), 4),
        "firstLoss": _numbers(grid.first_loss, 6),
        "finalLoss": _numbers(grid.final_loss, 6),
        "ratio": _numbers(grid.ratio, 6),
        "steps": grid.steps.tolist(),
        "seconds": _numbers(grid.seconds, 3),
        "fit": {
            "dimension": summary["dimension"],
            "sizes": summary["box_sizes"],
            "counts": summary["box_counts"],
            "slopes": summary["slopes"],
        },
    }


def _axis(view: AxisView, values: tuple[float, ...]) -> dict[str, Any]:
    return {
        "name": view.name,
        "label": view.label,
        "log": view.is_log,
        "positions": view.centres.tolist(),
        "values": list(values),
    }


def _numbers(array: npt.NDArray[np.float64], digits: int) -> list[list[float | None]]:
    """Rows of numbers to some significant digits; None where JSON has no number."""
    return [
        [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in row]
        for row in array
    ]
