"""A whole cluster on one machine: API server, Job controller, kubelet, nodes and claims."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from standin import rbac
from standin.accounts import Accounts
from standin.crons import CronController
from standin.jobs import JobController
from standin.kubelet import Kubelet, Outcome
from standin.objects import Object, Objects
from standin.requests import Call
from standin.scheduler import make_node
from standin.server import ApiServer, Fault

ADMIN: Final = "standin"
# the kubeconfig's current context, which nothing works in: it must never be taken
_CURRENT: Final = "nobody"
NAMESPACE: Final = "fractal"
_RBAC: Final = "rbac.authorization.k8s.io"


NODES: Final = (make_node("g0"), make_node("g1"), make_node("c0", gpus=0))


class StandIn:
    """A cluster that runs from `with` to the end of it.

    Args:
        root: folder for certificates, kubeconfig, pods' folders and logs.
        nodes: node objects.
        claims: folder of each bound claim, in namespace `fractal`.
        volumes: folder of each claim that is not there yet; it is bound for its first pod.
        run_pods: False = Jobs and pods are objects that nothing acts on.
        slots: how many pods' processes run at once.
        instant: pods end at once without a process; see `Kubelet`.

    Attributes:
        objects: what is stored, to look at and to plant.
        controller, kubelet: what acts on it.
        accounts: what gives pods their tokens.
        crons: makes Jobs of CronJobs whenever a test tells it the time.
        webhooks: functions that get the plural and the object of what is created, and change it.
        requests: every request: user, verb, resource, path.
        faults: trouble for the next requests.
    """

    def __init__(
        self,
        root: Path,
        *,
        nodes: Sequence[Object] = NODES,
        claims: Mapping[str, Path] | None = None,
        volumes: Mapping[str, Path] | None = None,
        run_pods: bool = True,
        slots: int = 4,
        instant: bool | Outcome = False,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.objects = Objects()
        self.kubeconfig = root / "kubeconfig"
        self._contexts = {_CURRENT: "no-token-of-anyone"}
        _plant(self.objects, nodes, claims or {})
        self._runs = run_pods
        self.accounts = Accounts(self.objects)
        self.controller = JobController(self.objects, admit=self.accounts.admit)
        self.crons = CronController(self.objects)
        self.kubelet = Kubelet(
            self.objects,
            root / "kubelet",
            claims={**(claims or {}), **(volumes or {})},
            nodes=nodes,
            slots=slots,
            instant=instant,
            accounts=self.accounts,
        )
        host = self.kubelet if run_pods else None
        self._server = ApiServer(self.objects, root / "certificates", self.accounts, host=host)
        self.webhooks = self._server.webhooks

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def requests(self) -> list[Call]:
        return self._server.requests

    @property
    def faults(self) -> deque[Fault]:
        return self._server.faults

    def __enter__(self) -> Self:
        self._server.up()
        self._add_context(ADMIN, rbac.MASTERS)
        if self._runs:
            self.controller.start()
            self.kubelet.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.down()
        if self._runs:
            self.controller.stop()
            self.kubelet.stop()
        if error is None and self._server.errors:
            raise AssertionError("the stand-in failed:\n" + "\n".join(self._server.errors))

    def down(self) -> None:
        """The API goes away: connections are refused and open ones break. Pods run on."""
        self._server.down()

    def up(self) -> None:
        """The API comes back."""
        self._server.up()

    def fail(self, count: int = 1, **fault: Any) -> None:
        """The next requests meet a `Fault`, made of the keyword arguments."""
        self.faults.extend([Fault(**fault)] * count)

    def add_user(
        self, name: str, rules: Iterable[Object] = (), cluster_rules: Iterable[Object] = ()
    ) -> str:
        """A user with a Role in namespace `fractal`, a ClusterRole, and a context of that name.

        Args:
            rules, cluster_rules: what roles say under `rules`.
        """
        subject = {"kind": "User", "apiGroup": _RBAC, "name": name}
        for kind, namespace, given in (
            ("Role", NAMESPACE, list(rules)),
            ("ClusterRole", "", list(cluster_rules)),
        ):
            if not given:
                continue
            meta = {"name": name, **({"namespace": namespace} if namespace else {})}
            base = {"apiVersion": f"{_RBAC}/v1", "metadata": meta}
            reference = {"apiGroup": _RBAC, "kind": kind, "name": name}
            plural = f"{kind.lower()}s"
            self.objects.create(plural, {**base, "kind": kind, "rules": given})
            binding = {"kind": f"{kind}Binding", "subjects": [subject], "roleRef": reference}
            self.objects.create(f"{kind.lower()}bindings", {**base, **binding})
        self._add_context(name)
        return name

    def _add_context(self, name: str, *groups: str) -> None:
        self._contexts[name] = self._server.add_user(name, *groups)
        authority = base64.b64encode(self._server.authority.read_bytes()).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": ADMIN, "cluster": cluster}],
            "users": [
                {"name": user, "user": {"token": token}} for user, token in self._contexts.items()
            ],
            "contexts": [
                {"name": user, "context": {"cluster": ADMIN, "user": user, "namespace": NAMESPACE}}
                for user in self._contexts
            ],
            "current-context": _CURRENT,
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))


def _plant(objects: Objects, nodes: Sequence[Object], claims: Mapping[str, Path]) -> None:
    """What a cluster has before anyone uses it."""
    for name in ("default", NAMESPACE):
        meta = {"name": name, "labels": {"kubernetes.io/metadata.name": name}}
        phase = {"status": {"phase": "Active"}}
        objects.create(
            "namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": meta, **phase}
        )
        account = {"name": "default", "namespace": name}
        objects.create(
            "serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}
        )
    for found in nodes:
        objects.create("nodes", found)
    for name in claims:
        objects.create("persistentvolumeclaims", _claim(name))


def _claim(name: str) -> Object:
    size = {"storage": "1Ti"}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": size},
            "volumeName": f"pv-{name}",
        },
        "status": {"phase": "Bound", "capacity": size, "accessModes": ["ReadWriteMany"]},
    }
