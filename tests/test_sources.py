"""Where weights come from: W&B, the hub, buckets and folders, fetched once and verified."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from werkzeug import Response

from conftest import Run
from faults import Fault, FaultyProxy
from fractal_k8s import caches, sealed
from fractal_k8s.checkpoints import bucket_source, filling, wandb_source
from fractal_k8s.checkpoints.files import find_checkpoint
from fractal_k8s.checkpoints.filling import add_file, fill
from fractal_k8s.checkpoints.layout import model_layout
from fractal_k8s.checkpoints.listing import Blob
from fractal_k8s.checkpoints.sources import list_source, model_goods
from fractal_k8s.checkpoints.standin import save_encoding, stand_in_encoding
from fractal_k8s.errors import (
    EXIT_CORRUPT,
    CorruptError,
    FractalError,
    RetryError,
    SweepError,
    UsageError,
    first_line,
)
from fractal_k8s.references import parse_reference
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.definition import Sweep
from standin.weights import COMMIT, Weights, serving

MODEL = "checkpoints/model_000300.pt"


def quiet(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[Weights]:
    with serving() as weights:
        yield weights


@pytest.fixture
def weights(
    server: Weights, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Weights:
    """W&B's team/llm/sft:v7 and the hub's team/d4@main, both the golden model."""
    server.versions = {"v7": model, "latest": model}
    server.revisions, server.commits = {"main": COMMIT}, {COMMIT: model}
    server.asked.clear()
    server.spoil = lambda path, data: data
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


@pytest.fixture
def model(golden: Path, tmp_path: Path) -> Path:
    """A folder with nothing but a model in it."""
    folder = tmp_path / "source"
    for name in ("checkpoints", "tokenizer"):
        shutil.copytree(golden / name, folder / name)
    return folder


@pytest.fixture
def bucket(s3_client: Any, model: Path) -> Callable[[], Any]:
    """A bucket with the golden model below d4/."""
    s3_client.create_bucket(Bucket="models")
    for path in model.rglob("*"):
        if path.is_file():
            s3_client.upload_file(str(path), "models", f"d4/{path.relative_to(model)}")
    return lambda: s3_client


# --- references ---


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        pytest.param("wandb:team/llm/sft:v7", True, id="numbered artifact"),
        pytest.param("wandb:team/llm/sft:latest", False, id="alias"),
        pytest.param(f"hf:team/d4@{COMMIT}", True, id="commit"),
        pytest.param(f"hf:team/d4@{COMMIT}:base/d4", True, id="commit and folder"),
        pytest.param("hf:gpt2@main", False, id="branch"),
        pytest.param("s3://bucket/models/d4", False, id="objects"),
        pytest.param("s3://bucket/d4@0123456789ab?endpoint=http://x", True, id="their content"),
        pytest.param("s3://bucket/d{depth}", False, id="with a depth"),
    ],
)
def test_a_reference_is_read_and_written(text: str, exact: bool) -> None:
    reference = parse_reference(text)
    assert reference is not None
    assert reference.text == text
    assert reference.is_exact == exact


@pytest.mark.parametrize("text", ["models/d20", "/models/d20", "pretrained:tiny", "gs://b/x"])
def test_other_texts_are_no_references(text: str) -> None:
    assert parse_reference(text) is None


@pytest.mark.parametrize(
    "text", ["wandb:team/sft:v7", "wandb:team/llm/sft", "hf:team/d4", "hf:@main", "s3://"]
)
def test_half_a_reference_is_refused_with_its_form(text: str, gpt_sweep: Any) -> None:
    with pytest.raises(UsageError, match="such as"):
        parse_reference(text)
    with pytest.raises(SweepError, match=r"checkpoint: .* such as"):
        gpt_sweep(checkpoint=text)


# --- the three places ---


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        pytest.param("wandb:team/llm/sft:latest", "wandb:team/llm/sft:v7", id="wandb"),
        pytest.param("hf:team/d4@main", f"hf:team/d4@{COMMIT}", id="hub"),
    ],
)
def test_what_moves_is_resolved_fetched_and_verified(
    given: str, exact: str, weights: Weights, golden: Path, tmp_path: Path
) -> None:
    seal = fill(tmp_path / "model", model_goods(given), quiet)
    assert (seal.source, seal.resolved) == (given, exact)
    assert seal.digest == find_checkpoint(golden).digest()
    assert find_checkpoint(tmp_path / "model").digest() == seal.digest
    assert not sealed.damage(tmp_path / "model", seal)
    assert json.loads((tmp_path / "model/READY").read_text()) == seal.ready
    before = weights.downloads()
    assert fill(tmp_path / "model", model_goods(given), quiet) == seal
    assert weights.downloads() == before  # nothing was fetched twice


@pytest.mark.parametrize(
    ("place", "name", "first", "second"),
    [
        pytest.param("wandb:team/llm/sft:", "latest", "v7", "v8", id="wandb"),
        pytest.param("hf:team/d4@", "main", COMMIT, "d" * 40, id="hub"),
    ],
)
def test_what_has_moved_between_two_fills_is_refused(
    place: str, name: str, first: str, second: str, weights: Weights, model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    seal = fill(home, model_goods(place + name), quiet)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    meta = other / "checkpoints/meta_000300.json"
    meta.write_text(meta.read_text().replace("300", "301"))
    weights.versions |= {"v8": other, "latest": other}
    weights.revisions, weights.commits["d" * 40] = {"main": "d" * 40}, other
    with pytest.raises(UsageError, match=f"holds {place}{first}, not {place}{second}, and"):
        fill(home, model_goods(place + name), quiet)
    assert fill(home, model_goods(place + first), quiet) == seal
    assert fill(home, model_goods(place + name), quiet, replace=True).resolved == place + second


def test_an_object_that_changes_while_it_is_read_is_named(
    bucket: Callable[[], Any], model: Path, tmp_path: Path
) -> None:
    goods = model_goods("s3://models/d4")
    data = bytearray((model / MODEL).read_bytes())
    data[999] ^= 1
    bucket().put_object(Bucket="models", Key=f"d4/{MODEL}", Body=bytes(data))
    with pytest.raises(CorruptError, match=f"{MODEL} was changed while it was read"):
        fill(tmp_path / "model", goods, quiet)
    assert not (tmp_path / "model").exists()


def test_a_bucket_is_resolved_to_what_its_objects_hold(
    bucket: Callable[[], Any], golden: Path, tmp_path: Path
) -> None:
    seal = fill(tmp_path / "model", model_goods("s3://models/d4"), quiet)
    assert seal.digest == find_checkpoint(golden).digest()
    assert seal.resolved.startswith("s3://models/d4@")
    assert list_source(seal.resolved).exact == seal.resolved
    bucket().put_object(Bucket="models", Key=f"d4/{MODEL}", Body=b"other weights")
    with pytest.raises(UsageError, match="have changed since"):
        list_source(seal.resolved)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("wandb:team/llm/sft:v9", "no such artifact.*WANDB_API_KEY", id="version"),
        pytest.param("wandb:team/other/sft:v7", "no such artifact", id="project"),
        pytest.param("hf:team/nothing@main", "no such repository.*HF_TOKEN", id="repository"),
        pytest.param("hf:team/d4@v2", "no revision 'v2'", id="revision"),
        pytest.param("s3://models/nothing", "holds nothing|no such", id="prefix"),
        pytest.param("s3://nowhere/d4", "no such bucket|holds nothing", id="bucket"),
        pytest.param("s3://models/d4?endpont=x", "unknown option endpont", id="option"),
        pytest.param("gs://models/d4", "no source 'gs' is known", id="scheme"),
        pytest.param("nowhere", "no such folder", id="folder"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(
    text: str, words: str, weights: Weights, bucket: Callable[[], Any]
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        list_source(text)
    assert "\n" not in str(caught.value)
    assert "k" * 40 not in str(caught.value)


def test_keys_are_asked_for_by_name(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    command = f"-m fractal_k8s cache fill --root {tmp_path}/cache --model wandb:team/llm/sft:v7"
    done = subprocess.run(  # wandb keeps a key for as long as a process lives
        [sys.executable, *command.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "set WANDB_API_KEY" in done.stderr
    weights.spoil = lambda path, data: Response("", 403)
    with pytest.raises(UsageError, match="HF_TOKEN"):
        fill(tmp_path / "model", model_goods("hf:team/d4@main"), quiet)


def test_no_network_is_told_apart_from_no_model(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(wandb_source, "_TIMEOUT_S", 1)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for text in ("hf:team/d4@main", "wandb:team/llm/sft:latest"):
        with pytest.raises(RetryError, match=text):
            list_source(text)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UsageError, match="WANDB_MODE"):
        list_source("wandb:team/llm/sft:latest")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
        list_source("hf:team/d4@main")


@pytest.mark.parametrize("source", ["wandb:team/llm/sft:v7", "hf:team/d4@main"])
def test_trouble_that_passes_is_waited_for(source: str, weights: Weights, tmp_path: Path) -> None:
    left = [1, 1]

    def spoil(path: str, data: bytes) -> Response | bytes:
        if path == MODEL and left:
            left.pop()
            return data[:1000]  # a body that was cut short
        return data

    weights.spoil = spoil
    seal = fill(tmp_path / "model", model_goods(source), quiet)
    assert not left
    assert not sealed.damage(tmp_path / "model", seal)


@pytest.mark.parametrize("kind", ["cut", "reset", "slow down"])
def test_trouble_of_a_bucket_that_passes_is_waited_for(
    kind: str,
    bucket: Callable[[], Any],
    moto: str,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FaultyProxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        goods = model_goods("s3://models/d4")
        proxy.faults = [Fault(kind, count=2, method="GET", path=MODEL)]
        seal = fill(tmp_path / "model", goods, quiet)
    assert proxy.met == [kind] * 2
    assert seal.digest == find_checkpoint(golden).digest()
    assert not sealed.damage(tmp_path / "model", seal)


@pytest.mark.parametrize("source", ["wandb:team/llm/sft:v7", "hf:team/d4@main"])
def test_a_flipped_byte_on_the_way_is_found(source: str, weights: Weights, tmp_path: Path) -> None:
    weights.spoil = lambda path, data: (
        data[:999] + bytes([data[999] ^ 1]) + data[1000:] if path == MODEL else data
    )
    with pytest.raises(CorruptError, match=f"{MODEL} arrives damaged"):
        fill(tmp_path / "model", model_goods(source), quiet)
    assert sealed.read_ready(tmp_path / "model") is None
    weights.spoil = lambda path, data: data
    assert fill(tmp_path / "model", model_goods(source), quiet).digest


@pytest.mark.parametrize(
    "text",
    [
        "s3://KEY:secret/with/it@bucket/d4",
        "s3://secret@bucket/d4",
        "s3://bucket/d4?access_key=KEY&secret_key=secret",
        "s3://bucket/d4?endpoint=http://me:secret@127.0.0.1:9",
        "s3://bucket/d4?endpoint=http%3A%2F%2Fsecret%40host",
    ],
)
def test_a_key_in_a_bucket_s_uri_is_refused_and_never_shown(text: str, gpt_sweep: Any) -> None:
    tries: list[Callable[[], object]] = [
        lambda: parse_reference(text),
        lambda: gpt_sweep(checkpoint=text),
        lambda: Store(text),
    ]
    for attempt in tries:
        with pytest.raises(UsageError, match=r"holds what looks like a key|unknown option") as seen:
            attempt()
        assert "secret" not in str(seen.value).replace("secret_key", "")


def test_a_bucket_named_alone_with_its_content_holds_no_key() -> None:
    reference = parse_reference("s3://bucket@0123456789ab?endpoint=http://127.0.0.1:9")
    assert reference is not None
    assert (reference.place, reference.uri) == ("bucket", "s3://bucket?endpoint=http://127.0.0.1:9")


def test_what_signs_an_address_is_not_shown() -> None:
    error = OSError("Max retries exceeded with url: /weights.pt?X-Amz-Signature=abc (Caused by x)")
    assert first_line(error) == "Max retries exceeded with url: /weights.pt?... (Caused by x)"


@pytest.mark.parametrize("status", [401, 403])
def test_weights_that_w_and_b_refuses_are_not_asked_for_again(
    status: int, weights: Weights, tmp_path: Path
) -> None:
    weights.spoil = lambda path, data: Response("", status)
    with pytest.raises(UsageError, match=f"may not be read.*{status}.*set WANDB_API_KEY"):
        fill(tmp_path / "model", model_goods("wandb:team/llm/sft:v7"), quiet)
    assert len(weights.downloads()) == 1


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("timeout while asking for team/llm/sft-404:v7", RetryError),
        ("bad answer of /artifacts/ab403cd/model.pt", RetryError),
        ("HTTP 404: nothing", UsageError),
        ("HTTP 403", UsageError),
        ("permission denied to access team/llm", UsageError),
    ],
)
def test_a_number_in_a_name_is_no_status(said: str, kind: type[FractalError]) -> None:
    reference = parse_reference("wandb:team/llm/sft-404:v7")
    assert reference is not None
    with pytest.raises(kind), wandb_source._translated(reference):
        raise RuntimeError(said)


@pytest.mark.parametrize("name", ["d403", "credentials"])
def test_a_bucket_that_is_away_is_not_one_that_refuses(name: str) -> None:
    reference = parse_reference(f"s3://models/{name}")
    assert reference is not None
    with pytest.raises(RetryError), bucket_source._translated(reference):
        raise OSError(f"When getting key '{name}': AWS Error NETWORK_CONNECTION during HeadObject")


def test_trouble_that_lasts_is_not_waited_for_without_end(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(filling, "_MOST_S", 0.0)
    goods = model_goods("hf:team/d4@main")
    weights.spoil = lambda path, data: Response("", 503)
    tries = []

    def get(blob: Blob, target: Path) -> None:
        tries.append(blob.path)
        raise RetryError("503")

    listing = replace(goods.listing, get=get)
    with pytest.raises(RetryError):
        fill(tmp_path / "model", replace(goods, listing=listing), quiet)
    assert len(tries) == 1


# --- which files ---


def test_the_newest_step_is_taken_and_nothing_else() -> None:
    paths = [
        f"checkpoints/{kind}_{step:06d}{end}"
        for step in (60, 466)
        for kind, end in (("model", ".pt"), ("meta", ".json"), ("optim", "_rank0.pt"))
    ]
    layout = model_layout([*paths, "tokenizer/tokenizer.pkl", "report/report.md"], "x")
    assert layout == {
        "checkpoints/model_000466.pt": "checkpoints/model_000466.pt",
        "checkpoints/meta_000466.json": "checkpoints/meta_000466.json",
        "tokenizer/tokenizer.pkl": "tokenizer/tokenizer.pkl",
    }
    flat = model_layout(["model_000650.pt", "meta_000650.json", "tokenizer.pkl"], "x")
    assert flat["checkpoints/model_000650.pt"] == "model_000650.pt"
    assert flat["tokenizer/tokenizer.pkl"] == "tokenizer.pkl"
    nanochat = ["chatsft_checkpoints/d4/model_000001.pt", "chatsft_checkpoints/d4/meta_000001.json"]
    assert len(model_layout([*nanochat, "tokenizer/tokenizer.pkl"], "x")) == 3


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        pytest.param("readme.md", "holds no model_<step>.pt", id="no model"),
        pytest.param("model_000001.pt tokenizer.pkl", "no meta_000001.json", id="no meta"),
        pytest.param("a/model_000001.pt b/model_000001.pt", "several checkpoints", id="several"),
        pytest.param(
            "checkpoints/model_000001.pt checkpoints/meta_000001.json",
            "only with the tokenizer that they were trained with",
            id="no tokenizer",
        ),
    ],
)
def test_half_a_checkpoint_is_refused(paths: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model_layout(paths.split(), "hf:team/d4@main")


def test_a_tokenizer_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    save_encoding(stand_in_encoding(300), model / "tokenizer")
    with pytest.raises(CorruptError, match="300 tokens"):
        fill(tmp_path / "model", model_goods(str(model)), quiet)
    assert sealed.read_ready(tmp_path / "model") is None


def test_weights_that_were_cut_short_at_the_source_are_refused(model: Path, tmp_path: Path) -> None:
    weights = model / MODEL
    weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(CorruptError, match="damaged or truncated") as caught:
        fill(tmp_path / "model", model_goods(str(model)), quiet)
    assert f": {MODEL}: damaged" in str(caught.value)
    assert not (tmp_path / "model").exists()


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_weights_that_would_run_something_are_refused_by_the_fill(
    model: Path, tmp_path: Path
) -> None:
    torch.save({"x": Evil(tmp_path / "ran")}, model / MODEL)
    with pytest.raises(CorruptError, match="holds more than tensors"):
        fill(tmp_path / "model", model_goods(str(model)), quiet)
    assert sealed.read_ready(tmp_path / "model") is None
    assert not (tmp_path / "ran").exists()


def test_weights_of_a_newer_nanochat_are_refused_by_the_fill(model: Path, tmp_path: Path) -> None:
    torch.save({"resid_lambdas": torch.full((4,), 0.5)}, model / MODEL)
    with pytest.raises(CorruptError, match="newer nanochat"):
        fill(tmp_path / "model", model_goods(str(model)), quiet)


@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_one_of_several_models_has_the_tokenizer_above_it(
    kind: str, weights: Weights, golden: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    for stage in ("base", "chatsft"):
        shutil.copytree(golden / "checkpoints", base / f"{stage}_checkpoints/d4")
    shutil.copytree(golden / "tokenizer", base / "tokenizer")
    weights.commits = {COMMIT: base}
    whole, folder = ("hf:team/d4@main", ":chatsft_checkpoints/d4")
    if kind == "folder":
        whole, folder = str(base), "/chatsft_checkpoints/d4"
    with pytest.raises(UsageError, match="several checkpoints"):
        model_goods(whole)
    seal = fill(tmp_path / "model", model_goods(whole + folder), quiet)
    assert seal.digest == find_checkpoint(golden).digest()
    assert seal.digest == find_checkpoint(base / "chatsft_checkpoints/d4").digest()


def test_a_folder_with_all_files_side_by_side_is_a_checkpoint(golden: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(golden / "checkpoints", flat)
    shutil.copytree(golden / "tokenizer", flat, dirs_exist_ok=True)
    assert find_checkpoint(flat).digest() == find_checkpoint(golden).digest()


def test_only_the_folders_of_models_are_looked_into(model: Path, monkeypatch: Any) -> None:
    before = list_source(str(model))
    deep = model / "homes/of/others"
    deep.mkdir(parents=True)
    (deep / "model_000999.pt").write_bytes(b"x")
    (model / "notes.txt").write_text("x")
    (model / "gone").symlink_to("nowhere")
    monkeypatch.setattr(Path, "rglob", None)
    after = list_source(str(model))
    assert after.exact == before.exact
    assert [*after.blobs] == [*before.blobs]


def test_a_source_that_is_away_is_asked_again_and_then_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said: list[str] = []
    with pytest.raises(RetryError, match=r"check the network and its proxy \(HTTPS_PROXY\)"):
        caches.fill_model(tmp_path / "c", "hf:team/d4@main", said.append)
    assert [line.rpartition("; ")[2] for line in said] == ["trying again in 0 s"] * 3
    assert not (tmp_path / "c").exists()


# --- filling ---


def test_a_folder_that_holds_another_model_is_left_alone(
    model: Path, golden: Path, tmp_path: Path
) -> None:
    home = tmp_path / "model"
    first = fill(home, model_goods(str(model)), quiet)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    with pytest.raises(UsageError, match="workers may be reading it"):
        fill(home, model_goods(str(other)), quiet)
    assert sealed.read_whole(home) == first
    (home / "checkpoints/model_000999.pt").write_bytes(b"x")  # which would be the newest
    seal = fill(home, model_goods(str(other)), quiet, replace=True)
    assert seal.source == str(other)
    assert find_checkpoint(home).step == 300


def test_a_source_whose_times_have_changed_is_the_same_one(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "model"
    first = fill(home, model_goods(str(model)), quiet)
    weights = next(model.rglob("model_*.pt"))
    os.utime(weights, (1, 1))
    assert model_goods(str(model)).listing.exact != first.resolved
    assert fill(home, model_goods(str(model)), quiet) == first
    sealed_weights = next(home.rglob("model_*.pt"))
    sealed_weights.write_bytes(bytes(sealed_weights.stat().st_size))  # damaged: mended all the same
    assert fill(home, model_goods(str(model)), quiet).files == first.files
    assert sealed_weights.read_bytes() == weights.read_bytes()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UsageError, match="workers may be reading it"):
        fill(home, model_goods(str(model)), quiet)


def test_files_that_nobody_has_sealed_are_not_mixed_in(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "model"
    (home / "checkpoints").mkdir(parents=True)
    (home / "checkpoints/model_000999.pt").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no fill has put there.*model_000999\.pt"):
        fill(home, model_goods(str(model)), quiet)
    shutil.rmtree(home)
    home.mkdir()
    (home / "READY").touch()
    with pytest.raises(UsageError, match="filled by other means"):
        fill(home, model_goods(str(model)), quiet)


FILL = """
import sys
from pathlib import Path
from fractal_k8s.checkpoints.filling import fill
from fractal_k8s.checkpoints.listing import Listing
from fractal_k8s.checkpoints.filling import Goods
from fractal_k8s.checkpoints.sources import model_goods
import dataclasses, time
goods = model_goods(sys.argv[1])
def slow(blob, target):
    goods.listing.get(blob, target)
    print("got", blob.path, flush=True)
    time.sleep(float(sys.argv[3]))
listing = dataclasses.replace(goods.listing, get=slow)
seal = fill(Path(sys.argv[2]), dataclasses.replace(goods, listing=listing), print)
print("digest", seal.digest)
"""


def filling_process(model: Path, home: Path, pause: float, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FILL, str(model), str(home), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_processes_that_fill_at_once_fetch_once(model: Path, golden: Path, tmp_path: Path) -> None:
    processes = [filling_process(model, tmp_path / "model", 0.05) for _ in range(3)]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    digest = find_checkpoint(golden).digest()
    assert all(f"digest {digest}" in output for output in outputs)
    assert "".join(outputs).count(f"got {MODEL}") == 1


def test_who_waited_for_a_fill_that_came_to_nothing_fills(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "a/model"
    with contextlib.suppress(KeyboardInterrupt), sealed.being_filled(home, quiet):
        process = filling_process(model, home, 0)
        assert process.stdout is not None
        assert "waiting for another process" in process.stdout.readline()
        raise KeyboardInterrupt
    assert "digest" in process.communicate(timeout=240)[0]
    assert sealed.read_whole(home) is not None
    assert (home / sealed.LOCK).exists()


def test_a_fill_that_is_killed_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "model"
    process = filling_process(model, home, 0.3)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("got checkpoints/meta"):  # the weights are in, the rest is not
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()
    assert sealed.read_whole(home) is None
    output = filling_process(model, home, 0).communicate(timeout=240)[0]
    assert f"got {MODEL}" not in output
    assert "digest" in output
    seal = sealed.read_whole(home)
    assert seal is not None
    assert not sealed.damage(home, seal)
    assert not [path.name for path in home.rglob("*") if "-" in path.name]  # no leftovers


# processes that fill one folder again and again, each killed after a while
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from fractal_k8s import sealed
from fractal_k8s.checkpoints import nanochat
from fractal_k8s.checkpoints.filling import add_file, fill
from fractal_k8s.checkpoints.sources import model_goods
source, home, rng = sys.argv[1], Path(sys.argv[2]), random.Random(0)
for _ in range(2):  # the first one loads libraries
    began = time.monotonic()
    fill(home, model_goods(source), lambda line: None, replace=True)
    whole = time.monotonic() - began
for _ in range(30):
    child = os.fork()
    while child == 0:
        fill(home, model_goods(source), lambda line: None, replace=True)
        add_file(home, "more.npz", lambda path: path.write_bytes(bytes(10**7)))
    time.sleep(rng.uniform(0, 1.5 * whole))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seal = sealed.read_whole(home)
    broken = {} if seal is None else sealed.damage(home, seal)
    leavings = [*home.glob(f"{sealed.PART}*"), *home.glob(f"{sealed.FILLING}*")]
    print("torn" if broken else "ready" if seal else "not ready", len(leavings))
"""


def test_killed_thirty_times_it_ends_right_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "model"
    command = [sys.executable, "-c", KILLED, str(model), str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rounds = [line.rsplit(maxsplit=1) for line in done.stdout.splitlines()]
    assert len(rounds) == 30, done.stderr
    assert "ready" in {state for state, _ in rounds} <= {"ready", "not ready"}
    assert max(int(leavings) for _, leavings in rounds) <= 2  # those of the last one
    fill(home, model_goods(str(model)), quiet, replace=True)
    # one that was killed between laying it there and sealing it leaves the file to the next one
    seal = add_file(home, "more.npz", lambda path: path.touch())
    assert not sealed.damage(home, seal)
    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert left == {*seal.files, sealed.MANIFEST, sealed.READY, sealed.LOCK}


def test_killed_at_any_moment_it_is_never_ready_too_soon(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "model"
    process = filling_process(model, home, 0.02)
    seen = threading.Event()

    def watch() -> None:
        while process.poll() is None:
            if (home / "READY").exists():
                seal = sealed.read_seal(home)
                assert seal is not None
                if sealed.damage(home, seal):
                    seen.set()
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    process.communicate(timeout=240)
    thread.join()
    assert not seen.is_set()
    assert sealed.read_whole(home) is not None


def test_a_disk_that_is_full_is_told_and_the_rest_taken_up_later(
    model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "model"

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    process = filling_process(model, home, 0, preexec_fn=limited)
    errors = process.communicate(timeout=240)[1]
    assert "the disk is full" in errors
    assert sealed.read_whole(home) is None
    assert fill(home, model_goods(str(model)), quiet).digest


def test_a_disk_that_fills_up_costs_no_model_that_was_there(
    model: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = tmp_path / "model", tmp_path / "other"
    first = fill(home, model_goods(str(model)), quiet)
    shutil.copytree(model, other)
    write = sealed.write_whole

    def full(path: Path, text: str) -> None:
        if path.name in (sealed.MANIFEST, sealed.READY):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(sealed, "write_whole", full)
    with pytest.raises(UsageError, match="the disk is full"):
        fill(home, model_goods(str(other)), quiet, replace=True)
    assert sealed.read_whole(home) == first
    assert not sealed.damage(home, first)
    monkeypatch.undo()
    assert fill(home, model_goods(str(other)), quiet, replace=True).source == str(other)


LOCKLESS = "import errno, fcntl\ndef flock(*a):\n    raise OSError(errno.ENOSYS, 'none')\n"
LOCKLESS += "fcntl.flock = flock\n"


def test_processes_fill_at_once_where_there_are_no_locks(
    model: Path, golden: Path, tmp_path: Path
) -> None:
    home = tmp_path / "model"
    old = home / f"{sealed.FILLING}0123456789-ffff"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    command = [sys.executable, "-c", LOCKLESS + FILL, str(model), str(home), "0.05"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(4)
    ]
    digest = find_checkpoint(golden).digest()
    for process in processes:
        output = process.communicate(timeout=240)[0]
        assert f"digest {digest}" in output, output
    seal = sealed.read_whole(home)
    assert seal is not None
    assert not sealed.damage(home, seal)
    assert not [*home.glob(f"{sealed.FILLING}*")]


def test_room_is_looked_for_before_anything_is_fetched(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(UsageError, match="are to come and"):
        fill(tmp_path / "model", model_goods(str(model)), quiet)


def test_a_folder_that_cannot_be_written_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be filled"):
        fill(tmp_path / "file/model", model_goods(str(model)), quiet)


# --- sweeps ---

SWEEP = """
name = "tuned"
model = "gpt"
dataset = "conversations:FILE"
resolution = [1, 2]
[axes.y]
knob = "matrix_lr"
values = [0.01]
[axes.x]
knob = "unembedding_lr"
low = 1e-3
high = 1e-1
[training]
tokens = 400
batch_size = 2
max_seq_len = 100
allow_repeats = true
[verdict]
window = 1
"""


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        pytest.param("wandb:team/llm/sft:latest", "wandb:team/llm/sft:v7", id="wandb"),
        pytest.param("hf:team/d4@main", f"hf:team/d4@{COMMIT}", id="hub"),
        pytest.param("s3://models/d4", "s3://models/d4@", id="bucket"),
    ],
)
def test_a_sweep_is_launched_from_a_reference_and_stored_with_what_it_meant(
    given: str,
    exact: str,
    run: Run,
    weights: Weights,
    bucket: Callable[[], Any],
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FRACTAL_K8S_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tuned.toml").write_text(SWEEP.replace("FILE", f"{golden}/conversations.jsonl"))
    run("plan", "tuned.toml", "--checkpoint", given)  # fetches nothing
    assert not (tmp_path / "cache").exists()
    launch = ("launch", "tuned.toml", "--backend", "inline", "--json", "--checkpoint")
    sweep_id = json.loads(run(*launch, given).stdout)["sweep"]
    stored = json.loads((tmp_path / "runs" / sweep_id / "sweep.json").read_text())
    spec = stored.get("sweep", stored)
    assert spec["checkpoint"].startswith(exact)
    assert spec["checkpoint_digest"] == find_checkpoint(golden).digest()
    # from now on nobody is asked: an exact reference is in the cache
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    again = json.loads(run(*launch, spec["checkpoint"]).stdout)["sweep"]
    assert again == sweep_id
    # and it is the same sweep as one of a folder with the same files
    assert json.loads(run(*launch, str(golden)).stdout)["sweep"] == sweep_id


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        pytest.param("docvqa@v1", "fetch it with `fractal-k8s data download", id="hub"),
        pytest.param("conversations:nothing.jsonl", "no such file", id="file"),
    ],
)
def test_data_are_looked_for_before_weights_are_fetched(
    dataset: str, words: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRACTAL_K8S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is asked
    for checkpoint in ("hf:team/d4@main", "pretrained:tiny"):
        launch = ("launch", "--preset", "tiny", "--checkpoint", checkpoint, "--dataset", dataset)
        assert words in run(*launch, code=2).output
    assert not (tmp_path / "cache").exists()


def test_a_fetched_copy_that_has_changed_is_not_trained_on(
    run: Run,
    weights: Weights,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FRACTAL_K8S_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tuned.toml").write_text(SWEEP.replace("FILE", f"{golden}/conversations.jsonl"))
    launch = ("launch", "tuned.toml", "--backend", "inline", "--checkpoint", "hf:team/d4@main")
    run(*launch)
    [meta] = (tmp_path / "cache").rglob("meta_000300.json")
    text = meta.read_text()
    meta.write_text(text.replace(" ", "\n", 1))
    assert len(meta.read_text()) == len(text) != 0
    said = run(*launch, code=EXIT_CORRUPT).output
    assert "has changed since it was fetched; remove that folder" in said
    shutil.rmtree(meta.parent.parent)
    run(*launch)


def test_on_a_cluster_a_reference_is_told_apart_from_what_the_claim_holds(
    weights: Weights, gpt_sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fractal_k8s.dispatch import tie

    monkeypatch.setenv("FRACTAL_K8S_CACHE", str(tmp_path / "cache"))
    sweep, notes = tie(gpt_sweep(checkpoint="wandb:team/llm/sft:latest"))
    assert sweep.spec.checkpoint == "wandb:team/llm/sft:v7"
    assert sweep.spec.checkpoint_digest is None
    assert any("wandb:team/llm/sft:latest is wandb:team/llm/sft:v7 now" in note for note in notes)
    assert any("claim must hold wandb:team/llm/sft:v7" in note for note in notes)
    assert not weights.downloads()
    sweep, notes = tie(gpt_sweep(checkpoint="hf:team/d5@main"))
    assert sweep.spec.checkpoint == "hf:team/d5@main"
    assert any("the cluster's claim decides" in note for note in notes)


def test_models_of_several_depths_need_a_reference_that_stays(gpt_sweep: Any) -> None:
    from fractal_k8s.train.pretrained import provide_for

    sweep: Sweep = gpt_sweep("training.depth=4", checkpoint="wandb:team/llm/d{depth}:latest")
    with pytest.raises(UsageError, match="stays the same"):
        provide_for(sweep, quiet)


def test_a_worker_fetches_nothing(gpt_sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fractal_k8s.train.materials import checkpoint_folder

    monkeypatch.setenv("FRACTAL_K8S_CACHE", os.devnull)
    with pytest.raises(UsageError, match="not in this machine's cache"):
        checkpoint_folder(gpt_sweep(checkpoint="wandb:team/llm/sft:v7"))
    with pytest.raises(FractalError, match="may mean another model tomorrow"):
        checkpoint_folder(gpt_sweep(checkpoint="wandb:team/llm/sft:latest"))
