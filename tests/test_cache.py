"""The cache that workers read: filled once, told, compared, copied to a pod's own disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from conftest import Run
from fractal_k8s import caches, sealed
from fractal_k8s.checkpoints import filling
from fractal_k8s.checkpoints.files import find_checkpoint
from fractal_k8s.checkpoints.mounted import refuse_other_model, staged
from fractal_k8s.checkpoints.tokenizer import load_tokenizer
from fractal_k8s.data.conversations import read_rows
from fractal_k8s.data.splits import written
from fractal_k8s.data.tokens import load_tokens, save_tokens, tokens_name
from fractal_k8s.errors import EXIT_CORRUPT, EXIT_SETTINGS, CorruptError, UsageError
from fractal_k8s.manifest import labels
from fractal_k8s.sealed import Seal, file_sha256
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.materials import read_dataset
from rendering import VERSIONS, insecurities_of
from standin.cluster import StandIn
from standin.fixtures import Commands, Kubectl, kubectl_on
from standin.hub import COMMIT, Hub


def quiet(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_WAIT_S", 0.01)


@pytest.fixture
def root(golden: Path, tmp_path: Path) -> Path:
    """A filled cache of the golden model and its conversations."""
    folder = tmp_path / "cache"
    caches.fill_model(folder, str(golden), quiet)
    caches.fill_dataset(folder, f"conversations:{golden}/conversations.jsonl", quiet)
    caches.keep_tokens(folder, quiet)
    return folder


def flip(path: Path, place: int = 500) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


# --- the commands ---


def test_fill_says_what_it_fetched_and_the_second_time_does_nothing(
    run: Run, golden: Path, tmp_path: Path
) -> None:
    fill = ["cache", "fill", "--root", "cache", "--model", str(golden)]
    fill += ["--dataset", f"conversations:{golden}/conversations.jsonl"]
    first = run(*fill).output
    assert "cache/model: ready, 4 files" in first
    assert "64 conversations tokenized" in first
    stamps = {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*")}
    again = run(*fill).output
    assert "fetching" not in again
    assert {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*")} == stamps
    told = json.loads(run("cache", "status", "--root", "cache", "--json").stdout)["caches"]
    assert [shelf["state"] for shelf in told] == ["ready", "ready"]
    assert told[0]["digest"] == find_checkpoint(golden).digest()
    assert told[1]["digest"] == file_sha256(golden / "conversations.jsonl")
    assert told[0]["source"] == str(golden)
    manifest = json.loads(Path("cache/model/MANIFEST.json").read_text())
    assert {"format", "source", "resolved", "kind", "created", "files", "digest"} == {*manifest}
    modes = {path: path.stat().st_mode & 0o444 for path in Path("cache").rglob("*")}
    assert set(modes.values()) == {0o444}  # whoever a worker runs as, it can read


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param("model/checkpoints/model_000300.pt", "flip", id="a byte of the weights"),
        pytest.param("model/tokenizer/tokenizer.pkl", "flip", id="a byte of the tokenizer"),
        pytest.param("dataset/train.jsonl", "cut", id="data cut short"),
        pytest.param("dataset/train.jsonl", "remove", id="data gone"),
    ],
)
def test_verify_names_the_file_that_changed(name: str, damage: str, run: Run, root: Path) -> None:
    verify = ("cache", "verify", "--root", str(root))
    assert "model: whole" in run(*verify).output
    path = root / name
    if damage == "flip":
        flip(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        path.unlink()
    output = run(*verify, code=EXIT_CORRUPT).output
    assert str(path) in output
    found = json.loads(run(*verify, "--json", code=EXIT_CORRUPT).stdout)["problems"]
    assert [len(found["model"]), len(found["dataset"])] == [
        int(name.startswith("model")),
        int(name.startswith("dataset")),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "model/checkpoints/model_000999.pt",
        "model/notes.txt",
        "dataset/train.tokens-0123456789ab.npz",
    ],
)
def test_verify_names_a_file_that_no_fill_has_put_there(name: str, run: Run, root: Path) -> None:
    (root / name).write_bytes(b"x")
    (root / "model/.nfs0001").touch()  # a file system's own
    (root / "model/lost+found").mkdir()
    (root / "model/lost+found/1").touch()
    said = run("cache", "verify", "--root", str(root), code=EXIT_CORRUPT).output
    assert f"{root / name}: no fill has put it there" in said
    assert said.count("no fill") == 1


def test_a_newer_model_that_was_put_into_a_cache_is_not_taken(
    worker: Any, run: Run, root: Path, golden: Path
) -> None:
    for name in ("model_000300.pt", "meta_000300.json"):
        other = root / "model/checkpoints" / name.replace("300", "999")
        shutil.copy(root / "model/checkpoints" / name, other)
    done = worker("/cache/model")
    assert done.returncode == EXIT_CORRUPT
    assert "_000999" in done.stderr
    assert "no fill of the cache has put it there" in done.stderr
    fill = ("cache", "fill", "--root", str(root), "--model", str(golden))
    assert "no fill has put there" in run(*fill, code=2).output
    run(*fill, "--replace")
    run("cache", "verify", "--root", str(root))
    assert worker("/cache/model").returncode == 0


@pytest.mark.parametrize(
    ("manifest", "ready", "state", "code"),
    [
        pytest.param("own", None, "cut short", EXIT_CORRUPT, id="no READY"),
        pytest.param(None, "own", "ready, filled by other means", EXIT_CORRUPT, id="no manifest"),
        pytest.param(None, "hand", "ready, filled by other means", EXIT_CORRUPT, id="by hand"),
        pytest.param("cut", "hand", "damaged", EXIT_CORRUPT, id="half a manifest, by hand"),
        pytest.param("own", "source", "ready", EXIT_CORRUPT, id="READY of another source"),
        pytest.param("own", "other", "ready", EXIT_CORRUPT, id="READY of another model"),
        pytest.param("cut", "own", "damaged", EXIT_CORRUPT, id="half a manifest"),
    ],
)
def test_what_does_not_fit_together_is_not_whole(
    manifest: str | None,
    ready: str | None,
    state: str,
    code: int,
    run: Run,
    root: Path,
    golden: Path,
) -> None:
    home = root / "model"
    said, mark = home / sealed.MANIFEST, home / sealed.READY
    if manifest is None:
        said.unlink()
    elif manifest == "cut":
        said.write_bytes(said.read_bytes()[:-50])
    if ready is None:
        mark.unlink()
    elif ready == "other":
        mark.write_text(mark.read_text().replace('"digest": "', '"digest": "0'))
    elif ready == "source":
        mark.write_text(mark.read_text().replace('"source": "', '"source": "/x'))
    elif ready == "hand":
        mark.write_text("")
    told = json.loads(run("cache", "status", "--root", str(root), "--json").stdout)["caches"]
    assert told[0]["state"] == state
    told_wrong = run("cache", "verify", "--root", str(root), code=code).output
    fill = ("cache", "fill", "--root", str(root), "--model", str(golden))
    mends = f"mend it with: fractal-k8s {' '.join(fill)}\n"
    assert (mends in told_wrong) == (ready != "hand" and state != "cut short")
    if ready != "hand":
        said = run(*fill).output
        assert ("fetching" in said) == (manifest != "own")  # else every file is known to be there
    else:
        assert "filled by other means" in run(*fill, code=2).output
        run(*fill, "--replace")
    run("cache", "verify", "--root", str(root))


@pytest.mark.parametrize("name", ["../dataset/train.jsonl", "/etc/hostname", "a/../../x"])
def test_a_manifest_that_names_files_elsewhere_is_damaged(name: str, root: Path) -> None:
    seal = sealed.read_seal(root / "model")
    assert seal is not None
    sealed.write_manifest(
        root / "model", replace(seal, files={name: next(iter(seal.files.values()))})
    )
    with pytest.raises(CorruptError, match="damaged"):
        sealed.read_seal(root / "model")


def test_what_a_killed_process_was_adding_is_thrown_out(root: Path) -> None:
    home = root / "dataset"
    adding = """
import os, sys
from pathlib import Path
from fractal_k8s.checkpoints.filling import add_file
add_file(Path(sys.argv[1]), "more.npz", lambda path: (path.write_bytes(b"x"), os._exit(9)))
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", adding, str(home)], check=False)
        assert len([*home.glob(f"{sealed.PART}*")]) == 1
    filling.add_file(home, "more.npz", lambda path: path.write_bytes(b"x"))
    assert not [*home.glob(f"{sealed.PART}*")]


def test_an_exact_reference_that_is_there_is_not_asked_for(run: Run, root: Path) -> None:
    seal = sealed.read_seal(root / "model")
    assert seal is not None
    held = Seal(**{**vars(seal), "resolved": "hf:a/b@" + "0" * 40})
    sealed.write_manifest(root / "model", held)
    sealed.write_ready(root / "model", held)
    assert (
        "fetching" not in run("cache", "fill", "--root", str(root), "--model", held.resolved).output
    )


def test_only_what_is_damaged_is_fetched_again(run: Run, root: Path, golden: Path) -> None:
    weights = root / "model/checkpoints/model_000300.pt"
    tokenizer = root / "model/tokenizer/tokenizer.pkl"
    inodes = [path.stat().st_ino for path in (weights, tokenizer)]
    flip(weights)
    verify = ("cache", "verify", "--root", str(root))
    fill = ("cache", "fill", "--root", str(root), "--model", str(golden))
    assert f"mend it with: fractal-k8s {' '.join(fill)}" in run(*verify, code=65).output
    said = run(*fill).output
    assert said.count("bytes have changed: fetching again") == 1
    assert "fetching " + str(golden) in said
    assert ": 1 file," in said
    run(*verify)
    assert weights.stat().st_ino != inodes[0]
    assert tokenizer.stat().st_ino == inodes[1]
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "damaged" in run("cache", "status", "--root", str(root)).output
    run(*fill)
    run(*verify)
    assert "4 files" in run(*fill).output
    assert not [*root.rglob(f"{sealed.FILLING}*")]


def test_damaged_data_of_a_file_are_mended_with_their_rows(
    run: Run, root: Path, golden: Path
) -> None:
    [kept] = (root / "dataset").glob("*.npz")
    fill = ("cache", "fill", "--root", str(root))
    data = ("--dataset", f"conversations:{golden}/conversations.jsonl")
    for path in (kept, root / "dataset/train.jsonl"):
        flip(path)
        assert "64 conversations tokenized" in run(*fill, *data).output
        run("cache", "verify", "--root", str(root))


def test_files_of_others_stay_where_a_fill_would_put_its_own(run: Run, golden: Path) -> None:
    files = ["c/dataset/train.jsonl", "c/model/checkpoints/model_000300.pt"]
    for name in files:
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("mine")
    fill = ["cache", "fill", "--root", "c"]
    data = ["--dataset", f"conversations:{golden}/conversations.jsonl"]
    for asked in (["--model", str(golden)], data):
        assert "no fill has put there" in run(*fill, *asked, code=2).output
    assert [Path(name).read_text() for name in files] == ["mine", "mine"]
    run(*fill, *data, "--replace")
    assert Path(files[0]).read_bytes() == (golden / "conversations.jsonl").read_bytes()


def test_a_fill_ends_with_the_command_that_trains_on_it(
    run: Run, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = ("cache", "fill", "--root", "a cache", "--model", str(golden))
    assert "launch --checkpoint 'a cache/model'\n" in run(*fill).output
    data = ("--dataset", f"conversations:{golden}/conversations.jsonl")
    end = "train with it: fractal-k8s launch --cache 'a cache'\n"
    assert run(*fill, *data).output.endswith(end)
    preset = ("launch", "--preset", "tiny", "--checkpoint")
    assert f"of a cache give {Path.cwd()}/a cache/model" in run(*preset, "a cache", code=2).output
    monkeypatch.setenv("FRACTAL_K8S_TERMINATION_LOG", "log")
    assert "launch" not in run(*fill).output  # the log of a pod


def test_a_fill_that_was_cut_short_is_told_from_one_that_goes_on(
    run: Run, golden: Path, tmp_path: Path
) -> None:
    home = tmp_path / "c/model"
    (home / f"{sealed.FILLING}0123456789/checkpoints").mkdir(parents=True)
    status = ("cache", "status", "--root", str(tmp_path / "c"))
    verify = ("cache", "verify", "--root", str(tmp_path / "c"))
    assert "model    cut short" in run(*status).output
    said = run(*verify, code=EXIT_CORRUPT).output
    assert "it goes on where it was: fractal-k8s cache fill" in said
    assert "--replace" not in said
    with sealed.being_filled(home, quiet):
        assert "model    being filled" in run(*status).output
        assert "wait until it is ready" in run(*verify, code=EXIT_CORRUPT).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param("fill --root c", "nothing to fetch", id="nothing"),
        pytest.param("fill --root c --dataset nonsense", "cannot be kept in a cache", id="data"),
        pytest.param("fill --root c --dataset conversations:x.jsonl", "no such file", id="file"),
        pytest.param("fill --root c --dataset conversations:.", "is a folder", id="a folder"),
        pytest.param("fill --root c --dataset conversations:", "which file?", id="no file"),
        pytest.param("fill --root c --model wandb:a/b", "such as", id="half a reference"),
        pytest.param(["fill", "--root", "c", "--model", ""], "no source is named", id="no model"),
        pytest.param(["fill", "--root", "", "--model", "x"], "is empty; name a folder", id="root"),
        pytest.param(["verify", "--root", ""], "is empty; name a folder", id="an empty root"),
        pytest.param("status", "give --root DIR, or --context", id="which"),
        pytest.param("verify --root c", "fill --root c --model REF --dataset REF", id="nothing"),
        pytest.param("status --root c --context x", "leave out --context", id="both"),
    ],
)
def test_misuse_is_told_in_a_sentence(arguments: str | list[str], words: str, run: Run) -> None:
    typed = arguments.split() if isinstance(arguments, str) else arguments
    assert words in run("cache", *typed, code=2).output
    assert not Path("model").exists()
    assert not Path("c").exists()


def test_data_that_are_no_conversations_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": []\n')
    fill = ("cache", "fill", "--root", "c", "--dataset", "conversations:bad.jsonl")
    said = run(*fill, code=EXIT_CORRUPT).output
    assert f"{tmp_path}/bad.jsonl@" in said
    assert ": bad.jsonl line 1: not valid JSON" in said
    assert sealed.FILLING not in said
    assert "empty" in run("cache", "status", "--root", "c").output
    assert not Path("c").exists()  # it was made for nothing


def test_a_data_set_of_a_bucket_is_kept(run: Run, golden: Path, s3_client: Any) -> None:
    s3_client.create_bucket(Bucket="data")
    s3_client.upload_file(str(golden / "conversations.jsonl"), "data", "sets/mine.jsonl")
    run("cache", "fill", "--root", "c", "--dataset", "conversations:s3://data/sets/mine.jsonl")
    assert file_sha256(Path("c/dataset/train.jsonl")) == file_sha256(golden / "conversations.jsonl")


# --- rows that are kept ---


def test_kept_rows_are_the_rendered_ones(root: Path, golden: Path) -> None:
    path = root / "dataset/train.jsonl"
    tokenizer = load_tokenizer(golden / "tokenizer")
    kept = load_tokens(path, tokenizer.sha256)
    assert kept is not None
    assert list(kept) == read_rows(path, tokenizer, 10**9).rows
    for length in (100, 130, 10**6):
        assert read_dataset(str(path), tokenizer, length) == read_rows(path, tokenizer, length)
    seal = sealed.read_seal(root / "dataset")
    assert seal is not None
    assert tokens_name(path, tokenizer.sha256) in seal.files


def test_kept_rows_are_what_is_read(root: Path, golden: Path) -> None:
    path = root / "dataset/train.jsonl"
    tokenizer = load_tokenizer(golden / "tokenizer")
    before = read_dataset(str(path), tokenizer, 10**6).rows

    class Shifted:
        special = tokenizer.special

        def encode(self, text: str) -> list[int]:
            return [one + 1 for one in tokenizer.encode(text)]

    kept = path.with_name(tokens_name(path, tokenizer.sha256))
    save_tokens(path, Shifted(), tokenizer.sha256, kept)
    # a whole file with other rows, which is not the one that was sealed
    assert read_dataset(str(path), tokenizer, 10**6).rows == before
    sealed.with_file(kept.parent, kept.name, sealed.facts_of(kept))
    after = read_dataset(str(path), tokenizer, 10**6).rows
    assert [len(row.ids) for row in after] == [len(row.ids) for row in before]
    assert after != before
    flip(kept, kept.stat().st_size // 2)  # what is damaged is not read but made again
    assert read_dataset(str(path), tokenizer, 10**6).rows == before


def test_rows_of_another_tokenizer_or_of_other_data_are_not_taken(root: Path, golden: Path) -> None:
    path = root / "dataset/train.jsonl"
    digest = load_tokenizer(golden / "tokenizer").sha256
    assert load_tokens(path, "0" * 64) is None
    kept = path.with_name(tokens_name(path, digest))
    shutil.copy(kept, path.with_name(tokens_name(path, "0" * 64)))
    assert load_tokens(path, "0" * 64) is None
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert load_tokens(path, digest) is None
    kept.write_bytes(kept.read_bytes()[:100])
    assert load_tokens(path, digest) is None


# --- workers ---

NO_NETWORK = """
import socket, sys
def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        raise OSError(f"no egress: {address}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *a, **k: (_ for _ in ()).throw(OSError("no egress: a name was asked"))
from fractal_k8s.__main__ import run
run()
"""


CLAIMED = "conversations:/cache/dataset/train.jsonl"


@pytest.fixture
def worker(
    root: Path, gpt_sweep: Callable[..., Sweep], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs shard 0 of a sweep as a pod would, in a process that can reach no network."""

    def start(
        checkpoint: str, dataset: str = CLAIMED, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        sweep = gpt_sweep(checkpoint=checkpoint, dataset=dataset, resolution=2)
        plan = tmp_path / "sweep.json"
        plan.write_text(Plan(sweep, Deal(points_per_shard=1)).to_json())
        arguments = ["worker", "--store", str(tmp_path / "runs"), "--sweep", str(plan)]
        arguments += ["--shard", "0", "--checkpoint", str(root / "model")]
        arguments += ["--dataset", f"conversations:{root}/dataset/train.jsonl"]
        arguments += ["--cache", str(root / "model"), "--cache", str(root / "dataset")]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, "-c", NO_NETWORK, *arguments],
            env={**os.environ, **offline, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    return start


def test_a_worker_reads_the_cache_and_needs_no_network(worker: Any, tmp_path: Path) -> None:
    stage = tmp_path / "scratch/model"
    done = worker("/cache/model", FRACTAL_K8S_STAGE=str(stage))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("staged ")]
    assert len(lines) == 1
    assert "copied and compared" in lines[0]
    assert "GB/s" in lines[0]
    assert sealed.read_whole(stage) is not None
    assert "complete: 1 points trained" in done.stdout


def test_a_worker_refuses_the_claim_of_another_model(worker: Any, root: Path) -> None:
    seal = sealed.read_seal(root / "model")
    assert seal is not None
    sealed.write_manifest(root / "model", Seal(**{**vars(seal), "resolved": "wandb:a/b/c:v6"}))
    done = worker("wandb:a/b/c:v7")
    assert done.returncode == EXIT_SETTINGS
    assert "holds wandb:a/b/c:v6: name the claim" in done.stderr
    assert worker("wandb:a/b/c:v6").returncode == 0


def test_a_worker_refuses_the_claim_of_other_data(worker: Any, root: Path) -> None:
    seal = sealed.read_seal(root / "dataset")
    assert seal is not None
    held = f"morgan/docvqa-nanochat@{COMMIT}"
    sealed.write_manifest(root / "dataset", replace(seal, resolved=held))
    done = worker("/cache/model", f"docvqa@{'f' * 40}")
    assert done.returncode == EXIT_SETTINGS
    assert f"holds {held}: name the claim of the right data" in done.stderr
    done = worker("/cache/model", "docvqa")
    assert done.returncode == 0, done.stderr
    assert f"{root}/dataset holds {held}, sha256 {seal.digest[:12]}..." in done.stdout


@pytest.mark.parametrize("name", ["model/checkpoints/meta_000300.json", "dataset/train.jsonl"])
def test_a_worker_refuses_a_claim_whose_bytes_have_changed(
    name: str, worker: Any, root: Path
) -> None:
    path = root / name
    path.write_text(path.read_text().replace("2.2", "2.3").replace("What", "Whet"))
    done = worker("/cache/model")
    assert done.returncode == EXIT_CORRUPT
    assert "the folder was filled with" in done.stderr
    assert not [*root.parent.glob("runs/*/outcomes/**/*.parquet")]


@pytest.mark.parametrize(
    ("held", "wanted", "fits"),
    [
        pytest.param("wandb:a/b/c:v6", "wandb:a/b/c:latest", True, id="an alias may be it"),
        pytest.param("wandb:a/b/c:v6", "wandb:a/b/d:latest", False, id="another artifact"),
        pytest.param("s3://b/d4@" + "0" * 12, "s3://b/d4?endpoint=http://x", True, id="a bucket"),
        pytest.param("s3://b/d4@" + "0" * 12, "s3://b/d4@" + "1" * 12, False, id="other content"),
        pytest.param("/models/d4@" + "0" * 12, "hf:a/b@main", False, id="a folder"),
        pytest.param("/models/d4@" + "0" * 12, "/models/d5", True, id="nobody knows"),
    ],
)
def test_what_a_claim_holds_is_compared_with_the_sweep(
    held: str, wanted: str, fits: bool, tmp_path: Path
) -> None:
    sealed.write_manifest(tmp_path, Seal("model", held, held, "0" * 64, {}))
    if fits:
        refuse_other_model([tmp_path], wanted)
    else:
        with pytest.raises(UsageError, match="name the claim of the right model"):
            refuse_other_model([tmp_path], wanted)


def test_weights_are_staged_once_and_only_whole(root: Path, tmp_path: Path) -> None:
    said: list[str] = []
    target = tmp_path / "stage"
    assert staged(root / "model", target, said.append) == target
    assert staged(root / "model", target, said.append) == target
    assert re.search(r": copied and compared, \S+ GB in \S+ s \(\S+ GB/s\)$", said[0])
    assert re.search(r": was there, \S+ GB$", said[1])
    assert find_checkpoint(target).digest() == find_checkpoint(root / "model").digest()
    flip(root / "model/checkpoints/model_000300.pt")
    with pytest.raises(CorruptError, match="arrives damaged"):
        staged(root / "model", tmp_path / "again", said.append)


def test_weights_are_read_where_they_are_if_there_is_no_room_for_a_copy(
    worker: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.touch()  # no folder can be made below it
    done = worker("/cache/model", FRACTAL_K8S_STAGE=str(full / "model"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"not staged, {root}/model is read where it is: " in done.stdout
    said: list[str] = []
    monkeypatch.setattr(filling, "_SPARE_BYTES", 1 << 60)
    target = tmp_path / "stage"
    assert staged(root / "model", target, said.append) == root / "model"
    assert "are to come and" in said[0]
    assert not [*target.glob(f"{sealed.FILLING}*")]


def test_a_model_in_a_folder_of_a_cache_is_staged_and_compared(root: Path, tmp_path: Path) -> None:
    inner = root / "model/checkpoints"
    target = staged(inner, tmp_path / "stage", quiet)
    assert find_checkpoint(target).digest() == find_checkpoint(root / "model").digest()
    flip(inner / "model_000300.pt")
    with pytest.raises(CorruptError, match="arrives damaged"):
        staged(inner, tmp_path / "again", quiet)


def test_weights_that_nobody_has_sealed_are_staged_too(golden: Path, tmp_path: Path) -> None:
    target = staged(golden, tmp_path / "stage", quiet)
    assert find_checkpoint(target).digest() == find_checkpoint(golden).digest()


# --- a cluster ---


def fill_job(name: str, source: str, claim: str) -> dict[str, Any]:
    """The fill Job as the chart has it, in short."""
    kind = {labels.COMPONENT: labels.CACHE_FILL}
    container = {
        "name": "fill",
        "image": "fractal-k8s:0",
        "command": ["fractal-k8s"],
        "args": ["cache", "fill", "--root", "/cache", "--model", source],
        "env": [
            {"name": "FRACTAL_K8S_TERMINATION_LOG", "value": "/dev/termination-log"},
            {
                "name": "KEY",
                "valueFrom": {"secretKeyRef": {"name": "s3", "key": "KEY", "optional": True}},
            },
        ],
        "volumeMounts": [
            {"name": "model", "mountPath": "/cache/model"},
            {"name": "source", "mountPath": "/source", "readOnly": True},
        ],
    }
    volumes = [
        {"name": "model", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "source", "persistentVolumeClaim": {"claimName": "source"}},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "fractal", "labels": kind},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": kind},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        },
    }


@pytest.fixture
def place(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A cluster with an empty claim for the model, and one with the golden files."""
    folders = {"model": tmp_path / "claim", "source": golden}
    folders["model"].mkdir()
    with StandIn(tmp_path / "standin", claims=folders) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield cluster


def test_the_job_that_fills_a_cluster_s_cache_is_told_of(
    place: StandIn, run: Run, kubectl_binary: Path, tmp_path: Path
) -> None:
    kubectl: Kubectl = kubectl_on(kubectl_binary, place.kubeconfig, tmp_path)
    status = ("cache", "status", "--context", "standin", "-n", "fractal")
    assert "no Job fills a cache" in run(*status).output
    assert (
        "helm install fractal-cache makes both"
        in run("cache", "verify", "--context", "standin", "-n", "fractal", code=2).output
    )
    kubectl("apply", "-f", "-", stdin=json.dumps(fill_job("cache-fill-1", "/source", "model")))
    kubectl(
        "wait", "-n", "fractal", "--for=condition=complete", "job/cache-fill-1", "--timeout=240s"
    )
    said = run(*status).output
    assert "Job cache-fill-1: complete" in said
    assert "model /source" in said
    assert "claim model: Bound" in said
    assert sealed.read_whole(tmp_path / "claim") is not None
    told = json.loads(run(*status, "--json").stdout)
    assert told["jobs"][0]["claims"] == ["model"]
    seal = sealed.read_seal(tmp_path / "claim")
    assert seal is not None
    assert f"model: {seal.resolved}" in said  # the version and the digest
    assert seal.digest in said

    verify = ("cache", "verify", "--context", "standin", "-n", "fractal")
    shown = run(*verify)
    spec = json.loads(shown.stdout)["spec"]["template"]["spec"]
    assert [mount["readOnly"] for mount in spec["containers"][0]["volumeMounts"]] == [True, True]
    assert "KEY" not in shown.stdout  # it needs none
    assert "kubectl --context standin -n fractal create -f -" in shown.stderr
    flip(tmp_path / "claim/checkpoints/model_000300.pt")
    kubectl("create", "-f", "-", stdin=shown.stdout)
    log = verdict(kubectl, shown.stderr)
    assert "model_000300.pt: its sha256 is" in log
    assert "model: mend it with: helm upgrade ... --set fill.again=WORD" in log


def write_site(place: StandIn, settings: dict[str, Any]) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": labels.SITE, "namespace": "fractal"},
        "data": {labels.SITE_KEY: json.dumps(settings)},
    }
    place.objects.create("configmaps", body)


def verdict(kubectl: Kubectl, hint: str) -> str:
    """The log of the Job that compares, read with the command that its maker has printed."""
    ended = ("--for=condition=failed", "--for=condition=complete")
    kubectl("wait", "-n", "fractal", ended[0], hint.split()[-1], "--timeout=240s")
    words = hint.partition("read what it finds with: ")[2].split()
    return kubectl(*words[1:]).stdout


def test_caches_without_a_job_are_known_from_the_site_s_settings(
    place: StandIn, run: Run, kubectl_binary: Path, tmp_path: Path, golden: Path
) -> None:
    """A week after its end the Job that filled them is gone."""
    caches.fill_model(tmp_path / "filled", str(golden), quiet)
    shutil.copytree(tmp_path / "filled/model", tmp_path / "claim", dirs_exist_ok=True)
    settings = {"model_claim": "model", "dataset_claim": "data", "image": "fractal-k8s:test"}
    write_site(place, settings)
    here = ("--context", "standin", "-n", "fractal")
    said = run("cache", "status", *here).output
    assert "no Job fills a cache in namespace fractal now" in said
    assert "claim model: Bound, 1Ti" in said
    assert "claim data: missing" in said

    place.objects.delete("configmaps", "fractal", labels.SITE)
    write_site(place, {**settings, "dataset_claim": None, "aggregator_queue": "small"})
    shown = run("cache", "verify", *here)
    job = json.loads(shown.stdout)
    kubernetes_validate.validate(job, VERSIONS[-1], strict=True)
    assert not [*insecurities_of(job["spec"]["template"]["spec"])]
    assert job["metadata"]["labels"][labels.QUEUE] == "small"
    flip(tmp_path / "claim/checkpoints/model_000300.pt")
    kubectl: Kubectl = kubectl_on(kubectl_binary, place.kubeconfig, tmp_path)
    kubectl("create", "-f", "-", stdin=shown.stdout)
    assert "model_000300.pt: its sha256 is" in verdict(kubectl, shown.stderr)


def test_a_fill_whose_pod_cannot_start_says_why(
    place: StandIn, run: Run, kubectl_binary: Path, tmp_path: Path
) -> None:
    body = fill_job("cache-fill-1", "/source", "model")
    container = body["spec"]["template"]["spec"]["containers"][0]
    container["env"][1]["valueFrom"]["secretKeyRef"]["optional"] = False
    kubectl: Kubectl = kubectl_on(kubectl_binary, place.kubeconfig, tmp_path)
    kubectl("apply", "-f", "-", stdin=json.dumps(body))
    until = time.monotonic() + 240
    status = ("cache", "status", "--context", "standin", "-n", "fractal")
    while "missing" not in (said := run(*status).output) and time.monotonic() < until:
        time.sleep(0.2)
    assert "Job cache-fill-1: waiting for its pod to start" in said
    assert "something it refers to is missing (CreateContainerConfigError)" in said
    assert "s3" in said


def test_a_fill_that_fails_on_a_cluster_says_why(
    place: StandIn, run: Run, kubectl_binary: Path, tmp_path: Path
) -> None:
    text = json.dumps(fill_job("cache-fill-1", "/source/nothing", "model"))
    kubectl = kubectl_on(kubectl_binary, place.kubeconfig, tmp_path)
    kubectl("apply", "-f", "-", stdin=text)
    kubectl("wait", "-n", "fractal", "--for=condition=failed", "job/cache-fill-1", "--timeout=240s")
    said = run("cache", "status", "--context", "standin", "-n", "fractal", code=1).output
    assert "Job cache-fill-1: failed (BackoffLimitExceeded)" in said
    assert "no such folder" in said
    assert "fill again: helm upgrade ... --set fill.again=WORD" in said


# --- data sets of the hub ---


def test_a_data_set_of_the_hub_is_kept_with_its_rows(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from standin.hub import Repository, running_hub

    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
    rows = [turns] * 12
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"messages": rows}), buffer)
    files = {"data/train-00000-of-00001.parquet": buffer.getvalue().to_pybytes()}
    command = f"cache fill --root {tmp_path}/cache --model {golden} --dataset hf:a/chats@main"

    def fill(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fractal_k8s", *command.split()],
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    with running_hub() as hub:
        hub.repositories["a/chats"] = Repository(files)
        first = fill(HF_ENDPOINT=hub.url)
    assert first.returncode == 0, first.stderr
    assert f"{len(rows)} conversations tokenized" in first.stdout
    again = fill(HF_ENDPOINT="http://127.0.0.1:9")  # what is whole is not asked for
    assert again.returncode == 0, again.stderr
    assert "tokenized" not in again.stdout
    shelves = caches.look(tmp_path / "cache")
    assert [shelf.state for shelf in shelves] == ["ready", "ready"]
    assert not [line for shelf in shelves for line in caches.problems(shelf)]
    path = tmp_path / "cache/dataset/train.jsonl"
    tokenizer = load_tokenizer(golden / "tokenizer")
    kept = load_tokens(path, tokenizer.sha256)
    assert kept is not None
    assert len(list(kept)) == len(rows)


def test_a_cache_of_the_hub_is_mended_and_replaced(
    hub: Hub, commands: Commands, golden: Path, tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    fill = ["cache", "fill", "--root", str(root), "--model", str(golden), "--dataset", "docvqa@v1"]
    home = root / "dataset"
    home.mkdir(parents=True)
    (home / "train.jsonl").write_text("put there by hand")
    found = commands(fill, [*fill, "--replace"])
    assert [code for code, _ in found] == [2, 0], found
    assert "train.jsonl is there, and not by this command" in found[0][1]
    [tokens] = home.glob("train.tokens-*.npz")
    flip(tokens, 200)
    hub.asked.clear()
    [(code, said)] = commands(fill, HF_HUB_OFFLINE="1")
    assert code == 0, said
    assert "12 conversations tokenized" in said
    assert [line for shelf in caches.look(root) for line in caches.problems(shelf)] == []
    assert hub.asked == []
    other = ["cache", "fill", "--root", str(root), "--dataset", f"docvqa@{COMMIT}"]
    (code, said), (again, saying) = commands(other, [*other, "--replace"])
    assert (code, again) == (2, 0), said + saying
    assert "holds docvqa@v1" in said


def test_data_that_are_being_fetched_are_told(tmp_path: Path) -> None:
    home = tmp_path / "dataset"
    home.mkdir()
    with sealed.being_filled(home, quiet), written(home, alone=True):
        assert caches.look(tmp_path)[1].state == "being filled"
    assert caches.look(tmp_path)[1].state == "empty"
