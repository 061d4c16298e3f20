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


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@mixed_option
@store_option
@json_option
def command(
    sweep_id: str, open_page: bool, allow_mixed: bool, store_uri: str, as_json: bool
) -> None:
    """Draw the figures and the web page again.

    The page is one file without a server; send it to a co-author as it is. A sweep that is not
    complete gives a page that says so.
    """
    from fractal_k8s.aggregate import aggregate

    store = open_store(store_uri)
    folder, plan = store.plan(sweep_id)
    done = aggregate(folder, plan, allow_mixed=allow_mixed)
    if as_json:
        echo_json(done.written)
    else:
        for name, place in done.written.items():
            click.echo(f"{name:<14} {place}")
    if open_page:
        if not store.is_local:
            raise UsageError(
                f"{done.written['report.html']} is not on this machine; fetch it first"
            )
        click.launch(f"file://{done.written['report.html']}")
