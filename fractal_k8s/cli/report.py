"""`fractal-k8s report`: figures and page of a stored sweep."""

from __future__ import annotations

import click

from fractal_k8s.cli.common import (
    Command,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    store_option,
)
from fractal_k8s.errors import UsageError

# the keys of report.colours.SCHEMES, which a test compares
_COLOURS = ("original", "safe")


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@click.option(
    "--colours",
    type=click.Choice(_COLOURS),
    default=_COLOURS[0],
    show_default=True,
    help="Colours of the figures, and of the page when it opens; safe is for colour blindness.",
)
@mixed_option
@store_option
@json_option
def command(
    sweep_id: str,
    open_page: bool,
    colours: str,
    allow_mixed: bool,
    store_uri: str,
    as_json: bool,
) -> None:
    """Draw the figures and the web page again.

    The page is one file without a server; send it to a co-author as it is. The figures come as
    PDF and PNG, sized for a paper: the map, the fit of its dimension, and the family of zooms. A
    sweep that is not complete gives a page that says so.
    """
    from fractal_k8s.aggregate import aggregate, write_figures

    store = open_store(store_uri)
    folder, plan = store.plan(sweep_id)
    done = aggregate(folder, plan, allow_mixed=allow_mixed, colours=colours)
    written = dict(done.written)
    if "map.png" in written:  # points that make no map have no figures
        written |= write_figures(folder, done, allow_mixed=allow_mixed, colours=colours)
    if as_json:
        echo_json(written)
    else:
        for name, place in written.items():
            click.echo(f"{name:<14} {place}")
        if "report.html" not in done.written:
            click.echo(f"{done.summary['refused']}: there are no figures and no page")
    if open_page and "report.html" not in done.written:
        raise UsageError(f"{done.summary['refused']}: it has no page")
    if open_page:
        if not store.is_local:
            raise UsageError(
                f"{done.written['report.html']} is not on this machine; fetch it first"
            )
        click.launch(f"file://{done.written['report.html']}")
