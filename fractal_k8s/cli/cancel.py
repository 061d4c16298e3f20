"""`fractal-k8s cancel`: the Jobs of a sweep are deleted, its outcomes stay."""

from __future__ import annotations

import shlex

import click

from fractal_k8s.cli.common import Command, echo_json, json_option
from fractal_k8s.cli.where import Where, cluster_options


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@cluster_options
@json_option
def command(sweep_id: str, where: Where, as_json: bool) -> None:
    """Stop a sweep on a cluster; outcomes stay.

    Its Jobs are deleted, the one that draws the map too. Pods write what they have and end within
    their grace period; aggregate draws a map of it. launch or resume trains the rest later.

    \b
        fractal-k8s cancel docvqa-d20 --context cks-wb3
    """
    from fractal_k8s import dispatch
    from fractal_k8s.backends.kube import steer
    from fractal_k8s.backends.kube.jobs import sweep_and_jobs
    from fractal_k8s.cli.cluster_store import store_of

    cluster = where.connect()
    found, jobs = sweep_and_jobs(cluster, sweep_id)
    count = steer.cancel(cluster, jobs)
    uri = store_of(jobs[-1]) if jobs else None
    if jobs:
        dispatch.forget(cluster, found, jobs)
    if as_json:
        echo_json({"sweep": found, "deleted": [job.name for job in jobs], "store": uri})
    elif not count:
        click.echo(f"{found}: no Job in namespace {cluster.namespace}, nothing to cancel")
    else:
        names = ", ".join(job.name for job in jobs)
        click.echo(f"{found}: deleted {names}; pods write what they have and end, outcomes stay")
        if uri is not None:
            click.echo(f"last map    fractal-k8s aggregate {found} --store {shlex.quote(uri)}")
        click.echo(f"go on       fractal-k8s resume {found} {where.options}")
