"""The stand-in API server, through the official client and kubectl."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException

from fractal_k8s.backends.kube.client import CONFIG_MAPS, JOBS, PODS, SECRETS, Cluster
from fractal_k8s.backends.kube.connection import connect
from fractal_k8s.errors import ForbiddenError
from standin.cluster import StandIn
from standin.fixtures import Kubectl, kubectl_on
from standin.objects import Object, Objects

_JOBS = "/apis/batch/v1/namespaces/fractal/jobs"
_MAPS = "/api/v1/namespaces/fractal/configmaps"
_PODS = "/api/v1/namespaces/fractal/pods"
_CLAIMS = "/api/v1/namespaces/fractal/persistentvolumeclaims"


@pytest.fixture
def still(tmp_path: Path) -> Iterator[StandIn]:
    """A cluster where nothing acts on what is stored."""
    with StandIn(tmp_path / "still", run_pods=False) as cluster:
        yield cluster


@pytest.fixture
def kubectl_still(kubectl_binary: Path, still: StandIn, tmp_path: Path) -> Kubectl:
    return kubectl_on(kubectl_binary, still.kubeconfig, tmp_path)


def a_job(name: str = "sweep", command: str = "echo ran", **changes: Any) -> Object:
    """A Job of four indexes; keyword arguments change its spec, None takes a field away."""
    container = {"name": "main", "image": "image:1", "command": ["sh", "-c", command]}
    spec = {
        "completionMode": "Indexed",
        "completions": 4,
        "parallelism": 2,
        "backoffLimitPerIndex": 1,
        "template": {
            "metadata": {"labels": {"app": "x"}},
            "spec": {"restartPolicy": "Never", "containers": [container]},
        },
        **changes,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"app": "x"}},
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


def a_map(name: str = "a", **more: Any) -> Object:
    meta = {"name": name, "namespace": "fractal"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"k": "v"}, **more}


def a_pod(name: str, **labels: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "fractal", "labels": labels},
        "spec": {"containers": [{"name": "main", "image": "image:1"}]},
        "status": {"phase": "Running"},
    }


def api(cluster: StandIn, user: str = "standin") -> client.ApiClient:
    return config.new_client_from_config(str(cluster.kubeconfig), context=user)


def ours(cluster: StandIn, user: str = "standin") -> Cluster:
    return connect(user, kubeconfig=str(cluster.kubeconfig))


def _token(found: client.ApiClient) -> str:
    return str(found.configuration.get_api_key_with_prefix("BearerToken"))


class Raw:
    """Requests as they are, with the right certificate and the token of a user."""

    def __init__(self, cluster: StandIn, user: str = "standin") -> None:
        self._url = cluster.url
        found = api(cluster, user)
        self._pool = found.rest_client.pool_manager
        self._token = _token(found)

    def __call__(
        self, method: str, path: str, body: Any = None, /, **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON of an answer; header names have `_` for `-`."""
        given = {"Content-Type": "application/json", "Authorization": self._token}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        got = self._pool.request(method, self._url + path, body=body, headers=given, retries=False)
        return got.status, json.loads(got.data or b"null")


# --- who ---


def test_only_the_made_certificate_is_trusted(still: StandIn) -> None:
    with (
        urllib3.PoolManager() as pool,
        pytest.raises(urllib3.exceptions.MaxRetryError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        pool.request("GET", f"{still.url}/version", retries=0)


@pytest.mark.parametrize("token", ["", "Bearer wrong", "Basic YTpi"])
def test_no_token_no_answer(still: StandIn, token: str) -> None:
    status, body = Raw(still)("GET", "/version", Authorization=token)
    assert (status, body["reason"]) == (401, "Unauthorized")


def test_a_client_that_says_nothing_holds_nobody_up(still: StandIn) -> None:
    import socket

    address = ("127.0.0.1", int(still.url.rpartition(":")[2]))
    with socket.create_connection(address):
        assert ours(still).version() == "v1.36.2"


def test_rights_come_from_roles(still: StandIn) -> None:
    still.add_user(
        "maria",
        [
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]},
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "verbs": ["get"],
                "resourceNames": ["mine"],
            },
            {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        ],
        [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}],
    )
    still.objects.create("configmaps", a_map("mine"))
    raw = Raw(still, "maria")
    status, body = raw("POST", _JOBS, a_job())
    assert (status, body["reason"]) == (403, "Forbidden")
    assert body["message"] == (
        'jobs.batch is forbidden: User "maria" cannot create resource "jobs" in API group "batch" '
        'in the namespace "fractal"'
    )
    assert raw("GET", _JOBS)[0] == 200
    assert raw("GET", f"{_JOBS}?watch=true&timeoutSeconds=1")[1]["message"].startswith(
        'jobs.batch is forbidden: User "maria" cannot watch'
    )
    assert raw("GET", _JOBS.replace("fractal", "default"))[0] == 403
    assert raw("GET", f"{_MAPS}/mine")[0] == 200
    assert raw("GET", f"{_MAPS}/other")[0] == 403
    assert raw("GET", f"{_PODS}/x/log")[0] == 404  # allowed, and not there
    assert 'resource "pods" in' in raw("GET", f"{_PODS}/x")[1]["message"]
    assert raw("GET", "/api/v1/nodes")[0] == 200
    assert raw("GET", "/api/v1/namespaces")[1]["message"].endswith("at the cluster scope")


def test_a_user_may_ask_what_it_may(still: StandIn) -> None:
    still.add_user("kim", [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]}])
    kim = ours(still, "kim")
    assert kim.may("create", JOBS)
    assert not kim.may("delete", JOBS)
    assert not kim.may("get", PODS, subresource="log")
    assert ours(still).may("delete", JOBS)
    with pytest.raises(ForbiddenError, match="cannot list resource"):
        list(kim.list(CONFIG_MAPS))
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    _, body = Raw(still, "kim")("POST", path, {**review, "spec": {"namespace": "fractal"}})
    assert {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]} in body["status"][
        "resourceRules"
    ]


def test_a_service_account_is_a_subject(still: StandIn) -> None:
    name = "system:serviceaccount:fractal:controller"
    still.add_user(name)
    role = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list"]}
    meta = {"name": "controller", "namespace": "fractal"}
    still.objects.create("roles", {"metadata": meta, "rules": [role]})
    subject = {"kind": "ServiceAccount", **meta}
    binding = {"metadata": meta, "subjects": [subject]}
    still.objects.create(
        "rolebindings", {**binding, "roleRef": {"kind": "Role", "name": "controller"}}
    )
    assert list(ours(still, name).list(JOBS)) == []


# --- objects ---


def test_the_official_client_handles_objects(still: StandIn) -> None:
    batch = client.BatchV1Api(api(still))
    made = batch.create_namespaced_job("fractal", a_job())
    assert made.spec.backoff_limit == 2**31 - 1
    assert made.spec.pod_replacement_policy == "TerminatingOrFailed"
    uid = made.metadata.uid
    assert made.spec.selector.match_labels == {"batch.kubernetes.io/controller-uid": uid}
    assert made.spec.template.metadata.labels["job-name"] == "sweep"
    patched = batch.patch_namespaced_job("sweep", "fractal", {"spec": {"parallelism": 3}})
    assert (patched.spec.parallelism, patched.metadata.generation) == (3, 2)
    made.spec.suspend = True
    with pytest.raises(ApiException) as caught:  # it still names the version before the patch
        batch.replace_namespaced_job("sweep", "fractal", made)
    assert caught.value.status == 409
    assert "the object has been modified" in caught.value.body
    patched.spec.suspend = True
    assert batch.replace_namespaced_job("sweep", "fractal", patched).spec.suspend
    with pytest.raises(ApiException) as caught:
        batch.create_namespaced_job("fractal", a_job())
    assert json.loads(caught.value.body)["reason"] == "AlreadyExists"
    assert [job.metadata.name for job in batch.list_namespaced_job("fractal").items] == ["sweep"]
    batch.delete_namespaced_job("sweep", "fractal", propagation_policy="Background")
    with pytest.raises(ApiException) as caught:
        batch.read_namespaced_job("sweep", "fractal")
    assert json.loads(caught.value.body)["message"] == 'jobs.batch "sweep" not found'


def test_a_status_changes_by_its_own_path_only(still: StandIn) -> None:
    raw = Raw(still)
    raw("POST", _JOBS, {**a_job(), "status": {"succeeded": 3}})
    merge = {"Content_Type": "application/merge-patch+json"}
    change = {"status": {"succeeded": 1}, "spec": {"suspend": True}}
    assert raw("PATCH", f"{_JOBS}/sweep", change, **merge)[1].get("status") == {}
    _, body = raw("PATCH", f"{_JOBS}/sweep/status", change | {"spec": {"parallelism": 9}}, **merge)
    assert body["status"] == {"succeeded": 1}
    assert (body["spec"]["suspend"], body["spec"]["parallelism"]) == (True, 2)


def test_a_dry_run_checks_and_stores_nothing(still: StandIn) -> None:
    raw = Raw(still)
    status, body = raw("POST", f"{_JOBS}?dryRun=All", a_job())
    assert (status, body["spec"]["suspend"]) == (201, False)
    assert raw("POST", f"{_JOBS}?dryRun=All", a_job(completions=None))[0] == 422
    assert raw("POST", f"{_JOBS}?dryRun=None", a_job())[0] == 400
    assert raw("GET", f"{_JOBS}/sweep")[0] == 404
    still.objects.create("configmaps", a_map())
    assert raw("POST", f"{_MAPS}?dryRun=All", a_map())[0] == 409
    assert raw("DELETE", f"{_MAPS}/a?dryRun=All")[0] == 200
    assert raw("GET", f"{_MAPS}/a")[0] == 200


def test_metadata_alone_leaves_out_the_content(still: StandIn) -> None:
    meta = {"name": "token", "namespace": "fractal"}
    still.objects.create("secrets", {"metadata": meta, "data": {"key": "c2VjcmV0"}})
    metadata = ours(still).metadata(SECRETS, "token")
    assert metadata is not None
    assert metadata["name"] == "token"
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
    _, body = Raw(still)("GET", "/api/v1/secrets", Accept=accept)
    assert body["kind"] == "PartialObjectMetadataList"
    assert [set(item) for item in body["items"]] == [{"kind", "apiVersion", "metadata"}]


def test_a_body_in_another_form_is_refused(still: StandIn) -> None:
    raw = Raw(still)
    protobuf = "application/vnd.kubernetes.protobuf"
    status, body = raw("POST", _MAPS, b"k8s\x00", Content_Type=protobuf)
    assert status == 415
    assert "reads no protobuf" in body["message"]
    assert raw("POST", _MAPS, b"k8s\x00\xff", Content_Type=protobuf)[0] == 400
    assert raw("GET", _MAPS, Accept=protobuf)[0] == 406
    assert raw("GET", _MAPS, Accept=f"{protobuf},application/json")[0] == 200
    assert raw("POST", _MAPS, b"{", Content_Type="application/json")[0] == 400
    assert raw("PATCH", f"{_MAPS}/a", {}, Content_Type="application/json")[0] == 415
    assert raw("POST", _MAPS, a_map(data={"k": "x" * 3_200_000}))[0] == 413
    assert raw("GET", "/apis/batch/v2/jobs")[0] == 404
    assert raw("GET", "/nothing")[0] == 404


# --- what is allowed ---

_POLICY = {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64, 65]}}]}


def _rule(**changes: Any) -> Object:
    rule = {**_POLICY["rules"][0], **changes}
    return {"rules": [{key: value for key, value in rule.items() if value is not None}]}


def _codes(*values: int, **more: Any) -> Object:
    return _rule(onExitCodes={"operator": "In", "values": list(values), **more})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"completions": None}, "spec.completions: Required value: when completion mode is"),
        ({"completionMode": None}, "requires indexed completion mode"),
        ({"parallelism": 100_001}, "spec.parallelism: Invalid value: 100001"),
        ({"parallelism": -1}, "must be greater than or equal to 0"),
        ({"maxFailedIndexes": 5}, "must be less than or equal to completions"),
        ({"maxFailedIndexes": 1, "backoffLimitPerIndex": None}, "backoffLimitPerIndex: Required"),
        ({"completions": 100_001}, "spec.maxFailedIndexes: Required value"),
        ({"completions": 100_001, "maxFailedIndexes": 10_001}, "less than or equal to 10000"),
        (
            {"completions": 100_001, "maxFailedIndexes": 9, "parallelism": 10_001},
            "spec.parallelism: Invalid value: 10001",
        ),
        ({"podFailurePolicy": _rule(action="Explode")}, 'Unsupported value: "Explode"'),
        (
            {"podFailurePolicy": _rule(action="FailIndex"), "backoffLimitPerIndex": None},
            "requires the backoffLimitPerIndex",
        ),
        ({"podFailurePolicy": _rule(onExitCodes=None)}, "one of OnExitCodes and OnPodConditions"),
        ({"podFailurePolicy": _codes(65, 64)}, "must be ordered"),
        ({"podFailurePolicy": _codes(0)}, "must not be 0"),
        ({"podFailurePolicy": _codes(1, containerName="other")}, "must be one of the container"),
        (
            {"podFailurePolicy": _POLICY, "podReplacementPolicy": "TerminatingOrFailed"},
            "spec.podReplacementPolicy",
        ),
    ],
)
def test_rules_of_jobs(still: StandIn, changes: Object, says: str) -> None:
    status, body = Raw(still)("POST", _JOBS, a_job(**changes))
    assert (status, body["reason"]) == (422, "Invalid")
    assert says in body["message"]
    assert body["details"]["kind"] == "Job"


def test_a_good_policy_is_accepted_and_completed(still: StandIn) -> None:
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
    policy = {"rules": rules + _POLICY["rules"]}
    _, body = Raw(still)("POST", _JOBS, a_job(podFailurePolicy=policy))
    assert body["spec"]["podReplacementPolicy"] == "Failed"
    assert body["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["status"] == "True"


def test_pods_of_a_job_are_never_restarted_always(still: StandIn) -> None:
    job = a_job()
    del job["spec"]["template"]["spec"]["restartPolicy"]
    assert (
        'Required value: valid values: "OnFailure", "Never"'
        in (Raw(still)("POST", _JOBS, job)[1]["message"])
    )


@pytest.mark.parametrize(
    ("name", "good"), [("x" * 57, True), ("x" * 58, False), ("a.b", False), ("A", False)]
)
def test_the_longest_host_name_must_fit(still: StandIn, name: str, good: bool) -> None:
    status, _ = Raw(still)("POST", _JOBS, a_job(name, completions=16_384))
    assert status == (201 if good else 422)


def test_unknown_fields_and_wrong_types_are_named(still: StandIn) -> None:
    raw = Raw(still)
    job = a_job(completionMod="Indexed")
    job["spec"]["template"]["spec"]["containers"][0]["imag"] = "x"
    status, body = raw("POST", _JOBS, job)
    assert status == 400
    assert 'unknown field "spec.completionMod"' in body["message"]
    assert 'unknown field "spec.template.spec.containers[0].imag"' in body["message"]
    assert "spec.completions: '4'" in raw("POST", _JOBS, a_job(completions="4"))[1]["message"]
    status, body = raw("POST", _JOBS, a_job(template=None))
    assert (status, body["details"]["causes"][0]["field"]) == (422, "spec")
    assert raw("POST", _JOBS, a_map())[0] == 400  # another kind than the path says
    patch = {"spec": {"paralelism": 3}}
    raw("POST", _JOBS, a_job())
    merge = {"Content_Type": "application/merge-patch+json"}
    assert raw("PATCH", f"{_JOBS}/sweep", patch, **merge)[0] == 400


@pytest.mark.parametrize(
    ("patch", "status"),
    [
        ({"parallelism": 4}, 200),
        ({"suspend": True}, 200),
        ({"backoffLimit": 3, "maxFailedIndexes": 2, "activeDeadlineSeconds": 9}, 200),
        ({"backoffLimitPerIndex": 2}, 422),
        ({"completionMode": "NonIndexed"}, 422),
        ({"completions": 5}, 422),
        ({"completions": 5, "parallelism": 5}, 200),
        ({"template": {"metadata": {"labels": {"app": "y"}}}}, 422),
        ({"podFailurePolicy": _POLICY}, 422),
    ],
)
def test_what_of_a_job_can_change(still: StandIn, patch: Object, status: int) -> None:
    raw = Raw(still)
    raw("POST", _JOBS, a_job())
    merge = {"Content_Type": "application/merge-patch+json"}
    assert raw("PATCH", f"{_JOBS}/sweep", {"spec": patch}, **merge)[0] == status


def test_a_job_that_waits_may_be_placed_elsewhere(still: StandIn) -> None:
    raw = Raw(still)
    raw("POST", _JOBS, a_job(suspend=True))
    patch = {"spec": {"template": {"spec": {"nodeSelector": {"zone": "b"}}}}}
    merge = {"Content_Type": "application/merge-patch+json"}
    assert raw("PATCH", f"{_JOBS}/sweep", patch, **merge)[0] == 200
    raw("PATCH", f"{_JOBS}/sweep", {"spec": {"suspend": False}}, **merge)
    patch["spec"]["template"]["spec"]["nodeSelector"]["zone"] = "c"
    assert raw("PATCH", f"{_JOBS}/sweep", patch, **merge)[0] == 422


def test_rules_of_config_maps_and_metadata(still: StandIn) -> None:
    raw = Raw(still)
    assert raw("POST", _MAPS, a_map(data={"k": "x" * 1_048_577}))[0] == 422
    assert raw("POST", _MAPS, a_map(immutable=True))[0] == 201
    merge = {"Content_Type": "application/merge-patch+json"}
    status, body = raw("PATCH", f"{_MAPS}/a", {"data": {"k": "w"}}, **merge)
    assert status == 422
    assert "field is immutable when `immutable` is set" in body["message"]
    labels = {"metadata": {"labels": {"a": "b"}}}
    assert raw("PATCH", f"{_MAPS}/a", labels, **merge)[0] == 200
    wrong = {"name": "b", "labels": {"x": "-no-"}, "annotations": {"a": "x" * 262_145}}
    status, body = raw("POST", _MAPS, {**a_map(), "metadata": wrong})
    assert status == 422
    assert "metadata.labels" in body["message"]
    assert "metadata.annotations: Too long" in body["message"]
    nowhere = _MAPS.replace("fractal", "nowhere")
    given = {**a_map(), "metadata": {"name": "c"}}
    assert raw("POST", nowhere, given)[1]["message"] == 'namespaces "nowhere" not found'
    assert raw("POST", nowhere, a_map())[0] == 400  # it says namespace fractal


# --- patches ---


@pytest.mark.parametrize(
    ("kind", "patch", "data", "labels"),
    [
        ("merge-patch+json", {"data": {"k": None, "l": "w"}}, {"l": "w"}, {"x": "1"}),
        (
            "strategic-merge-patch+json",
            {"data": {"l": "w"}, "metadata": {"labels": {"$patch": "replace", "y": "2"}}},
            {"k": "v", "l": "w"},
            {"y": "2"},
        ),
        (
            "json-patch+json",
            [
                {"op": "test", "path": "/data/k", "value": "v"},
                {"op": "replace", "path": "/data/k", "value": "w"},
                {"op": "add", "path": "/metadata/labels/a~1b", "value": "2"},
                {"op": "remove", "path": "/metadata/labels/x"},
            ],
            {"k": "w"},
            {"a/b": "2"},
        ),
        (
            "apply-patch+yaml",
            {"apiVersion": "v1", "kind": "ConfigMap", "data": {"l": "w"}},
            {"k": "v", "l": "w"},
            {"x": "1"},
        ),
    ],
)
def test_patches(still: StandIn, kind: str, patch: Any, data: Object, labels: Object) -> None:
    given = a_map()
    given["metadata"]["labels"] = {"x": "1"}
    still.objects.create("configmaps", given)
    path = f"{_MAPS}/a?fieldManager=test"
    status, body = Raw(still)("PATCH", path, patch, Content_Type=f"application/{kind}")
    assert status == 200, body
    assert (body["data"], body["metadata"]["labels"]) == (data, labels)


def test_lists_merge_by_their_key(still: StandIn) -> None:
    raw = Raw(still)
    raw("POST", _JOBS, a_job(suspend=True))
    conditions = [{"type": "Suspended", "status": "True"}, {"type": "Failed", "status": "False"}]
    strategic = {"Content_Type": "application/strategic-merge-patch+json"}
    path = f"{_JOBS}/sweep/status"
    raw("PATCH", path, {"status": {"conditions": conditions}}, **strategic)
    changed = [{"type": "Failed", "status": "True"}, {"type": "Suspended", "$patch": "delete"}]
    _, body = raw("PATCH", path, {"status": {"conditions": changed}}, **strategic)
    assert body["status"]["conditions"] == [{"type": "Failed", "status": "True"}]


def test_patches_that_cannot_be(still: StandIn) -> None:
    raw = Raw(still)
    still.objects.create("configmaps", a_map())
    path = f"{_MAPS}/a"
    steps = [{"op": "remove", "path": "/data/nosuch"}]
    assert raw("PATCH", path, steps, Content_Type="application/json-patch+json")[0] == 422
    merge = {"Content_Type": "application/merge-patch+json"}
    assert raw("PATCH", path, [], **merge)[0] == 400
    assert raw("PATCH", path, {"metadata": {"resourceVersion": "1"}}, **merge)[0] == 409
    assert raw("PATCH", path, {"metadata": {"uid": "other"}}, **merge)[0] == 409
    assert raw("PATCH", path, {"metadata": {"name": "b"}}, **merge)[0] == 400
    assert raw("PATCH", f"{_MAPS}/nosuch", {}, **merge)[0] == 404
    apply = {"Content_Type": "application/apply-patch+yaml"}
    assert raw("PATCH", path, a_map(), **apply)[0] == 422  # no fieldManager


def _wrong_objects() -> Iterator[tuple[str, Object, str]]:
    """Path, object, and what is said of it."""
    yield _MAPS, a_map(data={"a b": "c"}), "data[a b]: Invalid value"
    owned = a_map()
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": ""}
    owned["metadata"]["ownerReferences"] = [owner]
    yield _MAPS, owned, "metadata.ownerReferences[0].uid: Required value"
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {}}
    yield _CLAIMS, {**claim, "spec": spec}, "spec.resources[storage]: Required value"
    job = a_job()
    del job["spec"]["template"]["spec"]["containers"][0]["image"]
    yield _JOBS, job, "spec.template.spec.containers[0].image: Required value"


@pytest.mark.parametrize(("path", "wrong", "says"), [*_wrong_objects()])
def test_what_no_schema_tells(still: StandIn, path: str, wrong: Object, says: str) -> None:
    """Kubernetes 1.36 refuses each of them."""
    status, answer = Raw(still)("POST", path, wrong)
    assert (status, answer["reason"]) == (422, "Invalid")
    assert says in answer["message"]


def test_a_delete_with_a_policy_that_is_none(still: StandIn) -> None:
    raw = Raw(still)
    raw("POST", _MAPS, a_map())
    status, answer = raw("DELETE", f"{_MAPS}/a", {"propagationPolicy": "Later"})
    assert (status, answer["reason"]) == (422, "Invalid")
    assert raw("GET", f"{_MAPS}/a")[0] == 200


def test_applying_something_new_needs_the_right_to_create(still: StandIn) -> None:
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}
    still.add_user("kim", [rule])
    path = f"{_MAPS}/a?fieldManager=test"
    apply = {"Content_Type": "application/apply-patch+yaml"}
    status, body = Raw(still, "kim")("PATCH", path, a_map(), **apply)
    assert status == 403
    assert "cannot create" in body["message"]
    assert Raw(still)("PATCH", path, a_map(), **apply)[0] == 201


# --- deletes ---


def test_a_delete_may_name_what_it_means(still: StandIn) -> None:
    cluster = ours(still)
    made = cluster.create(CONFIG_MAPS, a_map())["metadata"]
    assert not cluster.delete(CONFIG_MAPS, "a", uid="other")
    assert not cluster.delete(CONFIG_MAPS, "a", version="1")
    assert cluster.delete(CONFIG_MAPS, "a", uid=made["uid"], version=made["resourceVersion"])
    assert not cluster.delete(CONFIG_MAPS, "a")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ("", True),
        ("?propagationPolicy=Background", False),
        ("?propagationPolicy=Foreground", False),
        ("?orphanDependents=true", True),
    ],
)
def test_a_job_leaves_its_pods_unless_told(standin: StandIn, options: str, left: bool) -> None:
    raw = Raw(standin)
    raw("POST", _JOBS, a_job(completions=1, parallelism=1))
    _until(lambda: _condition(standin, "Complete"))
    raw("DELETE", f"{_JOBS}/sweep{options}")
    _until(lambda: not standin.objects.list("jobs"))
    if left:
        (pod,) = standin.objects.list("pods")
        assert "ownerReferences" not in pod["metadata"]
    else:
        _until(lambda: not standin.objects.list("pods"))


def test_a_pod_is_deleted_with_grace(standin: StandIn) -> None:
    raw = Raw(standin)
    command = "trap 'echo flushed; exit 143' TERM; echo up; while :; do sleep 0.05; done"
    raw("POST", _JOBS, a_job(command=command, completions=1, backoffLimitPerIndex=0))
    name = _running_pod(standin)
    lines = ours(standin).follow(name)
    assert next(lines) == "up"
    status, body = raw("DELETE", f"{_PODS}/{name}", {"gracePeriodSeconds": 20})
    assert (status, body["kind"]) == (200, "Pod")
    assert body["metadata"]["deletionGracePeriodSeconds"] == 20
    assert list(lines) == ["flushed"]
    _until(lambda: _condition(standin, "Failed"))


def test_many_are_deleted_by_a_selector(still: StandIn) -> None:
    for number in range(4):
        still.objects.create("pods", a_pod(f"p{number}", odd=str(number % 2)))
    Raw(still)("DELETE", f"{_PODS}?labelSelector=odd%3D1")
    assert [pod["metadata"]["name"] for pod in still.objects.list("pods")] == ["p0", "p2"]


# --- lists ---


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("a=1", "p1"),
        ("a==1,b=x", "p1"),
        ("a!=1", "p0 p2 p3"),
        ("a in (1, 2)", "p1 p2"),
        ("a notin (1,2)", "p0 p3"),
        ("a", "p1 p2 p3"),
        ("!a", "p0"),
        ("a in (1,2,3),!b", "p3"),
        ("x.io/y=z", "p2"),
        ("a=", ""),
    ],
)
def test_label_selectors(still: StandIn, selector: str, found: str) -> None:
    for name, labels in {
        "p0": {},
        "p1": {"a": "1", "b": "x"},
        "p2": {"a": "2", "b": "x", "x.io/y": "z"},
        "p3": {"a": "3"},
    }.items():
        still.objects.create("pods", a_pod(name, **labels))
    names = [pod["metadata"]["name"] for pod in ours(still).list(PODS, labels=selector)]
    assert names == found.split()


def test_field_selectors(still: StandIn) -> None:
    for number in range(3):
        pod = a_pod(f"p{number}")
        pod["spec"]["nodeName"] = f"g{number % 2}"
        pod["status"]["phase"] = "Failed" if number == 2 else "Running"
        still.objects.create("pods", pod)
    core = client.CoreV1Api(api(still))

    def names(selector: str) -> list[str]:
        found = core.list_namespaced_pod("fractal", field_selector=selector)
        return [pod.metadata.name for pod in found.items]

    assert names("status.phase=Failed") == ["p2"]
    assert names("spec.nodeName=g0,status.phase!=Failed") == ["p0"]
    assert names("metadata.name=p1") == ["p1"]
    with pytest.raises(ApiException, match="field label not supported"):
        names("status.colour=red")
    assert Raw(still)("GET", f"{_PODS}?labelSelector=a%3D%3D%3D")[0] == 400


def test_a_long_list_comes_in_pages(still: StandIn) -> None:
    for number in range(16_384):
        still.objects.create("pods", a_pod(f"p{number:05d}", block=str(number % 7)))
    already = len(still.requests)
    names = [pod["metadata"]["name"] for pod in ours(still).list(PODS)]
    assert names == [f"p{number:05d}" for number in range(16_384)]
    assert len(still.requests) - already == 33
    _, body = Raw(still)("GET", f"{_PODS}?limit=10")
    assert body["metadata"]["remainingItemCount"] == 16_374
    assert "kind" not in body["items"][0]
    chosen = ours(still).list(PODS, labels="block=3", limit=100)
    assert len(list(chosen)) == 100


def test_a_page_that_comes_too_late_is_gone(still: StandIn) -> None:
    still.objects._changes = type(still.objects._changes)(maxlen=5)
    for name in "abc":
        still.objects.create("pods", a_pod(name))
    raw = Raw(still)
    _, body = raw("GET", f"{_PODS}?limit=1")
    token = body["metadata"]["continue"]
    assert raw("GET", f"{_PODS}?limit=1&continue={token}")[1]["items"][0]["metadata"]["name"] == "b"
    for name in "defghi":
        still.objects.create("pods", a_pod(name))
    status, body = raw("GET", f"{_PODS}?limit=1&continue={token}")
    assert (status, body["reason"]) == (410, "Expired")
    assert raw("GET", f"{_PODS}?continue=nonsense")[0] == 400


# --- watches ---


def test_the_official_client_watches(still: StandIn) -> None:
    core = client.CoreV1Api(api(still))
    still.objects.create("configmaps", a_map("before"))
    version = core.list_namespaced_config_map("fractal").metadata.resource_version
    still.objects.create("configmaps", a_map("other"))
    changed = still.objects.create("configmaps", a_map("new"))
    still.objects.update("configmaps", {**changed, "data": {"k": "w"}})
    still.objects.delete("configmaps", "fractal", "new")
    seen = [
        (event["type"], event["object"].metadata.name)
        for event in watch.Watch().stream(
            core.list_namespaced_config_map,
            "fractal",
            resource_version=version,
            field_selector="metadata.name=new",
            timeout_seconds=1,
        )
    ]
    assert seen == [("ADDED", "new"), ("MODIFIED", "new"), ("DELETED", "new")]


def _events(cluster: StandIn, query: str) -> Iterator[Object]:
    found = api(cluster)
    with found.rest_client.pool_manager.request(
        "GET",
        f"{cluster.url}{_PODS}?{query}",
        headers={"Authorization": _token(found)},
        preload_content=False,
        retries=False,
    ) as got:
        rest = b""
        for piece in got.stream(4096):
            *lines, rest = (rest + piece).split(b"\n")
            yield from map(json.loads, lines)


def test_a_watch_answers_before_anything_happens(still: StandIn) -> None:
    found = api(still)
    with found.rest_client.pool_manager.request(
        "GET",
        f"{still.url}{_PODS}?watch=1&timeoutSeconds=30",
        headers={"Authorization": _token(found)},
        preload_content=False,
        timeout=5,
        retries=False,
    ) as got:
        assert got.status == 200


@pytest.mark.parametrize("flag", ["true", "True", "1"])
def test_a_watch_without_a_version_begins_with_all(still: StandIn, flag: str) -> None:
    for name in "ab":
        still.objects.create("pods", a_pod(name))
    found = list(_events(still, f"watch={flag}&timeoutSeconds=1"))
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in found] == [
        ("ADDED", "a"),
        ("ADDED", "b"),
    ]


def test_a_watch_sees_what_its_selector_lets_through(still: StandIn) -> None:
    version = still.objects.version
    made = still.objects.create("pods", a_pod("a", on="no"))
    for state in ("yes", "yes", "no", "no"):
        made["metadata"]["labels"] = {"on": state, "n": str(still.objects.version)}
        made = still.objects.update("pods", made)
    query = f"watch=1&timeoutSeconds=1&labelSelector=on%3Dyes&resourceVersion={version}"
    assert [event["type"] for event in _events(still, query)] == ["ADDED", "MODIFIED", "DELETED"]


def test_an_idle_watch_is_given_bookmarks(still: StandIn) -> None:
    still.objects.create("pods", a_pod("a"))
    still.objects.create("configmaps", a_map())
    query = "watch=1&allowWatchBookmarks=true&timeoutSeconds=3&labelSelector=none"
    event = next(_events(still, query))
    assert event["type"] == "BOOKMARK"
    assert event["object"]["metadata"]["resourceVersion"] == str(still.objects.version)


def test_a_watch_can_stand_for_a_list(still: StandIn) -> None:
    still.objects.create("pods", a_pod("a"))
    query = "watch=1&sendInitialEvents=true&allowWatchBookmarks=true&timeoutSeconds=1"
    first, second, *_ = _events(still, f"{query}&resourceVersionMatch=NotOlderThan")
    assert first["type"] == "ADDED"
    notes = second["object"]["metadata"]["annotations"]
    assert (second["type"], notes) == ("BOOKMARK", {"k8s.io/initial-events-end": "true"})


def test_a_watch_from_too_long_ago_is_told_so(still: StandIn) -> None:
    still.objects._changes = type(still.objects._changes)(maxlen=2)
    for name in "abc":
        still.objects.create("pods", a_pod(name))
    (event,) = _events(still, "watch=1&resourceVersion=1&timeoutSeconds=5")
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


# --- trouble ---


def test_the_server_goes_away_and_comes_back(still: StandIn) -> None:
    cluster = ours(still)
    broken = threading.Event()

    def watch_on() -> None:
        try:
            for _ in _events(still, "watch=1"):
                pass
        except urllib3.exceptions.HTTPError:
            broken.set()

    watcher = threading.Thread(target=watch_on)
    watcher.start()
    _until(lambda: any(call.verb == "watch" for call in still.requests))
    still.down()
    assert broken.wait(60)
    watcher.join()
    with pytest.raises(urllib3.exceptions.HTTPError):
        Raw(still)("GET", "/version")
    still.up()
    assert cluster.version() == "v1.36.2"


def test_faults(still: StandIn) -> None:
    raw = Raw(still)
    still.fail(2, code=500)
    still.fail(code=429, retry_after=7, verb="create")
    still.fail(code=None)
    answers = [raw("GET", "/version")[0] for _ in range(2)]
    with pytest.raises(urllib3.exceptions.HTTPError):
        raw("GET", "/version")
    answers.append(raw("GET", "/version")[0])
    assert answers == [500, 500, 200]
    assert raw("POST", _MAPS, a_map())[1]["reason"] == "TooManyRequests"
    assert raw("POST", _MAPS, a_map())[0] == 201
    assert not still.faults


def test_the_client_tries_again_as_long_as_it_was_asked_to(still: StandIn) -> None:
    still.fail(code=503, retry_after=1)
    began = time.monotonic()
    assert ours(still).version() == "v1.36.2"
    assert time.monotonic() - began >= 1


def test_an_answer_that_is_lost_after_the_deed(still: StandIn) -> None:
    still.fail(code=None, done=True)
    with pytest.raises(urllib3.exceptions.HTTPError):
        Raw(still)("POST", _MAPS, a_map())
    assert still.objects.get("configmaps", "fractal", "a")["data"] == {"k": "v"}


def test_requests_are_counted(still: StandIn) -> None:
    still.add_user("kim")
    with pytest.raises(ForbiddenError):
        ours(still, "kim").log("p")
    (call,) = still.requests
    assert (call.user, call.verb, call.resource) == ("kim", "get", "pods/log")
    assert call.path == f"{_PODS}/p/log"


# --- logs ---


def test_logs(standin: StandIn) -> None:
    raw = Raw(standin)
    raw("POST", _JOBS, a_job(command="for i in 1 2 3 4; do echo line $i; done", completions=1))
    _until(lambda: _condition(standin, "Complete"))
    (pod,) = standin.objects.list("pods")
    name = pod["metadata"]["name"]
    core = client.CoreV1Api(api(standin))

    def read(**options: Any) -> str:
        got = core.read_namespaced_pod_log(name, "fractal", _preload_content=False, **options)
        return str(got.data.decode())

    assert read() == "line 1\nline 2\nline 3\nline 4\n"
    assert read(tail_lines=2, follow=True) == "line 3\nline 4\n"
    assert read(tail_lines=2, limit_bytes=4) == "line"
    assert read(tail_lines=0) == ""
    assert read(since_seconds=60).startswith("line 1")
    with pytest.raises(ApiException, match="previous terminated container"):
        read(previous=True)
    with pytest.raises(ApiException, match="container other is not valid"):
        read(container="other")
    # what a kubelet answers once the container's files are gone
    lost = "unable to retrieve container logs for containerd://44c396"
    standin.kubelet.log_path("fractal", name).write_text(lost)
    assert read() == lost
    assert ours(standin).log(name) == ""


def test_a_container_that_waits_has_no_log(standin: StandIn) -> None:
    job = a_job(completions=1)
    job["spec"]["template"]["spec"]["containers"][0]["image"] = "missing:1"
    raw = Raw(standin)
    raw("POST", _JOBS, job)

    def waits() -> bool:
        pods = standin.objects.list("pods")
        return bool(pods and pods[0]["status"].get("containerStatuses"))

    _until(waits)
    name = standin.objects.list("pods")[0]["metadata"]["name"]
    status, body = raw("GET", f"{_PODS}/{name}/log")
    assert (status, body["message"]) == (
        400,
        f'container "main" in pod "{name}" is waiting to start: trying and failing to pull image',
    )
    assert ours(standin).log(name) == ""


# --- kubectl ---


def test_kubectl_runs_a_job(standin: StandIn, kubectl: Kubectl) -> None:
    text = yaml.safe_dump(a_job(command="echo index $JOB_COMPLETION_INDEX"))
    out = kubectl("apply", "--server-side", "-f", "-", stdin=text).stdout
    assert out == "job.batch/sweep serverside-applied\n"
    assert kubectl("logs", "-f", "job/sweep").stdout == "index 0\n"
    kubectl("wait", "--for=condition=complete", "job/sweep", "--timeout=20s")
    lines = kubectl("get", "jobs", "-l", "app=x").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE"]
    assert lines[1].split()[:3] == ["sweep", "Complete", "4/4"]
    assert len(kubectl("get", "pods", "-o", "name").stdout.split()) == 4
    assert "Completed Indexes:  0-3" in kubectl("describe", "job", "sweep").stdout
    pod = kubectl("describe", "pod", "-l", "batch.kubernetes.io/job-completion-index=2").stdout
    assert re.search(r"Controlled By: +Job/sweep", pod)
    assert "Scheduled" in pod
    logs = kubectl("logs", "-l", "app=x", "--prefix").stdout
    assert sorted(line.rpartition(" ")[2] for line in logs.splitlines()) == ["0", "1", "2", "3"]
    assert kubectl("delete", "job", "sweep").stdout.startswith('job.batch "sweep" deleted')
    _until(lambda: not standin.objects.list("pods"))


def test_kubectl_changes_a_job(still: StandIn, kubectl_still: Kubectl) -> None:
    kubectl = kubectl_still
    text = yaml.safe_dump(a_job(suspend=True))
    assert "(server dry run)" in kubectl("create", "--dry-run=server", "-f", "-", stdin=text).stdout
    assert still.objects.list("jobs") == []
    kubectl("apply", "-f", "-", stdin=text)
    assert kubectl("apply", "-f", "-", stdin=text).stdout == "job.batch/sweep unchanged\n"
    more = yaml.safe_dump(a_job(suspend=True, parallelism=3))
    assert kubectl("apply", "-f", "-", stdin=more).stdout == "job.batch/sweep configured\n"
    kubectl("label", "job", "sweep", "colour=red")
    kubectl("annotate", "job", "sweep", "note=short")
    kubectl("patch", "job", "sweep", "-p", '{"spec": {"suspend": false}}')
    steps = '[{"op": "replace", "path": "/spec/parallelism", "value": 7}]'
    kubectl("patch", "job", "sweep", "--type=json", "-p", steps)
    job = json.loads(kubectl("get", "job", "sweep", "-o", "json").stdout)
    assert (job["spec"]["suspend"], job["spec"]["parallelism"]) == (False, 7)
    assert job["metadata"]["labels"] == {"app": "x", "colour": "red"}
    assert job["metadata"]["annotations"]["note"] == "short"
    out = kubectl("get", "jobs", "-l", "colour in (red)", "-o", "jsonpath={.items[*].kind}").stdout
    assert out == "Job"
    timed_out = kubectl("wait", "--for=condition=complete", "job/sweep", "--timeout=1s", code=1)
    assert "timed out waiting" in timed_out.stderr
    kubectl("delete", "-f", "-", stdin=text)
    assert still.objects.list("jobs") == []


def test_kubectl_says_what_is_wrong(still: StandIn, kubectl_still: Kubectl) -> None:
    kubectl = kubectl_still
    text = yaml.safe_dump(a_job(completionMod="Indexed"))
    for create in (("apply", "--server-side"), ("apply",), ("create",)):
        said = kubectl(*create, "-f", "-", stdin=text, code=1).stderr
        assert 'unknown field "spec.completionMod"' in said
    text = yaml.safe_dump(a_job(completions=None))
    said = kubectl("create", "-f", "-", stdin=text, code=1).stderr
    assert said.startswith('The Job "sweep" is invalid: spec.completions: Required value')
    text = yaml.safe_dump(a_map())
    kubectl("create", "-f", "-", stdin=text)
    said = kubectl("create", "-f", "-", stdin=text, code=1).stderr
    assert '(AlreadyExists): error when creating "STDIN": configmaps "a" already exists' in said
    assert "(NotFound): jobs.batch" in kubectl("get", "job", "nosuch", code=1).stderr
    still.add_user("kim")
    said = kubectl("get", "pods", context="kim", code=1).stderr
    assert '(Forbidden): pods is forbidden: User "kim" cannot list resource "pods"' in said
    said = kubectl("get", "pods", context="nobody", code=1).stderr
    assert "Unauthorized" in said
    said = kubectl("create", "configmap", "b", "--from-literal=k=v", code=1).stderr
    assert "reads no protobuf" in said


def test_kubectl_makes_secrets_in_protobuf(still: StandIn, kubectl_still: Kubectl) -> None:
    """The form in which typed clients send what they create; helm keeps its releases so."""
    kubectl = kubectl_still
    kubectl("create", "secret", "generic", "s", "--from-literal=k=v", "--from-literal=empty=")
    found = still.objects.get("secrets", "fractal", "s")
    assert found["data"] == {"k": "dg==", "empty": ""}
    assert found["type"] == "Opaque"
    kubectl("delete", "secret", "s")
    assert not still.objects.list("secrets")


def test_kubectl_finds_its_way(still: StandIn, kubectl_still: Kubectl) -> None:
    kubectl = kubectl_still
    assert "Server Version: v1.36.2" in kubectl("version").stdout
    resources = kubectl("api-resources", "--no-headers").stdout
    names = [line.split()[0] for line in resources.splitlines() if "batch/v1" in line]
    assert names == ["cronjobs", "jobs"]
    assert kubectl("get", "--raw", "/readyz").stdout == "ok"
    assert len(kubectl("get", "no", "--no-headers").stdout.splitlines()) == 3
    still.objects.create("pods", a_pod("a"))
    assert kubectl("get", "po", "-A", "--no-headers").stdout.split()[:2] == ["fractal", "a"]


# --- the store ---


def test_stored_objects_are_not_shared() -> None:
    objects = Objects()
    given = a_map()
    made = objects.create("configmaps", given)
    given["data"]["k"] = made["data"]["k"] = "changed"
    assert objects.get("configmaps", "fractal", "a")["data"] == {"k": "v"}
    found = objects.get("configmaps", "fractal", "a")
    version = objects.version
    found["data"]["k"] = "w"
    objects.update("configmaps", found)
    found["data"]["k"] = "x"
    (change,) = [change for change in objects.changes("configmaps", version, 0.1) if change]
    assert change.before is not None
    assert (change.before["data"], change.object["data"]) == ({"k": "v"}, {"k": "w"})


# --- waiting ---


def _until(true: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def _condition(cluster: StandIn, kind: str) -> bool:
    (job,) = cluster.objects.list("jobs")
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(found["type"] == kind for found in conditions)


def _running_pod(cluster: StandIn) -> str:
    def runs() -> list[str]:
        return [
            pod["metadata"]["name"]
            for pod in cluster.objects.list("pods")
            if pod["status"].get("phase") == "Running"
        ]

    _until(runs)
    return runs()[0]
