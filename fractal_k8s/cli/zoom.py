"""`fractal-k8s zoom`: a box of a map as a map of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.common import (
    Command,
    Resolution,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    relocated,
    relocation_options,
    store_option,
    summary_lines,
)
from fractal_k8s.cli.job_options import JobOptions, job_options
from fractal_k8s.cli.sending import Sending, refuse_mixture, refuse_relocation, typed
from fractal_k8s.cli.training import pods_option, training_options
from fractal_k8s.cli.where import Where, cluster_options
from fractal_k8s.errors import UsageError

if TYPE_CHECKING:
    from fractal_k8s.results.grid import Grid
    from fractal_k8s.results.store import Store, SweepStore
    from fractal_k8s.sweep.assignment import Plan
    from fractal_k8s.sweep.definition import Sweep
    from fractal_k8s.sweep.zoom import Box


# the keys of analysis.targets.SEEK, which a test compares
_SEEK = ("rough", "balanced")
_FACTOR = 4.0


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@click.option(
    "--box", metavar="I0:I1,J0:J1", help="Cells of the map, rows first, ends included: 48:63,0:15."
)
@click.option(
    "--y",
    "y_range",
    metavar="LOW:HIGH",
    help="Values of the row axis instead of cells; the ends move to the map's lattice or a finer "
    "one, by at most a 64th of the box.",
)
@click.option("--x", "x_range", metavar="LOW:HIGH", help="Values of the column axis.")
@click.option(
    "--auto",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=1,
    metavar="[N]",
    help="The N best boxes around the edge, chosen by the tool; 1 unless given.",
)
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    metavar="D",
    help="With --auto: D zooms, each into the best box of the last.",
)
@click.option(
    "--factor",
    type=click.FloatRange(min=1, min_open=True),
    metavar="X",
    help="With --auto: magnification per zoom, 4 unless given; where a nearby one lets the child "
    "contain all of its parent's points in the box, that one.",
)
@click.option(
    "--seek",
    type=click.Choice(_SEEK),
    help="With --auto: boxes full of edge (rough, unless given), or boxes that one clean edge "
    "halves.",
)
@click.option("--res", "resolution", type=Resolution(), metavar="N|RxC", help="Points per axis.")
@click.option("--name", metavar="NAME", help="Another name for the zoom.")
@relocation_options
@click.option("--no-reuse", is_flag=True, help="Train points again that the family has stored.")
@click.option("--tree", is_flag=True, help="Print the family of zooms instead.")
@click.option("--dry-run", is_flag=True, help="Print box, values and id; train nothing.")
@store_option
@training_options
@pods_option
@mixed_option
@cluster_options
@job_options
@json_option
def command(
    sweep_id: str,
    box: str | None,
    y_range: str | None,
    x_range: str | None,
    auto: int | None,
    depth: int | None,
    factor: float | None,
    seek: str | None,
    resolution: int | tuple[int, int] | None,
    name: str | None,
    checkpoint: str | None,
    dataset: str | None,
    no_reuse: bool,
    tree: bool,
    dry_run: bool,
    store_uri: str,
    allow_mixed: bool,
    where: Where,
    job: JobOptions,
    as_json: bool,
    **training: Any,
) -> None:
    """Train a box of a map as a map of its own.

    The zoom has as many points as its parent unless --res says otherwise. Points that any map of
    the family has trained already are taken over, not trained again. With --context the zoom is
    sent to a cluster, which trains all of its points.

    \b
        fractal-k8s zoom tanh --box 48:63,0:15 --res 64
        fractal-k8s zoom tanh --auto --depth 12
        fractal-k8s zoom tanh --tree
    """
    from fractal_k8s.sweep.assignment import Plan
    from fractal_k8s.sweep.derive import refuse_scattered

    _check_choice(box, (y_range, x_range) != (None, None), auto, tree, depth)
    if auto is None and (factor, seek) != (None, None):
        raise click.UsageError("--factor and --seek choose boxes: add --auto")
    refuse_mixture(where, job)
    sending = None
    if where.is_named:
        _check_sending(depth, checkpoint, dataset)
        uri = store_uri if typed("store_uri") else None
        sending = Sending(where, job, uri, allow_mixed, as_json, training)
    store = open_store(store_uri) if sending is None else sending.client_store()
    if tree:
        _print_tree(store, sweep_id, as_json)
        return
    cut = _Cut(resolution, name, factor or _FACTOR, seek or _SEEK[0])
    folder, stored = store.plan(sweep_id)
    refuse_scattered(stored.sweep)
    sweep = relocated(stored.sweep, checkpoint=checkpoint, dataset=dataset)
    if auto is None:
        boxes = [_box(sweep, box, y_range, x_range)]
    else:
        boxes = cut.choose(_read_map(folder, Plan(sweep, stored.deal), allow_mixed), auto)
    children = [(sweep, one, cut.child(sweep, one)) for one in boxes]
    if dry_run:
        _print_plan(store, children, depth, as_json)
        return
    if sending is not None:
        _send(children, sending)
        return
    training |= job.local
    training |= {"allow_mixed": allow_mixed, "as_json": as_json, "reuse": not no_reuse}
    results = []
    for level in range(depth or 1):
        for parent, one, child in children:
            grid, result = _train(store, parent, one, child, training)
            results.append(result)
        _draw_again(store, children[0][0], allow_mixed)
        if level + 1 < (depth or 1):
            following = cut.choose(grid, 1)[0]
            children = [(grid.sweep, following, cut.child(grid.sweep, following))]
    if as_json:
        echo_json({"sweep": sweep.id, "zooms": results})


def _check_sending(depth: int | None, checkpoint: str | None, dataset: str | None) -> None:
    """Refuses what can only be done by waiting here, or with files that lie here.

    Raises:
        click.UsageError: it was asked for.
    """
    if depth is not None and depth > 1:
        raise click.UsageError(
            "--depth goes on from what a zoom has found, and a launch on a cluster does not wait: "
            "zoom once more when it is done"
        )
    refuse_relocation(checkpoint, dataset)


def _send(children: list[tuple[Sweep, Box, Sweep]], sending: Sending) -> None:
    from fractal_k8s.cli.sending import launch_on_cluster

    sent = []
    for parent, one, child in children:
        if not sending.as_json:
            click.echo(f"{child.id}  box {one} of {parent.id}")
        sent.append({**_described(parent, one, child), **launch_on_cluster(child, sending)})
    if sending.as_json:
        echo_json({"sweep": children[0][0].id, "zooms": sent})


def _box(sweep: Sweep, cells: str | None, y: str | None, x: str | None) -> Box:
    """The box that was asked for, by cells or by values."""
    from fractal_k8s.sweep.zoom import box_of_values, parse_box, parse_range

    if cells is not None:
        return parse_box(cells)
    return box_of_values(
        sweep,
        y=parse_range(y, "y") if y is not None else None,
        x=parse_range(x, "x") if x is not None else None,
    )


def _read_map(folder: SweepStore, plan: Plan, allow_mixed: bool) -> Grid:
    from fractal_k8s.aggregate import read_grid

    return read_grid(folder, plan, allow_mixed=allow_mixed)


@dataclass(frozen=True)
class _Cut:
    """How children are cut out."""

    resolution: int | tuple[int, int] | None
    name: str | None
    factor: float
    seek: str

    def child(self, parent: Sweep, box: Box) -> Sweep:
        from fractal_k8s.sweep.zoom import zoom_into

        return zoom_into(parent, box, resolution=self.resolution, name=self.name)

    def choose(self, grid: Grid, number: int) -> list[Box]:
        """The best boxes of a map.

        Raises:
            UsageError: there is none.
        """
        from fractal_k8s.analysis.targets import best_boxes
        from fractal_k8s.sweep.zoom import Box, auto_intervals

        sweep = grid.sweep
        given = self.resolution or sweep.spec.resolution
        counts = (given, given) if isinstance(given, int) else given
        height, width = (
            auto_intervals(parent, child, self.factor)
            for parent, child in zip(sweep.spec.resolution, counts, strict=True)
        )
        targets = best_boxes(grid.trainable, grid.known, (height, width), number, self.seek)
        if not targets and grid.coverage < 1:
            raise UsageError(
                f"{sweep.id}: only {grid.coverage:.1%} of its points have a verdict, too few to "
                "choose a box by; train the rest with fractal-k8s resume, or choose with --box"
            )
        if not targets:
            raise UsageError(
                f"{sweep.id}: no box of {height + 1} x {width + 1} points holds a coherent piece "
                "of the edge in its middle; choose one with --box, or give another --factor"
            )
        return [Box.of(*target.rows, *target.columns) for target in targets]


def _check_choice(
    box: str | None, values: bool, auto: int | None, tree: bool, depth: int | None
) -> None:
    chosen = [box is not None, values, auto is not None, tree]
    if sum(chosen) != 1:
        raise click.UsageError("give one of --box, --y and --x, --auto and --tree")
    if depth is not None and auto is None:
        raise click.UsageError("--depth goes on by itself: add --auto")
    if depth is not None and auto != 1:
        raise click.UsageError("--depth follows one box per level: give --auto without a number")


def _train(
    store: Store, parent: Sweep, box: Box, child: Sweep, training: dict[str, Any]
) -> tuple[Grid, dict[str, Any]]:
    """Trains one child, prints its numbers and returns its map and them."""
    from fractal_k8s.cli.training import train_missing

    try:
        done = train_missing(child, store, **training)
    except SystemExit:
        click.echo("or go on with it and the zooms after it: repeat this command", err=True)
        raise
    facts = {
        **_described(parent, box, done.grid.sweep),
        **{key: done.summary.get(key) for key in ("dimension", "interval", "refused", "coverage")},
        "files": done.written,
    }
    if not training["as_json"]:
        click.echo(f"{facts['id']}  box {box} of {parent.id}")
        click.echo("\n".join(summary_lines(done.summary)))
        click.echo(f"page     {done.written['report.html']}")
    return done.grid, facts


def _draw_again(store: Store, parent: Sweep, allow_mixed: bool) -> None:
    """Writes the parent's summary anew, so that its page shows the zooms into it."""
    from fractal_k8s.aggregate import aggregate

    folder, plan = store.plan(parent.id)
    aggregate(folder, plan, allow_mixed=allow_mixed)


def _described(parent: Sweep, box: Box, child: Sweep) -> dict[str, Any]:
    return {
        "id": child.id,
        "parent": parent.id,
        "box": box.to_list(),
        "resolution": list(child.spec.resolution),
        "y": [child.y_values[0], child.y_values[-1]],
        "x": [child.x_values[0], child.x_values[-1]],
    }


def _print_plan(
    store: Store, children: list[tuple[Sweep, Box, Sweep]], depth: int | None, as_json: bool
) -> None:
    from fractal_k8s.aggregate import read_grid
    from fractal_k8s.results.reuse import find_outcomes
    from fractal_k8s.sweep.assignment import Plan
    from fractal_k8s.sweep.deal import Deal
    from fractal_k8s.sweep.zoom import box_text

    rows = []
    for parent, box, child in children:
        folder = store.sweep(child.id)
        known = read_grid(folder, Plan(child, Deal()), allow_mixed=True).known
        taken = sum(len(part.table) for part in find_outcomes(folder, child, ~known))
        stored = int(known.sum())
        rows.append({**_described(parent, box, child), "stored": stored, "in_family": taken})
    if as_json:
        echo_json({"zooms": rows})
        return
    for (_, _, child), row in zip(children, rows, strict=True):
        click.echo(f"{row['id']}  box {box_text(row['box'])} of {row['parent']}")
        for axis, knob in (("y", child.y_knob), ("x", child.x_knob)):
            low, high = row[axis]
            click.echo(f"  {axis}  {knob.name} {low!r} to {high!r}")
        click.echo(
            f"  {child.rows} x {child.columns} points: {row['stored']:,} stored, "
            f"{row['in_family']:,} more in the family, "
            f"{child.num_points - row['stored'] - row['in_family']:,} to train"
        )
    if depth is not None and depth > 1:
        click.echo(f"and {depth - 1} more, which depend on what is found")


def _print_tree(store: Store, sweep_id: str, as_json: bool) -> None:
    from fractal_k8s.results import lineage

    own = store.find(sweep_id).sweep_id
    families = lineage.read_families(store.files)
    line = lineage.ancestors(families, own, families[own].parent)
    root = line[-1] if line else own
    rows = []
    for depth, member in lineage.descendants(families, root):
        relative = families.get(member, lineage.Relative(member, None, None, None))
        numbers = lineage.entry(relative, lineage.stored_summary(store.files, member))
        rows.append({"depth": depth, "stored": member in families, **numbers})
    if as_json:
        echo_json({"sweep": own, "tree": rows})
        return
    for row in rows:
        click.echo(_tree_line(row, own))


def _tree_line(row: dict[str, Any], own: str) -> str:
    from fractal_k8s.sweep.zoom import box_text

    text = f"{'  ' * row['depth']}{row['id']}"
    if row["box"]:
        text += f"  box {box_text(row['box'])}"
    if not row["stored"]:
        return f"{text}  not in this store"
    if row["coverage"] is None:
        text += "  no summary yet"
    elif row["dimension"] is None:
        text += f"  no D: {row['refused']}"
    else:
        text += f"  D {row['dimension']:.3f}"
        if row["interval"]:
            text += " ({:.2f} to {:.2f})".format(*row["interval"])
    if row["coverage"] is not None and row["coverage"] < 1:
        text += f"  {row['coverage']:.1%} of the points"
    return f"{text}  <-" if row["id"] == own else text
