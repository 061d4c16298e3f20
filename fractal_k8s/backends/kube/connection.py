"""Which cluster, and as whom: a context that was named, or the pod this runs in. Never guessed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fractal_k8s.backends.kube.client import IN_CLUSTER, Cluster
from fractal_k8s.errors import ClusterError, UsageError, first_line
from fractal_k8s.sweep.axes import near

if TYPE_CHECKING:
    from kubernetes.client import Configuration

# where objects are looked for if neither an option nor the context says
DEFAULT_NAMESPACE: Final = "fractal"
# more than all threads that ask at once
_CONNECTIONS: Final = 32


def connect(
    context: str | None,
    *,
    namespace: str | None = None,
    kubeconfig: str | None = None,
    in_cluster: bool = False,
) -> Cluster:
    """A cluster, without asking it anything yet.

    Args:
        context: name of a context of the kubeconfig; its current one is never taken.
        namespace: None = the context's own, else `fractal`.
        kubeconfig: path, or several joined by `os.pathsep`; None = $KUBECONFIG, else the usual.
        in_cluster: as the service account of the pod this runs in.

    Raises:
        UsageError: no such context (names those there are), or this is no pod.
        ClusterError: the kubeconfig cannot be read or its credentials cannot be had.
    """
    if in_cluster:
        return _in_cluster(namespace)
    if context is None:
        raise UsageError("no cluster is named; give --context NAME, or --in-cluster in a pod")
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.config import load_kube_config

    place = _place(kubeconfig)
    found = _contexts(place)
    if context not in found:
        known = near(context, [*found]) if found else f"; there are none in {place}"
        raise UsageError(f"no context {context!r}{known}")
    configuration = Configuration()
    try:
        load_kube_config(
            config_file=place,
            context=context,
            client_configuration=configuration,
            persist_config=False,
        )
    except Exception as error:  # a plugin for credentials may raise anything
        raise ClusterError(
            f"context {context!r}: its credentials cannot be had ({first_line(error)}); "
            f"try: kubectl --context {context} get namespaces"
        ) from None
    chosen = namespace or found[context].get("namespace") or DEFAULT_NAMESPACE
    return Cluster(ApiClient(_patient(configuration)), context=context, namespace=chosen)


def context_names() -> list[str]:
    """The contexts of the kubeconfig; none if there is no such file.

    Raises:
        ClusterError: the kubeconfig cannot be read.
    """
    return [*_contexts(_place(None))]


def _place(kubeconfig: str | None) -> str:
    return kubeconfig or os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())


def _contexts(place: str) -> dict[str, dict[str, Any]]:
    """What a kubeconfig says of each of its contexts."""
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.kube_config import KubeConfigMerger

    try:
        # not list_kube_config_contexts, which fails where the current context is unset or gone
        merged = KubeConfigMerger(place).config
        entries = [] if merged is None else [entry.value for entry in merged.value["contexts"]]
    except ConfigException:
        return {}
    except Exception as error:  # YAML's errors, and the client's own for a broken file
        raise ClusterError(f"cannot read the kubeconfig {place}: {first_line(error)}") from None
    return {entry["name"]: entry.get("context") or {} for entry in entries}


def _in_cluster(namespace: str | None) -> Cluster:
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.config import incluster_config
    from kubernetes.config.config_exception import ConfigException

    configuration = Configuration()
    try:
        incluster_config.load_incluster_config(client_configuration=configuration)
    except ConfigException:
        raise UsageError(
            "--in-cluster: this is no pod with a service account's token; give --context NAME"
        ) from None
    own = Path(incluster_config.SERVICE_TOKEN_FILENAME).with_name("namespace")
    chosen = namespace or (own.read_text().strip() if own.exists() else DEFAULT_NAMESPACE)
    return Cluster(ApiClient(_patient(configuration)), context=IN_CLUSTER, namespace=chosen)


def _patient(configuration: Configuration) -> Any:
    """Without urllib3's own retries: `Cluster` makes its own, which wait. With as many connections
    kept open as threads ask at once.
    """
    configuration.retries = False
    configuration.connection_pool_maxsize = _CONNECTIONS
    return configuration
