"""`--cache DIR`: weights and data from a folder that `cache fill` has filled, and from no other."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Run
from fractal_k8s import caches, sealed
from fractal_k8s.errors import EXIT_CORRUPT

LAUNCH = ("--preset", "tiny", "--res", "2", "--set", "training.tokens=1000")
FOLDERS = ("--checkpoint", "cache/model", "--dataset", "conversations:cache/dataset/train.jsonl")


def quiet(line: str) -> None:
    pass


@pytest.fixture
def root(run: Run, golden: Path, tmp_path: Path) -> Path:
    """A filled cache in the folder where commands are typed."""
    caches.fill_model(Path("cache"), str(golden), quiet)
    caches.fill_dataset(Path("cache"), f"conversations:{golden}/conversations.jsonl", quiet)
    return tmp_path / "cache"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_launch_from_a_cache_is_the_sweep_of_its_folders(run: Run, root: Path) -> None:
    first = json.loads(
        run("launch", *LAUNCH, "--cache", "cache", "--backend", "inline", "--json").stdout
    )
    again = json.loads(run("launch", *LAUNCH, *FOLDERS, "--json").stdout)
    assert first["sweep"] == again["sweep"]
    assert len(json.loads(run("list", "--json").stdout)) == 1


@pytest.mark.parametrize("command", ["plan", "probe-batch", "train"])
def test_other_commands_take_it_too(command: str, run: Run, root: Path) -> None:
    words = {
        "plan": ("--res", "2", "--json"),
        "probe-batch": ("--max", "2", "--stride", "2", "--steps", "1"),
        "train": ("--out", "one", "--samples", "0"),
    }[command]
    typed = (command, "--preset", "tiny", *LAUNCH[4:], "--cache", "cache", *words)
    ready = root / "dataset" / sealed.READY
    ready.rename(root / "aside")
    assert "cache/dataset: cut short; run the fill again" in run(*typed, code=2).output
    (root / "aside").rename(ready)
    run(*typed)


def empty(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def half(root: Path) -> None:
    (root / "dataset").rename(root.with_name("elsewhere"))


def cut(root: Path) -> None:
    (root / "model" / sealed.READY).unlink()


def shorter(root: Path) -> None:
    path = root / "model/tokenizer/tokenizer.pkl"
    path.write_bytes(path.read_bytes()[:-1])


def half_a_manifest(root: Path) -> None:
    path = root / "dataset" / sealed.MANIFEST
    path.write_bytes(path.read_bytes()[:50])


def changed_weights(root: Path) -> None:
    flip(root / "model/checkpoints/meta_000300.json")


def changed_data(root: Path) -> None:
    path = root / "dataset/train.jsonl"
    path.write_text("".join(sorted(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        pytest.param(empty, 2, "fill --root cache --model REF --dataset REF\n", id="no folder"),
        pytest.param(
            half,
            2,
            "cache/dataset: empty; fill it with: fractal-k8s cache fill --root cache --dataset "
            "REF, or name one with --dataset\n",
            id="no data",
        ),
        pytest.param(cut, 2, "cache/model: cut short; run the fill again", id="cut short"),
        pytest.param(shorter, EXIT_CORRUPT, "cache/model: damaged; mend it with", id="shorter"),
        pytest.param(
            half_a_manifest, EXIT_CORRUPT, "cache/dataset: damaged; mend it with", id="manifest"
        ),
        pytest.param(changed_weights, EXIT_CORRUPT, "the folder was filled with", id="weights"),
        pytest.param(changed_data, EXIT_CORRUPT, "the folder was filled with", id="data"),
    ],
)
def test_a_cache_that_is_not_whole_is_refused(
    spoil: Callable[[Path], None], code: int, words: str, run: Run, root: Path
) -> None:
    spoil(root)
    assert words in run("launch", *LAUNCH, "--cache", "cache", code=code).output
    assert not Path("runs").exists()


@pytest.mark.parametrize("spoil", [half, shorter])
def test_the_command_that_it_names_mends_it(
    spoil: Callable[[Path], None], run: Run, root: Path, golden: Path
) -> None:
    spoil(root)
    said = run("launch", *LAUNCH, "--cache", "cache", code=2 if spoil is half else 65).output
    words = said.partition(" with: fractal-k8s ")[2].partition(", or name")[0]
    typed = words.replace("REF", f"conversations:{golden}/conversations.jsonl")
    end = run(*shlex.split(typed)).output.splitlines()[-1]
    assert end == "train with it: fractal-k8s launch --cache cache"
    run("plan", *LAUNCH, "--cache", "cache")


def test_what_is_named_is_not_taken_from_the_cache(run: Run, root: Path, golden: Path) -> None:
    half(root)
    run("plan", *LAUNCH, "--cache", "cache", "--dataset", "forms")
    said = run("plan", *LAUNCH, "--cache", "cache", *FOLDERS, code=2).output
    assert "leave nothing to take from --cache" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(("launch", "--context", "x"), "--job model_claim=NAME", id="a cluster"),
        pytest.param(("launch", "--in-cluster"), "--job model_claim=NAME", id="in a cluster"),
        pytest.param(
            ("probe-batch", "--depth", "2", "--random-weights"),
            "give --cache or --random-weights",
            id="no weights",
        ),
    ],
)
def test_where_a_folder_of_this_machine_says_nothing_it_is_refused(
    words: tuple[str, ...], reason: str, run: Run, root: Path
) -> None:
    assert reason in run(*words, "--preset", "tiny", "--cache", "cache", code=2).output


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("launch", "--preset", "tiny", "--cache", ""), id="launch"),
        pytest.param(("fetch", "tiny", "--to", ""), id="fetch"),
        pytest.param(("train", "--preset", "tiny", "--out", ""), id="train"),
        pytest.param(("pretrain", "--out", ""), id="pretrain"),
    ],
)
def test_an_empty_name_is_no_folder(words: tuple[str, ...], run: Run) -> None:
    """Such as that of a variable which is not set."""
    assert "is empty; name a folder" in run(*words, code=2).output
    assert [*Path().iterdir()] == []
