"""Logs of a sweep on a cluster: from its pods while they are there, else from its store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fractal_k8s.backends.kube.jobs import SweepJob, jobs_of, plan_of
from fractal_k8s.backends.kube.podlogs import (
    Place,
    describe,
    follow_all,
    follow_index,
    place_of_index,
    place_of_point,
    pods_at,
)
from fractal_k8s.backends.kube.trouble import cause_of
from fractal_k8s.cli.cluster_store import store_of, sweep_of
from fractal_k8s.cli.common import echo_json, open_store
from fractal_k8s.cli.logs import show_stored
from fractal_k8s.errors import StoreError, UsageError

if TYPE_CHECKING:
    from fractal_k8s.backends.kube.client import Cluster, Object
    from fractal_k8s.cli.logs import Asked
    from fractal_k8s.cli.where import Where


def show(where: Where, text: str, asked: Asked, store_uri: str | None) -> None:
    """What `logs ID --context NAME` prints."""
    cluster = where.connect()
    sweep_id = sweep_of(cluster, text, store_uri, command="logs")
    jobs = jobs_of(cluster, sweep_id)
    if asked.point is None and asked.index is None:
        if asked.follow:
            for index, line in follow_all(cluster, sweep_id, _tell, tail=asked.tail):
                click.echo(f"[{index}] {line}")
            _tell("the Jobs have ended, and no pod runs")
        else:
            of_a_pod = f"of a pod: fractal-k8s logs {sweep_id} {where.options} --index 0"
            try:
                _show_stored(cluster, jobs[-1], asked, store_uri, None)
            except StoreError as error:
                raise StoreError(f"{error}; {of_a_pod}") from None
            if not asked.as_json:
                _tell(f"this is the log in the store; {of_a_pod}")
        return
    place = _place(cluster, jobs, asked)
    if asked.follow:
        for line in follow_index(cluster, place, _tell, tail=asked.tail):
            click.echo(line)
        return
    pods = pods_at(cluster, place)
    number = 2 if asked.previous else 1
    if len(pods) >= number:
        _show_pod(cluster, place, pods[-number], asked)
    elif asked.previous:
        raise UsageError(
            f"index {place.index} of {place.job.name} has no pod before its latest, or that is "
            "gone with its log"
        )
    else:
        _tell(f"index {place.index} of {place.job.name} has no pod, this is what was stored")
        _show_stored(cluster, place.job, asked, store_uri, place)


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _place(cluster: Cluster, jobs: list[SweepJob], asked: Asked) -> Place:
    if asked.index is not None:
        return place_of_index(cluster, jobs[-1], asked.index)
    assert asked.point is not None  # one of the two is given
    sweep = plan_of(cluster, jobs[-1]).sweep
    asked.check_point(sweep)
    return place_of_point(cluster, jobs, asked.point[0] * sweep.columns + asked.point[1])


def _show_pod(cluster: Cluster, place: Place, pod: Object, asked: Asked) -> None:
    lines = cluster.log(pod["metadata"]["name"]).splitlines()
    lines = [line for line in lines if place.wanted(line)]
    lines = lines[-asked.tail :] if asked.tail else lines
    cause = cause_of(pod)
    why = None if cause is None else cause.said or cause.what
    if asked.as_json:
        facts = {"sweep": place.job.sweep_id, "pod": pod["metadata"]["name"]}
        echo_json({**facts, "index": place.index, "problem": why, "lines": lines})
        return
    _tell(describe(pod) + ("" if why is None else f": {why}"))
    for line in lines:
        click.echo(line)


def _show_stored(
    cluster: Cluster, job: SweepJob, asked: Asked, store_uri: str | None, place: Place | None
) -> None:
    """The log in the store.

    Raises:
        StoreError: this machine cannot read it.
    """
    uri = store_uri or store_of(job)
    if uri is None:
        raise StoreError(
            "its Job names no store that this machine can read; give --store URI, or --point, "
            "--index or --follow for the logs of pods"
        )
    plan = plan_of(cluster, job)
    folder = open_store(uri).sweep(plan.sweep.id)
    show_stored(folder, plan, asked, None if place is None else place.shards)
