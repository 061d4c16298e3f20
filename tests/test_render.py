"""The command `render`: from options to the text, with and without a cluster."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from conftest import Run
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.render import Manifest
from rendering import (
    KINDS,
    ROOT,
    SITE,
    docvqa,
    insecurities,
    objects,
    rendered,
    validate,
    worker_of,
)
from standin.cluster import StandIn
from standin.fixtures import kubectl_binary  # noqa: F401

# --- the command ---


def test_render_needs_nothing_but_a_resolution(run: Run) -> None:
    result = run("render", "--res", "128")
    config_map, job = objects(result.stdout)
    validate(Manifest(result.stdout, config_map, job))
    assert job["spec"]["completions"] == 256
    assert "the chart's names" in result.stderr
    assert "fractal-model" in result.stderr
    volumes = job["spec"]["template"]["spec"]["volumes"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in volumes
        if "persistentVolumeClaim" in volume
    ]
    assert claims == ["fractal-model", "fractal-dataset", "fractal-store"]


def test_a_sweep_without_weights_says_only_where_it_writes_to(run: Run) -> None:
    result = run("render", "--preset", "tanh")
    assert "fractal-store" in result.stderr
    assert "fractal-model" not in result.stderr + result.stdout


def test_a_store_that_is_given_needs_no_claim(run: Run) -> None:
    result = run("render", "--preset", "tanh", "--store", "s3://bucket/runs")
    assert result.stderr == ""
    assert "s3://bucket/runs" in result.stdout
    assert "persistentVolumeClaim" not in result.stdout


def test_later_layers_win_and_say_where_they_come_from(run: Run, tmp_path: Path) -> None:
    site = {**SITE, "gpus": 16, "queue": "slow", "cpu": 4}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    given = ["--site", "site.yaml", "--job", "queue=fast", "--job", "memory=64Gi", "--gpus", "32"]
    result = run("render", *given, "--origins")
    _, job = objects(result.stdout)
    assert job["spec"]["parallelism"] == 32
    assert job["metadata"]["labels"][labels.QUEUE] == "fast"
    origins = {line.split()[0]: " ".join(line.split()[1:]) for line in result.stderr.splitlines()}
    assert origins["gpus"] == "options 32"
    assert origins["queue"] == "--job fast"
    assert origins["cpu"] == "site.yaml 4"
    assert origins["namespace"] == "default fractal"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--gpus", "0,1"], "how many GPUs to use in total"),
        (["--gpus", "0"], "how many GPUs to use in total"),
        (["--points-per-index", "some"], "neither a number of points nor auto"),
        (["--job", "novalue"], "write KEY=VALUE"),
        (["--job", "=1"], "write KEY=VALUE"),
        (["--job", "env={"], "--job env: the value is not valid YAML"),
        (["--job", "gpuss=1"], "--job: gpuss: unknown; did you mean 'gpus'?"),
        (["--site", "none.yaml"], "cannot read the settings none.yaml: No such file"),
        (["--image", "fractal-k8s"], "can change between two pods"),
        (["--store", "./runs"], "pods do not see"),
        (["--namespace", "x"], "need --context"),
        (["--gpus-per-pod", "3"], "gpus_per_pod"),
    ],
    ids=str,
)
def test_bad_options_are_refused_whole(run: Run, arguments: list[str], part: str) -> None:
    result = run("render", *arguments, code=2)
    assert part in result.stderr
    assert result.stdout == ""


def test_auto_is_the_default(run: Run) -> None:
    texts = [
        run("render", "--preset", "tiny", *more).stdout
        for more in ([], ["--points-per-index", "auto"])
    ]
    assert texts[0] == texts[1]
    _, job = objects(run("render", "--preset", "tiny", "--points-per-index", "1").stdout)
    assert job["spec"]["completions"] == 256


# --- on a cluster ---


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """An API server on which nothing runs."""
    with StandIn(tmp_path / "cluster", run_pods=False) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield cluster


def install_site(api: StandIn, text: str, key: str = labels.SITE_KEY) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": labels.SITE, "namespace": "fractal"},
        "data": {key: text},
    }
    api.objects.create("configmaps", body)


def test_a_named_cluster_is_asked_for_the_site_s_settings_and_nothing_else(
    run: Run, api: StandIn
) -> None:
    install_site(api, yaml.safe_dump({**SITE, "queue": "research", "gpus": 32}))
    result = run("render", "--context", "standin", "--gpus", "8", "--origins")
    _, job = objects(result.stdout)
    assert job["metadata"]["labels"][labels.QUEUE] == "research"
    assert job["metadata"]["namespace"] == "fractal"
    assert job["spec"]["parallelism"] == 8
    assert re.search(r"^queue +ConfigMap fractal/fractal-k8s-site +research$", result.stderr, re.M)
    assert {(call.verb, call.resource) for call in api.requests} == {("get", "configmaps")}


def test_a_cluster_without_a_site_gets_no_names_made_up_for_it(run: Run, api: StandIn) -> None:
    result = run("render", "--context", "standin", code=2)
    for key in ("store", "model_claim", "dataset_claim"):
        assert f"{key}: " in result.stderr


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("gpus: [", "ConfigMap fractal/fractal-k8s-site: not valid YAML"),
        ("gpus: many", "ConfigMap fractal/fractal-k8s-site: gpus: "),
        ("qeue: a", "unknown; did you mean 'queue'?"),
        ("env: {AWS_SECRET_ACCESS_KEY: hush}", "looks like a secret"),
    ],
)
def test_a_site_with_mistakes_is_told(run: Run, api: StandIn, text: str, part: str) -> None:
    install_site(api, text)
    result = run("render", "--context", "standin", code=2)
    assert part in result.stderr
    assert "hush" not in result.stderr


def test_a_site_under_another_key_is_not_taken_for_none(run: Run, api: StandIn) -> None:
    install_site(api, "gpus: 8", key="settings.yml")
    said = run("render", "--context", "standin", code=2).stderr
    assert "ConfigMap fractal/fractal-k8s-site: has no key settings.yaml" in said


def test_the_namespace_of_a_cluster_has_an_option_of_its_own(run: Run, api: StandIn) -> None:
    result = run("render", "--context", "standin", "--job", "namespace=other", code=2)
    assert "--namespace NAME" in result.stderr


@pytest.mark.parametrize("kind", ["plain", "queue", "eight GPUs", "no GPU"])
def test_a_real_client_sends_it(
    api: StandIn,
    kubectl_binary: Path,  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    """`kubectl apply --server-side`, which checks every field; the second time nothing changes."""
    manifest = rendered(**KINDS[kind])
    (tmp_path / "job.yaml").write_text(manifest.text)
    command = [str(kubectl_binary), "--context", "standin", "apply", "--server-side"]
    for _ in range(2):
        done = subprocess.run(
            [*command, "-f", str(tmp_path / "job.yaml")],
            env={"KUBECONFIG": str(api.kubeconfig), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
    stored = api.objects.get("jobs", "fractal", docvqa().id)
    assert stored["spec"]["completions"] == manifest.job["spec"]["completions"]
    assert (
        stored["spec"]["template"]["spec"]["containers"][0]["args"] == worker_of(manifest)["args"]
    )


# --- recorded examples ---


def test_recorded_manifests_are_what_render_prints(record: ModuleType) -> None:
    folder = ROOT / "manifests"
    recorded = {path.name for path in folder.iterdir() if "rbac" not in path.name}
    assert recorded == {*record.MANIFESTS, "README.md"}
    for name in record.MANIFESTS:
        text = (folder / name).read_text()
        assert record.manifest(name) == text, "run scripts/record"
        config_map, job = objects(text)
        validate(Manifest(text, config_map, job))
        assert not [*insecurities(Manifest(text, config_map, job))]
