"""The client of a cluster where the way there is bad: connections that are cut."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from fractal_k8s.backends.kube import client
from fractal_k8s.backends.kube.client import CONFIG_MAPS, Cluster
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.errors import ClusterError, ForbiddenError, UsageError
from standin.cluster import StandIn
from standin.server import Fault


class BadWay:
    """A TCP proxy that cuts connections as it is told.

    Args:
        address: host and port behind it.

    Attributes:
        cuts: after how many bytes of the answer each next connection is cut; later ones are whole.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.cuts: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            left = self.cuts.pop(0) if self.cuts else None
            far = socket.create_connection(self._address)
            self._open += [near, far]
            for source, target, limit in ((near, far, None), (far, near, left)):
                thread = threading.Thread(
                    target=self._copy, args=(source, target, limit), daemon=True
                )
                thread.start()

    def _copy(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        with contextlib.suppress(OSError):
            while limit is None or limit > 0:
                data = source.recv(4096 if limit is None else min(4096, limit))
                if not data:
                    break
                target.sendall(data)
                limit = None if limit is None else limit - len(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[BadWay, Cluster]]:
    """A proxy, and a client that goes through it; behind it are 40 ConfigMaps of 10 KB."""
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(client, "_LONGEST_WAIT_S", 0.02)
    with StandIn(tmp_path / "standin", run_pods=False) as standin:
        for k in range(40):
            meta = {"name": f"a{k:02d}", "namespace": "fractal"}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
            standin.objects.create("configmaps", {**body, "data": {"x": "x" * 10_000}})
        address = urlsplit(standin.url)
        proxy = BadWay((str(address.hostname), int(address.port or 0)))
        kubeconfig = tmp_path / "through-the-proxy"
        text = standin.kubeconfig.read_text()
        assert f":{address.port}" in text
        kubeconfig.write_text(text.replace(f":{address.port}", f":{proxy.port}"))
        try:
            yield proxy, connect("standin", kubeconfig=str(kubeconfig))
        finally:
            proxy.close()


def test_an_answer_that_is_cut_off_is_asked_for_again(way: tuple[BadWay, Cluster]) -> None:
    proxy, cluster = way
    proxy.cuts = [50_000, 100_000]
    assert len(list(cluster.list(CONFIG_MAPS))) == 40
    assert proxy.cuts == []


def test_an_answer_that_is_always_cut_off_is_an_error_in_one_line(
    way: tuple[BadWay, Cluster],
) -> None:
    proxy, cluster = way
    proxy.cuts = [50_000] * 5
    with pytest.raises(ClusterError, match="does not answer") as raised:
        list(cluster.list(CONFIG_MAPS))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("after", [0, 100])
def test_a_handshake_that_is_cut_off_is_no_wrong_certificate(
    after: int, way: tuple[BadWay, Cluster]
) -> None:
    proxy, cluster = way
    proxy.cuts = [after, after]
    assert cluster.get(CONFIG_MAPS, "a00") is not None
    assert proxy.cuts == []


@pytest.mark.parametrize("after", [0, 100])
def test_a_handshake_that_is_always_cut_off_is_no_wrong_certificate(
    after: int, way: tuple[BadWay, Cluster]
) -> None:
    proxy, cluster = way
    proxy.cuts = [after] * 5
    with pytest.raises(ClusterError, match="does not answer"):
        cluster.version()


def test_what_is_no_kubernetes_is_told(
    way: tuple[BadWay, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standin.answers.json.dumps", lambda *_, **__: "<html>log in</html>")
    with pytest.raises(ClusterError, match="no Kubernetes API"):
        way[1].version()


def test_an_api_server_that_knows_no_roles_yet_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was started a second ago: what could be read before is forbidden."""
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(client, "_LONGEST_WAIT_S", 0.02)
    with StandIn(tmp_path / "standin", run_pods=False) as standin:
        cluster = connect("standin", kubeconfig=str(standin.kubeconfig))
        standin.fail(1, code=403)
        with pytest.raises(ForbiddenError):
            cluster.get(CONFIG_MAPS, "a")
        assert cluster.get(CONFIG_MAPS, "a") is None
        list(cluster.list(CONFIG_MAPS))
        standin.fail(2, code=403)
        assert list(cluster.list(CONFIG_MAPS)) == []
        standin.fail(9, code=403)
        with pytest.raises(ForbiddenError):  # the right has been taken away
            list(cluster.list(CONFIG_MAPS))
        standin.faults.clear()
        standin.faults.extend([Fault(code=None), Fault(code=403)])
        assert cluster.get(CONFIG_MAPS, "b") is None


@pytest.mark.parametrize("current", [None, "gone"])
def test_no_context_has_to_be_current(tmp_path: Path, current: str | None) -> None:
    """As after `kubectl config unset current-context`, or once that context was deleted."""
    with StandIn(tmp_path / "standin", run_pods=False) as standin:
        content = yaml.safe_load(standin.kubeconfig.read_text())
        content |= {"current-context": current}
        kubeconfig = tmp_path / "none-is-current"
        found = {key: value for key, value in content.items() if value is not None}
        kubeconfig.write_text(yaml.safe_dump(found))
        assert connect("standin", kubeconfig=str(kubeconfig)).version()
        with pytest.raises(UsageError, match="did you mean 'standin'"):
            connect("standi", kubeconfig=str(kubeconfig))


def test_an_unknown_authority_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal_k8s.backends.kube.client._FIRST_WAIT_S", 100.0)
    with StandIn(tmp_path / "standin", run_pods=False) as standin:
        content = yaml.safe_load(standin.kubeconfig.read_text())
        for entry in content["clusters"]:
            entry["cluster"].pop("certificate-authority", None)
            entry["cluster"].pop("certificate-authority-data", None)
        kubeconfig = tmp_path / "no-authority"
        kubeconfig.write_text(yaml.safe_dump(content))
        began = time.monotonic()
        with pytest.raises(ClusterError, match="does not prove who it is"):
            connect("standin", kubeconfig=str(kubeconfig)).version()
        assert time.monotonic() - began < 60
