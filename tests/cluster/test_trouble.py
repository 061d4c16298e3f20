"""What a person is told when something is wrong, and that nothing is left behind."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.place import Place, wait_for
from standin.serving import running

WRONG_KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
Network = Callable[..., Path]


def assert_nothing_left(place: Place) -> None:
    for kind in ("jobs", "configmaps", "pods"):
        assert place.kubectl("get", kind, "-l", "fractal-k8s.io/sweep", "-o", "name") == ""


def test_an_image_that_cannot_be_pulled_is_seen_within_a_minute(
    place: Place, network: Network
) -> None:
    image = "registry.invalid/missing:1"
    began = time.monotonic()
    sent = place.launch(network("no-image"), "--points-per-index", "32", "--image", image)
    text = wait_for("a word about the image", lambda: said(place, sent["sweep"], image), 60)
    assert time.monotonic() - began < 60
    assert "pull" in text
    assert "Traceback" not in text


def said(place: Place, sweep_id: str, word: str) -> str | None:
    told = place.cli("status", sweep_id).stdout
    return told if word in told else None


def test_corrupt_weights_end_the_job_with_their_message(
    place: Place, language_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Exit code 65 is the same for every shard: no retry, and status says why."""
    place.only_standin("the claim with the weights would have to be damaged")
    weights = next((tmp_path / "claims/model").rglob("model_*.pt"))
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    weights.write_bytes(damaged)
    sent = place.launch(language_model("damaged", size=4), "--points-per-index", "4")
    name: str = sent["sweep"]
    place.kubectl("wait", "--for=condition=failed", "--timeout=120s", f"job/{name}")
    conditions = place.get("job", name)["status"]["conditions"]
    assert "PodFailurePolicy" in [condition.get("reason") for condition in conditions]
    told = place.cli("status", name).stdout
    assert "weights or data are damaged" in told
    assert "its sha256 is" in told


@pytest.fixture
def refusing() -> Iterator[str]:
    """An S3 server that knows nobody."""

    class Refusing(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            code = "InvalidAccessKeyId" if self.headers.get("Authorization") else "AccessDenied"
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Refusing)) as url:
        yield url


def test_a_store_that_refuses_the_keys_stops_the_launch(
    place: Place, network: Network, refusing: str
) -> None:
    place.settings["store"] = f"s3://fractal/x?endpoint={refusing}"
    place.variables = {**place.variables, **WRONG_KEYS}
    refused = place.cli("launch", network("refused"), "--site", place.site, code=2)
    assert "s3://fractal/x cannot be read" in refused.stderr
    assert "invalid access key id" in refused.stderr
    assert not any(value in refused.stderr for value in WRONG_KEYS.values())
    assert_nothing_left(place)


def test_pods_that_the_store_refuses_are_explained(
    place: Place, network: Network, refusing: str
) -> None:
    """Whoever launches has no keys; those of the pods are wrong."""
    standin = place.only_standin("it needs a store that refuses pods")
    secret = standin.objects.get("secrets", place.namespace, "store-keys")
    encoded = {name: b64encode(key.encode()).decode() for name, key in WRONG_KEYS.items()}
    standin.objects.update("secrets", {**secret, "data": encoded})
    place.settings["store"] = f"s3://fractal/x?endpoint={refusing}"
    place.variables = {"AWS_EC2_METADATA_DISABLED": "true", **dict.fromkeys(WRONG_KEYS, "")}
    sweep = network("refused")
    sent = place.launch(sweep, "--points-per-index", "64", "--job", "retries_per_index=0")
    name: str = sent["sweep"]
    place.kubectl("wait", "--for=condition=failed", "--timeout=120s", f"job/{name}")
    told = place.cli("status", name).stdout
    assert "exit code 75" in told
    assert "check the credentials" in told
    assert not any(value in told for value in WRONG_KEYS.values())


def test_everything_that_is_missing_is_named_at_once(place: Place, network: Network) -> None:
    place.settings |= {"store_secret": "no-such-keys", "store_claim": "no-such-claim"}
    place.settings |= {"store": "/store/runs", "priority_class": "no-such-class"}
    refused = place.cli("launch", network("lacking"), "--site", place.site, code=2)
    for name in ("no-such-keys", "no-such-claim", "no-such-class"):
        assert name in refused.stderr
    assert_nothing_left(place)


def test_an_unknown_context_lists_the_known_ones(place: Place, network: Network) -> None:
    known, place.context = place.context, "nowhere"
    refused = place.cli("launch", network("lost"), "--site", place.site, code=2)
    assert "nowhere" in refused.stderr
    assert known in refused.stderr
