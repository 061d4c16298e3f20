"""`fractal-k8s delete`: everything of a sweep on a cluster, and its results if told so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.common import Command, echo_json, json_option
from fractal_k8s.cli.where import Where, cluster_options
from fractal_k8s.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from fractal_k8s.backends.kube.client import Cluster
    from fractal_k8s.backends.kube.jobs import SweepJob
    from fractal_k8s.results.store import SweepStore


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@click.option("--results", is_flag=True, help="Its outcomes, logs and summary too.")
@click.option("--confirm", metavar="ID", help="The whole id again, instead of typing it.")
@click.option("--store", "store_uri", metavar="URI", help="Where its results are.")
@cluster_options
@json_option
def command(
    sweep_id: str,
    results: bool,
    confirm: str | None,
    store_uri: str | None,
    where: Where,
    as_json: bool,
) -> None:
    """Delete what a cluster has of a sweep: Jobs and ConfigMaps.

    Results stay unless --results is given and the sweep's whole id is typed once more.

    \b
        fractal-k8s delete docvqa-d20 --context cks-wb3
        fractal-k8s delete docvqa-d20-0123456789 --results --context cks-wb3
    """
    from fractal_k8s import dispatch
    from fractal_k8s.backends.kube import steer
    from fractal_k8s.backends.kube.jobs import jobs_of, sweep_and_jobs
    from fractal_k8s.manifest import labels

    if not results and (confirm or store_uri):
        raise click.UsageError("--confirm and --store say something of the results: add --results")
    cluster = where.connect()
    found, jobs = sweep_and_jobs(cluster, sweep_id)
    again = jobs_of(cluster, found, component=labels.REPRO)
    folder = _folder(cluster, found, jobs, store_uri) if results else None
    if folder is not None:
        _confirm(found, folder, confirm)
    steer.cancel(cluster, [*jobs, *again])
    plans = steer.delete_plans(cluster, found)
    if folder is not None:
        _remove(cluster, found, [*jobs, *again], folder)
    elif jobs:  # the store of those of `repro` is another one
        dispatch.forget(cluster, found, jobs)
    names = [job.name for job in (*jobs, *again)]
    facts = {"sweep": found, "jobs": names, "config_maps": plans}
    _say({**facts, "results": None if folder is None else folder.where()}, as_json)


def _folder(
    cluster: Cluster, sweep_id: str, jobs: list[SweepJob], store_uri: str | None
) -> SweepStore:
    """The sweep's folder in its store.

    Raises:
        UsageError: it cannot be read from here.
    """
    from fractal_k8s.dispatch import client_store, open_folder, settings_of

    settings = settings_of(cluster, jobs, store_uri)
    folder = open_folder(settings, sweep_id)
    if folder is None:
        uri = client_store(settings) or settings.store
        raise UsageError(
            f"the results of {sweep_id} cannot be deleted from here: "
            + (f"{uri} cannot be read" if uri else "no store is known; give --store URI")
        )
    return folder


def _confirm(sweep_id: str, folder: SweepStore, confirm: str | None) -> None:
    from fractal_k8s.results.store import is_copy

    count = sum(not is_copy(entry) for entry in folder.outcome_entries())
    if confirm is None:
        held = f"outcomes of {count:,} attempts, for which machines were paid"
        click.echo(f"{folder.where()} holds {held}")
        confirm = click.prompt("to delete them for good, type the sweep's id", err=True)
    if confirm != sweep_id:
        raise UsageError(f"{confirm!r} is not {sweep_id}; nothing was deleted")


def _remove(cluster: Cluster, sweep_id: str, jobs: list[SweepJob], folder: SweepStore) -> None:
    """Deletes the results once no pod is left that would write them again.

    Raises:
        ClusterError: some pods do not end.
    """
    from fractal_k8s.backends.kube import steer

    left = steer.wait_for_pods(cluster, sweep_id, steer.grace_seconds(jobs))
    if left:
        raise ClusterError(
            f"{left} pods of {sweep_id} have not ended and may still write; the Jobs are deleted, "
            "the results are not: run the same command again"
        )
    folder.remove()


def _say(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(facts)
        return
    sweep_id, jobs, plans = facts["sweep"], facts["jobs"], facts["config_maps"]
    if jobs or plans:
        # a ConfigMap may have gone with its Job before it was counted
        click.echo(f"{sweep_id}: deleted {', '.join(jobs) or 'a leftover ConfigMap'}")
    else:
        click.echo(f"{sweep_id}: nothing of it is on the cluster")
    if facts["results"] is not None:
        click.echo(f"and its results in {facts['results']}")
    else:
        click.echo("its results stay")
