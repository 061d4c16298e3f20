"""`fractal-k8s fetch`: a stored sweep as files of this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from fractal_k8s.cli.common import (
    Command,
    echo_json,
    json_option,
    open_store,
    size_text,
    store_option,
)
from fractal_k8s.cli.folder import Folder
from fractal_k8s.cli.where import Where, cluster_options, stored_at
from fractal_k8s.errors import EXIT_CORRUPT


@click.command(
    cls=Command, interrupted="files that have come are kept; run the same command to go on"
)
@click.argument("sweep_id", metavar="ID")
@click.option(
    "--to",
    "target",
    type=Folder(),
    required=True,
    metavar="DIR",
    help="Folder for it; may be used as --store afterwards.",
)
@store_option
@cluster_options
@json_option
def command(sweep_id: str, target: Path, store_uri: str, where: Where, as_json: bool) -> None:
    """Copy a stored sweep to this machine: outcomes, logs, summary.

    What is there already is not read again, so the same command goes on where it was stopped. Every
    file is checked; exit code 65 says that some are damaged, and which. With --context the store is
    the one that a cluster's sweep writes to.

    \b
        fractal-k8s fetch docvqa-d20 --context cks-wb3 --to maps
        fractal-k8s fetch docvqa-d20 --store s3://bucket/fractal --to maps
        fractal-k8s report docvqa-d20 --store maps --open
    """
    from fractal_k8s.results.copy import copy_sweep
    from fractal_k8s.results.problems import in_summary, shown

    uri, found = stored_at(where, sweep_id, store_uri)
    folder, plan = open_store(uri).plan(found)
    copied = copy_sweep(folder, plan, target)
    if as_json:
        facts = {
            "sweep": plan.sweep.id,
            "place": str(copied.place),
            "files": copied.num_files,
            "skipped": copied.num_skipped,
            "bytes": copied.num_bytes,
            "problems": copied.problems,
            "remarks": copied.remarks,
        }
        echo_json(facts)
    else:
        new = copied.num_files - copied.num_skipped
        click.echo(
            f"{copied.place}: {copied.num_files:,} files, {new:,} of them fetched now "
            f"({size_text(copied.num_bytes)})"
        )
        for remark in copied.remarks:
            click.echo(f"  {remark}")
        for problem in shown(in_summary(copied.problems)):
            click.echo(f"  problem: {problem}")
        click.echo(f"fractal-k8s report {plan.sweep.id} --store {shlex.quote(str(target))} --open")
    if copied.problems:
        sys.exit(EXIT_CORRUPT)
