"""`fractal-k8s resume`: what is missing or failed of a stored sweep."""

from __future__ import annotations

from typing import Any

import click

from fractal_k8s.cli.common import (
    Command,
    echo_json,
    json_option,
    mixed_option,
    open_store,
    relocated,
    relocation_options,
    store_option,
)
from fractal_k8s.cli.job_options import JobOptions, job_options
from fractal_k8s.cli.sending import Sending, refuse_mixture, refuse_relocation, typed, wait_option
from fractal_k8s.cli.training import pods_option, training_options
from fractal_k8s.cli.where import Where, cluster_options


@click.command(cls=Command)
@click.argument("sweep_id", metavar="ID")
@relocation_options
@store_option
@training_options
@pods_option
@mixed_option
@cluster_options
@job_options
@wait_option
@json_option
def command(
    sweep_id: str,
    checkpoint: str | None,
    dataset: str | None,
    store_uri: str,
    allow_mixed: bool,
    where: Where,
    job: JobOptions,
    wait: bool,
    as_json: bool,
    **training: Any,
) -> None:
    """Train what is missing or failed of a stored sweep.

    ID may be the start of a sweep's id. A sweep that was begun elsewhere can be finished here:
    weights and data are recognised by their content, wherever they lie. On a cluster a paused Job
    goes on; otherwise another Job trains what is left, with the settings of the last one.

    \b
        fractal-k8s resume tanh
        fractal-k8s resume docvqa-d20 --context cks-wb3 --gpus 8
    """
    from fractal_k8s.cli.sending import resume_on_cluster
    from fractal_k8s.cli.training import train_and_report

    refuse_mixture(where, job, wait=wait)
    if where.is_named:
        refuse_relocation(checkpoint, dataset)
        uri = store_uri if typed("store_uri") else None
        sending = Sending(where, job, uri, allow_mixed, as_json, training, wait)
        facts = resume_on_cluster(sweep_id, sending)
        if sending.as_json:
            echo_json(facts)
        return
    training |= job.local
    store = open_store(store_uri)
    _, plan = store.plan(sweep_id)
    sweep = relocated(plan.sweep, checkpoint=checkpoint, dataset=dataset)
    training["launched"] = plan.sweep
    train_and_report(sweep, store, allow_mixed=allow_mixed, as_json=as_json, **training)
