"""doctor, cluster and preflight against the stand-in of a cluster."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.backends.checks import Findings
from fractal_k8s.backends.kube import client, rights
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.backends.kube.preflight import preflight
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.settings import JobSettings
from standin.cluster import StandIn
from standin.scheduler import make_node

Look = Callable[..., Findings]

STORE = {"store": "/store/runs", "store_claim": "outcomes"}


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A cluster on which nothing runs: only what it says matters here."""
    claims = dict.fromkeys(("model", "data", "outcomes"), tmp_path)
    with StandIn(tmp_path / "standin", claims=claims, run_pods=False) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield cluster


@pytest.fixture
def look(standin: StandIn) -> Look:
    """Preflight as administrator, with settings as keyword arguments."""

    def run(context: str = "standin", **settings: Any) -> Findings:
        cluster = connect(context, kubeconfig=str(standin.kubeconfig))
        return preflight(cluster, JobSettings(**{**STORE, **settings}), None)

    return run


def plant(standin: StandIn, plural: str, kind: str, name: str, **content: Any) -> None:
    namespaced = plural not in ("priorityclasses", "storageclasses")
    meta = {"name": name, **({"namespace": "fractal"} if namespaced else {})}
    standin.objects.create(plural, {"apiVersion": "v1", "kind": kind, "metadata": meta, **content})


def state_of(findings: Findings, name: str) -> tuple[str, str]:
    check = next(check for check in findings.checks if check.name == name)
    return check.state, check.detail


# --- preflight ---


def test_a_cluster_that_has_everything_has_no_problem(look: Look) -> None:
    findings = look(model_claim="model", dataset_claim="data")
    assert findings.problems == []
    assert {check.name for check in findings.checks} >= {"API", "namespace", "rights", "nodes"}
    assert state_of(findings, "claim model") == ("ok", "bound, 1Ti, ReadWriteMany")
    assert state_of(findings, "nodes") == ("ok", "2 H200 nodes, 16 GPUs, 16 free")


def test_everything_that_is_missing_is_named_at_once(standin: StandIn, look: Look) -> None:
    for name in ("g0", "g1"):
        standin.objects.delete("nodes", "", name)
    standin.objects.delete("namespaces", "", "fractal")
    begun = time.monotonic()
    findings = look(
        model_claim="nowhere",
        store_secret="keys",
        wandb_project="maps",
        wandb_secret="wandb",
        image_pull_secret="registry",
        service_account="nobody",
        priority_class="low",
        queue="research",
    )
    assert time.monotonic() - begun < 30
    problems = "\n".join(findings.problems)
    for expected in (
        "namespace fractal is missing; create it with: kubectl --context standin -n fractal create",
        "claim nowhere is missing in namespace fractal; create it, or name another with --job mod",
        "create secret generic keys --from-env-file=FILE, a file with AWS_ACCESS_KEY_ID=... and A",
        "create secret generic wandb --from-env-file=FILE, a file with WANDB_API_KEY=...",
        "Secret registry is missing",
        "service account nobody is missing",
        "priority class low is missing",
        "there is no local queue research of Kueue",
    ):
        assert expected in problems, expected
    # a queue may bring nodes, and so may an autoscaler
    assert "no node has a GPU" in "\n".join(findings.notes)
    assert "no node has a GPU" in "\n".join(look().problems)
    assert "no node has a GPU" in "\n".join(look(autoscaled=True).notes)


def test_what_is_there_is_not_missed(standin: StandIn, look: Look) -> None:
    plant(standin, "secrets", "Secret", "keys", data={"AWS_ACCESS_KEY_ID": "cGxhbnRlZA=="})
    plant(standin, "priorityclasses", "PriorityClass", "low", value=-1)
    plant(standin, "localqueues", "LocalQueue", "research")
    findings = look(store_secret="keys", priority_class="low", queue="research")
    assert findings.problems == []
    assert "cGxhbnRlZA" not in str(findings)


def test_a_queue_that_admits_nothing_is_a_note(standin: StandIn, look: Look) -> None:
    condition = {"type": "Active", "status": "False", "message": "Can't submit to clusterQueue"}
    plant(standin, "localqueues", "LocalQueue", "q", status={"conditions": [condition]})
    assert state_of(look(queue="q"), "queue") == (
        "note",
        "local queue q admits nothing now: Can't submit to clusterQueue",
    )


@pytest.mark.parametrize(
    ("status", "spec", "state", "text"),
    [
        ({"phase": "Lost"}, {}, "problem", "is Lost: its volume is gone"),
        ({"phase": "Pending"}, {"storageClassName": "late"}, "ok", "waits for its first pod"),
        ({"phase": "Pending"}, {"storageClassName": "none"}, "problem", "no storage class none"),
        ({"phase": "Pending"}, {}, "problem", "is not bound; see: kubectl --context standin -n"),
        ({"phase": "Bound"}, {"accessModes": ["ReadWriteOnce"]}, "note", "second node cannot"),
    ],
)
def test_claims_that_pods_may_wait_for(
    standin: StandIn, look: Look, status: Any, spec: Any, state: str, text: str
) -> None:
    mode = {"volumeBindingMode": "WaitForFirstConsumer", "provisioner": "p"}
    plant(standin, "storageclasses", "StorageClass", "late", **mode)
    kind = "PersistentVolumeClaim"
    plant(standin, "persistentvolumeclaims", kind, "odd", spec=spec, status=status)
    found, detail = state_of(look(model_claim="odd"), "claim odd")
    assert found == state
    assert text in detail


def test_claims_of_weights_do_not_matter_to_a_sweep_without(standin: StandIn) -> None:
    cluster = connect("standin", kubeconfig=str(standin.kubeconfig))
    settings = JobSettings(**STORE, model_claim="nowhere")
    assert preflight(cluster, settings, mlp_sweep()).problems == []
    assert len(preflight(cluster, settings, None).problems) == 1


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        ({"conditions": [{"type": "Complete", "status": "True"}]}, "ok", "filled by fill-2"),
        ({"active": 1}, "note", "is not done with model"),
        (
            {"conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]},
            "problem",
            "the Job fill-2, which fills model, has failed (PodFailurePolicy); remove the cause",
        ),
    ],
)
def test_the_newest_job_that_fills_a_claim_counts(
    standin: StandIn, look: Look, status: Any, state: str, words: str
) -> None:
    wanted = {"model_claim": "model", "dataset_claim": "data"}
    assert state_of(look(**wanted), "caches") == (
        "ok",
        "no Job fills them now; pods read them once they find the file READY",
    )
    failed = {"conditions": [{"type": "Failed", "status": "True", "reason": "old"}]}
    plant_fill(standin, "fill-1", "model", failed)
    plant_fill(standin, "fill-2", "model", status)  # of two of one second the later name counts
    plant_fill(standin, "fill-3", "elsewhere", failed)
    found = state_of(look(**wanted), "caches")
    assert found[0] == state
    assert words in found[1]


def plant_fill(standin: StandIn, name: str, claim: str, status: Any) -> None:
    container = {
        "name": labels.FILL_CONTAINER,
        "image": "i:1",
        "volumeMounts": [{"name": "cache", "mountPath": labels.MODEL_MOUNT}],
    }
    volume = {"name": "cache", "persistentVolumeClaim": {"claimName": claim}}
    kind = {labels.COMPONENT: labels.CACHE_FILL}
    pod = {"containers": [container], "volumes": [volume], "restartPolicy": "Never"}
    spec = {"template": {"metadata": {"labels": kind}, "spec": pod}}
    meta = {"name": name, "namespace": "fractal", "labels": kind}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}
    standin.objects.create("jobs", {**body, "status": status})


def test_an_old_cluster_is_refused(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.Cluster, "version", lambda self: "v1.27.4-eks")
    findings = look()
    assert len(findings.checks) == 1
    assert "is Kubernetes v1.27.4-eks; retries of single indexes need 1.29" in findings.problems[0]


def test_gpus_that_others_have_are_not_free(standin: StandIn, look: Look) -> None:
    for name, gpus in (("g0", 8), ("g1", 8)):
        limits = {"limits": {"nvidia.com/gpu": str(gpus)}}
        spec = {"nodeName": name, "containers": [{"name": "c", "resources": limits}]}
        plant(standin, "pods", "Pod", f"pod-{name}", spec=spec, status={"phase": "Running"})
    state, text = state_of(look(), "nodes")
    assert (state, "all are taken" in text) == ("note", True)


def test_quotas_and_limits_of_the_namespace_count(standin: StandIn, look: Look) -> None:
    plant(standin, "resourcequotas", "ResourceQuota", "q", spec={"hard": {"pods": "0"}})
    limit = {"type": "Container", "max": {"cpu": "2"}}
    plant(standin, "limitranges", "LimitRange", "l", spec={"limits": [limit]})
    problems = look().problems
    assert [text.partition(" allows")[0] for text in problems] == [
        "ResourceQuota q",
        "LimitRange l",
    ]


def test_without_rights_each_one_is_named_and_what_cannot_be_seen_is_said(
    standin: StandIn, look: Look
) -> None:
    findings = look(standin.add_user("guest"), model_claim="model")
    assert len(findings.problems) == 1
    problem = findings.problems[0]
    assert "in namespace fractal you may not create/get/list/patch/delete jobs.batch" in problem
    assert "get pods/log" in problem
    assert "name you in the chart's rbac.users or rbac.groups" in problem
    assert "bind you to the Role fractal-k8s-user of manifests/rbac.yaml" in problem
    for name, right in (("claim model", "get persistentvolumeclaims"), ("nodes", "list nodes")):
        state, text = state_of(findings, name)
        assert state == "skipped"
        assert f"needs the right to {right}" in text


def test_only_the_rights_of_a_command_matter_to_it(standin: StandIn) -> None:
    launch = [right for right in rights.RIGHTS if "launch" in right.commands and not right.is_wide]
    name = standin.add_user("launcher", rights.rules(launch, secrets=["keys"]))
    cluster = connect(name, kubeconfig=str(standin.kubeconfig))
    settings = JobSettings(**STORE)
    assert preflight(cluster, settings, None, command="launch").problems == []
    (problem,) = preflight(cluster, settings, None).problems
    assert (
        "may not patch/delete jobs.batch; list configmaps; get pods; get pods/log; list" in problem
    )


def test_the_namespace_is_seen_by_its_service_account(standin: StandIn, look: Look) -> None:
    user = standin.add_user("user", rights.rules(narrow(), secrets=["keys"]))
    assert state_of(look(user), "namespace") == ("ok", "fractal, as its service account shows")
    standin.objects.delete("serviceaccounts", "fractal", "default")
    assert state_of(look(user), "namespace")[0] == "problem"


def narrow() -> list[rights.Right]:
    return [right for right in rights.RIGHTS if not right.is_wide]


def test_a_store_that_cannot_be_read_from_here_is_a_note(standin: StandIn) -> None:
    cluster = connect("standin", kubeconfig=str(standin.kubeconfig))
    dead = JobSettings(store="s3://bucket/runs?endpoint=http://127.0.0.1:1&region=x")
    state, text = state_of(preflight(cluster, dead, None), "store")
    assert state == "note"
    assert text == (
        "s3://bucket/runs cannot be read from here (network connection during ListObjectsV2); "
        "pods may all the same"
    )
    # launch finds out itself
    checks = preflight(cluster, dead, None, command="launch").checks
    assert "store" not in [check.name for check in checks]


# --- doctor and cluster, as a person types them ---


def test_doctor_looks_at_this_machine(run: Run, tmp_path: Path) -> None:
    text = run("doctor", "--store", str(tmp_path / "runs")).output
    assert "ok       torch" in text
    assert "can be written" in text
    assert text.rstrip().endswith("ready: fractal-k8s launch --preset tanh --res 64")
    assert not (tmp_path / "runs").exists()


def test_doctor_names_what_this_machine_lacks(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    broken = tmp_path / "kubeconfig"
    broken.write_text("a: [")
    monkeypatch.setenv("KUBECONFIG", str(broken))
    text = run("doctor", "--store", str(tmp_path / "file" / "runs"), code=1).output
    assert "choose another --store" in text
    assert "cannot read the kubeconfig" in text
    assert "2 problems" in text


def test_doctor_names_the_gpus_that_the_driver_sees(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\necho 'NVIDIA H200, 143771 MiB'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(driver.parent), prepend=os.pathsep)
    assert "2 x NVIDIA H200, 143771 MiB" in run("doctor").output
    driver.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert "none: workers train on the CPU" in run("doctor").output


def test_doctor_computes_only_when_asked(run: Run) -> None:
    checks = json.loads(run("doctor", "--torch", "--json").output)["checks"]
    (found,) = [check for check in checks if check["name"] == "computing"]
    assert found == {"name": "computing", "state": "ok", "detail": "multiplied matrices on cpu"}


def test_doctor_reads_the_site_s_settings(run: Run, standin: StandIn) -> None:
    site = "{store: /store/runs, store_claim: outcomes, model_claim: model, dataset_claim: data}"
    plant(standin, "configmaps", "ConfigMap", labels.SITE, data={labels.SITE_KEY: site})
    text = run("doctor", "--context", "standin").output
    assert "4 settings in ConfigMap fractal/fractal-k8s-site" in text
    assert "claim model" in text
    assert "ready: fractal-k8s launch --res 128 --context standin" in text


def test_doctor_ends_with_1_and_says_all_as_json(run: Run, standin: StandIn) -> None:
    answer = json.loads(run("doctor", "--context", "standin", "--json", code=1).output)
    assert answer["ready"] is False
    problems = [check["detail"] for check in answer["checks"] if check["state"] == "problem"]
    assert any("store: where do pods write to?" in text for text in problems)
    assert any("model_claim" in text for text in problems)


def test_doctor_of_a_sweep_without_weights_needs_no_claims(run: Run, standin: StandIn) -> None:
    text = run(
        *("doctor", "--context", "standin", "--preset", "tanh", "--store", "/store/runs"),
        *("--job", "store_claim=outcomes"),
    ).output
    assert text.rstrip().endswith(
        "ready: fractal-k8s launch --preset tanh --store /store/runs --job store_claim=outcomes "
        "--context standin"
    )


def test_doctor_s_last_line_launches_what_was_looked_at(run: Run, standin: StandIn) -> None:
    options = ["--res", "16x8", "--set", "axes.x.high=3e-2", "--gpus", "4", "--image", "a:1"]
    options += ["--points-per-index", "auto", "--job", "store_claim=outcomes"]
    options += ["--job", "cpu=3", "--store", "/store/runs"]
    text = run("doctor", "--preset", "tanh", *options, "--context", "standin").output
    words = shlex.split(text.rpartition("ready: fractal-k8s launch ")[2])
    pairs = list(zip(words[::2], words[1::2], strict=True))
    given = ["--preset", "tanh", *options, "--context", "standin"]
    assert sorted(pairs) == sorted(zip(given[::2], given[1::2], strict=True))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["doctor", "--gpus-per-pod", "8"], "--gpus-per-pod needs --context NAME"),
        (["doctor", "--preset", "tanh"], "a sweep is looked at with --context NAME"),
        (["doctor", "--context", "standin", "--torch"], "--torch is about this machine"),
        (["doctor", "--context", "standin", "--job", "gpuz=1"], "gpuz: unknown"),
        (["doctor", "--context", "standi"], "no context 'standi'; did you mean 'standin'"),
        (["cluster", "--context", "standi"], "no context 'standi'; did you mean 'standin'"),
        (["cluster"], "no cluster is named; give --context NAME"),
    ],
)
def test_wrong_options_are_refused(
    run: Run, standin: StandIn, arguments: list[str], text: str
) -> None:
    assert text in run(*arguments, code=2).output
    assert {call.verb for call in standin.requests} <= {"get"}  # of the site's settings


@pytest.mark.parametrize("command", ["doctor", "cluster"])
def test_a_cluster_that_is_away_is_one_sentence(
    run: Run, standin: StandIn, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.01)
    standin.down()
    text = run(command, "--context", "standin", code=2).output
    assert text.startswith("Error: cluster 'standin' does not answer (")
    assert "kubectl --context standin get --raw /readyz" in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("command", ["doctor", "cluster"])
def test_credentials_that_are_not_accepted(run: Run, standin: StandIn, command: str) -> None:
    text = standin.kubeconfig.read_text()
    standin.kubeconfig.write_text(text.replace("token: ", "token: old"))
    said = run(command, "--context", "standin", code=2).output
    assert "does not accept the credentials of its context; log in again" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["doctor", "cluster"])
def test_a_broken_kubeconfig(run: Run, standin: StandIn, command: str) -> None:
    standin.kubeconfig.write_text("contexts: [")
    said = run(command, "--context", "standin", code=2).output
    assert "Error: cannot read the kubeconfig" in said
    assert len(said.splitlines()) == 1


def test_cluster_shows_nodes_and_who_has_their_gpus(run: Run, standin: StandIn) -> None:
    cordoned = make_node("g2", labels={"node.kubernetes.io/instance-type": "other"})
    cordoned["spec"] = {"unschedulable": True}
    standin.objects.create("nodes", cordoned)
    limits = {"limits": {"nvidia.com/gpu": "3"}}
    owner = {"kind": "Job", "name": "tanh-0123456789", "controller": True}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": "default",
            "ownerReferences": [owner],
            "labels": {labels.SWEEP: "tanh-0123456789"},
        },
        "spec": {"nodeName": "g0", "containers": [{"name": "c", "resources": limits}]},
        "status": {"phase": "Running"},
    }
    standin.objects.create("pods", pod)
    lines = [line.split() for line in run("cluster", "--context", "standin").output.splitlines()]
    assert ["gd-8xh200ib-i128", "H200", "2", "16", "3", "13", "ready"] in lines
    assert ["other", "H200", "1", "8", "0", "0", "1", "cordoned"] in lines
    assert ["all", "3", "24", "3", "13", "1", "cordoned"] in lines
    sweep = "tanh-0123456789"
    assert ["default", "Job", sweep, "3", "1", "0", "sweep", sweep] in lines
    every = run("cluster", "--context", "standin", "--all").output.splitlines()
    assert ["g0", "gd-8xh200ib-i128", "H200", "8", "3", "5", "ready"] in [*map(str.split, every)]
    facts = json.loads(run("cluster", "--context", "standin", "--json").output)
    assert facts["complete"] is True
    assert [entry["free"] for entry in facts["nodes"]] == [5, 8, 0]
    assert facts["users"][0]["gpus"] == 3


def test_cluster_shows_who_has_most_and_counts_the_rest(run: Run, standin: StandIn) -> None:
    limits = {"limits": {"nvidia.com/gpu": "1"}}
    for number in range(25):
        spec = {"containers": [{"name": "c", "resources": limits}]}
        plant(standin, "pods", "Pod", f"p{number}", spec=spec, status={"phase": "Pending"})
    text = run("cluster", "--context", "standin").output
    assert "and 5 more with 0 GPUs, waiting for 5; --all shows them" in text
    assert text.count("Pod p") == 20
    assert run("cluster", "--context", "standin", "--all").output.count("Pod p") == 25


def test_cluster_says_what_it_may_not_see(run: Run, standin: StandIn) -> None:
    nodes = [right for right in rights.RIGHTS if str(right) == "list nodes"]
    user = standin.add_user(
        "user", rights.rules(narrow(), secrets=["k"]), rights.rules(nodes, secrets=())
    )
    text = run("cluster", "--context", user).output
    assert "only the pods of namespace fractal may be seen" in text
    guest = run("cluster", "--context", standin.add_user("guest"), code=2).output
    assert 'cannot list resource "nodes"' in guest
    assert "ClusterRole fractal-k8s-viewer" in guest
