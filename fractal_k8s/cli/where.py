"""Which cluster a command is about: options that several commands share."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from fractal_k8s.cli.common import given_store

if TYPE_CHECKING:
    from fractal_k8s.backends.kube.client import Cluster

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Where:
    """What the options of `cluster_options` say."""

    context: str | None
    namespace: str | None
    kubeconfig: str | None
    in_cluster: bool

    @property
    def is_named(self) -> bool:
        """Whether a cluster is meant at all; without one only this machine is touched."""
        return self.context is not None or self.in_cluster

    @property
    def options(self) -> str:
        """What names the same cluster in another command."""
        given = ["--in-cluster"] if self.in_cluster else ["--context", self.context or ""]
        if self.namespace:
            given += ["--namespace", self.namespace]
        if self.kubeconfig:
            given += ["--kubeconfig", self.kubeconfig]
        return shlex.join(given)

    def check(self) -> None:
        """Refuses options that say something of a cluster that is not named.

        Raises:
            click.UsageError: there are some.
        """
        if not self.is_named and (self.namespace or self.kubeconfig):
            raise click.UsageError("--namespace and --kubeconfig need --context NAME")

    def connect(self) -> Cluster:
        """The cluster.

        Raises:
            FractalError: see `backends.kube.connection.connect`.
        """
        from fractal_k8s.backends.kube.connection import connect

        cluster = connect(
            self.context,
            namespace=self.namespace,
            kubeconfig=self.kubeconfig,
            in_cluster=self.in_cluster,
        )
        cluster.tell = lambda text: click.echo(text, err=True)
        return cluster


def cluster_options(function: F) -> F:
    """The cluster a command is about: the argument `where`, a `Where`."""

    @functools.wraps(function)
    def gathered(*arguments: Any, **options: Any) -> Any:
        where = Where(**{field.name: options.pop(field.name) for field in fields(Where)})
        where.check()
        return function(*arguments, where=where, **options)

    decorators = [
        click.option(
            "--context",
            metavar="NAME",
            help="The cluster: a context of your kubeconfig. Never guessed.",
        ),
        click.option(
            "--namespace",
            "-n",
            metavar="NAME",
            help="Default: the context's own, else fractal.",
        ),
        click.option("--kubeconfig", metavar="FILE", help="Default: $KUBECONFIG, ~/.kube/config."),
        click.option(
            "--in-cluster", is_flag=True, help="The cluster whose pod this is, as its account."
        ),
    ]
    command: Any = gathered
    for decorator in reversed(decorators):
        command = decorator(command)
    return cast("F", command)


def stored_at(where: Where, text: str, store_uri: str) -> tuple[str, str]:
    """URI of the store that a sweep is read from, and what finds it there.

    `--store` counts before all; then, if a cluster is named, what the sweep's Job or the site says.

    Raises:
        FractalError: see `cli.cluster_store.find_stored`.
    """
    if not _tells_store(where):
        return store_uri, text
    from fractal_k8s.cli.cluster_store import find_stored

    return find_stored(where.connect(), text)


def store_at(where: Where, store_uri: str) -> str:
    """URI of the store of no sweep in particular, by the same rule.

    Raises:
        FractalError: see `cli.cluster_store.site_store`.
    """
    if not _tells_store(where):
        return store_uri
    from fractal_k8s.cli.cluster_store import site_store

    return site_store(where.connect())


def store_words(where: Where, store_uri: str) -> str:
    """The options that name the same store in another command."""
    return where.options if _tells_store(where) else f"--store {shlex.quote(store_uri)}"


def _tells_store(where: Where) -> bool:
    return where.is_named and given_store(click.get_current_context()) is None
