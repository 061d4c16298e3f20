"""`fractal-k8s analyze`: the numbers of a map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fractal_k8s.cli.common import (
    Command,
    analysis_lines,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    store_option,
    summary_lines,
)
from fractal_k8s.cli.where import Where, cluster_options, stored_at
from fractal_k8s.errors import IncompleteError, UsageError

if TYPE_CHECKING:
    from fractal_k8s.analysis.subject import Subject

# the keys of analysis.box_dimension.METHODS, which a test compares
_METHODS = ("windows", "published", "notebook", "aligned")


@click.command(cls=Command)
@click.argument("sweep_id", metavar="[ID]", required=False)
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A picture instead of a sweep: .npy (boolean, or 0 and 1), or an image of two colours "
    "(blue against red, else the brighter one, is trainable).",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="windows",
    show_default=True,
    help="How the dimension is measured. Only windows is calibrated and has an interval. published "
    "(the public code's) and notebook (the original study's) are for comparison; aligned: of the "
    "trainable cells themselves, not of their edge.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Only this analysis, such as dimension. Repeatable.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="verdict.KEY=VALUE",
    help="Judge by another rule, such as verdict.threshold=0.9. Needs no training.",
)
@click.option(
    "--against",
    metavar="OTHER",
    help="Compare with another sweep over the same points (or, with --mask, another picture).",
)
@click.option(
    "--figure",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --against: draw both maps and their difference, .png or .pdf.",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the products of every column and row (critical, safe and best rates) as a table.",
)
@click.option("--partial", is_flag=True, help="Accept a map with missing or failed points.")
@mixed_option
@store_option
@cluster_options
@json_option
def command(
    sweep_id: str | None,
    mask: Path | None,
    method: str,
    only: tuple[str, ...],
    settings: tuple[str, ...],
    against: str | None,
    figure: Path | None,
    csv_file: Path | None,
    partial: bool,
    allow_mixed: bool,
    store_uri: str,
    where: Where,
    as_json: bool,
) -> None:
    """Measure a map: dimension of its edge, shares, states.

    \b
        fractal-k8s analyze tanh --json
        fractal-k8s analyze tanh --against annealed --figure both.pdf
        fractal-k8s analyze tanh --only critical --csv rates.csv
        fractal-k8s analyze --mask map.npy --method published
    """
    if (sweep_id is None) == (mask is None):
        raise click.UsageError("give the ID of a sweep or --mask FILE, one of the two")
    if mask is not None and settings:
        raise click.UsageError("--set needs a sweep: a mask has its verdicts already")
    if mask is not None and where.is_named:
        raise click.UsageError("--context needs a sweep: a mask is a file of this machine")
    _check_files(mask, against, figure, csv_file, only)
    uri, found = store_uri, sweep_id
    if sweep_id is not None:
        uri, found = stored_at(where, sweep_id, store_uri)
    reader = _Reader(uri, settings, allow_mixed, only_maps=bool(against or csv_file))
    subject = reader.mask(mask) if mask is not None else reader.sweep(str(found))
    other = None
    if against is not None:
        other = reader.mask(Path(against)) if mask is not None else reader.sweep(against)
    summary = _summary(subject, mask, method, only, other)
    if as_json:
        echo_json(summary)
    else:
        click.echo(str(summary.get("sweep", mask)))
        lines = [*summary_lines(summary), *analysis_lines(summary)]
        silent = [name for name in only if name not in summary["analyses"]]
        lines += [f"\n{name}: nothing to say of this map{_hint(name)}" for name in silent]
        click.echo("\n".join(lines))
        if other is not None:
            click.echo("\n".join(_against_lines(summary["against"], against)))
    _write_files(subject, other, summary, figure, csv_file, (sweep_id or str(mask), str(against)))
    coverage = min(summary["coverage"], 1.0 if other is None else other.coverage)
    if coverage < 1 and not partial:
        train = "" if mask is not None else "train the rest with fractal-k8s resume, or "
        raise IncompleteError(
            f"only {coverage:.1%} of the points have a verdict, and the numbers above "
            f"are of those; {train}accept them with --partial"
        )


def _hint(name: str) -> str:
    """What would give an analysis something to say."""
    commands = {"controls": "fractal-k8s controls ID", "pilot": "fractal-k8s launch --pairs 2000"}
    return f"; run {commands[name]}" if name in commands else ""


def _check_files(
    mask: Path | None,
    against: str | None,
    figure: Path | None,
    csv_file: Path | None,
    only: tuple[str, ...],
) -> None:
    """Refuses what could not be written, before anything is read."""
    if figure is not None:
        from fractal_k8s.report.comparison import check_figure

        if against is None:
            raise click.UsageError("--figure draws a comparison: it needs --against OTHER")
        check_figure(figure)
    if csv_file is None:
        return
    if mask is not None:
        raise click.UsageError("--csv needs a sweep: a mask has no axes and no rates")
    if only and "critical" not in only:
        raise click.UsageError("--csv is made of the critical rates: add --only critical")
    if csv_file.is_dir() or not csv_file.parent.is_dir():
        raise UsageError(
            f"{csv_file}: no file can be written there; create {csv_file.parent} first"
        )


def _write_files(
    subject: Subject,
    other: Subject | None,
    summary: dict[str, Any],
    figure: Path | None,
    csv_file: Path | None,
    names: tuple[str, str],
) -> None:
    if figure is not None and other is not None:
        from fractal_k8s.report.comparison import write_comparison

        write_comparison(figure, subject, other, names)
    if csv_file is not None:
        from fractal_k8s.analysis.products import product_table

        if not summary["analyses"].get("critical"):
            raise UsageError(f"{csv_file}: not written, no axis of the map is a learning rate")
        csv_file.write_text(product_table(summary["analyses"]))


# Notes that hold verdicts, and not only what was trained.
_OF_VERDICTS: Final = ("replicas", "controls", "pilot")


class _Reader:
    """Reads maps by one set of options."""

    def __init__(
        self, store_uri: str, settings: tuple[str, ...], allow_mixed: bool, only_maps: bool
    ) -> None:
        self.store_uri = store_uri
        self.settings = settings
        self.allow_mixed = allow_mixed
        # refuse scattered points, which cannot be compared or put into columns
        self.only_maps = only_maps

    def mask(self, path: Path) -> Subject:
        from fractal_k8s.analysis.subject import Subject
        from fractal_k8s.report.picture import read_mask

        labels, known = read_mask(path)
        return Subject(labels & known, known)

    def sweep(self, sweep_id: str) -> Subject:
        from fractal_k8s.aggregate import read_grid
        from fractal_k8s.analysis.subject import Subject
        from fractal_k8s.sweep.derive import refuse_scattered
        from fractal_k8s.sweep.load import resolve

        folder, plan = open_store(self.store_uri).plan(sweep_id)
        if self.only_maps:
            refuse_scattered(plan.sweep)
        if foreign := [text for text in self.settings if not text.startswith("verdict.")]:
            raise UsageError(
                f"{foreign[0]!r} would need new training; analyze can only change verdict.* keys"
            )
        raw = plan.sweep.to_dict()
        if any(text.startswith("verdict.rule") for text in self.settings):
            raw["verdict"] = {}  # another rule starts from its own defaults
        rule = resolve(raw, settings=self.settings, source=plan.sweep.id).verdict
        grid = read_grid(folder, plan, rule=rule, allow_mixed=self.allow_mixed)
        notes = folder.notes(grid.problems)
        if rule != plan.sweep.verdict:  # they count verdicts of the sweep's own rule
            notes = {kind: note for kind, note in notes.items() if kind not in _OF_VERDICTS}
        return Subject.of(grid, notes)


def _summary(
    subject: Subject, mask: Path | None, method: str, only: tuple[str, ...], other: Subject | None
) -> dict[str, Any]:
    """All numbers of the map, and under "against" what differs from the other one."""
    from fractal_k8s.analysis.against import compare
    from fractal_k8s.analysis.summary import summarise, summarise_mask

    # maps that do not fit together are refused before anything is measured
    compared = {} if other is None else {"against": compare(subject, other)}
    if subject.grid is None:
        numbers = summarise_mask(subject.labels, subject.known, method=method, only=only)
        return {"mask": str(mask), **numbers, **compared}
    return {
        **summarise(subject.grid, notes=subject.notes, method=method, only=only),
        **compared,
    }


def _against_lines(result: dict[str, Any], name: str | None) -> list[str]:
    from fractal_k8s.analysis.against import lines

    rows = lines(result)
    width = max(len(label) for label, _ in rows)
    return ["", f"Against {name} (B)", *(f"  {label:<{width}}  {text}" for label, text in rows)]
