"""What is sent to a cluster: valid, restricted, the same bytes every time."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fractal_k8s.data.named import NAMES
from fractal_k8s.errors import EXIT_CORRUPT, EXIT_NOT_READY, EXIT_SETTINGS
from fractal_k8s.manifest import labels, pod
from fractal_k8s.manifest.render import Manifest, render
from fractal_k8s.manifest.settings import JobSettings
from fractal_k8s.manifest.shape import times
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, Dealt
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.recipe import SCHEME
from rendering import (
    KINDS,
    MODELS,
    ROOT,
    SITE,
    VERSIONS,
    docvqa,
    environment,
    insecurities,
    pod_of,
    rendered,
    validate,
    worker_of,
)

# --- the text ---


def test_the_text_is_what_is_sent() -> None:
    manifest = rendered()
    sent = [manifest.config_map, manifest.job, manifest.aggregator]
    assert [*yaml.safe_load_all(manifest.text)] == sent
    assert manifest.text == rendered().text


def test_the_bytes_do_not_depend_on_the_process() -> None:
    command = [sys.executable, "-m", "fractal_k8s", "render", "--preset", "tiny"]
    command += ["--job", "env={B: '2', A: '1'}", "--job", "node_selector={z: a, a: z}"]
    texts = {
        subprocess.run(
            command, env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
    assert b"kind: Job" in texts.pop()


def test_the_config_map_holds_the_plan() -> None:
    plan = Plan(docvqa(), Deal(points_per_shard=64))
    manifest = render(plan, JobSettings(**SITE))
    assert manifest.config_map["data"] == {"sweep.json": plan.to_json()}
    assert manifest.config_map["immutable"] is True
    assert Plan.from_json(manifest.config_map["data"]["sweep.json"], source="it") == plan


def test_the_size_does_not_grow_with_the_grid() -> None:
    sizes = [
        len(rendered(docvqa(side), Deal(points_per_shard=side * side // 256)).text)
        for side in (16, 1024)
    ]
    assert sizes[1] - sizes[0] <= 12  # digits of the numbers
    assert sizes[1] < 15_000


def test_later_jobs_of_a_sweep_have_names_of_their_own() -> None:
    sweep = docvqa()
    later = rendered(sweep, name=f"{sweep.id}-r2")
    assert later.job["metadata"]["name"] == f"{sweep.id}-r2"
    assert later.config_map["metadata"]["name"] == f"{sweep.id}-r2"
    assert later.job["metadata"]["labels"][labels.SWEEP] == sweep.id
    assert pod_of(later)["volumes"][0]["configMap"] == {"name": f"{sweep.id}-r2"}


# --- what every kind of Job must be ---


@pytest.fixture(params=[*KINDS])
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return rendered(**KINDS[request.param])


def test_every_version_accepts_it(manifest: Manifest) -> None:
    validate(manifest)


@pytest.mark.parametrize("model", [*MODELS])
@pytest.mark.parametrize("gpus_per_pod", [0, 1, 8])
def test_every_model_can_be_sent(model: str, gpus_per_pod: int) -> None:
    manifest = rendered(MODELS[model], gpus_per_pod=gpus_per_pod)
    validate(manifest, VERSIONS[-1:])
    assert not [*insecurities(manifest)]


def test_a_misspelt_field_would_be_found() -> None:
    manifest = rendered()
    manifest.job["spec"]["completion"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(manifest)


def test_pods_are_restricted(manifest: Manifest) -> None:
    assert not [*insecurities(manifest)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("securityContext", "runAsUser"), 0),
        (("hostNetwork",), True),
        (("containers", 0, "securityContext", "capabilities"), {"drop": []}),
        (("containers", 0, "securityContext", "readOnlyRootFilesystem"), False),
        (("volumes", 0), {"name": "host", "hostPath": {"path": "/"}}),
    ],
)
def test_an_unrestricted_pod_would_be_found(path: tuple[Any, ...], value: Any) -> None:
    manifest = rendered()
    place: Any = pod_of(manifest)
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert [*insecurities(manifest)]


def test_claims_with_weights_and_data_cannot_be_written_to() -> None:
    spec = pod_of(rendered(store="/store/runs", store_claim="fractal-store"))
    mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    claimed = {
        volume["name"]: volume["persistentVolumeClaim"]["readOnly"]
        for volume in spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claimed == {"model": True, "dataset": True, "store": False}
    assert {name: mounts[name]["readOnly"] for name in claimed} == claimed


def test_what_libraries_write_goes_to_scratch() -> None:
    found = environment(rendered())
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "WANDB_DIR"):
        assert f"{found[name]}/".startswith("/scratch/")
    spec = pod_of(rendered())
    empty = {
        volume["name"]: volume["emptyDir"]
        for volume in spec["volumes"]
        if len(volume) == 2 and "emptyDir" in volume
    }
    assert empty == {
        "scratch": {},
        "tmp": {},
        "shared-memory": {"medium": "Memory", "sizeLimit": "8Gi"},
    }


# --- the Job ---


def test_the_policy_of_failure() -> None:
    spec = rendered().job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["backoffLimitPerIndex"] == 3
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    ignored, not_ready, fatal = spec["podFailurePolicy"]["rules"]
    assert ignored == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    container = worker_of(rendered())["name"]
    assert not_ready == {
        "action": "Ignore",
        "onExitCodes": {"containerName": container, "operator": "In", "values": [EXIT_NOT_READY]},
    }
    assert fatal == {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": container,
            "operator": "In",
            "values": [EXIT_SETTINGS, EXIT_CORRUPT],
        },
    }
    assert {"suspend", "managedBy", "activeDeadlineSeconds"}.isdisjoint(spec)
    assert rendered(deadline_seconds=60).job["spec"]["activeDeadlineSeconds"] == 60


@pytest.mark.parametrize(
    ("points", "asked", "allowed"),
    [(64, None, 25), (1024, None, 4), (8192, None, 2), (64, 0, 0), (64, 7, 7), (64, 900, 256)],
)
def test_how_many_indexes_may_fail(points: int, asked: int | None, allowed: int) -> None:
    job = rendered(deal=Deal(points_per_shard=points), max_failed_indexes=asked).job
    assert job["spec"]["maxFailedIndexes"] == allowed


def test_pods_of_eight_gpus_have_eight_shares_and_an_eighth_of_the_indexes() -> None:
    one, eight = rendered(gpus=64), rendered(gpus=64, gpus_per_pod=8)
    assert (one.job["spec"]["completions"], one.job["spec"]["parallelism"]) == (256, 64)
    assert (eight.job["spec"]["completions"], eight.job["spec"]["parallelism"]) == (32, 8)
    shares = worker_of(eight)["resources"]
    assert shares["requests"] == {
        "cpu": "112",
        "memory": "1760Gi",
        "ephemeral-storage": "800Gi",
        "nvidia.com/gpu": "8",
    }
    assert shares["limits"]["nvidia.com/gpu"] == "8"
    assert pod_of(eight)["volumes"][-1]["emptyDir"]["sizeLimit"] == "64Gi"
    arguments = worker_of(eight)["args"]
    assert arguments[arguments.index("--processes") + 1] == "8"
    assert "--processes" not in worker_of(one)["args"]


@pytest.mark.parametrize("gpus_per_pod", [1, 2, 4, 8])
@pytest.mark.parametrize("points", [1, 7, 64, 20_000])
def test_the_pods_have_room_for_every_shard(gpus_per_pod: int, points: int) -> None:
    deal = Deal(points_per_shard=points)
    spec = rendered(deal=deal, gpus=32, gpus_per_pod=gpus_per_pod).job["spec"]
    shards = Dealt(docvqa(), deal).num_shards
    assert (spec["completions"] - 1) * gpus_per_pod < shards
    assert spec["completions"] * gpus_per_pod >= shards
    assert spec["parallelism"] <= spec["completions"]


@pytest.mark.parametrize(
    ("quantity", "count", "product"),
    [
        ("14", 8, "112"),
        ("500m", 8, "4000m"),
        ("1.5Gi", 2, "3Gi"),
        ("2.25G", 2, "4.5G"),
        ("1e3", 8, "8e3"),
        ("100", 100, "10000"),
        ("0", 8, "0"),
    ],
)
def test_quantities_are_multiplied(quantity: str, count: int, product: str) -> None:
    assert times(quantity, count) == product


def test_pods_without_gpus_ask_for_none() -> None:
    manifest = rendered(gpus_per_pod=0, gpus=12)
    assert "nvidia.com/gpu" not in str(worker_of(manifest)["resources"])
    assert "affinity" not in pod_of(manifest)
    assert manifest.job["spec"]["parallelism"] == 12
    assert manifest.job["metadata"]["annotations"][labels.GPUS] == "0"


@pytest.mark.parametrize(
    ("nodes", "gpu", "expected"),
    [
        (
            "auto",
            "H200",
            {
                "node.kubernetes.io/instance-type": "gd-8xh200ib-i128",
                "gpu.nvidia.com/class": "H200",
                "nvidia.com/gpu.product": "NVIDIA-H200",
            },
        ),
        ("auto", "B200", {"gpu.nvidia.com/class": "B200", "nvidia.com/gpu.product": "NVIDIA-B200"}),
        ("cks-instance", "H200", {"node.kubernetes.io/instance-type": "gd-8xh200ib-i128"}),
        ("cks-class", "H200", {"gpu.nvidia.com/class": "H200"}),
        ("gfd", "H200", {"nvidia.com/gpu.product": "NVIDIA-H200"}),
    ],
)
def test_nodes_with_the_gpu_are_found_by_any_label(
    nodes: str, gpu: str, expected: dict[str, str]
) -> None:
    affinity = pod_of(rendered(nodes=nodes, gpu=gpu))["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    found = {}
    for term in terms:  # terms are alternatives, expressions of one term are not
        (expression,) = term["matchExpressions"]
        assert expression["operator"] == "In"
        (found[expression["key"]],) = expression["values"]
    assert found == expected


def test_no_queue_is_mentioned_without_one() -> None:
    without = rendered(queue_priority="low", min_parallelism=2)
    assert "kueue" not in without.text.lower()


def test_a_queue_is_a_label_of_the_job_alone() -> None:
    job = rendered(**KINDS["queue"]).job
    assert job["metadata"]["labels"][labels.QUEUE] == "research"
    assert job["metadata"]["labels"][labels.QUEUE_PRIORITY] == "low"
    assert job["metadata"]["annotations"][labels.MIN_PARALLELISM] == "2"
    assert "kueue" not in str(job["spec"])
    assert "suspend" not in job["spec"]


def test_kueue_is_given_no_more_pods_to_begin_with_than_there_are() -> None:
    few = rendered(deal=Deal(points_per_shard=8192), queue="q", min_parallelism=2)
    assert few.job["spec"]["parallelism"] == 2
    assert labels.MIN_PARALLELISM not in few.job["metadata"]["annotations"]


def test_every_object_can_be_found_by_its_sweep() -> None:
    manifest = rendered(client_store="s3://b/r?endpoint=https://outside", store="s3://b/r")
    sweep = docvqa()
    template = manifest.job["spec"]["template"]["metadata"]
    for item in (manifest.config_map["metadata"], manifest.job["metadata"], template):
        assert item["labels"][labels.SWEEP] == sweep.id
        assert item["labels"][labels.COMPONENT] == labels.WORKER
    found = manifest.job["metadata"]["annotations"]
    assert found[labels.STORE] == "s3://b/r"
    assert found[labels.CLIENT_STORE].endswith("outside")
    assert found[labels.DIGEST].startswith(sweep.id.rpartition("-")[2])
    assert labels.PRICE not in found
    priced = rendered(usd_per_gpu_hour=2.5).job["metadata"]["annotations"]
    assert priced[labels.PRICE] == "2.5"


def test_pods_may_be_asked_to_end() -> None:
    mark = "qos.coreweave.com/graceful-interruptible"
    assert rendered().job["spec"]["template"]["metadata"]["labels"][mark] == "true"
    assert mark not in rendered(interruptible=False).text
    assert pod_of(rendered())["terminationGracePeriodSeconds"] == 120


# --- what a worker is told ---


def arguments_of(sweep: Sweep, **values: Any) -> list[str]:
    return list(worker_of(rendered(sweep, **values))["args"])


COMMON = ["worker", "--store", "s3://bucket/runs", "--sweep", "/etc/fractal-k8s/sweep.json"]


def test_a_fine_tune_is_told_where_its_weights_and_data_are() -> None:
    assert arguments_of(docvqa()) == [
        *COMMON,
        *("--checkpoint", "/cache/model"),
        *("--dataset", "conversations:/cache/dataset/train.jsonl"),
        *("--cache", "/cache/model", "--cache", "/cache/dataset", "--cache-wait", "120"),
    ]
    assert worker_of(rendered())["command"] == ["fractal-k8s"]


def test_a_sweep_over_depths_has_weights_for_each() -> None:
    told = arguments_of(MODELS["depths"])
    assert told[told.index("--checkpoint") + 1] == "/cache/model/d{depth}"
    told = arguments_of(MODELS["depths"], model_path="/cache/model/{depth}-layers")
    assert told[told.index("--checkpoint") + 1] == "/cache/model/{depth}-layers"


@pytest.mark.parametrize("model", ["mlp", "quadratic", "made model"])
def test_what_is_made_in_the_pod_needs_no_cache(model: str) -> None:
    assert arguments_of(MODELS[model]) == COMMON
    assert "persistentVolumeClaim" not in rendered(MODELS[model]).text


def test_made_up_data_with_weights_from_a_claim() -> None:
    told = arguments_of(docvqa(dataset="forms:500"))
    assert told == [
        *COMMON,
        *("--checkpoint", "/cache/model", "--cache", "/cache/model", "--cache-wait", "120"),
    ]


def test_weights_that_come_with_the_image_need_no_claim() -> None:
    told = arguments_of(
        docvqa(),
        model_path="/opt/model",
        model_claim=None,
        dataset="conversations:/opt/data.jsonl",
        dataset_claim=None,
    )
    assert "--cache" not in told
    assert told[told.index("--checkpoint") + 1] == "/opt/model"


def test_names_of_what_is_made_are_those_of_the_data_and_the_models() -> None:
    assert pod.MADE_DATA == NAMES
    assert pod.MADE_MODEL == SCHEME


def test_the_index_comes_from_kubernetes_alone() -> None:
    found = environment(rendered())
    assert "JOB_COMPLETION_INDEX" not in found
    assert found["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert found["NODE_NAME"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert found["FRACTAL_K8S_IMAGE"] == JobSettings().image


def test_a_variable_of_the_site_replaces_ours() -> None:
    assert environment(rendered(env={"HF_HUB_OFFLINE": "0"}))["HF_HUB_OFFLINE"] == "0"


def test_tracking_is_told_only_with_a_project() -> None:
    assert "WANDB_API_KEY" not in rendered(wandb_secret="wandb").text
    assert (
        "WANDB_API_KEY"
        not in rendered(wandb_secret="wandb", wandb_project="maps", wandb_mode="off").text
    )
    found = environment(rendered(wandb_secret="wandb", wandb_project="maps", wandb_entity="us"))
    assert found["WANDB_API_KEY"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}
    assert found["FRACTAL_K8S_WANDB_PROJECT"] == "maps"
    assert found["FRACTAL_K8S_WANDB_ENTITY"] == "us"
    assert found["FRACTAL_K8S_WANDB_MODE"] == "shard"
