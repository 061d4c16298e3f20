"""The chart: valid, restricted, strict about values, in step with the program; then installed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import fractal_k8s
import record
from conftest import mlp_sweep
from fractal_k8s.data.docvqa import hub_set
from fractal_k8s.errors import SweepError
from fractal_k8s.manifest import aggregator, labels, pod
from fractal_k8s.manifest.rbac import GROUP
from fractal_k8s.manifest.settings import JobSettings, make_settings
from fractal_k8s.manifest.site import parse_site
from fractal_k8s.references import parse_reference
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from helm import CHART, RELEASE, VALUES, Helm, Object, environment, one, pod_specs
from rendering import (
    ROOT,
    VERSIONS,
    expand,
    insecurities_of,
    pod_of,
    rendered,
    worker_of,
)

STORE = ("--set", "store.uri=s3://my-bucket/fractal")
EVERYTHING = ("-f", CHART / "ci" / "everything-values.yaml")
NOTHING = ("-f", CHART / "ci" / "nothing-values.yaml")
KIND = ("-f", CHART / "ci" / "kind-values.yaml")
COREWEAVE = ("-f", CHART / "values-coreweave.yaml")
# for sources that are folders
SOURCE = ("--set", "fill.sourceClaim=fractal-source")


def settings_of(items: list[Object]) -> JobSettings:
    """What `launch` makes of the ConfigMap."""
    text = one(items, "ConfigMap", labels.SITE)["data"][labels.SITE_KEY]
    return make_settings(("chart", parse_site(text, source="chart")))


def schema() -> Object:
    found: Object = json.loads((CHART / "values.schema.json").read_text())
    return found


def default_values() -> Object:
    found: Object = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


# --- what every set of values must give ---

each_file = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)


@each_file
def test_lint_is_content(each_helm: Helm, values: Path) -> None:
    assert "0 chart(s) failed" in each_helm("lint", "--strict", CHART, "-f", values)


def test_lint_is_content_without_values(each_helm: Helm) -> None:
    assert "0 chart(s) failed" in each_helm("lint", "--strict", CHART)


@pytest.mark.parametrize("values", [None, *VALUES], ids=lambda path: getattr(path, "stem", "none"))
def test_helm_3_and_4_render_the_same(helm: Helm, helm3: Helm, values: Path | None) -> None:
    """So that what follows looks at what one of them renders."""
    options = STORE if values is None else ("-f", values)
    assert helm.text(*options) == helm3.text(*options)


@each_file
def test_every_version_accepts_every_object(helm: Helm, values: Path) -> None:
    for item in helm.objects("-f", values):
        for version in VERSIONS:
            kubernetes_validate.validate(item, version, strict=True)


@each_file
def test_pods_are_restricted(helm: Helm, values: Path) -> None:
    specs = pod_specs(helm.objects("-f", values))
    assert "store" in specs
    for name, spec in specs.items():
        assert not [*insecurities_of(spec, token=name == "aggregator")], name
        (container,) = spec["containers"]
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert not container["image"].endswith(":latest")


@each_file
def test_pods_are_secured_as_those_of_sweeps(helm: Helm, values: Path) -> None:
    worker = rendered()
    for spec in pod_specs(helm.objects("-f", values)).values():
        assert spec["securityContext"] == pod_of(worker)["securityContext"]
        (container,) = spec["containers"]
        for key in ("securityContext", "terminationMessagePath", "terminationMessagePolicy"):
            assert container[key] == worker_of(worker)[key]


@each_file
def test_settings_are_what_launch_takes(helm: Helm, values: Path) -> None:
    settings = settings_of(helm.objects("-f", values))
    assert settings.store == yaml.safe_load(values.read_text())["store"]["uri"]


@each_file
def test_labels_and_names_are_what_they_should_be(helm: Helm, values: Path) -> None:
    wide = ("ClusterRole", "ClusterRoleBinding")
    for item in helm.objects("-f", values, release="cache-of-ours", namespace="elsewhere"):
        meta = item["metadata"]
        assert meta.get("namespace") == (None if item["kind"] in wide else "elsewhere")
        assert meta["labels"]["app.kubernetes.io/instance"] == "cache-of-ours"
        assert meta["labels"]["helm.sh/chart"].startswith("fractal-cache-")
        assert len(meta["name"]) <= (52 if item["kind"] == "CronJob" else 63)
        for subject in item.get("subjects", []):
            assert subject.get("namespace", "elsewhere") == "elsewhere"


# --- values ---


def test_only_the_store_must_be_given(helm: Helm) -> None:
    items = helm.objects(*STORE)
    kinds = sorted(item["kind"] for item in items)
    assert kinds.count("PersistentVolumeClaim") == 2
    assert {"ConfigMap", "CronJob", "Job", "Role", "RoleBinding", "ServiceAccount"} <= set(kinds)
    assert {"NetworkPolicy", "ClusterRole"}.isdisjoint(kinds)
    said = helm("template", CHART, code=1)
    assert "store.uri: where do outcomes go? Give --set store.uri=s3://BUCKET/PREFIX" in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("stroe.uri=s3://b/p", "stroe"),
        ("store.url=s3://b/p", "url"),
        ("model.claim.sizes=1Gi", "sizes"),
        ("settings.gpu_count=3", "gpu_count"),
        ("settings.store=s3://other/one", "store"),
        ("serviceAccounts.workers.create=false", "workers"),
        ("fill.resources.request.cpu=1", "request"),
        ("networkPolicy.enable=true", "enable"),
        ("wandb.mode=on", "wandb"),
        ("model.claim.accessModes={ReadWriteSome}", "accessModes"),
        ("model.claim.size=many", "size"),
        ("image.tag=latest", "image.tag: latest can change between two pods"),
        ("image.digest=sha256:12", "digest"),
        ("rbac.create=yes", "create"),
        ("aggregator.schedule=hourly", "schedule"),
        ("store.uri=s3://key:hush@bucket/p", "store.uri: must be s3://BUCKET/PREFIX"),
        ("store.uri=s3://b/p?secret_key=hush", "store.uri: must be s3://BUCKET/PREFIX"),
        ("store.uri=s3://b/p?endpoint=http://key:hush@host", "store.uri: must be s3://"),
        ("store.uri=s3://b/p?adressing=path", "store.uri: must be s3://BUCKET/PREFIX"),
        ("store.uri=s3://b/p?addressing=paths", "addressing=path or virtual"),
        ("store.uri=/runs", "store.uri: must be"),
        ("store.clientUri=s3://b/p?secret_key=hush", "store.clientUri: must be a bucket"),
        ("store.clientUri=s3://other/fractal", "store.clientUri: another bucket or prefix than"),
        ("store.clientUri=s3://my-bucket", "store.clientUri: another bucket or prefix than"),
        ("fill.replace=true", "fill.replace: needs a fill.again"),
        ("model.source=s3://key:hush@bucket/p", "model.source: must be wandb:ENTITY/"),
        ("model.source=wanb:E/P/N:v7", "model.source: must be wandb:ENTITY/PROJECT/NAME:VERSION"),
        ("model.source=wandb:E/P/N", "model.source: must be wandb:ENTITY/PROJECT/NAME:VERSION"),
        ("model.source=hf:a/b", "hf:REPO@REVISION"),
        ("model.source=models/d20", "model.source: must be"),
        ("model.source=/source/d20", "/source/d20 lies in a claim; name it with fill.sourceClaim"),
        ("dataset.source=docvqua", "dataset.source: must be docvqa, docvqa@REVISION"),
        ("dataset.source=conversations:train.jsonl", "dataset.source: must be"),
        ("dataset.source=conversations:/source/t.jsonl", "name it with fill.sourceClaim"),
        ("model.path=/models/d20", "path"),
        ("dataset.path=conversations:/elsewhere/train.jsonl", "path"),
        ("podLabels.team=a b", "podLabels"),
        ("fill.nodeSelector.pool=a/b", "nodeSelector"),
        ("settings.tolerations[0].value=gpu", "operator"),
        ("kueue.minParallelism=2", "kueue.minParallelism: needs a kueue.queue"),
        ("model=null", "model"),
        ("aggregator.schedule=null", "schedule"),
        ("fill.env.HF_TOKEN=hf_x", "fill.env.HF_TOKEN: looks like a secret"),
        ("settings.env.MY_SECRET=x", "settings.env.MY_SECRET: looks like a secret"),
        ("aggregator.env.FRACTAL_K8S_WEBHOOK=x", "FRACTAL_K8S_WEBHOOK: looks like a secret"),
        ("fill.env.FRACTAL_K8S_IMAGE=x", "fill.env.FRACTAL_K8S_IMAGE: is set by the chart"),
        (r"podLabels.app\.kubernetes\.io/name=x", "app.kubernetes.io/name"),
        (r"model.claim.annotations.helm\.sh/resource-policy=x", "helm.sh/resource-policy"),
        ("networkPolicy.extraCidrs[0].cidr=10.0.0.0/8", "ports"),
        ("store.uri=/store/runs", "name it with store.existingClaim"),
        ("dataset.claim.name=fractal-model", "dataset.claim.name: the same claim as the model's"),
        ("kueue.priorityClass=low", "kueue.priorityClass: needs a kueue.queue"),
    ],
)
def test_mistakes_are_refused(each_helm: Helm, wrong: str, said: str) -> None:
    told = each_helm("template", CHART, *STORE, "--set", wrong, code=1)
    assert said in told
    assert "hush" not in told


@pytest.mark.parametrize(
    "source",
    [
        "wandb:ENTITY/PROJECT/NAME:v7",
        "wandb:my-team/llm/sft:latest",
        "hf:gpt2@main",
        "hf:karpathy/nanochat-d32@main:base/d32",
        "hf:a/b@refs/pr/1",
        "s3://bucket",
        "s3://models/d20@0123456789ab?endpoint=http://cwlota.com&region=US-EAST-04A",
        "s3://models/d20?addressing=path",
    ],
)
def test_the_chart_takes_the_models_that_the_program_takes(helm: Helm, source: str) -> None:
    assert parse_reference(source) is not None
    (fill,) = pod_specs(helm.objects(*STORE, "--set", f"model.source={source}"))["cache-fill"][
        "containers"
    ]
    assert fill["args"][4:6] == ["--model", source]


@pytest.mark.parametrize(
    "source",
    [
        "docvqa",
        "docvqa@main",
        "hf:morgan/docvqa-nanochat@0123456789abcdef0123456789abcdef01234567",
        "conversations:/data/train.jsonl",
        "conversations:s3://bucket/chats/train.ndjson?region=us-east-1",
    ],
)
def test_the_chart_takes_the_data_that_the_program_takes(helm: Helm, source: str) -> None:
    assert hub_set(source) is not None or source.startswith("conversations:")
    helm.objects(*STORE, "--set", f"dataset.source={source}")


def test_what_needs_a_value_keeps_one(helm: Helm) -> None:
    """`--set x=null` takes a default away: the schema wants what the templates need."""
    free = ["rbac.groups"]

    def look(path: str, node: Object, values: Object) -> None:
        for key, value in values.items():
            place = f"{path}.{key}".lstrip(".")
            if value in ("", {}, []):
                free.append(place)
            elif place not in free:
                assert key in node["required"], place
            inner = node["properties"][key]
            if "properties" in inner:
                look(place, inner, value)

    look("", schema(), default_values())
    none = ",".join(f"{place}=null" for place in free if place != "store.uri")
    items = helm.objects(*STORE, "--set", none)
    for item in items:
        kubernetes_validate.validate(item, VERSIONS[-1], strict=True)
    assert settings_of(items).gpus == JobSettings().gpus


def test_every_map_in_the_schema_is_closed_or_free_on_purpose() -> None:
    free = {"global"}

    def look(place: str, node: Any) -> None:
        if not isinstance(node, dict):
            return
        if node.get("type") == "object" and place not in free:
            assert "additionalProperties" in node, place
        for name, inner in {**node.get("properties", {}), **node.get("definitions", {})}.items():
            look(name, inner)
        look(f"{place}[]", node.get("items"))

    look("", schema())
    assert set(schema()["properties"]) - free == set(default_values())


def test_the_settings_in_the_schema_are_those_that_there_are(helm: Helm) -> None:
    """Either a value of the chart makes a setting, or it may stand in `settings`."""
    text = one(helm.objects(*EVERYTHING), "ConfigMap")["data"][labels.SITE_KEY]
    free = set(schema()["properties"]["settings"]["properties"])
    assert set(parse_site(text, source="it")) | free | {"namespace"} == set(
        JobSettings.model_fields
    )
    given = yaml.safe_load(Path(EVERYTHING[1]).read_text())["settings"]
    assert set(given) == free, "ci/everything-values.yaml names every one"


def test_every_value_is_described() -> None:
    described = dict(record.described_values())

    def look(path: str, value: Any) -> None:
        if path in described:
            assert described[path].endswith("."), path
        elif isinstance(value, dict) and value:
            for key, inner in value.items():
                look(f"{path}.{key}".lstrip("."), inner)
        else:
            raise AssertionError(f"{path} has no description")

    look("", default_values())


def test_the_version_of_the_program_is_the_chart_s() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["appVersion"] == fractal_k8s.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])


# --- the site's settings ---


def test_settings_follow_the_values(helm: Helm) -> None:
    found = settings_of(helm.objects(*EVERYTHING)).model_dump(exclude_defaults=True)
    full = one(helm.objects(*EVERYTHING), "CronJob")["metadata"]["name"].removesuffix("-aggregator")
    assert len(full) == 40
    assert found["image"] == "registry.example.com:5000/ml/fractal-k8s@sha256:" + "0" * 64
    assert found["service_account"] == "runs"
    assert found["aggregator_account"] == "maps"
    assert found["secret_keys"] == {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "WANDB_API_KEY": "key",
    }
    assert (found["model_claim"], found["model_path"]) == ("my-model", "/cache/model/d20")
    assert (found["queue"], found["min_parallelism"]) == ("research", 2)
    assert found["deadline_seconds"] == 1_000_000
    assert found["cpu"] == "12"


def test_settings_that_are_not_given_are_left_to_the_program(helm: Helm) -> None:
    found = settings_of(helm.objects(*NOTHING)).model_dump(exclude_defaults=True)
    assert found == {
        "store": "gs://my-bucket/fractal",
        "service_account": "runs",
        "aggregator_account": "default",
    }


def test_coreweave_is_told_where_its_storage_is(helm: Helm) -> None:
    items = helm.objects(*COREWEAVE)
    settings = settings_of(items)
    assert settings.store is not None
    assert settings.client_store is not None
    assert "endpoint=http://cwlota.com" in settings.store
    assert "endpoint=https://cwobject.com" in settings.client_store
    for uri in (settings.store, settings.client_store):
        assert "addressing=virtual" in uri
    for item in items:
        if item["kind"] == "ServiceAccount":
            assert item["metadata"]["annotations"] == {"caios.coreweave.com/inject": "true"}
            assert item["automountServiceAccountToken"] is False
        if item["kind"] == "PersistentVolumeClaim":
            assert item["spec"]["storageClassName"] == "shared-vast"
            assert item["spec"]["accessModes"] == ["ReadWriteMany"]


def test_a_key_of_another_name_reaches_the_worker() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "id", "WANDB_API_KEY": "key"}
    found = environment(
        pod_of(rendered(store_secret="s", wandb_secret="w", wandb_project="p", secret_keys=keys))
    )
    assert found["AWS_ACCESS_KEY_ID"] == {"secretKeyRef": {"name": "s", "key": "id"}}
    assert found["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"]["key"] == "AWS_SECRET_ACCESS_KEY"
    assert found["WANDB_API_KEY"] == {"secretKeyRef": {"name": "w", "key": "key"}}


@pytest.mark.parametrize("keys", [{"HOME": "key"}, {"WANDB_API_KEY": "a key"}])
def test_keys_that_no_secret_has_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(SweepError, match="secret_keys"):
        make_settings(("test", {"secret_keys": keys}))


# --- pods ---


def test_libraries_write_where_those_of_sweeps_do(helm: Helm) -> None:
    """Variables of the pods are those of a worker, but for what only a worker needs."""
    settings = settings_of(helm.objects(*STORE))
    wanted = pod.variables(Plan(mlp_sweep(), Deal()), settings)
    for name in ("GRACE_SECONDS", "GPUS", "DEAL"):
        del wanted[f"FRACTAL_K8S_{name}"]
    specs = pod_specs(helm.objects(*STORE))
    assert environment(specs["aggregator"]) == wanted
    del wanted["HF_HUB_OFFLINE"], wanted["HF_DATASETS_OFFLINE"]
    assert environment(specs["cache-fill"]) == wanted
    assert environment(specs["store"]) == wanted


def test_secrets_are_only_referred_to(helm: Helm) -> None:
    specs = pod_specs(helm.objects(*EVERYTHING))
    store = {
        name: {"secretKeyRef": {"name": "fractal-store", "key": key}}
        for name, key in (("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key"))
    }
    wandb = {"WANDB_API_KEY": {"secretKeyRef": {"name": "fractal-wandb", "key": "key"}}}
    hub = {"HF_TOKEN": {"secretKeyRef": {"name": "fractal-hub", "key": "token"}}}
    hook = {"FRACTAL_K8S_WEBHOOK": {"secretKeyRef": {"name": "fractal-webhook", "key": "url"}}}
    referred = {
        name: {key: value for key, value in environment(spec).items() if isinstance(value, dict)}
        for name, spec in specs.items()
    }
    assert referred == {
        "cache-fill": store | wandb | hub,
        "aggregator": store | wandb | hook,
        "store": store,
        "caches": {},
    }
    assert "kind: Secret" not in helm.text(*EVERYTHING)


def test_tracking_is_told_only_where_there_is_some(helm: Helm) -> None:
    found = environment(pod_specs(helm.objects(*EVERYTHING))["aggregator"])
    tracked = {name: value for name, value in found.items() if "_K8S_WANDB_" in name}
    assert tracked == {
        "FRACTAL_K8S_WANDB_PROJECT": "maps",
        "FRACTAL_K8S_WANDB_ENTITY": "us",
        "FRACTAL_K8S_WANDB_MODE": "summary",
    }
    off = helm.text(*EVERYTHING, "--set", "wandb.mode=off")
    assert "_K8S_WANDB_" not in off


def test_a_dollar_stays_one(helm: Helm) -> None:
    (fill,) = pod_specs(helm.objects(*EVERYTHING))["cache-fill"]["containers"]
    found = {entry["name"]: expand(entry["value"]) for entry in fill["env"] if "value" in entry}
    assert found["PRICE"] == "$(HOME) 5$"
    assert found["COUNT"] == "3"
    sources = helm.objects(*STORE, *SOURCE, "--set", "model.source=/source/$(HOME)")
    (fill,) = pod_specs(sources)["cache-fill"]["containers"]
    assert "/source/$(HOME)" in [expand(word) for word in fill["args"]]


def test_numbers_stay_as_they_are_written(helm: Helm, tmp_path: Path) -> None:
    """Numbers in a file are floating ones to helm, which writes 1e+06 for them."""
    given = {"ACCOUNT": 123456789012, "MANY": 1_000_000, "SOME": 1.5, "ON": True, "TEXT": "1e6"}
    wanted = {"ACCOUNT": "123456789012", "MANY": "1000000", "SOME": "1.5", "ON": "true"}
    wanted["TEXT"] = "1e6"
    path = tmp_path / "numbers.yaml"
    path.write_text(json.dumps({part: {"env": given} for part in ("fill", "aggregator")}))
    items = helm.objects(*STORE, "-f", path)
    for name in ("cache-fill", "aggregator"):
        assert environment(pod_specs(items)[name]).items() >= wanted.items()
    path = tmp_path / "settings.yaml"
    path.write_text(json.dumps({"settings": {"env": given}}))
    items = helm.objects(*STORE, "-f", path)
    assert settings_of(items).env == wanted
    assert environment(pod_specs(items)["store"]).items() >= wanted.items()


def test_names_that_look_like_numbers_stay_names(helm: Helm) -> None:
    places = (
        *(
            "store.existingSecret",
            "store.existingClaim",
            "wandb.existingSecret",
            "image.pullSecret",
        ),
        *("huggingFace.existingSecret", "notify.existingSecret", "fill.sourceClaim"),
        *("model.claim.name", "model.claim.storageClass", "serviceAccounts.aggregator.name"),
        *("serviceAccounts.worker.name", "priorityClass", "kueue.queue", "kueue.priorityClass"),
    )
    given = [word for place in places for word in ("--set-string", f"{place}=123")]
    items = helm.objects(*STORE, *given, "--set", "model.source=hf:a/b@c", namespace="456")
    for item in items:
        kubernetes_validate.validate(item, VERSIONS[-1], strict=True)
    assert settings_of(items).priority_class == "123"


def test_the_test_of_the_store_comes_first_and_runs_where_the_aggregator_does(helm: Helm) -> None:
    """Helm stops at the first that fails, and caches may take hours."""
    items = helm.objects(*EVERYTHING)
    specs = pod_specs(items)
    weights = {
        item["metadata"]["name"].partition("-test-")[2]: int(
            item["metadata"]["annotations"].get("helm.sh/hook-weight", 0)
        )
        for item in items
        if item["kind"] == "Pod"
    }
    assert weights["store"] < weights["caches"]
    for name in weights:
        for key in ("nodeSelector", "tolerations"):
            assert specs[name][key] == specs["aggregator"][key]


def test_a_variable_of_one_s_own_takes_the_place_of_the_chart_s(helm: Helm) -> None:
    items = helm.objects(*STORE, "--set", "fill.env.HOME=/tmp,aggregator.env.HF_HUB_OFFLINE=0")
    specs = pod_specs(items)
    assert environment(specs["cache-fill"])["HOME"] == "/tmp"
    assert environment(specs["aggregator"])["HF_HUB_OFFLINE"] == "0"
    assert environment(specs["aggregator"])["HOME"] == "/scratch/home"


def test_the_fill_job_gets_what_is_to_be_filled(helm: Helm) -> None:
    (fill,) = pod_specs(helm.objects(*KIND))["cache-fill"]["containers"]
    assert fill["args"] == [
        *("cache", "fill", "--root", "/cache", "--model", "/source/model"),
        *("--dataset", "conversations:/source/train.jsonl"),
    ]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in fill["volumeMounts"]}
    assert mounts == {
        labels.MODEL_MOUNT: False,
        labels.DATASET_MOUNT: False,
        "/source": True,
        "/scratch": False,
        "/tmp": False,
    }
    only = pod_specs(helm.objects(*STORE))["cache-fill"]["containers"][0]
    assert only["args"][4:] == ["--dataset", "docvqa"]
    assert labels.MODEL_MOUNT not in [mount["mountPath"] for mount in only["volumeMounts"]]


def test_there_is_no_fill_job_without_a_source(helm: Helm) -> None:
    items = helm.objects(*STORE, "--set", "dataset.source=")
    assert "Job" not in {item["kind"] for item in items}
    items = helm.objects(*STORE, "--set", "dataset.enabled=false")
    assert "Job" not in {item["kind"] for item in items}


def test_the_aggregator_runs_once_at_a_time_and_not_for_ever(helm: Helm) -> None:
    spec = one(helm.objects(*KIND), "CronJob")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] == 300
    assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (1, 3)
    job = spec["jobTemplate"]["spec"]
    assert (job["activeDeadlineSeconds"], job["backoffLimit"]) == (3600, 0)
    (container,) = job["template"]["spec"]["containers"]
    assert container["args"] == ["aggregate", "--all", "--store", "/store/runs", "--in-cluster"]
    assert {"name": "store", "mountPath": "/store", "readOnly": False} in container["volumeMounts"]


def test_the_aggregator_makes_the_map_that_a_launch_s_own_makes(helm: Helm) -> None:
    """Or the two would take turns with different maps of the same outcomes."""
    for mixed in ("true", "false"):
        items = helm.objects(*STORE, "--set", f"settings.allow_mixed={mixed}")
        launched = aggregator.arguments(Plan(mlp_sweep(), Deal()), settings_of(items))
        (container,) = pod_specs(items)["aggregator"]["containers"]
        asked = {*container["args"]} - {"--all"}
        assert asked == {*launched} - {"--until-complete", mlp_sweep().id}


# --- names ---


def names(items: list[Object], *kinds: str) -> list[str]:
    return [item["metadata"]["name"] for item in items if not kinds or item["kind"] in kinds]


def test_long_names_fit_and_stay_apart(helm: Helm) -> None:
    first, second = (
        names(helm.objects(*STORE, release=f"{'r' * 50}-{end}"), "CronJob", "Job", "Role")
        for end in "ab"
    )
    assert set(first).isdisjoint(second)
    assert max(map(len, first + second)) <= 63


def test_a_release_may_have_dots_and_a_host_s_name_none(helm: Helm) -> None:
    for release in ("my.release", f"{'r' * 30}.{'s' * 20}"):
        assert not [name for name in names(helm.objects(*STORE, release=release)) if "." in name]


def test_names_begin_with_the_release_but_for_what_launch_looks_for(helm: Helm) -> None:
    found = names(helm.objects(*STORE, release="ours"))
    shared = {labels.SITE, "fractal-model", "fractal-dataset"}
    assert {name for name in found if not name.startswith("ours-fractal-cache-")} == shared


def fill_name(helm: Helm, *options: str | Path) -> str:
    (name,) = names(helm.objects(*STORE, *SOURCE, *options), "Job")
    return name


def test_the_fill_job_has_the_name_of_its_content(helm: Helm) -> None:
    """A Job cannot be changed: whatever would change it changes its name."""
    name = fill_name(helm)
    assert re.fullmatch(r"fractal-cache-fill-[0-9a-f]{10}", name)
    assert (
        fill_name(helm, "--set", "aggregator.schedule=@daily", "--set", "wandb.project=p") == name
    )
    others = {
        fill_name(helm, "--set", change)
        for change in (
            "dataset.source=hf:a/b@c",
            "model.source=/source/m",
            "dataset.claim.name=other",
            "image.tag=0.2.0",
            "fill.retries=2",
            "fill.again=1",
            "fill.again=2",
            "fill.env.A=b",
            "huggingFace.existingSecret=hub",
            "podLabels.team=a",
        )
    }
    assert len(others | {name}) == 11


def test_everything_is_fetched_again_only_when_asked_for(helm: Helm) -> None:
    def arguments(*options: str) -> list[str]:
        (fill,) = pod_specs(helm.objects(*STORE, *options))["cache-fill"]["containers"]
        return fill["args"]

    assert "--replace" not in arguments("--set", "fill.again=2026-11-21")
    assert arguments("--set", "fill.again=2,fill.replace=true")[-1] == "--replace"


def test_a_new_version_of_the_chart_fills_nothing_again(helm: Helm, tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "chart")
    about = tmp_path / "chart" / "Chart.yaml"
    about.write_text(re.sub(r"^version: .*", "version: 9.9.9", about.read_text(), flags=re.M))
    text = helm("template", RELEASE, tmp_path / "chart", "-n", "fractal", *STORE, *SOURCE)
    assert "fractal-cache-9.9.9" in text
    assert fill_name(helm) in text


def test_a_hook_is_only_made_when_asked_for(helm: Helm) -> None:
    assert "annotations" not in one(helm.objects(*STORE), "Job")["metadata"]
    hook = one(helm.objects(*EVERYTHING), "Job")["metadata"]["annotations"]
    assert hook == {
        "helm.sh/hook": "post-install,post-upgrade,post-rollback",
        "helm.sh/hook-delete-policy": "before-hook-creation",
    }


def test_claims_are_kept(helm: Helm) -> None:
    claims = [item for item in helm.objects(*STORE) if item["kind"] == "PersistentVolumeClaim"]
    assert len(claims) == 2
    for claim in claims:
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert names(helm.objects(*EVERYTHING), "PersistentVolumeClaim") == ["my-model"]


# --- rights ---

SECRETS = (
    *("--set", "store.existingSecret=fractal-store"),
    *("--set", "wandb.existingSecret=fractal-wandb"),
    *("--set", "image.pullSecret=fractal-registry"),
)


def recorded_roles() -> list[Object]:
    return [*yaml.safe_load_all((ROOT / "manifests" / "rbac.yaml").read_text())]


def test_the_roles_are_those_of_the_program(helm: Helm) -> None:
    items = helm.objects(*STORE, *SECRETS, "--set", "rbac.clusterViewer=true")
    for kind, part in (("Role", "-user"), ("ClusterRole", "-viewer")):
        assert one(items, kind, part)["rules"] == one(recorded_roles(), kind, part)["rules"]
    for kind, part in (("RoleBinding", "-user"), ("ClusterRoleBinding", "-viewer")):
        binding = one(items, kind, part)
        assert binding["subjects"] == one(recorded_roles(), kind, part)["subjects"]
        assert [subject["name"] for subject in binding["subjects"]] == [GROUP]
        assert binding["roleRef"]["name"] == binding["metadata"]["name"]


def test_no_secret_may_be_read_that_is_not_named(helm: Helm) -> None:
    """A rule without names would be one for all of them."""
    rules = one(helm.objects(*STORE), "Role", "-user")["rules"]
    assert [rule for rule in rules if "secrets" in rule["resources"]] == []
    rules = one(helm.objects(*EVERYTHING), "Role", "-user")["rules"]
    (rule,) = [rule for rule in rules if "secrets" in rule["resources"]]
    assert rule["resourceNames"] == [
        *("fractal-store", "fractal-wandb", "fractal-registry", "fractal-webhook")
    ]


def test_the_aggregator_may_only_look_at_jobs(helm: Helm) -> None:
    items = helm.objects(*STORE)
    rules = one(items, "Role", "-aggregator")["rules"]
    assert rules == [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]}]
    (subject,) = one(items, "RoleBinding", "-aggregator")["subjects"]
    spec = pod_specs(items)["aggregator"]
    assert subject["name"] == spec["serviceAccountName"] == "fractal-cache-aggregator"
    bound = {
        subject["name"]
        for item in items
        if item["kind"] == "RoleBinding"
        for subject in item["subjects"]
    }
    for name in ("cache-fill", "store", "caches"):
        assert pod_specs(items)[name]["serviceAccountName"] not in bound


def test_nobody_but_those_named_is_bound(helm: Helm) -> None:
    (subject,) = one(helm.objects(*EVERYTHING), "RoleBinding", "-user")["subjects"]
    assert (subject["kind"], subject["name"]) == ("User", "ann")
    nobody = helm.objects(*STORE, "--set", "rbac.groups=null")
    assert names(nobody, "RoleBinding") == ["fractal-cache-aggregator"]


# --- networks ---


def selects(policy: Object, found: dict[str, str]) -> bool:
    selector = policy["spec"]["podSelector"]
    wanted = selector.get("matchLabels", {})
    return all(found.get(key) == value for key, value in wanted.items()) and all(
        found.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
    )


def test_each_policy_is_for_its_pods_and_no_others(helm: Helm) -> None:
    items = helm.objects(*EVERYTHING)
    policies = [item for item in items if item["kind"] == "NetworkPolicy"]
    job = one(items, "Job")["spec"]["template"]["metadata"]["labels"]
    cron = one(items, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    worker = rendered().job["spec"]["template"]["metadata"]["labels"]
    launched = {**worker, labels.COMPONENT: "aggregator"}
    again = {**worker, labels.COMPONENT: labels.REPRO}
    (test, _) = [item["metadata"]["labels"] for item in items if item["kind"] == "Pod"]
    for found, part in (
        (job, "fill"),
        (cron, "aggregator"),
        (worker, "worker"),
        (again, "worker"),
        (launched, "aggregator"),
        (test, "worker"),  # or it would pass where workers cannot reach the store
    ):
        chosen = [policy["metadata"]["name"] for policy in policies if selects(policy, found)]
        assert [name.rpartition("-")[2] for name in chosen] == [part]


def test_policies_let_out_what_is_needed_and_nothing_in(helm: Helm) -> None:
    items = helm.objects(*EVERYTHING)
    for part in ("worker", "fill", "aggregator"):
        spec = one(items, "NetworkPolicy", f"-{part}")["spec"]
        assert (spec["policyTypes"], spec["ingress"]) == (["Ingress", "Egress"], [])
        names_, https, *more = spec["egress"]
        assert {(port["protocol"], port["port"]) for port in names_["ports"]} == {
            ("UDP", 53),
            ("TCP", 53),
        }
        assert [port["port"] for port in https["ports"]] == [443]
        assert "10.0.0.0/8" in https["to"][0]["ipBlock"]["except"]
        ports = [[port["port"] for port in rule["ports"]] for rule in more]
        assert ports == ([[443, 6443]] if part == "aggregator" else []) + [[80], [80, 8080]]


def test_pods_of_sweeps_may_be_kept_from_the_internet(helm: Helm) -> None:
    items = helm.objects(*EVERYTHING, "--set", "networkPolicy.workersOutside=false")
    for part, ports in (("worker", [53, 80, 80, 8080]), ("fill", [53, 443, 80, 80, 8080])):
        rules = one(items, "NetworkPolicy", f"-{part}")["spec"]["egress"]
        tcp = [port for rule in rules for port in rule["ports"] if port["protocol"] == "TCP"]
        assert [port["port"] for port in tcp] == ports


# --- what people read ---

GUIDE = (ROOT / "docs" / "chart.md").read_text()


def test_the_notes_say_what_to_type_and_nothing_secret(helm: Helm) -> None:
    options = ("install", RELEASE, CHART, "-n", "ours", "--dry-run=client")
    notes = helm(*options, *EVERYTHING).partition("NOTES:")[2]
    (fill,) = names(helm.objects(*EVERYTHING), "Job")
    assert fill in notes
    for name in ("store", "wandb", "hub", "webhook", "registry"):
        assert f"kubectl --context NAME -n ours get secret fractal-{name}\n" in notes
    assert "helm test fractal-cache --kube-context NAME -n ours" in notes
    assert "have no keys" not in notes
    assert "gets no key" not in notes
    assert "key of W&B" not in notes
    assert "names no registry" not in notes
    little = helm(*options, *NOTHING).partition("NOTES:")[2]
    assert "Secrets" not in little
    assert "fill" not in little


def test_the_notes_say_what_would_fail_later(helm: Helm) -> None:
    source = ("--set", "model.source=wandb:ENTITY/PROJECT/NAME:v7")
    options = ("install", RELEASE, CHART, "--dry-run=client", *STORE, *source)
    notes = helm(*options).partition("NOTES:")[2]
    assert "wandb:ENTITY/PROJECT/NAME:v7 is fetched without a key of W&B" in notes
    assert "The image fractal-k8s:0.1.0 names no registry" in notes
    assert "Pods have no keys for s3://my-bucket/fractal, nor an identity" in notes
    assert "fill again: helm upgrade ... --set fill.again=WORD" in notes
    notes = helm(*options, "--set", "wandb.project=maps").partition("NOTES:")[2]
    assert "W&B's project maps gets no key" in notes
    notes = helm(*options, *COREWEAVE).partition("NOTES:")[2]
    assert "have no keys" not in notes


def shown_helm_lines() -> list[list[str]]:
    """Words of every line of the guide that installs, upgrades or renders."""
    text = GUIDE + (CHART / "README.md").read_text()
    text += "\n".join(path.read_text() for path in CHART.glob("values-*.yaml"))
    lines = re.findall(r"^(?: {4}|#   )helm (.*)$", text, flags=re.M)
    words = [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]
    return [line for line in words if line[0] in ("install", "upgrade", "template")]


def blocks_of_values() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.S)


@pytest.mark.parametrize("words", shown_helm_lines(), ids=" ".join)
def test_a_line_of_the_guide_installs(each_helm: Helm, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(blocks_of_values()[0])
    real = {"my.yaml": str(tmp_path / "my.yaml")}
    if words[2].startswith("oci://"):
        words[2] = "charts/fractal-cache"
    arguments = [
        real.get(word, re.sub("^charts/fractal-cache", str(CHART), word)) for word in words[1:]
    ]
    items = [*yaml.safe_load_all(each_helm("template", *arguments))]
    assert settings_of(items).store


def test_the_values_in_the_guide_are_right(helm: Helm, tmp_path: Path) -> None:
    for number, block in enumerate(blocks_of_values()):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        assert settings_of(helm.objects(*STORE, "-f", path)).store


def test_the_guide_names_every_secret_and_its_keys() -> None:
    for name, keys in {
        "store.existingSecret": labels.AWS_KEYS,
        "wandb.existingSecret": (labels.WANDB_KEY,),
        "huggingFace.existingSecret": ("HF_TOKEN",),
        "notify.existingSecret": ("url",),
        "image.pullSecret": (".dockerconfigjson",),
    }.items():
        (row,) = [line for line in GUIDE.splitlines() if line.startswith(f"| `{name}` |")]
        assert all(f"`{key}`" in row for key in keys)


def test_the_same_files_give_the_same_package(helm: Helm, tmp_path: Path) -> None:
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        helm("package", CHART, "--destination", folder, SOURCE_DATE_EPOCH="1700000000")
        (package,) = folder.iterdir()
        made.append(package.read_bytes())
    assert made[0] == made[1]
    with tarfile.open(package) as content:
        assert "fractal-cache/values.schema.json" in content.getnames()
        assert not [name for name in content.getnames() if "/ci/" in name]
