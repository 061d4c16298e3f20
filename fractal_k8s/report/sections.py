"""The texts and tables of the page, as HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fractal_k8s import __version__
from fractal_k8s.analysis import lattice
from fractal_k8s.analysis.registry import load
from fractal_k8s.report.criteria import criteria
from fractal_k8s.report.fit import fit_of
from fractal_k8s.report.plots import dimension_plot
from fractal_k8s.results import holes, problems
from fractal_k8s.results.golden import short_hash
from fractal_k8s.results.grid import NOT_TRAINABLE, Grid
from fractal_k8s.results.verdict import window_holds_first_loss

Rows = list[tuple[str, str]]
Summary = Mapping[str, Any]

# Which analyses stand under which heading; every other one under the last.
_HEADINGS: Final = {
    "Edge": ("dimension", "uncertainty", "entropy"),
    "Rules of thumb": ("critical", "optimal", "distance", "early_warning"),
    "Reproducibility": ("controls",),
    "Time and cost": ("ledger",),
}
_OTHERS: Final = "Further measurements"


# --- the top ---


def family_path(grid: Grid, summary: Summary) -> str:
    """Links from the first map of a family of zooms down to this one, and to the zooms into it."""
    family = summary.get("family") or {}
    ancestors, children = family.get("ancestors", []), family.get("children", [])
    if not ancestors and not children:
        return ""
    steps = [f"<li>{_member(member)}</li>" for member in ancestors]
    steps.append(f'<li aria-current="page"><b>{html.escape(grid.sweep.id)}</b></li>')
    path = f"<ol>{''.join(steps)}</ol>"
    if children:
        path += f"<span>zooms into it: {', '.join(_member(child) for child in children)}</span>"
    return f'<nav class="family" aria-label="Family of zooms">{path}</nav>'


def _member(member: Mapping[str, Any]) -> str:
    name = html.escape(str(member["id"]))
    dimension = member.get("dimension")
    note = "" if dimension is None else f" <small>D {dimension:.2f}</small>"
    return f'<a href="../../{name}/summary/report.html">{name}</a>{note}'


def subtitle(grid: Grid) -> str:
    spec = grid.sweep.spec
    data = spec.dataset.rpartition("/")[2]
    return (
        f"{spec.model} on {data}: {grid.sweep.y_knob.label} (rows) against "
        f"{grid.sweep.x_knob.label} (columns)"
    )


def tiles(grid: Grid, summary: Summary) -> str:
    """The few numbers that a reader looks for first."""
    share = summary["trainable_fraction"]
    counts = summary["counts"]
    rows = [
        ("Points", f"{grid.sweep.rows} × {grid.sweep.columns}", ""),
        ("With a verdict", f"{summary['coverage']:.1%}", ""),
        ("Trainable", "none known" if share is None else f"{share:.1%}", ""),
        ("Diverged", f"{counts['diverged']:,}", ""),
        ("Edge dimension", *_dimension_tile(summary)),
    ]
    if "marginal" in counts:
        rows.insert(3, ("Marginal", f"{counts['marginal']:,}", ""))
    if counts["failed"]:
        rows.insert(4, ("Failed", f"{counts['failed']:,}", ""))
    return "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(value)}"
        + (f"<small>{html.escape(note)}</small>" if note else "")
        + "</dd></div>"
        for name, value, note in rows
    )


def _dimension_tile(summary: Summary) -> tuple[str, str]:
    if summary.get("dimension") is None:
        reason = str(summary.get("refused") or "")
        so_far = lattice.text(summary.get("provisional"))
        return "none", reason if so_far is None else f"so far {so_far}"
    interval = summary.get("interval")
    note = f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    return f"{summary['dimension']:.3f}", note


def notices(grid: Grid, summary: Summary) -> str:
    """What a reader must know before reading a number."""
    texts: list[str] = []
    if not summary["complete"]:
        texts.append(
            f"Partial map: {summary['coverage']:.1%} of the points have a verdict. "
            "Nothing is filled in; every number is of the known points only."
        )
        texts += [f"{text[0].upper()}{text[1:]}" for text in holes.lines(summary["holes"])]
    if summary["biased_points"]:
        rows, columns = _biased_places(grid)
        texts.append(
            f"{summary['biased_points']:,} points made so few steps that the verdict's window of "
            f"{grid.rule.window} losses holds the first loss, which biases the ratio towards 1 "
            f"({rows} rows and {columns} columns are affected)."
        )
    texts += problems.shown(summary)
    if lost := summary["notes"].get("data", {}).get("sentences"):
        texts.append(f"Data: {'; '.join(lost)}.")
    if len(summary["numerics_classes"]) > 1:
        texts.append(f"Mixed numerics classes: {'; '.join(summary['numerics_classes'])}")
    return "".join(f'<p class="notice">{html.escape(text)}</p>' for text in texts)


def _biased_places(grid: Grid) -> tuple[int, int]:
    finished = grid.states >= NOT_TRAINABLE
    biased = window_holds_first_loss(grid.rule, grid.num_losses) & finished
    return int(biased.any(axis=1).sum()), int(biased.any(axis=0).sum())


# --- below the maps ---


def all_sections(grid: Grid, summary: Summary) -> str:
    """Everything below the maps. A heading without content is left out."""
    cards = _analysis_cards(summary)
    blocks = [
        ("Edge", _edge_plot(summary) + cards.pop("Edge", "")),
        ("Rules of thumb", cards.pop("Rules of thumb", "")),
        (_OTHERS, cards.pop(_OTHERS, "")),
        ("Criteria of the research plan", _criteria(summary)),
        (
            "Reproducibility",
            _certificate(summary) + cards.pop("Reproducibility", ""),
        ),
        ("Time and cost", cards.pop("Time and cost", "")),
        ("Sweep", _about(grid, summary)),
    ]
    return "\n".join(
        f'<section><h2>{heading}</h2><div class="{_layout(heading)}">{content}</div></section>'
        for heading, content in blocks
        if content
    )


def _layout(heading: str) -> str:
    return "cards edge" if heading == "Edge" else "cards"


def _analysis_cards(summary: Summary) -> dict[str, str]:
    """Every analysis as a card, the cards by heading."""
    places = {name: heading for heading, group in _HEADINGS.items() for name in group}
    found: dict[str, str] = {}
    for name, result in summary.get("analyses", {}).items():
        analysis = load(name)
        heading = places.get(name, _OTHERS)
        card = _card(analysis.TITLE, table(analysis.lines(result)))
        found[heading] = found.get(heading, "") + card
    return found


def _edge_plot(summary: Summary) -> str:
    fit = fit_of(dict(summary))
    if fit is None:
        reason = str(summary.get("refused") or "nothing was counted")
        return _card("Boxes against box side", f'<p class="empty">{html.escape(reason)}</p>')
    return _card("Boxes against box side", dimension_plot(fit))


def _criteria(summary: Summary) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(one.name)}</th><td>{html.escape(one.question)}</td>"
        f'<td class="judged {one.judgement.replace(" ", "-")}">{one.judgement}</td>'
        f"<td>{html.escape(one.reason)}</td></tr>"
        for one in criteria(summary)
    )
    return f'<div class="card wide"><table class="criteria">{rows}</table></div>'


def _certificate(summary: Summary) -> str:
    """What is known about getting the same numbers again."""
    notes = summary.get("notes", {})
    classes = summary["numerics_classes"]
    lines = [str(notes["certificate"]["line"])] if "certificate" in notes else []
    if unchanged := notes.get("controls", {}).get("unchanged"):
        lines.append(_unchanged_line(unchanged))
    if not lines:
        lines.append(
            "Not checked: no point of this map was trained a second time "
            "(fractal-k8s repro and controls do it)."
        )
    rows = [("numerics class", name) for name in classes]
    texts = "".join(f'<p class="certificate">{html.escape(line)}</p>' for line in lines)
    return _card("Certificate", texts + table(rows))


def _unchanged_line(unchanged: Mapping[str, Any]) -> str:
    parts = [part for part in unchanged.values() if isinstance(part, Mapping)]
    cells, flipped = (sum(int(part.get(key, 0)) for part in parts) for key in ("cells", "flipped"))
    line = f"{cells:,} points were trained again unchanged: {flipped:,} changed their verdict"
    if "bit_equal" in unchanged:
        line += f", {int(unchanged['bit_equal']):,} gave the same losses bit for bit"
    return line + "."


def _about(grid: Grid, summary: Summary) -> str:
    counts: Rows = [(name, f"{count:,}") for name, count in reversed(summary["counts"].items())]
    definition = html.escape(json.dumps(grid.sweep.to_dict(), indent=2))
    return "".join(
        (
            _card("Points", table(counts)),
            _card("Settings", table(_setting_rows(grid))),
            _card("Provenance", table(_provenance_rows(grid))),
            _card("Sweep file", f"<pre>{definition}</pre>"),
        )
    )


def _setting_rows(grid: Grid) -> Rows:
    spec = grid.sweep.spec
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
        ("verdict", grid.rule.sentence),
        ("seed", f"{spec.seed}, {spec.seed_policy}"),
        *((name, str(value)) for name, value in training.items()),
    ]


def _provenance_rows(grid: Grid) -> Rows:
    def distinct(column: str) -> str:
        values = grid.table.column(column).unique().to_pylist()
        return ", ".join(sorted(str(value) for value in values if value)) or "none"

    columns = (
        "numerics_class",
        "versions",
        "git_commit",
        "node",
        "gpu",
        "image",
        "data_hash",
    )
    rows = [(name.replace("_", " "), distinct(name)) for name in columns]
    prints = grid.table.column("fingerprint").unique().to_pylist()
    short = sorted({short_hash(text) for text in prints if text})
    rows.append(("fingerprint", ", ".join(short) or "none"))
    digests = [
        ("checkpoint sha256", grid.sweep.spec.checkpoint_digest or "none"),
        ("data set sha256", grid.sweep.spec.dataset_digest or "none"),
    ]
    return [("sweep", grid.sweep.id), *digests, *rows, ("report by", f"fractal-k8s {__version__}")]


# --- building blocks ---


def table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _card(title: str, content: str) -> str:
    return f'<div class="card"><h3>{html.escape(title)}</h3>{content}</div>'
