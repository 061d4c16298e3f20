"""Sources, caches and disks that somebody has got wrong, or means ill."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from fractal_k8s import caches, sealed
from fractal_k8s.checkpoints.files import find_checkpoint
from fractal_k8s.checkpoints.layout import model_layout
from fractal_k8s.checkpoints.standin import save_encoding, stand_in_encoding
from fractal_k8s.data.docvqa import hub_set
from fractal_k8s.data.download import download
from fractal_k8s.data.splits import Origin, line_of, written
from fractal_k8s.errors import EXIT_CORRUPT, UsageError
from scans import NANOCHAT, chats
from standin.hub import COMMIT


def quiet(line: str) -> None:
    pass


@pytest.fixture
def source(golden: Path, tmp_path: Path) -> Path:
    """A copy of the golden checkpoint, to be spoilt."""
    folder = tmp_path / "source"
    for name in ("checkpoints", "tokenizer"):
        shutil.copytree(golden / name, folder / name)
    return folder


def another_depth(source: Path) -> None:
    meta = source / "checkpoints/meta_000300.json"
    content = json.loads(meta.read_text())
    content["model_config"]["n_layer"] += 1
    meta.write_text(json.dumps(content))


def no_depth(source: Path) -> None:
    meta = source / "checkpoints/meta_000300.json"
    content = json.loads(meta.read_text())
    del content["model_config"]["n_layer"]
    meta.write_text(json.dumps(content))


def another_tokenizer(source: Path) -> None:
    """Of as many tokens, so that only the table beside it tells."""
    save_encoding(stand_in_encoding(1024), source / "tokenizer")


def emptied(name: str) -> Callable[[Path], None]:
    def spoil(source: Path) -> None:
        (source / name).write_bytes(b"")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(another_depth, "does not fit meta_000300.json: lacks", id="another depth"),
        pytest.param(no_depth, "model_config lacks n_layer", id="no depth"),
        pytest.param(another_tokenizer, "is the table of another tokenizer", id="tokenizer"),
        pytest.param(emptied("checkpoints/model_000300.pt"), "damaged or truncated", id="weights"),
        pytest.param(emptied("checkpoints/meta_000300.json"), "no usable model_config", id="meta"),
        pytest.param(emptied("tokenizer/tokenizer.pkl"), "not a pickled tokenizer", id="words"),
        pytest.param(emptied("tokenizer/token_bytes.pt"), "damaged or truncated", id="table"),
    ],
)
def test_parts_that_do_not_fit_together_fill_nothing(
    spoil: Callable[[Path], None], words: str, run: Run, source: Path
) -> None:
    spoil(source)
    fill = ("cache", "fill", "--root", "cache", "--model", str(source))
    said = run(*fill, code=EXIT_CORRUPT).output
    assert words in said
    assert sealed.FILLING not in said  # files are called as at their source
    assert not Path("cache").exists()


def test_a_tokenizer_without_a_table_is_taken(run: Run, source: Path) -> None:
    (source / "tokenizer/token_bytes.pt").unlink()
    run("cache", "fill", "--root", "cache", "--model", str(source))
    assert len(list(Path("cache/model/tokenizer").iterdir())) == 1


@pytest.mark.parametrize("above", ["../up", "/root", "a/../../b"])
def test_names_that_lead_out_of_a_source_are_none_of_its_files(above: str) -> None:
    files = ("model_000001.pt", "meta_000001.json", "tokenizer.pkl")
    outside = [f"{above}/{name}" for name in files]
    with pytest.raises(UsageError, match="holds no model_"):
        model_layout(outside, "source")
    layout = model_layout([*outside, *(f"in/{name}" for name in files)], "source")
    assert sorted(layout.values()) == sorted(f"in/{name}" for name in files)


def test_of_two_names_of_one_step_it_is_always_the_same(source: Path) -> None:
    names = ["model_000300.pt", "model_300.pt", "model_0300.pt"]
    metas = [name.replace("model_", "meta_").replace(".pt", ".json") for name in names]
    chosen = {
        model_layout([*order, *metas, "tokenizer.pkl"], "source")["checkpoints/model_300.pt"]
        for order in itertools.permutations(names)
    }
    assert chosen == {"model_300.pt"}
    for name in (*names, *metas):
        (source / "checkpoints" / name).touch()
    assert find_checkpoint(source).model.name == "model_300.pt"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: "null", id="null"),
        pytest.param(lambda text: "[" * 100_000, id="deep"),
        pytest.param(lambda text: text.replace("checkpoints/", "\\u0000/"), id="a name of zero"),
        pytest.param(lambda text: text.replace('"size": ', '"size": -'), id="sizes"),
        pytest.param(lambda text: text.replace('"files": {', '"files": [{'), id="no JSON"),
    ],
)
def test_a_manifest_of_any_kind_is_named_and_mended(
    change: Callable[[str], str], run: Run, source: Path
) -> None:
    fill = ("cache", "fill", "--root", "cache", "--model", str(source))
    run(*fill)
    manifest = Path("cache/model/MANIFEST.json")
    manifest.write_text(change(manifest.read_text()))
    assert "damaged" in run("cache", "status", "--root", "cache").output
    assert " ".join(fill) in run("cache", "verify", "--root", "cache", code=EXIT_CORRUPT).output
    run(*fill)
    run("cache", "verify", "--root", "cache")


def test_what_a_killed_fill_has_left_goes_although_the_cache_is_ready(
    run: Run, source: Path
) -> None:
    fill = ("cache", "fill", "--root", "cache", "--model", str(source))
    run(*fill)
    left = Path("cache/model", f"{sealed.FILLING}0123456789", "checkpoints")
    left.mkdir(parents=True)
    (left / "model_000300.pt").write_bytes(b"as large as a model")
    with sealed.being_filled(Path("cache/model"), quiet):
        caches.fill_model(Path("cache"), str(source), quiet)
        assert left.exists()  # somebody is at it
    run(*fill)
    assert not left.parent.exists()


def test_what_a_killed_download_has_left_goes_too(tmp_path: Path) -> None:
    with written(tmp_path, alone=True) as writing:
        writing.write("train", map(line_of, chats(3)))
        writing.finish(Origin("docvqa@v1", f"{NANOCHAT}@{COMMIT}"))
    left = tmp_path / f"{sealed.FILLING}0123456789"
    left.mkdir()
    found = hub_set("docvqa@v1")
    assert found is not None
    assert not download(found, tmp_path, quiet).fetched
    assert not left.exists()


def test_a_prefix_of_many_objects_is_a_model_whatever_else_lies_there(
    golden: Path, s3_client: Any, tmp_path: Path
) -> None:
    s3_client.create_bucket(Bucket="many")
    for name in ("checkpoints", "tokenizer"):
        for file in (golden / name).iterdir():
            s3_client.upload_file(str(file), "many", f"d4/{name}/{file.name}")

    def put(name: str, body: bytes = b"") -> None:
        s3_client.put_object(Bucket="many", Key=f"d4/{name}", Body=body)

    for name in ("", "checkpoints/optim_000300_rank0.pt", "checkpoints/OPTIM 000300 é.pt"):
        put(name)
    first = caches.fill_model(tmp_path, "s3://many/d4", quiet)
    put("checkpoints/optim_000300_rank0.pt", b"another state of the optimizer")
    again = caches.fill_model(tmp_path, "s3://many/d4/", quiet)
    assert again == first
    assert len(first.files) == 4
    put("checkpoints/meta_000300.json", b"{}")
    with pytest.raises(UsageError, match=f"holds {first.resolved}, not s3://many/d4@"):
        caches.fill_model(tmp_path, "s3://many/d4", quiet)
