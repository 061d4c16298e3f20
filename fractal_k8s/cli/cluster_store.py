"""Where the sweeps of a cluster keep their outcomes, as this machine reaches it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from fractal_k8s.backends.kube.jobs import NoJobError, find_jobs, find_sweep
from fractal_k8s.backends.kube.site import read_site
from fractal_k8s.errors import FractalError, UsageError
from fractal_k8s.manifest import labels

if TYPE_CHECKING:
    from fractal_k8s.backends.kube.client import Cluster
    from fractal_k8s.backends.kube.jobs import SweepJob


def store_of(job: SweepJob) -> str | None:
    """The store of a Job as this machine may reach it; None if only pods can."""
    return _reachable(job.annotation(labels.CLIENT_STORE) or job.annotation(labels.STORE))


def find_stored(cluster: Cluster, text: str) -> tuple[str, str]:
    """URI of the store that has a sweep: its latest Job's, or the site's when Jobs have gone.

    Args:
        text: as `find_jobs` takes it.

    Returns:
        and the sweep's whole id; the text itself where no Job tells the id.

    Raises:
        UsageError: `text` stands for several sweeps, or this machine knows of no store.
        ClusterError: the cluster cannot be asked.
    """
    try:
        sweep_id, jobs = find_jobs(cluster, text)
    except NoJobError:
        return site_store(cluster), text
    uri = store_of(jobs[-1])
    if uri is None:
        raise UsageError(f"{sweep_id}: {_only_pods(jobs[-1].annotation(labels.STORE))}")
    return uri, sweep_id


def site_store(cluster: Cluster) -> str:
    """The store of new sweeps.

    Raises:
        UsageError: none is named, or it cannot be reached from this machine.
        ClusterError: the site's settings cannot be read.
    """
    source, site = read_site(cluster)
    named = site.get("client_store") or site.get("store")
    if named is None:
        raise UsageError(f"{source}, where a site names its store, has none; give --store URI")
    uri = _reachable(named)
    if uri is None:
        raise UsageError(f"{source}: {_only_pods(named)}")
    return uri


def see_it(sweep_id: str, store_uri: str, words: str) -> str:
    """The command that brings a map to a person.

    Args:
        store_uri: as this machine reaches it.
        words: options that name the store.
    """
    if "://" in store_uri:
        return f"fractal-k8s fetch {sweep_id} {words} --to maps"
    return f"fractal-k8s report {sweep_id} --store {shlex.quote(store_uri)} --open"


def sweep_of(cluster: Cluster, text: str, store_uri: str | None, *, command: str) -> str:
    """The id of the sweep whose Jobs `text` names, as `find_sweep` says.

    Args:
        command: shows the same of a store, where the outcomes stay when a Job has gone.

    Raises:
        UsageError: no sweep with a Job, with the command to go on with; or several.
    """
    try:
        return find_sweep(cluster, text)
    except NoJobError as error:
        uri = store_uri or _perhaps(cluster)
        if uri is None:
            raise
        raise UsageError(
            f"{error}; Jobs go a while after their end, outcomes stay, see: "
            f"fractal-k8s {command} {shlex.quote(text)} --store {shlex.quote(uri)}"
        ) from None


def _perhaps(cluster: Cluster) -> str | None:
    try:
        return site_store(cluster)
    except FractalError:
        return None


def _reachable(uri: str | None) -> str | None:
    if uri is None or uri == labels.STORE_MOUNT or uri.startswith(f"{labels.STORE_MOUNT}/"):
        return None
    return uri


def _only_pods(uri: str | None) -> str:
    return (
        f"its store {uri} is a folder of a claim, which only pods see; give --store URI if this "
        "machine has it, too"
    )
