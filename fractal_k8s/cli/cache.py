"""`fractal-k8s cache`: the weights and data that workers read, fetched once."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fractal_k8s.cli.common import Command, echo_json, json_option, size_text
from fractal_k8s.cli.filled import nothing, option, remedy
from fractal_k8s.cli.folder import Folder
from fractal_k8s.cli.where import Where, cluster_options
from fractal_k8s.errors import EXIT_CORRUPT, ForbiddenError

if TYPE_CHECKING:
    from fractal_k8s.backends.kube.cachejobs import FillJob
    from fractal_k8s.backends.kube.client import Cluster
    from fractal_k8s.caches import Shelf
    from fractal_k8s.sealed import Seal

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def command() -> None:
    """Fill and check the cache that workers read weights and data from.

    A cache is a folder with model/ and dataset/ in it: on a cluster two claims, mounted at /cache;
    on a laptop any folder.
    """


def root_option(*, required: bool) -> Callable[[F], F]:
    return click.option(
        "--root",
        required=required,
        type=Folder(),
        metavar="DIR",
        help="The cache: a folder that has, or gets, model/ and dataset/.",
    )


@command.command(
    "fill", cls=Command, interrupted="files that have come are kept; run the same command to go on"
)
@root_option(required=True)
@click.option(
    "--model",
    metavar="REF",
    help="A folder, wandb:ENTITY/PROJECT/NAME:VERSION, hf:REPO@REVISION[:SUBFOLDER] or "
    "s3://BUCKET/PREFIX.",
)
@click.option(
    "--dataset",
    metavar="REF",
    help="docvqa, docvqa@REVISION, hf:REPO@REVISION, or conversations:FILE.jsonl, also in a "
    "bucket.",
)
@click.option(
    "--replace", is_flag=True, help="Fetch everything again, whatever the cache holds now."
)
@json_option
def fill(root: Path, model: str | None, dataset: str | None, replace: bool, as_json: bool) -> None:
    """Fetch a model and a data set, check them, and say that they are ready.

    Of a source the newest checkpoint and its tokenizer are fetched. Sizes and sums are compared
    with what the source says, weights are tied to their tokenizer, and the data set is tokenized
    once. What is there already is read and compared, and only what has changed is fetched again; a
    fill that was cut short goes on where it was.

    \b
        fractal-k8s cache fill --root cache --model wandb:TEAM/llm/sft:v7 --dataset docvqa
        fractal-k8s cache fill --root cache --model hf:karpathy/nanochat-d32@main
        fractal-k8s cache fill --root cache --dataset conversations:FILE.jsonl
    """
    from fractal_k8s import caches, termination

    if model is None and dataset is None:
        raise click.UsageError("nothing to fetch; give --model REF, --dataset REF or both")
    tell = functools.partial(click.echo, err=as_json)
    seals = []
    try:
        if model is not None:
            seals.append(caches.fill_model(root, model, tell, replace=replace))
        if dataset is not None:
            seals.append(caches.fill_dataset(root, dataset, tell, replace=replace))
        caches.keep_tokens(root, tell)
    except Exception as error:
        termination.note(error=str(error))
        raise
    termination.note(code=0)
    if as_json:
        echo_json({"root": str(root), "filled": [_facts(seal) for seal in seals]})
        return
    for seal in seals:
        click.echo(f"{seal.kind}: {seal.resolved}, {size_text(seal.size)}, sha256 {seal.digest}")
    if termination.VARIABLE not in os.environ:  # in a pod nobody launches
        click.echo(f"train with it: {_launching(root)}")


def _launching(root: Path) -> str:
    """The command that trains on what a cache holds."""
    from fractal_k8s.caches import look

    shelves = look(root)
    ready = [shelf for shelf in shelves if shelf.state == "ready"]
    words = ["fractal-k8s", "launch"]
    if len(ready) == len(shelves):
        return shlex.join([*words, "--cache", str(root)])
    return shlex.join([*words, *(word for shelf in ready for word in option(shelf))])


@command.command("status", cls=Command)
@root_option(required=False)
@cluster_options
@json_option
def status(root: Path | None, where: Where, as_json: bool) -> None:
    """Say what a cache holds, from where and since when.

    With --context it says how the Jobs of the chart stand that fill a cluster's cache, and its
    claims. Ends with exit code 1 if the newest Job of a claim has failed.

    \b
        fractal-k8s cache status --root cache
        fractal-k8s cache status --context cks-wb3
    """
    if where.is_named:
        if root is not None:
            raise click.UsageError("--root is a folder of this machine; leave out --context")
        _say_cluster(where, as_json)
        return
    from fractal_k8s.caches import look

    shelves = look(_given(root))
    if as_json:
        echo_json({"root": str(root), "caches": [_shelf_facts(shelf) for shelf in shelves]})
        return
    for shelf in shelves:
        click.echo(_shelf_line(shelf))


@command.command(
    "verify", cls=Command, interrupted="nothing is said of the cache, and nothing was changed"
)
@root_option(required=False)
@cluster_options
@json_option
def verify(root: Path | None, where: Where, as_json: bool) -> None:
    """Read a cache whole and compare every file with what was sealed.

    Ends with exit code 65 if a byte has changed or a file is gone, and names the file. With
    --context it prints what to run on the cluster: a Job whose log says the same of the claims.

    \b
        fractal-k8s cache verify --root cache
        fractal-k8s cache verify --context cks-wb3 | kubectl --context cks-wb3 create -f -
    """
    if where.is_named:
        if root is not None or as_json:
            raise click.UsageError("with --context the one thing printed is a Job; leave out more")
        _print_verify_job(where)
        return
    from fractal_k8s.caches import DATASET, MODEL, look, problems

    found = {shelf.name: shelf for shelf in look(_given(root)) if shelf.state != "empty"}
    if not found:
        raise nothing(_given(root), (MODEL, DATASET))
    wrong = {name: problems(shelf) for name, shelf in found.items()}
    if as_json:
        echo_json({"root": str(root), "problems": wrong})
    else:
        for name, shelf in found.items():
            size = size_text(shelf.seal.size) if shelf.seal else ""
            click.echo("\n".join(wrong[name]) or f"{name}: whole, {size} compared")
    if any(wrong.values()):
        shelves = [shelf for name, shelf in found.items() if wrong[name]]
        for shelf in shelves:
            click.echo(f"{shelf.name}: {remedy(_given(root), shelf)}", err=True)
        sys.exit(EXIT_CORRUPT)


def _given(root: Path | None) -> Path:
    if root is None:
        raise click.UsageError("which cache? give --root DIR, or --context NAME for a cluster's")
    return root


def _facts(seal: Seal) -> dict[str, Any]:
    return {
        "kind": seal.kind,
        "source": seal.source,
        "resolved": seal.resolved,
        "digest": seal.digest,
        "created": seal.created,
        "size": seal.size,
        "files": len(seal.files),
    }


def _shelf_facts(shelf: Shelf) -> dict[str, Any]:
    facts = _facts(shelf.seal) if shelf.seal else {}
    return {"name": shelf.name, "folder": str(shelf.home), "state": shelf.state, **facts}


def _shelf_line(shelf: Shelf) -> str:
    text = f"{shelf.name:<8} {shelf.state}"
    if (seal := shelf.seal) is None:
        return f"{text}  {shelf.home}"
    text += f"  {seal.resolved}"
    if seal.source != seal.resolved:
        text += f" (given as {seal.source})"
    return (
        f"{text}\n{'':9}{size_text(seal.size)} in {len(seal.files)} files since {seal.created}, "
        f"sha256 {seal.digest[:12]}..."
    )


# --- a cluster's ---


def _say_cluster(where: Where, as_json: bool) -> None:
    from fractal_k8s.backends.kube.cachejobs import claim_states, fill_jobs, newest_of

    cluster = where.connect()
    jobs, named = fill_jobs(cluster), _site_claims(cluster)
    bound = claim_states(cluster, [*named, *(claim for job in jobs for claim in job.claims)])
    failed = [job for job in newest_of(jobs) if job.is_failed]
    if as_json:
        echo_json(
            {
                "context": cluster.context,
                "namespace": cluster.namespace,
                "jobs": [vars(job) for job in jobs],
                "claims": bound,
            }
        )
    else:
        click.echo("\n".join(_cluster_lines(cluster, jobs, bound, failed)))
    if failed:
        sys.exit(1)


def _cluster_lines(
    cluster: Cluster, jobs: list[FillJob], bound: dict[str, str], failed: list[FillJob]
) -> Iterator[str]:
    from fractal_k8s.backends.kube.cachejobs import AGAIN

    if not jobs:
        told = "their Job may be over for long" if bound else "helm install fractal-cache makes one"
        yield f"no Job fills a cache in namespace {cluster.namespace} now; {told}"
    for job in jobs:
        yield _job_line(job)
    for name, state in bound.items():
        yield f"claim {name}: {state}"
    if not jobs and bound:
        yield "what they hold: fractal-k8s cache verify --help"
    if failed:
        yield f"remove the cause, then fill again: {AGAIN}"


def _site_claims(cluster: Cluster) -> list[str]:
    """Claims that the site's settings name, filled by a Job that is gone or by other means."""
    from fractal_k8s.backends.kube.cachejobs import cache_claims
    from fractal_k8s.backends.kube.site import read_site

    try:
        _, site = read_site(cluster)
    except ForbiddenError:
        return []
    return [*cache_claims(site).values()]


def _job_line(job: FillJob) -> str:
    text = f"Job {job.name}: {job.state}"
    text += f", {job.filled}" if job.filled else ""
    return text + "".join(f"\n  {line}" for line in job.said.splitlines())


def _print_verify_job(where: Where) -> None:
    from fractal_k8s.backends.kube.cachereader import verify_job
    from fractal_k8s.backends.kube.send import kubectl

    cluster = where.connect()
    name, text = verify_job(cluster)
    click.echo(text, nl=False)
    command = kubectl(cluster)
    click.echo(
        f"nothing is created yet: pipe this into {command} create -f -, and read what it finds "
        f"with: {command} logs -f job/{name}",
        err=True,
    )
