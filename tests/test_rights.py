"""Every command runs with the Role of manifests/rbac.yaml, and uses all of it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from conftest import Run, mlp_sweep
from fractal_k8s import cli
from fractal_k8s.backends import Work
from fractal_k8s.backends.inline import InlineBackend
from fractal_k8s.backends.kube.rights import AGGREGATOR, RIGHTS, WORKER, Right, roles_text
from fractal_k8s.manifest import labels
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from standin.cluster import StandIn
from sweeps import network_text
from test_dispatch import Place
from test_repro_job import complete, meanwhile

ROLES = Path(__file__).parents[1] / "manifests" / "rbac.yaml"

SWEEP = network_text("rights", (2, 4), steps=5)

# verb and resource of a request, and whether it was for the whole cluster
Use = tuple[str, str, bool]

# what everyone may ask on any cluster
_REVIEWS = "selfsubjectaccessreviews"


class Watched:
    """Runs commands as the user of the Role, and notes which requests each makes."""

    def __init__(self, run: Run, standin: StandIn, user: str) -> None:
        self.uses: dict[str, set[Use]] = {}
        self._run, self._standin, self._user = run, standin, user

    def __call__(self, *arguments: str, code: int = 0) -> str:
        with self.watching(arguments[0]):
            return self._run(*arguments, "--context", self._user, code=code).output

    @contextmanager
    def watching(self, command: str) -> Iterator[None]:
        first = len(self._standin.requests)
        yield
        made = [call for call in self._standin.requests[first:] if call.user == self._user]
        uses = {
            (call.verb, call.resource, "/namespaces/fractal/" not in call.path)
            for call in made
            if call.resource and call.resource != _REVIEWS
        }
        self.uses.setdefault(command, set()).update(uses)


def use_of(right: Right) -> Use:
    return right.verb, right.resource, right.is_wide


def bound(standin: StandIn, name: str, *, views: bool = True) -> str:
    """A user who has the recorded roles.

    Args:
        views: the optional ClusterRole, too.
    """
    for item in yaml.safe_load_all(ROLES.read_text()):
        if item["kind"].startswith("Cluster") and not views:
            continue
        if item["kind"].endswith("Binding"):
            item["subjects"] = [{"kind": "User", "name": name, "apiGroup": "any"}]
        standin.objects.create(f"{item['kind'].lower()}s", item)
    return standin.add_user(name)


def commands_with_a_cluster() -> set[str]:
    found = set()
    for name in cli.COMMANDS:
        command = importlib.import_module(f"fractal_k8s.cli.{name.replace('-', '_')}").command
        below = command.commands.values() if isinstance(command, click.Group) else ()
        if any(option.name == "context" for each in (command, *below) for option in each.params):
            found.add(name)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The store's folder, which pods see as /store/runs."""
    return tmp_path / "outcomes" / "runs"


@pytest.fixture
def standin(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A cluster on which pods are only objects, with a site that asks for everything there is."""
    site = {
        "store": "/store/runs",
        "store_claim": "late",
        "client_store": str(folder),
        "store_secret": "fractal-store",
        "queue": "research",
        "priority_class": "low",
    }
    pending = {"spec": {"storageClassName": "slow"}, "status": {"phase": "Pending"}}
    mode = {"provisioner": "p", "volumeBindingMode": "WaitForFirstConsumer"}
    with StandIn(tmp_path / "standin", claims={}, run_pods=False) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        for plural, kind, name, content in (
            ("configmaps", "ConfigMap", labels.SITE, {"data": {labels.SITE_KEY: json.dumps(site)}}),
            ("secrets", "Secret", "fractal-store", {}),
            ("persistentvolumeclaims", "PersistentVolumeClaim", "late", pending),
            ("localqueues", "LocalQueue", "research", {}),
            ("priorityclasses", "PriorityClass", "low", {"value": -1}),
            ("storageclasses", "StorageClass", "slow", mode),
        ):
            plant(cluster, plural, kind, name, **content)
        yield cluster


def plant(standin: StandIn, plural: str, kind: str, name: str, **content: Any) -> None:
    wide = plural in ("priorityclasses", "storageclasses")
    meta = {"name": name, **({} if wide else {"namespace": "fractal"}), **content.pop("meta", {})}
    standin.objects.create(plural, {"apiVersion": "v1", "kind": kind, "metadata": meta, **content})


def plant_pods(standin: StandIn, job: str, sweep: str) -> None:
    """A pod of index 0 that failed, one of index 1 that waits, one of index 2 that runs."""
    for index, phase in enumerate(("Failed", "Pending", "Running")):
        marks = {labels.SWEEP: sweep, labels.JOB_NAME: job, labels.INDEX: str(index)}
        ended = {"exitCode": 137, "reason": "OOMKilled"}
        state = {"terminated": ended} if phase == "Failed" else {}
        container = {"name": labels.CONTAINER, "state": state}
        plant(
            standin,
            "pods",
            "Pod",
            f"{job}-{index}-x",
            meta={"labels": {**marks, labels.COMPONENT: labels.WORKER}},
            spec={"containers": [{"name": labels.CONTAINER}]},
            status={
                "phase": phase,
                "containerStatuses": [container],
                "startTime": "2026-01-01T00:00:00Z",
            },
        )


def plant_fill(standin: StandIn, job: str) -> None:
    """A Job that fills the claim `late`, and its pod, which has ended."""
    volume = {"name": "model", "persistentVolumeClaim": {"claimName": "late"}}
    container = {
        "name": labels.FILL_CONTAINER,
        "image": "i:1",
        "args": ["cache", "fill"],
        "volumeMounts": [{"name": "model", "mountPath": labels.MODEL_MOUNT}],
    }
    spec = {"containers": [container], "volumes": [volume], "restartPolicy": "Never"}
    kind = {labels.COMPONENT: labels.CACHE_FILL}
    plant(
        standin,
        "jobs",
        "Job",
        job,
        meta={"labels": kind},
        spec={"template": {"metadata": {"labels": kind}, "spec": spec}},
    )
    plant(
        standin,
        "pods",
        "Pod",
        f"{job}-x",
        meta={"labels": {**kind, labels.JOB_NAME: job}},
        spec={"containers": [container]},
        status={"phase": "Succeeded"},
    )


def finish(standin: StandIn, job: str) -> None:
    body = standin.objects.get("jobs", "fractal", job)
    condition = {"type": "Failed", "status": "True", "reason": "FailedIndexes"}
    body["status"] = {**body.get("status", {}), "conditions": [condition], "active": 0}
    standin.objects.update("jobs", body)
    for pod in standin.objects.list("pods"):  # whoever resumes waits for what still runs
        if pod["status"]["phase"] != "Failed":
            standin.objects.delete("pods", "fractal", pod["metadata"]["name"])


def unfinish(standin: StandIn, job: str) -> None:
    body = standin.objects.get("jobs", "fractal", job)
    del body["status"]["conditions"]
    standin.objects.update("jobs", body)


def test_every_command_needs_exactly_the_rights_of_the_table(
    run: Run, standin: StandIn, folder: Path, tmp_path: Path
) -> None:
    watched = Watched(run, standin, bound(standin, "ann"))
    (tmp_path / "sweep.toml").write_text(SWEEP)
    parent = Plan(mlp_sweep(name="parent"), Deal())
    Store(str(folder)).sweep(parent.sweep.id).write_plan(parent)

    watched("doctor", "--preset", "tanh")
    watched("cluster")
    plant_fill(standin, "fill")
    watched("cache", "status")
    watched("cache", "verify")
    for plural, name in (("jobs", "fill"), ("pods", "fill-x")):
        standin.objects.delete(plural, "fractal", name)
    watched("render", "sweep.toml")
    # of a sweep without a Job the site names the store
    watched("analyze", "parent", "--partial")
    watched("fetch", "parent", "--to", str(tmp_path / "copy"))
    watched("report", "parent")
    watched("show", "parent")
    watched("list", "--stored")
    place = Place(standin, run, folder.parent)
    work = Work(place.store.sweep(parent.sweep.id), Plan(parent.sweep, Deal(points_per_shard=42)))
    InlineBackend().submit(work, lambda event: None).wait()
    for command in (
        ("repro", "parent", "--sample", "4"),
        ("controls", "parent", "--seeds", "0", "--job", "aggregator=false"),
    ):
        with meanwhile(place, lambda: complete(place)):
            watched(*command)
        for plural in ("jobs", "configmaps"):
            for name in place.names(plural):
                standin.objects.delete(plural, "fractal", name)
    watched("launch", "sweep.toml", "--points-per-index", "1")
    watched("launch", "sweep.toml", "--points-per-index", "1")
    job, aggregator = sorted(each["metadata"]["name"] for each in standin.objects.list("jobs"))
    assert aggregator == f"{job}-aggregate"
    plant_pods(standin, job, job)
    watched("list")
    waiting = ("--until-complete", "--patience", "0", "--every", "0.1")
    # no point is stored, but the Job is asked, and it does not end before it has ended
    until = ["aggregate", job, *waiting, "--store", str(folder)]
    finish(standin, job)
    assert "8 missing" in watched(*until, code=1)
    unfinish(standin, job)
    for command in ("status", "logs", "pause", "resume"):
        watched(command, "rights")
    watched("scale", "rights", "--gpus", "2")
    finish(standin, job)
    watched("logs", "rights", "--index", "0", "-f")
    watched("resume", "rights")
    assert f"{job}-r2" in [each["metadata"]["name"] for each in standin.objects.list("jobs")]
    watched("zoom", "parent", "--box", "0:1,0:1")
    watched("cancel", "rights")
    for pod in standin.objects.list("pods"):
        standin.objects.delete("pods", "fractal", pod["metadata"]["name"])
    watched("delete", job, "--results", "--confirm", job)

    assert set(watched.uses) == commands_with_a_cluster()
    for command, uses in watched.uses.items():
        listed = {use_of(right) for right in RIGHTS if command in right.commands}
        assert uses <= listed, command
    # and none of them is there for nothing
    assert {use_of(right) for right in RIGHTS} == set().union(*watched.uses.values())


def test_the_optional_role_is_not_needed(run: Run, standin: StandIn, tmp_path: Path) -> None:
    user = bound(standin, "ann", views=False)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    for command in (["doctor", "--preset", "tanh"], ["launch", "sweep.toml"], ["status", "rights"]):
        run(*command, "--context", user)
    plant_fill(standin, "fill")
    assert "Job fill: " in run("cache", "status", "--context", user).output
    refused = run("cluster", "--context", user, code=2).output
    assert "ask whoever runs the cluster for the chart's rbac.clusterViewer" in refused
    assert "or for the ClusterRole fractal-k8s-viewer of manifests/rbac.yaml" in refused


def test_who_may_not_see_claims_sees_the_job_that_fills_them(run: Run, standin: StandIn) -> None:
    rules = [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]
    plant_fill(standin, "fill")
    said = run("cache", "status", "--context", standin.add_user("ben", rules)).output
    assert "Job fill: " in said
    assert "claim late: may not be looked at" in said


def test_the_recorded_roles_are_the_table() -> None:
    assert ROLES.read_text() == roles_text(), "run scripts/record"


def test_the_pods_account_has_no_rights_and_no_token() -> None:
    items = [*yaml.safe_load_all(ROLES.read_text())]
    accounts = [item for item in items if item["kind"] == "ServiceAccount"]
    assert [item["metadata"]["name"] for item in accounts] == [WORKER, AGGREGATOR]
    assert not any(item["automountServiceAccountToken"] for item in accounts)
    subjects = [subject for item in items for subject in item.get("subjects", [])]
    named = {subject["name"] for subject in subjects if subject["kind"] == "ServiceAccount"}
    assert named == {AGGREGATOR}


def test_the_aggregator_s_account_may_look_at_jobs_and_nothing_else() -> None:
    items = [*yaml.safe_load_all(ROLES.read_text())]
    (role,) = [
        item for item in items if item["kind"] == "Role" and item["metadata"]["name"] == AGGREGATOR
    ]
    assert role["rules"] == [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]}
    ]


def test_secrets_are_only_to_be_got_by_name() -> None:
    items = [*yaml.safe_load_all(ROLES.read_text())]
    rules = [rule for item in items for rule in item.get("rules", [])]
    (rule,) = [rule for rule in rules if "secrets" in rule["resources"]]
    assert rule["verbs"] == ["get"]
    assert rule["resourceNames"]
