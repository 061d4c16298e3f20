"""`fractal-k8s report`: figures and page of a stored sweep."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.common import (
    Command,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    store_option,
)
from fractal_k8s.cli.where import Where, cluster_options, store_words, stored_at
from fractal_k8s.errors import UsageError

if TYPE_CHECKING:
    from fractal_k8s.results.store import Store

# the keys of report.colours.SCHEMES, which a test compares
_COLOURS = ("original", "safe")


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@click.option(
    "--colours",
    type=click.Choice(_COLOURS),
    help="Colours of the figures, and of the page when it opens; safe is for colour blindness. The "
    "choice stays; it begins with original.",
)
@click.option(
    "--figures/--no-figures",
    default=True,
    show_default=True,
    help="Figures for a paper as PDF and PNG. While they are wanted, every pass of an aggregator "
    "draws them anew.",
)
@click.option(
    "--movie",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead make a movie (.gif or .mp4) through the zooms from the first map down to this "
    "one; of a first map, down to its deepest zoom.",
)
@mixed_option
@store_option
@cluster_options
@json_option
def command(
    sweep_id: str,
    open_page: bool,
    colours: str | None,
    figures: bool,
    movie: Path | None,
    allow_mixed: bool,
    store_uri: str,
    where: Where,
    as_json: bool,
) -> None:
    """Draw the figures and the web page again.

    The page is one file without a server; send it to a co-author as it is. The figures come as
    PDF and PNG, sized for a paper: the map, the fit of its dimension, and the family of zooms. A
    sweep that is not complete gives a page that says so, and what was chosen here is kept in the
    store: an aggregator that goes on with the sweep draws the same. With --context they are drawn
    in the store that a cluster's sweep writes to.
    """
    from fractal_k8s.aggregate.drawing import choose
    from fractal_k8s.aggregate.passes import Passes

    uri, found = stored_at(where, sweep_id, store_uri)
    store = open_store(uri)
    if movie is not None:
        if open_page:
            raise click.UsageError("--open shows the page; with --movie there is none")
        made = _make_movie(store, found, movie, colours, allow_mixed)
        _print_movie(made, as_json)
        return
    folder, plan = store.plan(found)
    if open_page and not store.is_local:
        raise UsageError(
            f"the store of {plan.sweep.id} is not on this machine, and a page opens from a folder; "
            f"fetch it with: fractal-k8s fetch {plan.sweep.id} {store_words(where, uri)} --to maps"
        )
    if not plan.sweep.is_scattered:  # points that make no map have no figures
        choose(folder, colours=colours, figures=figures)
    passes = Passes(folder, plan, allow_mixed=allow_mixed, say=partial(click.echo, err=True))
    done = passes.whole()
    if as_json:
        echo_json(done.written)
    else:
        for name, place in done.written.items():
            click.echo(f"{name:<14} {place}")
        if "report.html" not in done.written:
            click.echo(f"{done.summary['refused']}: there are no figures and no page")
    if open_page and "report.html" not in done.written:
        raise UsageError(f"{done.summary['refused']}: it has no page")
    if open_page:
        click.launch(f"file://{done.written['report.html']}")


def _make_movie(
    store: Store, sweep_id: str, path: Path, colours: str | None, allow_mixed: bool
) -> dict[str, Any]:
    """Writes the movie; returns where, of which maps, and of how many pictures."""
    from fractal_k8s.aggregate.drawing import stored_drawing
    from fractal_k8s.report.colours import SCHEMES
    from fractal_k8s.report.movie import family_levels, movie_writer, write_movie

    movie_writer(path)  # whether it can be written is said before anything is read
    folder, plan = store.plan(sweep_id)
    levels = family_levels(folder, plan, allow_mixed=allow_mixed)
    frames = write_movie(levels, path, SCHEMES[colours or stored_drawing(folder).colours])
    ids = [level.sweep_id for level in levels]
    return {"movie": str(path), "levels": ids, "frames": frames}


def _print_movie(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(made)
    else:
        click.echo(f"{made['movie']}  {len(made['levels'])} maps, {made['frames']} pictures")
