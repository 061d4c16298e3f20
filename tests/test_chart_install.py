"""The chart on a cluster: installed, tested, used, upgraded and uninstalled, by the real helm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.place import wait_for
from conftest import Run
from fractal_k8s.aggregate import read_grid
from fractal_k8s.errors import EXIT_NOT_READY
from fractal_k8s.manifest import labels
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from helm import CHART, RELEASE, Helm
from standin.cluster import ADMIN, NAMESPACE, StandIn
from standin.fixtures import kubectl_on
from sweeps import fine_tune_text

SWEEP = fine_tune_text(
    "once",
    (4, 4),
    checkpoint="a folder that this machine does not have",
    dataset="train.jsonl",
    tokens=200,
)

# a claim of the cluster's owner; the two others are the chart's
OUTCOMES = "outcomes"


@pytest.fixture
def volumes(tmp_path: Path) -> dict[str, Path]:
    """Folder of each claim."""
    found = {
        name: tmp_path / "claims" / name
        for name in ("fractal-model", "fractal-dataset", "fractal-source", OUTCOMES)
    }
    for folder in found.values():
        folder.mkdir(parents=True)
    return found


@pytest.fixture
def standin(
    tmp_path: Path, volumes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandIn]:
    owned = {name: volumes[name] for name in (OUTCOMES, "fractal-source")}
    with StandIn(tmp_path / "standin", claims=owned, volumes=volumes) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield cluster


@pytest.fixture
def values(tmp_path: Path, volumes: dict[str, Path]) -> Path:
    """Values of a small cluster without GPUs; outcomes in a claim that this machine sees too."""
    path = tmp_path / "values.yaml"
    small = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    given = {
        "store": {
            "uri": "/store/runs",
            "clientUri": str(volumes[OUTCOMES] / "runs"),
            "existingClaim": OUTCOMES,
        },
        "dataset": {"source": ""},
        "fill": {"resources": small},
        "aggregator": {"resources": small},
        "settings": {
            "gpus": 2,
            "gpus_per_pod": 0,
            "nodes": "none",
            "cpu": "100m",
            "memory": "1Gi",
            "ephemeral_storage": "1Gi",
            "shared_memory": "64Mi",
            "interruptible": False,
        },
    }
    path.write_text(yaml.safe_dump(given))
    return path


def fill_by_hand(golden: Path, volumes: dict[str, Path]) -> None:
    """The caches as the program fills them."""
    shutil.copytree(golden, volumes["fractal-model"], dirs_exist_ok=True)
    shutil.copy(golden / "conversations.jsonl", volumes["fractal-dataset"] / "train.jsonl")
    for name in ("fractal-model", "fractal-dataset"):
        (volumes[name] / "READY").write_text("{}\n")


def install(helm: Helm, standin: StandIn, values: Path, *options: str) -> str:
    helm.kubeconfig = standin.kubeconfig
    return helm.on_cluster("install", RELEASE, CHART, "-f", values, *options)


def sources(golden: Path, volumes: dict[str, Path]) -> list[str]:
    """Options that fill both caches from a claim, which gets the files."""
    shutil.copytree(golden, volumes["fractal-source"] / "model")
    shutil.copy(golden / "conversations.jsonl", volumes["fractal-source"] / "train.jsonl")
    given = {
        "model.source": "/source/model",
        "dataset.source": "conversations:/source/train.jsonl",
        "fill.sourceClaim": "fractal-source",
    }
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


def fills(standin: StandIn) -> list[str]:
    """Names of the fill Jobs."""
    found = standin.objects.list("jobs")
    return [
        each["metadata"]["name"]
        for each in found
        if each["metadata"]["labels"].get(labels.COMPONENT) == labels.CACHE_FILL
    ]


def claims(standin: StandIn) -> set[str]:
    return {item["metadata"]["name"] for item in standin.objects.list("persistentvolumeclaims")}


def job_ended(standin: StandIn, name: str, seconds: float = 240) -> str:
    """How a Job ended: the type of its condition."""

    def look() -> str | None:
        status = standin.objects.get("jobs", NAMESPACE, name).get("status") or {}
        ended = [each["type"] for each in status.get("conditions") or []]
        return next((each for each in ended if each in ("Complete", "Failed")), None)

    return wait_for(f"the end of Job {name}", look, seconds)


def test_from_install_to_uninstall(
    helm: Helm,
    run: Run,
    standin: StandIn,
    values: Path,
    volumes: dict[str, Path],
    golden: Path,
    tmp_path: Path,
) -> None:
    """What an owner and a user type: nobody copies anything, and a launch needs no options.

    The user is bound to the chart's Role and to nothing else.
    """
    ann = standin.add_user("ann")
    options = [*sources(golden, volumes), "--set", "rbac.users={ann}"]
    notes = install(helm, standin, values, *options)
    assert "fractal-k8s launch --res 128 --context NAME -n fractal" in notes
    (job,) = fills(standin)
    assert f"kubectl --context NAME -n fractal logs -f job/{job}" in notes
    assert job_ended(standin, job) == "Complete"
    assert (volumes["fractal-dataset"] / "train.jsonl").read_bytes() == (
        golden / "conversations.jsonl"
    ).read_bytes()
    assert helm.on_cluster("test", RELEASE, "--timeout", "60s").count("Succeeded") == 2
    assert [pod["metadata"]["name"][:18] for pod in standin.objects.list("pods")] == [job[:18]]

    told = run("doctor", "--context", ann).output
    assert "ConfigMap fractal/fractal-k8s-site" in told
    assert "ready: fractal-k8s launch --res 128 --context ann" in told
    assert f"Job {job}: complete" in run("cache", "status", "--context", ann).output
    assert job in run("cache", "verify", "--context", ann).output
    (tmp_path / "sweep.toml").write_text(SWEEP)
    sent = run("launch", "sweep.toml", "--res", "2", "--context", ann, "--json")
    sweep_id = json.loads(sent.stdout)["sweep"]
    spec = standin.objects.get("jobs", NAMESPACE, sweep_id)["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "fractal-cache-worker"
    assert job_ended(standin, sweep_id) == "Complete"
    folder = Store(str(volumes[OUTCOMES] / "runs")).sweep(sweep_id)
    plan = folder.read_plan()
    assert plan is not None
    before = read_grid(folder, Plan(plan.sweep, Deal())).counts()
    assert before["missing"] == before["failed"] == 0

    helm.on_cluster("upgrade", RELEASE, CHART, "-f", values, *options, "--set", "settings.gpus=4")
    assert "kept" in helm.on_cluster("uninstall", RELEASE)
    assert claims(standin) == {"fractal-model", "fractal-dataset", "fractal-source", OUTCOMES}
    left = {plural: standin.objects.list(plural) for plural in ("configmaps", "cronjobs", "roles")}
    assert [item["metadata"]["name"] for item in left.pop("configmaps")] == [sweep_id]
    assert not any(left.values())
    assert all((volumes[name] / "READY").exists() for name in ("fractal-model", "fractal-dataset"))
    assert read_grid(folder, Plan(plan.sweep, Deal())).counts() == before

    install(helm, standin, values)  # takes the kept claims over
    assert helm.on_cluster("test", RELEASE, "--timeout", "60s").count("Succeeded") == 2


def test_a_test_fails_until_the_caches_are_whole(
    each_helm: Helm, standin: StandIn, values: Path, volumes: dict[str, Path], golden: Path
) -> None:
    notes = install(each_helm, standin, values)
    assert "Nothing fills the claim fractal-model: set model.source" in notes
    said = each_helm.on_cluster("test", RELEASE, "--timeout", "60s", code=1)
    assert "pod fractal-cache-test-caches failed" in said
    store = standin.kubelet.log_path(NAMESPACE, "fractal-cache-test-store").read_text()
    assert "no sweeps in" in store  # it was looked at first
    log = standin.kubelet.log_path(NAMESPACE, "fractal-cache-test-caches").read_text()
    assert log.count("it is not filled (yet): workers would wait") == 2
    fill_by_hand(golden, volumes)
    assert each_helm.on_cluster("test", RELEASE, "--timeout", "60s").count("Succeeded") == 2
    assert not standin.objects.list("pods")  # tests that pass leave nothing


def test_another_release_takes_kept_claims_by_name(
    each_helm: Helm, standin: StandIn, values: Path
) -> None:
    install(each_helm, standin, values)
    each_helm.on_cluster("uninstall", RELEASE)
    said = each_helm.on_cluster("install", "other", CHART, "-f", values, code=1)
    assert "exists and cannot be imported into the current release" in said
    reuse = ("--set", "model.claim.create=false", "--set", "dataset.claim.create=false")
    each_helm.on_cluster("install", "other", CHART, "-f", values, *reuse)
    text = standin.objects.get("configmaps", NAMESPACE, labels.SITE)["data"][labels.SITE_KEY]
    assert yaml.safe_load(text)["model_claim"] == "fractal-model"
    each_helm.on_cluster("uninstall", "other")
    install(each_helm, standin, values)  # they are still the first release's


def test_what_is_filled_may_change_with_an_upgrade(
    each_helm: Helm, standin: StandIn, values: Path
) -> None:
    """A Job cannot be changed: the new one has another name, and the old one goes."""
    names = []
    standin.kubelet.claims.clear()  # the pods wait, and nothing is filled
    each_helm.kubeconfig = standin.kubeconfig
    for command, change in (
        ("install", "model.source=/data/one"),
        ("upgrade", "model.source=/data/one"),
        ("upgrade", "model.source=/data/two"),
        ("upgrade", "model.source=/data/two,image.tag=0.2.0"),
        ("upgrade", "model.source=/data/two,image.tag=0.2.0,fill.resources.limits.memory=2Gi"),
    ):
        each_helm.on_cluster(command, RELEASE, CHART, "-f", values, "--set", change)
        names += fills(standin)
    assert len(names) == 5
    assert names[0] == names[1]
    assert len({*names}) == 4


def test_a_rollback_brings_the_former_settings_and_fill_job_back(
    each_helm: Helm, standin: StandIn, values: Path
) -> None:
    standin.kubelet.claims.clear()
    install(each_helm, standin, values, "--set", "model.source=/data/one,settings.gpus=1")
    first = fills(standin)
    change = ("--set", "model.source=/data/two,settings.gpus=3")
    each_helm.on_cluster("upgrade", RELEASE, CHART, "-f", values, *change)
    assert fills(standin) != first
    each_helm.on_cluster("rollback", RELEASE, "1")
    assert fills(standin) == first
    text = standin.objects.get("configmaps", NAMESPACE, labels.SITE)["data"][labels.SITE_KEY]
    assert yaml.safe_load(text)["gpus"] == 1


def test_another_claim_is_left_with_an_upgrade_not_with_a_rollback(
    each_helm: Helm, standin: StandIn, values: Path
) -> None:
    """As the guide says: helm does not roll back to a claim that it was told to keep."""
    install(each_helm, standin, values)
    other = ("--set", "model.claim.name=other")
    each_helm.on_cluster("upgrade", RELEASE, CHART, "-f", values, *other)
    said = each_helm.on_cluster("rollback", RELEASE, "1", code=1)
    assert 'PersistentVolumeClaim with the name "fractal-model"' in said
    each_helm.on_cluster("upgrade", RELEASE, CHART, "-f", values)
    text = standin.objects.get("configmaps", NAMESPACE, labels.SITE)["data"][labels.SITE_KEY]
    assert yaml.safe_load(text)["model_claim"] == "fractal-model"
    assert {"fractal-model", "other"} <= claims(standin)


def test_a_second_release_in_a_namespace_is_refused_whole(
    each_helm: Helm, standin: StandIn, values: Path
) -> None:
    install(each_helm, standin, values)
    before = {item["metadata"]["name"] for item in standin.objects.list("serviceaccounts")}
    others = ("--set", "model.claim.name=m2,dataset.claim.name=d2")
    said = each_helm.on_cluster("install", "second", CHART, "-f", values, *others, code=1)
    assert 'ConfigMap "fractal-k8s-site" in namespace "fractal" exists' in said
    assert {item["metadata"]["name"] for item in standin.objects.list("serviceaccounts")} == before
    assert claims(standin).isdisjoint({"m2", "d2"})


def test_pods_wait_for_a_cache_whatever_becomes_of_its_fill(
    helm: Helm,
    run: Run,
    standin: StandIn,
    values: Path,
    volumes: dict[str, Path],
    golden: Path,
    tmp_path: Path,
) -> None:
    """Sent before anything fills, through a fill that fails, to one that is made again."""
    install(helm, standin, values)
    helm.on_cluster("test", RELEASE, "--timeout", "60s", code=1)  # its pods bind the claims
    (tmp_path / "sweep.toml").write_text(SWEEP)
    # an index that fails once would have failed for good
    hasty = ("--job", "cache_wait_seconds=1", "--job", "retries_per_index=0")
    launch = ("launch", "sweep.toml", "--res", "2", "--context", ADMIN)
    sweep_id = json.loads(run(*launch, *hasty, "--json").stdout)["sweep"]
    status = ("status", sweep_id, "--context", ADMIN)

    def told(*words: str) -> str | None:
        text = run(*status).output
        return text if all(word in text for word in words) else None

    waits = "wait: for a cache that is not filled yet (claim fractal-model and fractal-dataset)"
    wait_for("pods that wait", lambda: told(waits, "no Job is filling it"))
    wait_for("pods that gave up for now", lambda: len(codes_of(standin, sweep_id)) >= 3)

    options = sources(golden, volumes)
    model = volumes["fractal-source"] / "model"
    model.rename(model.with_name("late"))
    upgrade = ("upgrade", RELEASE, CHART, "-f", values, *options)
    helm.on_cluster(*upgrade)
    (job,) = fills(standin)
    assert job_ended(standin, job) == "Failed"
    again = "--set fill.again=WORD"
    wait_for("the failed fill", lambda: told(waits, f"Job {job}: failed", "no such folder", again))
    assert again in run("cache", "status", "--context", ADMIN, code=1).output
    told_by_doctor = run("doctor", "--context", ADMIN, code=1).output
    assert f"the Job {job}, which fills fractal-model and fractal-dataset, has failed" in (
        " ".join(told_by_doctor.split())
    )
    refused = run(*launch, "--name", "other", code=2).output
    assert "no such folder" in refused
    assert again in refused
    jobs = {item["metadata"]["name"] for item in standin.objects.list("jobs")}
    assert not [name for name in jobs if name.startswith("other")]

    model.with_name("late").rename(model)
    helm.on_cluster(*upgrade)  # the same Job: nothing happens
    assert job_ended(standin, job) == "Failed"
    helm.on_cluster(*upgrade, "--set", "fill.again=2")
    (job,) = fills(standin)
    assert job_ended(standin, job) == "Complete"
    assert job_ended(standin, sweep_id) == "Complete"
    assert {*codes_of(standin, sweep_id)} == {EXIT_NOT_READY}
    ended = run(*status).output
    assert "for a cache" not in ended
    assert "evicted" not in ended


def codes_of(standin: StandIn, job: str) -> list[int]:
    """Exit codes of a Job's pods that have failed."""
    pods = standin.objects.list("pods")
    return [
        container["state"]["terminated"]["exitCode"]
        for pod in pods
        if pod["metadata"]["labels"].get(labels.JOB_NAME) == job
        and pod["status"].get("phase") == "Failed"
        for container in pod["status"]["containerStatuses"]
    ]


def test_a_damaged_cache_is_mended_with_one_command(
    helm: Helm,
    standin: StandIn,
    values: Path,
    volumes: dict[str, Path],
    golden: Path,
) -> None:
    options = sources(golden, volumes)
    install(helm, standin, values, *options)
    (job,) = fills(standin)
    assert job_ended(standin, job) == "Complete"
    damaged = volumes["fractal-dataset"] / "train.jsonl"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole.replace(b"a", b"b"))
    again = ("--set", "fill.again=2")
    helm.on_cluster("upgrade", RELEASE, CHART, "-f", values, *options, *again)
    (job,) = fills(standin)
    assert job_ended(standin, job) == "Complete"
    assert damaged.read_bytes() == whole


def test_a_hook_fills_before_helm_returns_and_can_be_asked_later(
    helm: Helm,
    run: Run,
    standin: StandIn,
    values: Path,
    volumes: dict[str, Path],
    golden: Path,
    kubectl_binary: Path,
    tmp_path: Path,
) -> None:
    hook = [*sources(golden, volumes), "--set", "fill.hook=true"]
    notes = install(helm, standin, values, *hook, "--timeout", "120s")
    (job,) = fills(standin)
    assert (volumes["fractal-model"] / "READY").exists()
    (command,) = [line.strip() for line in notes.splitlines() if "kubectl" in line]
    kubectl = kubectl_on(kubectl_binary, standin.kubeconfig, tmp_path)
    assert "ready" in kubectl(*command.replace("NAME", ADMIN).split()[1:]).stdout
    assert f"Job {job}: complete" in run("cache", "status", "--context", ADMIN).output
    assert job in run("cache", "verify", "--context", ADMIN).output


def test_the_end_of_a_fill_job_deletes_nothing(
    helm: Helm, standin: StandIn, values: Path, volumes: dict[str, Path], golden: Path
) -> None:
    """Once the Job's time is over an upgrade makes it again; the claims are there all along."""
    fill_by_hand(golden, volumes)
    source = ("--set", "model.source=/data/model", "--set", "fill.keepSeconds=0")
    install(helm, standin, values, *source)
    names = [item["metadata"]["name"] for item in standin.objects.list("jobs")]
    wait_for("the Job's time to be over", lambda: not standin.objects.list("jobs"))
    standin.controller.stop()
    helm.on_cluster("upgrade", RELEASE, CHART, "-f", values, *source)
    assert [item["metadata"]["name"] for item in standin.objects.list("jobs")] == names
    assert claims(standin) == {"fractal-model", "fractal-dataset", "fractal-source", OUTCOMES}
    assert (volumes["fractal-model"] / "READY").exists()


def test_kubectl_can_apply_what_helm_renders(
    helm: Helm, run: Run, standin: StandIn, values: Path, kubectl_binary: Path, tmp_path: Path
) -> None:
    """Without helm on the cluster, as those do who keep rendered manifests in git."""
    text = helm.text("-f", values, "--skip-tests")
    assert "helm.sh/hook" not in text
    kubectl: Callable[..., Any] = kubectl_on(kubectl_binary, standin.kubeconfig, tmp_path)
    for _ in range(2):
        kubectl("apply", "--server-side", "-f", "-", stdin=text)
    told = run("doctor", "--context", ADMIN, "--preset", "tanh").output
    assert "ready: fractal-k8s launch" in told
    assert "fractal-cache-worker" in told
