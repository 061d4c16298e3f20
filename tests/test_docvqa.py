"""Data sets of the hub: fetched once, mended, and named by sweeps."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fractal_k8s import caches, sealed
from fractal_k8s.data.docvqa import PUBLISHED_ROWS, hub_set, refuse_other_data
from fractal_k8s.data.hub import commit_of, translated
from fractal_k8s.data.splits import Origin, line_of, written
from fractal_k8s.errors import CorruptError, RetryError, UsageError
from fractal_k8s.sealed import Seal, file_sha256
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.materials import has_dataset, load_materials, read_facts
from scans import NANOCHAT, TRAIN, VALIDATION, chats, parquet
from standin.hub import COMMIT, Fault, Hub, Repository

MakeSweep = Callable[..., Sweep]
Run = Callable[..., Any]


def damage(folder: Path) -> dict[str, str]:
    seal = sealed.read_seal(folder)
    assert seal is not None
    return sealed.damage(folder, seal)


def download(reference: str, *options: str) -> list[str]:
    return ["data", "download", reference, *options]


# --- download ---


def test_a_copy_is_fetched_once_and_says_what_it_is(
    hub: Hub, commands: Run, tmp_path: Path
) -> None:
    [(code, said), (again, saying)] = commands(download("docvqa@v1"), download("docvqa@v1"))
    assert (code, again) == (0, 0), said + saying
    assert f"{NANOCHAT}@v1 is commit {COMMIT}" in said
    assert "fetched: 12 train, 3 validation" in said
    assert saying.startswith("whole already: 12 train, 3 validation")
    folder = tmp_path / "cache" / "dataset" / "docvqa@v1"
    lines = (folder / "train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == chats(12)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    digest = file_sha256(folder / "train.jsonl")
    assert manifest["files"]["train.jsonl"] == {
        "size": (folder / "train.jsonl").stat().st_size,
        "sha256": digest,
    }
    expected = {"source": "docvqa@v1", "resolved": f"{NANOCHAT}@{COMMIT}", "digest": digest}
    assert json.loads((folder / "READY").read_text()) == expected
    assert manifest["rows"] == {"train": 12, "validation": 3}
    assert sorted(path.name for path in folder.iterdir()) == [
        *(".fill.lock", "MANIFEST.json", "READY", "train.jsonl", "validation.jsonl"),
    ]
    hub.asked.clear()
    [(code, _)] = commands(download("docvqa@v1"), HF_DATASETS_OFFLINE="1")
    assert code == 0
    assert hub.asked == []


def test_what_is_damaged_or_half_there_is_fetched_again_at_its_commit(
    hub: Hub, commands: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    ask = download("docvqa@v1", "--to", str(folder))
    commands(ask)
    whole = (folder / "train.jsonl").read_bytes()
    # the tag has moved since, to a commit with other rows
    hub.repositories[NANOCHAT].names = ("main",)

    damaged = bytearray(whole)
    damaged[100] ^= 1
    (folder / "train.jsonl").write_bytes(damaged)
    [(code, said)] = commands(ask)
    assert code == 0, said
    assert "train.jsonl: its sha256 is" in said
    assert (folder / "train.jsonl").read_bytes() == whole

    (folder / "train.jsonl").write_bytes(whole[:200])
    (folder / "validation.jsonl").unlink()
    [(code, said)] = commands(ask)
    assert code == 0, said
    assert f"has 200 bytes, was sealed with {len(whole):,}" in said
    assert "validation.jsonl: No such file" in said
    assert damage(folder) == {}


def test_what_will_not_pass_is_said_once_and_what_may_is_tried_again(
    hub: Hub, commands: Run, tmp_path: Path
) -> None:
    hub.repositories["a/empty"] = Repository({"README.md": b"nothing"})
    hub.repositories["a/text"] = Repository({"train.jsonl": b'{"text": "x"}\n'})
    hub.repositories["a/broken"] = Repository({TRAIN: b"PAR1" + b"x" * 4000})
    hub.repositories["a/lines"] = Repository({"train.jsonl": b'{"messages": [{"role": "user"}]}\n'})
    facts = f"GET /api/datasets/{NANOCHAT}/revision/main"
    hub.faults = [Fault(facts, 503, times=2), Fault("GET /api/datasets/a/gated", 403, times=9)]
    hub.faults.append(Fault("GET /api/datasets/a/busy", 429, times=99))
    found = commands(
        download("docvqa@main"),
        download("hf:a/gated@main"),
        download("docvqa@nowhere"),
        download("hf:a/nothing@main"),
        download("hf:a/empty@main"),
        download("hf:a/text@main"),
        download("hf:a/broken@main"),
        download("hf:a/lines@main"),
        download("hf:a/busy@main"),
        download("hf:a/gated"),
        download("forms"),
        download("docvqa@v1", "--to", str(tmp_path / "cache" / "dataset" / "docvqa@main")),
        download("docvqa"),
    )
    codes = [code for code, _ in found]
    assert codes == [0, 2, 2, 2, 2, 65, 65, 65, 75, 2, 2, 2, 65], found
    expected = [
        *("answers 503; trying again", "set HF_TOKEN", "no such repository or revision"),
        *("no such repository", "holds no data files", "no column 'messages'", "damaged"),
        *("no role or no content", "answers 429", "say which revision", "none of docvqa"),
        *("holds docvqa@main", "train has 12 rows, 39,455 were published"),
    ]
    for (_, said), words in zip(found, expected, strict=True):
        assert words in said
    assert found[0][1].count("trying again") == 2
    assert "trying again" not in found[1][1]
    assert found[8][1].count("trying again") == 3
    assert f"docvqa@{COMMIT}" in found[-1][1]
    assert sum(PUBLISHED_ROWS.values()) == 44_804
    assert hub.asked.count("GET /api/datasets/a/gated/revision/main") == 1
    assert "HTTPS_PROXY, HF_ENDPOINT" in found[8][1].splitlines()[-1]
    left = [path.name for path in (tmp_path / "cache" / "dataset").iterdir()]
    assert left == ["docvqa@main"]  # of the others not even a folder


def test_a_broken_connection_and_a_damaged_download_are_overcome(
    hub: Hub, commands: Run, tmp_path: Path
) -> None:
    hub.repositories["a/long"] = Repository({TRAIN: parquet(chats(400))})
    hub.faults = [Fault("GET /datasets/a/long/resolve", cut=3000, times=2)]
    [(code, said)] = commands(download("hf:a/long@main"))
    assert code == 0, said
    assert "train: 400 conversations" in said
    # what the libraries keep is damaged: a byte in the file, and nothing made of it yet
    shutil.rmtree(tmp_path / "hf" / "datasets")
    [blob] = (tmp_path / "hf" / "hub" / "datasets--a--long" / "snapshots").rglob("*.parquet")
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 255
    blob.resolve().write_bytes(damaged)
    [(code, said)] = commands(download("hf:a/long@main", "--to", str(tmp_path / "second")))
    assert code == 0, said
    assert "fetching all of it again" in said
    second = file_sha256(tmp_path / "second" / "train.jsonl")
    assert second == file_sha256(tmp_path / "cache/dataset/hf--a--long@main/train.jsonl")


@pytest.mark.parametrize("offline", ["HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_only_the_right_commit_is_taken_from_the_cache(
    offline: str, hub: Hub, commands: Run, tmp_path: Path
) -> None:
    other = "f" * 40
    commands(download(f"docvqa@{COMMIT}"))
    hub.asked.clear()
    found = commands(
        download(f"docvqa@{COMMIT}", "--to", str(tmp_path / "second")),
        download(f"docvqa@{other}"),
        download("docvqa@main"),
        download("hf:a/new@" + COMMIT),
        **{offline: "1"},
    )
    assert [code for code, _ in found] == [0, 2, 2, 2], found
    assert damage(tmp_path / "second") == {}
    assert f"holds commit {COMMIT} only" in found[1][1]
    assert "nobody can say which commit main is" in found[2][1]
    assert "forbids to fetch it" in found[3][1]
    assert hub.asked == []


def test_only_what_is_damaged_is_replaced(hub: Hub, commands: Run, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    ask = download("docvqa@v1", "--to", str(folder))
    commands(ask)
    made = folder / "train.tokens-0.npz"
    made.write_bytes(b"rows")
    seal = sealed.read_seal(folder)
    assert seal is not None
    sealed.with_file(folder, made.name, sealed.facts_of(made))
    train = (folder / "train.jsonl").stat().st_ino
    (folder / "validation.jsonl").write_text("x")
    hub.asked.clear()
    [(code, said)] = commands(ask)
    assert code == 0, said
    assert damage(folder) == {}
    assert (folder / "train.jsonl").stat().st_ino == train  # readers have it open
    assert made.read_bytes() == b"rows"
    assert not [asked for asked in hub.asked if asked.endswith(".parquet")]
    # what was made of the rows can be made again, and needs no hub
    made.write_bytes(b"worn")
    [(code, said)] = commands(ask, HF_HUB_OFFLINE="1")
    assert code == 0, said
    assert "bytes have changed: removed" in said
    assert not made.exists()
    # rows that change take with them what was made of them
    made.write_bytes(b"rows")
    sealed.with_file(folder, made.name, sealed.facts_of(made))
    with written(folder, alone=True) as writing:
        writing.write("train", iter([b"{}\n"]))
        writing.finish(Origin("docvqa@v1", f"{NANOCHAT}@{COMMIT}"))
    assert sorted(path.name for path in folder.iterdir()) == [
        *(".fill.lock", "MANIFEST.json", "READY", "train.jsonl"),
    ]


def test_files_of_others_are_left_alone(hub: Hub, commands: Run, tmp_path: Path) -> None:
    mine, by_hand = tmp_path / "mine", tmp_path / "by-hand"
    for folder in (mine, by_hand):
        folder.mkdir()
        (folder / "train.jsonl").write_text("my own")
    (by_hand / "READY").touch()
    (tmp_path / "file").touch()
    found = commands(
        *(download("docvqa@v1", "--to", str(tmp_path / name)) for name in ("mine", "by-hand")),
        download("docvqa@v1", "--to", str(tmp_path / "file" / "below")),
    )
    assert [code for code, _ in found] == [2, 2, 2], found
    assert "train.jsonl is there, and not by this command" in found[0][1]
    assert "holds data that were put there by other means" in found[1][1]
    assert "cannot be filled: Not a directory" in found[2][1]
    assert (mine / "train.jsonl").read_text() == "my own"
    assert (by_hand / "train.jsonl").read_text() == "my own"
    assert hub.asked == []


@pytest.mark.parametrize("lost", ["READY", "MANIFEST.json"])
def test_what_says_what_a_copy_holds_is_mended(
    lost: str, hub: Hub, commands: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    ask = download("docvqa@v1", "--to", str(folder))
    commands(ask)
    ready = (folder / "READY").read_bytes()
    (folder / lost).write_text("{")
    [(code, said)] = commands(ask)
    assert code == 0, said
    assert (folder / "READY").read_bytes() == ready
    assert damage(folder) == {}


def filled(folder: Path) -> None:
    """Fills a folder as `docvqa@v1` of the hub does."""
    folder.mkdir(parents=True)
    with written(folder, alone=True) as writing:
        for split, count in (("train", 12), ("validation", 3)):
            writing.write(split, map(line_of, chats(count)))
        writing.finish(Origin("docvqa@v1", f"{NANOCHAT}@{COMMIT}"))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        pytest.param("READY", "digest", "0" * 64, id="READY: digest"),
        pytest.param("READY", "source", "docvqa@v2", id="READY: source"),
        pytest.param("READY", "resolved", f"{NANOCHAT}@{'f' * 40}", id="READY: commit"),
        pytest.param("MANIFEST.json", "digest", "0" * 64, id="digest"),
        pytest.param("MANIFEST.json", "source", "mine", id="source"),
        pytest.param("MANIFEST.json", "resolved", "nothing", id="no commit"),
        pytest.param("MANIFEST.json", "rows", None, id="rows"),
    ],
)
def test_what_was_changed_by_hand_is_made_again(
    name: str, key: str, value: str | None, hub: Hub, commands: Run, tmp_path: Path
) -> None:
    home = tmp_path / "cache/dataset"
    filled(home)
    before = (home / "READY").read_bytes()
    inode = (home / "train.jsonl").stat().st_ino
    content = json.loads((home / name).read_text())
    (home / name).write_text(json.dumps({**content, key: value} if value else {"format": 1}))
    assert [caches.problems(shelf) for shelf in caches.look(home.parent)][1] != []
    again = download("docvqa@v1", "--to", str(home))
    fill = ["cache", "fill", "--root", str(home.parent), "--dataset", "docvqa@v1"]
    [(code, said), (whole, saying)] = commands(fill, again)
    assert (code, whole) == (0, 0), said + saying
    assert saying.startswith("whole already")
    assert (home / "READY").read_bytes() == before
    assert (home / "train.jsonl").stat().st_ino == inode  # readers have it open
    assert [caches.problems(shelf) for shelf in caches.look(home.parent)][1] == []


def test_another_data_set_that_is_whole_is_not_taken_for_a_changed_one(
    hub: Hub, commands: Run, tmp_path: Path
) -> None:
    filled(tmp_path / "copy")
    ready = tmp_path / "copy/READY"
    ready.write_text(ready.read_text().replace("docvqa@v1", "docvqa@v2").replace('t": "', 't": "0'))
    [(code, said)] = commands(download("docvqa@v2", "--to", str(tmp_path / "copy")))
    assert code == 2
    assert "holds docvqa@v1" in said
    assert damage(tmp_path / "copy") == {}


def test_a_copy_that_was_killed_half_way_is_finished_and_leaves_nothing(
    hub: Hub, commands: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / ".filling-0123").mkdir()
    (folder / ".filling-0123" / "train.jsonl").write_text("half")
    # killed between the manifest and the files that it names
    with written(folder, alone=False) as writing:
        writing.write("train", iter([b"{}\n"]))
        writing.finish(Origin("docvqa@v1", f"{NANOCHAT}@{COMMIT}"))
    (folder / "READY").unlink()
    (folder / "train.jsonl").write_text("other")
    hub.repositories[NANOCHAT].names = ("main",)  # v1 is another commit by now
    [(code, said)] = commands(download("docvqa@v1", "--to", str(folder)))
    assert code == 0, said
    assert damage(folder) == {}
    assert sorted(path.name for path in folder.iterdir()) == [
        *(".fill.lock", "MANIFEST.json", "READY", "train.jsonl", "validation.jsonl"),
    ]


def test_rows_are_counted_against_the_repository_s_own_card(
    hub: Hub, commands: Run, tmp_path: Path
) -> None:
    for name, told in (("right", 12), ("wrong", 13)):
        card = f"""---
dataset_info:
  features:
  - name: messages
    list:
    - {{name: content, dtype: string}}
    - {{name: role, dtype: string}}
  splits:
  - {{name: train, num_bytes: 1, num_examples: {told}}}
---
"""
        files = {"README.md": card.encode(), TRAIN: parquet(chats(12))}
        hub.repositories[f"a/{name}"] = Repository(files)
    found = commands(download("hf:a/right@main"), download("hf:a/wrong@main"))
    assert [code for code, _ in found] == [0, 65], found
    assert "train: 12 rows came, its card says 13" in found[1][1]
    assert not (tmp_path / "cache/dataset/hf--a--wrong@main/READY").exists()


def test_a_split_without_rows_is_not_ready(hub: Hub, commands: Run, tmp_path: Path) -> None:
    hub.repositories["a/none"] = Repository(
        {TRAIN: parquet(chats(2)), VALIDATION: parquet(chats(1), rows=0)}
    )
    hub.repositories["a/held"] = Repository({VALIDATION: parquet(chats(2))})
    found = commands(download("hf:a/none@main"), download("hf:a/held@main"))
    assert [code for code, _ in found] == [65, 65], found
    assert "has no split 'train', only validation" in found[1][1]
    assert list((tmp_path / "cache").rglob("READY")) == []


def test_two_that_fetch_at_once_fetch_once(hub: Hub, commands: Run, tmp_path: Path) -> None:
    ask = download("docvqa@main", "--to", str(tmp_path / "copy"))
    with ThreadPoolExecutor() as pool:
        found = [future.result()[0] for future in [pool.submit(commands, ask) for _ in range(2)]]
    assert [code for code, _ in found] == [0, 0], found
    assert sorted("whole already" in said for _, said in found) == [False, True]
    assert sum(asked.startswith("GET") and asked.endswith(TRAIN) for asked in hub.asked) == 1


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        pytest.param("docvqa@", "no commit, tag or branch", id="empty revision"),
        pytest.param("docvqa@a b", "no commit, tag or branch", id="space"),
        pytest.param("hf:name@main", "no repository", id="no owner"),
        pytest.param("hf:../../etc@main", "no repository", id="a path"),
        pytest.param("docvqa@../x", "no commit, tag or branch", id="a path as revision"),
        pytest.param("hf:a/b", "hf:a/b@main", id="no revision"),
    ],
)
def test_a_wrong_reference_is_refused(reference: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        hub_set(reference)


def test_a_full_disk_and_an_unknown_error_are_not_retried() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(translated(full, "x"), UsageError)
    assert "disk is full" in str(translated(full, "x"))
    assert isinstance(translated(KeyError("a"), "x"), UsageError)
    assert isinstance(translated(TimeoutError("slow"), "x"), RetryError)
    closed = translated(PermissionError(errno.EACCES, "Permission denied", "/hf"), "x")
    assert isinstance(closed, UsageError)
    assert "set HF_HOME to a folder that this user may write to" in str(closed)


@pytest.mark.parametrize(
    "said",
    [
        "Max retries exceeded with url: /lfs/ab?X-Amz-Signature=5ec4e7&x=1 (Caused by reset)",
        "Client error for url 'https://cdn.example/ab?Signature=5ec4e7'",
    ],
)
def test_signatures_of_addresses_are_not_told(said: str) -> None:
    told = str(translated(ConnectionError(said), "x"))
    assert "5ec4e7" not in told
    assert "?..." in told


def test_a_folder_of_the_repository_s_name_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NANOCHAT).mkdir(parents=True)
    with pytest.raises(UsageError, match="run the command in another folder"):
        commit_of(NANOCHAT, COMMIT, print)


# --- a sweep that names it ---


@pytest.fixture
def copy_of(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts the golden conversations where a data set of the hub is kept; gives the file."""
    monkeypatch.setenv("FRACTAL_K8S_CACHE", str(tmp_path / "cache"))

    def make(reference: str, folder: Path | None = None) -> Path:
        folder = folder or tmp_path / "cache" / "dataset" / reference
        folder.mkdir(parents=True, exist_ok=True)
        with (
            (golden / "conversations.jsonl").open("rb") as lines,
            written(folder, alone=True) as writing,
        ):
            writing.write("train", lines)
            writing.finish(Origin(reference, f"{NANOCHAT}@{COMMIT}"))
        return folder / "train.jsonl"

    return make


def test_a_sweep_of_docvqa_trains_on_the_copy_and_says_where_to_get_it(
    copy_of: Callable[..., Path], gpt_sweep: MakeSweep
) -> None:
    sweep = gpt_sweep(dataset="docvqa@v1")
    assert not has_dataset(sweep)
    with pytest.raises(UsageError, match="fractal-k8s data download docvqa@v1"):
        read_facts(sweep)
    file = copy_of("docvqa@v1")
    assert has_dataset(sweep)
    assert not has_dataset(gpt_sweep(dataset="docvqa"))
    by_name = load_materials(sweep)
    by_path = load_materials(gpt_sweep(dataset=f"conversations:{file}"))
    assert by_name.rows == by_path.rows
    assert by_name.dataset_digest == by_path.dataset_digest == file_sha256(file)
    assert read_facts(sweep).conversations == 64

    pin = {"checkpoint_digest": None, "dataset_digest": by_name.dataset_digest}
    other = gpt_sweep(dataset=f"docvqa@{COMMIT}").pinned(**pin)
    assert sweep.pinned(**pin).id == other.id == gpt_sweep(dataset="docvqa").pinned(**pin).id

    content = file.read_bytes()
    file.write_bytes(content.replace(b"the", b"thE", 1))
    with pytest.raises(CorruptError, match="is not what was fetched"):
        load_materials(sweep)
    file.write_bytes(content[:-1])
    with pytest.raises(CorruptError, match=r"train.jsonl: has [\d,]+ bytes, was"):
        load_materials(sweep)


def test_plan_of_docvqa_needs_no_copy_and_reads_one(
    copy_of: Callable[..., Path], run: Run, golden: Path
) -> None:
    small = ("--set", "training.tokens=800", "--set", "training.batch_size=2")
    options = ("plan", "--checkpoint", str(golden), "--set", "training.max_seq_len=100", *small)
    said = run(*options, "--dataset", "docvqa@v1").output
    assert "docvqa@v1 is not on this machine: fractal-k8s data download docvqa@v1" in said
    copy_of("docvqa@v1")
    assert "34 rows to train on" in run(*options, "--dataset", "docvqa@v1").output


def test_a_claim_that_the_fill_job_filled_is_found(
    copy_of: Callable[..., Path], gpt_sweep: MakeSweep, tmp_path: Path
) -> None:
    copy_of("docvqa@v1", tmp_path / "cache" / "dataset")
    assert has_dataset(gpt_sweep(dataset="docvqa@v1"))
    assert not has_dataset(gpt_sweep(dataset="docvqa"))


@pytest.mark.parametrize(
    ("held", "wanted", "fits"),
    [
        pytest.param(f"{NANOCHAT}@{COMMIT}", "docvqa", True, id="whatever main was"),
        pytest.param(f"{NANOCHAT}@{COMMIT}", f"docvqa@{COMMIT}", True, id="the commit"),
        pytest.param(f"{NANOCHAT}@{COMMIT}", "docvqa@" + "f" * 40, False, id="another commit"),
        pytest.param(f"{NANOCHAT}@{COMMIT}", "hf:a/b@main", False, id="another repository"),
        pytest.param("/data/mirror@" + "0" * 12, "docvqa", True, id="a file may be a copy"),
        pytest.param(f"{NANOCHAT}@{COMMIT}", "forms:50", True, id="made up, not read"),
    ],
)
def test_what_a_claim_holds_is_compared_with_the_sweep(
    held: str, wanted: str, fits: bool, tmp_path: Path
) -> None:
    sealed.write_manifest(tmp_path, Seal("dataset", held, held, "0" * 64, {}))
    if fits:
        refuse_other_data([tmp_path], wanted)
    else:
        with pytest.raises(UsageError, match="name the claim of the right data"):
            refuse_other_data([tmp_path], wanted)


@pytest.mark.parametrize("reference", ["docvqa", f"docvqa@{COMMIT}", f"hf:owner/name@{COMMIT}"])
def test_a_commit_in_a_reference_is_no_credential(reference: str, run: Run) -> None:
    jobs = ("store=s3://bucket/prefix", "model_claim=model", "dataset_claim=data")
    options = [text for job in jobs for text in ("--job", job)]
    said = run("render", "--res", "4", "--dataset", reference, *options).output
    assert "conversations:/cache/dataset/train.jsonl" in said


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": []}', '{"files": {"train.jsonl": 1}}'])
def test_a_damaged_manifest_is_a_problem(
    text: str, copy_of: Callable[..., Path], gpt_sweep: MakeSweep
) -> None:
    file = copy_of("docvqa@v1")
    file.with_name("MANIFEST.json").write_text(text)
    with pytest.raises(CorruptError, match=r"MANIFEST.json: damaged; .*fetch it again"):
        read_facts(gpt_sweep(dataset="docvqa@v1"))
