"""The defaults that a site's owner has installed in a namespace."""

from __future__ import annotations

from typing import Any

from fractal_k8s.backends.kube.client import CONFIG_MAPS, Cluster
from fractal_k8s.errors import UsageError
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.site import parse_site


def read_site(cluster: Cluster) -> tuple[str, dict[str, Any]]:
    """What to call the site's defaults in a message, and their values; none if none are installed.

    Raises:
        ClusterError: the ConfigMap cannot be read.
        UsageError: it is not valid, or has its settings elsewhere.
    """
    source = f"ConfigMap {cluster.namespace}/{labels.SITE}"
    found = cluster.get(CONFIG_MAPS, labels.SITE)
    texts = {labels.SITE_KEY: ""} if found is None else found.get("data") or {}
    if labels.SITE_KEY not in texts:
        raise UsageError(f"{source}: has no key {labels.SITE_KEY}, where the settings stand")
    values = parse_site(texts[labels.SITE_KEY], source=source)
    # the pods run where the ConfigMap is, whatever it says
    return source, {**values, "namespace": cluster.namespace}
