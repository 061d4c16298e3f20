"""What a cluster would refuse or never run, and what must not leave this machine, is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import mlp_sweep
from fractal_k8s.errors import SweepError
from fractal_k8s.manifest import labels, limits
from fractal_k8s.manifest.blocks import choose
from fractal_k8s.manifest.render import render
from fractal_k8s.manifest.settings import JobSettings, make_settings
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from rendering import (
    DIGEST,
    SITE,
    VERSIONS,
    docvqa,
    environment,
    expand,
    insecurities,
    pod_of,
    refusal,
    refusals,
    rendered,
    validate,
    worker_of,
)

# --- hostile values ---

HOSTILE = [
    'a"\n  hostNetwork: true\n  x: "',
    "a: {b: c} # d",
    "{{ settings }}{% for x in y %}",
    "- !!python/object/apply:os.system [ls]",
    "---\napiVersion: v1",
    "\\u0000 \\n \t\r\x7f\x85\u2028\ufeff \U0001f600",
    "no",
    "0x1f",
    "*alias &anchor",
    "$(WANDB_API_KEY) $$(HOME) $",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_leaves_its_place(text: str) -> None:
    plain, hostile = (
        rendered(wandb_project="p"),
        rendered(
            wandb_project=text,
            dataset=f"conversations:/cache/dataset/{text}",
            env={"SOME": text},
            store=f"s3://bucket/{text}",
        ),
    )
    validate(hostile, VERSIONS[-1:])
    assert not [*insecurities(hostile)]
    found = environment(hostile)
    assert expand(found["SOME"]) == expand(found["FRACTAL_K8S_WANDB_PROJECT"]) == text
    told = worker_of(hostile)["args"]
    assert expand(told[told.index("--dataset") + 1]) == f"conversations:/cache/dataset/{text}"
    assert expand(told[2]) == f"s3://bucket/{text}"
    assert hostile.job["metadata"]["annotations"][labels.STORE] == f"s3://bucket/{text}"
    assert set(pod_of(hostile)) == set(pod_of(plain))
    assert hostile.text.isascii()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="@%"), max_size=40))
def test_any_text_arrives_as_it_is(text: str) -> None:
    sweep = mlp_sweep()
    found = render(
        Plan(sweep, Deal()),
        JobSettings(store="s3://bucket/runs", wandb_project="p" + text, wandb_entity="e"),
    )
    value = environment(found)["FRACTAL_K8S_WANDB_PROJECT"]
    assert expand(value) == "p" + text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_sweep_s_own_texts_arrive_too(text: str) -> None:
    sweep = Sweep.parse({**docvqa(4).to_dict(), "dataset": f"conversations:{text}"})
    plan = Plan(sweep, Deal(points_per_shard=4))
    manifest = render(plan, JobSettings(**SITE))
    assert manifest.config_map["data"]["sweep.json"] == plan.to_json()


@pytest.mark.parametrize(
    "values",
    [
        {"namespace": "a\nb"},
        {"namespace": "A"},
        {"store_secret": "a: b"},
        {"queue": "q}"},
        {"image": "fractal-k8s"},
        {"image": "fractal-k8s:latest"},
        {"image": "fractal-k8s@sha256:0123"},
        {"image": "fractal k8s:1"},
        {"image": "host:80/team/Fractal:1"},
        {"cpu": "many"},
        {"gpus_per_pod": 3},
        {"unknown": 1},
        {"env": {"A": {"b": "c"}}},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    (key,) = values
    with pytest.raises(SweepError, match=rf"test: {key}"):
        make_settings(("test", values))


@pytest.mark.parametrize(
    "image",
    [
        "fractal-k8s:0.1.0",
        "host.example:5000/team/fractal:v1_2",
        f"host.example/team/{DIGEST}",
    ],
)
def test_images_that_cannot_change_are_taken(image: str) -> None:
    assert make_settings(("test", {"image": image})).image == image


def test_numbers_are_quantities_too() -> None:
    assert make_settings(("site", {"cpu": 14, "memory": "8Gi"})).cpu == "14"


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ({"store": "s3://other/maps"}, None),
        ({"store": "s3://maps/a?endpoint=http://inside"}, "s3://maps/a"),
        ({"store": "s3://other/x", "client_store": "s3://other/x/"}, "s3://other/x/"),
        ({"gpus": 4}, "s3://maps/a"),
    ],
)
def test_another_store_is_not_looked_for_where_the_site_s_own_is(
    later: dict[str, Any], expected: str | None
) -> None:
    site = {"store": "s3://maps/a?endpoint=http://inside", "client_store": "s3://maps/a"}
    assert make_settings(("site", site), ("later", later)).client_store == expected


@pytest.mark.parametrize("place", ["s3://maps/b", "s3://other/a", "gs://other/a", "s3://maps"])
def test_two_uris_of_two_stores_are_refused(place: str) -> None:
    site = {"store": "s3://maps/a?endpoint=http://inside", "client_store": f"{place}?endpoint=out"}
    with pytest.raises(SweepError, match="site: client_store: is another bucket or prefix"):
        make_settings(("site", site))


@pytest.mark.parametrize("place", ["s3://maps/a/?region=r", "gs://maps//a", "/mnt/maps/a"])
def test_two_ways_to_one_store_are_taken(place: str) -> None:
    site = {"store": "s3://maps/a?endpoint=http://inside", "client_store": place}
    assert make_settings(("site", site)).client_store == place


def test_a_client_store_of_its_own_option_stays() -> None:
    site = {"store": "s3://maps/a?endpoint=http://inside", "client_store": "s3://maps/a"}
    typed = ("--job", {"client_store": "s3://b/x"}), ("options", {"store": "s3://b/x?region=r"})
    for layers in (typed, (("site", site), *typed)):
        assert make_settings(*layers).client_store == "s3://b/x"


# --- limits ---


def test_every_problem_is_told_at_once() -> None:
    text = "\n".join(
        refusals(
            name="a" * 63,
            store="./runs",
            model_claim=None,
            dataset_claim=None,
            gpus=9,
            gpus_per_pod=8,
            env={"POD_NAME": "x"},
            gpu="H100",
            nodes="cks-instance",
        )
    )
    for key in ("name", "store", "model_claim", "dataset_claim", "gpus", "env", "nodes"):
        assert re.search(rf"^{key}: ", text, re.MULTILINE), key


def test_the_last_pod_s_host_name_fits() -> None:
    rendered(name="a" * 59)  # and "-255"
    problem = refusal(name="a" * 60)
    assert "64 characters" in problem
    assert "1 shorter" in problem


@pytest.mark.parametrize("name", ["Upper", "a.b", "-a", "a" * 70])
def test_a_name_that_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(SweepError, match=r"^Job .*name"):
        rendered(name=name)


def test_more_than_a_hundred_thousand_indexes_have_smaller_limits() -> None:
    deal = Deal(points_per_shard=10)
    large = docvqa(1024)
    spec = rendered(large, deal, gpus=10_000).job["spec"]
    assert (spec["completions"], spec["maxFailedIndexes"]) == (104_858, 10_000)
    for values in ({"gpus": 10_001}, {"max_failed_indexes": 10_001}):
        assert "larger --points-per-index" in refusal(large, deal, **values)
    assert "a Job may have 100,000" in refusals(large, Deal(), gpus=200_000)[0]


def test_a_list_of_points_that_is_too_long_is_refused() -> None:
    sweep = docvqa(1024)
    every_other = ",".join(str(number) for number in range(0, 600_000, 2))
    problem = refusal(sweep, Deal(points_per_shard=512, only=every_other))
    assert "ConfigMap: 2," in problem
    assert f"{limits.CONFIG_MAP_BYTES:,} are allowed" in problem
    rendered(sweep, Deal(points_per_shard=512, only="0-600000"))


def test_a_deal_of_nothing_is_refused() -> None:
    assert "nothing to train" in refusals(deal=Deal(only=""))[0]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"store": None}, "--store s3://BUCKET/PREFIX"),
        ({"store": "./runs"}, "pods do not see"),
        ({"store": "/data/runs"}, "pods do not see"),
        ({"store": "file:///data"}, "pods do not see"),
        ({"store": "/data/runs", "store_claim": "c"}, "does not lie in /store"),
        ({"store": "/store/../etc", "store_claim": "c"}, "does not lie in /store"),
        ({"store": "/storehouse", "store_claim": "c"}, "does not lie in /store"),
        ({"store": "s3:///runs"}, "names no bucket"),
        ({"store": "s3://b/runs?endpiont=x"}, "unknown option endpiont; known: addressing"),
        ({"store": "gs://b/runs", "store_secret": "keys"}, "store_secret: holds keys of S3"),
        ({"store": "ftp://b/runs"}, "unknown scheme 'ftp'"),
        ({"model_path": "model"}, "no absolute path"),
        ({"model_claim": None}, "--job model_claim=fractal-model"),
        ({"dataset_claim": None}, "--job dataset_claim=fractal-dataset"),
        ({"node_selector": {"a b": "c"}}, "no name of a label"),
        ({"node_selector": {"a": "c d"}}, "no value of a label"),
        ({"gpu": "H 200"}, "no value of a label"),
        ({"tolerations": [{"key": "a b"}]}, "no name of a taint"),
        ({"tolerations": [{"operator": "Equal", "value": "x"}]}, "stands every taint"),
        ({"tolerations": [{"key": "a", "value": "b"}]}, "needs the operator Equal"),
        (
            {"tolerations": [{"key": "a", "operator": "Equal", "value": "b c"}]},
            "no value of a taint",
        ),
        ({"queue": "q", "queue_priority": "z" * 64}, "no value of a label"),
        ({"queue": "q", "min_parallelism": 9}, "9 pods at least, but there are 8"),
        ({"env": {"A=B": "c"}}, "no name of a variable"),
        ({"env": {"JOB_COMPLETION_INDEX": "0"}}, "is set by fractal-k8s"),
        ({"wandb_project": "p", "wandb_mode": "point"}, "16,384 points"),
    ],
    ids=str,
)
def test_what_a_cluster_could_not_run_is_refused(values: dict[str, Any], part: str) -> None:
    assert part in refusal(**values)


def test_a_run_of_each_point_can_be_forced() -> None:
    rendered(wandb_project="p", wandb_mode="point", wandb_force=True)
    rendered(docvqa(31), Deal(), wandb_project="p", wandb_mode="point")


# --- secrets ---

TOKENS = {
    "access key": "AKIA" + "Z" * 16,
    "hub token": "hf_" + "x" * 34,
    "W&B key": "0123456789" * 4,
    "web token": "eyJ" + "a" * 30 + ".b",
}


@pytest.mark.parametrize("token", [*TOKENS.values()], ids=[*TOKENS])
@pytest.mark.parametrize(
    "values",
    [
        {"env": {"HARMLESS": "{}"}},
        {"store": "s3://{}@bucket/runs"},
        {"store": "s3://bucket/runs-{}"},
        {"store": "s3://bucket/runs?endpoint=http://{}@host"},
        {"client_store": "s3://user:{}@bucket/runs"},
        {"wandb_project": "{}"},
        {"wandb_entity": "x{}"},
        {"dataset": "conversations:https://u:{}@host/x.jsonl"},
        {"tolerations": [{"key": "{}"}]},
    ],
    ids=str,
)
def test_a_planted_secret_is_refused_and_not_shown(token: str, values: dict[str, Any]) -> None:
    planted = json.loads(json.dumps(values).replace("{}", token))
    with pytest.raises(SweepError) as caught:
        rendered(**planted)
    assert token not in str(caught.value)


def test_a_password_in_the_address_of_a_proxy_is_refused_and_not_shown() -> None:
    with pytest.raises(SweepError, match=r"env\.HTTPS_PROXY: looks like it holds") as caught:
        rendered(env={"HTTPS_PROXY": "http://me:hush@proxy:3128"})
    assert "hush" not in str(caught.value)
    rendered(env={"HTTPS_PROXY": "http://proxy:3128"})


def test_a_folder_that_is_named_by_a_commit_is_no_secret() -> None:
    rendered(dataset=f"conversations:/cache/dataset/snapshots/{'0123456789' * 4}/train.jsonl")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_PASSWORD"])
def test_a_variable_that_is_named_as_a_secret_is_refused(name: str) -> None:
    with pytest.raises(SweepError, match="looks like a secret") as caught:
        make_settings(("site", {"env": {name: "hush-hush"}}))
    assert "hush-hush" not in str(caught.value)


def test_a_sweep_that_names_a_password_is_refused() -> None:
    sweep = Sweep.parse({**docvqa(4).to_dict(), "checkpoint": "https://me:hush@host/model"})
    assert "hush" not in refusal(sweep)


# --- points per index ---


@pytest.mark.parametrize(
    ("distinct", "slots", "seconds", "points"),
    [
        (16_384, 64, 10.0, 60),  # ten minutes each
        (16_384, 512, 10.0, 16),  # two indexes for each worker
        (16_384, 64, 1_000.0, 16),  # no more than 1,024 indexes
        (1_048_576, 64, 0.001, 8_192),
        (16_384, 64, None, 64),  # 256 indexes
        (100, 64, None, 1),
        (1, 1, 1.0, 1),
    ],
)
def test_points_per_index(distinct: int, slots: int, seconds: float | None, points: int) -> None:
    assert choose(docvqa(), distinct, slots, seconds) == points


def test_points_that_take_no_time_are_dealt_by_the_workers() -> None:
    assert choose(mlp_sweep(), 65_536, 8, None) == 4_096


@given(st.integers(1, 2_000_000), st.integers(1, 4_096), st.none() | st.floats(1e-6, 1e6))
def test_there_are_never_too_many_indexes(distinct: int, slots: int, seconds: float | None) -> None:
    points = choose(docvqa(), distinct, slots, seconds)
    assert 1 <= points <= max(1, distinct)
    assert -(-distinct // points) <= 1_024
