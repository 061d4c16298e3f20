"""Models from scratch, those that are made once and cached, and sweeps over several depths."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Run
from fractal_k8s.checkpoints.bpe import save_encoding, token_bytes, train_encoding
from fractal_k8s.checkpoints.cache import cache_folder
from fractal_k8s.checkpoints.files import find_checkpoint
from fractal_k8s.checkpoints.nanochat import load_weights
from fractal_k8s.checkpoints.save import save_checkpoint
from fractal_k8s.checkpoints.tokenizer import SPECIAL_TOKENS, load_tokenizer
from fractal_k8s.data.forms import running_text
from fractal_k8s.errors import CorruptError, SweepError, UsageError
from fractal_k8s.models.gpt import GPT, config_from_dict
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.load import parse_text, preset_text, resolve
from fractal_k8s.train import open_trainer
from fractal_k8s.train.depth import DepthTrainer, verified
from fractal_k8s.train.gpt import GPTTrainer
from fractal_k8s.train.optimizers import Muon
from fractal_k8s.train.pretrain import Pretrained, pretrain, warmdown
from fractal_k8s.train.pretrained import provide
from fractal_k8s.train.recipe import RECIPES, Recipe, cached_folder
from fractal_k8s.train.stream import TextBatches

MakeSweep = Callable[..., Sweep]

SMALL = Recipe(
    text="forms:400",
    conversations="statements:240",
    depth=1,
    vocab_size=400,
    sequence_len=64,
    batch_size=8,
    tokens=25_600,
)
OPTIONS = (
    "--text forms:400 --conversations statements:240 --vocab 400 --sequence-len 64 "
    "--batch-size 8 --tokens 25600"
).split()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Pretrained], list[str]]:
    """Models of depth 1 and 2 with one tokenizer, in d1 and d2, and what was told meanwhile."""
    folder = tmp_path_factory.mktemp("models")
    lines: list[str] = []
    return folder, pretrain(SMALL, [1, 2], folder, lines.append), lines


# --- the stages ---


def test_a_model_learns_its_text_and_its_conversations(
    models: tuple[Path, list[Pretrained], list[str]],
) -> None:
    folder, made, lines = models
    for depth, result in zip((1, 2), made, strict=True):
        assert result.files == find_checkpoint(folder / f"d{depth}")
        assert 0.4 < result.bits_per_byte < 2.5  # about 2.9 for a uniform choice of tokens
        assert result.sft_loss is not None
        assert result.sft_loss[1] < result.sft_loss[0] < math.log(400) + 3
        assert result.sample["prompt"].endswith("?")
        assert result.sample["expected"] in result.sample["prompt"]
    assert made[1].parameters > 2 * made[0].parameters
    assert lines[0].startswith("tokenizer  400 tokens")
    assert any("base       step 50/50  loss" in line and "tokens/s" in line for line in lines)


def test_the_checkpoint_is_nanochats(models: tuple[Path, list[Pretrained], list[str]]) -> None:
    folder, made, _ = models
    files = find_checkpoint(folder / "d2")
    weights = load_weights(files)
    config = config_from_dict(weights.model_config)
    assert (config.n_layer, config.n_embd, config.vocab_size) == (2, 128, 400)
    GPT.from_weights(config, weights.tensors, compute_dtype=torch.float32)
    meta = json.loads(files.meta.read_text())
    assert meta["step"] == files.step == 228 // 8 - 1
    assert meta["val_bpb"] == made[1].bits_per_byte
    assert meta["user_config"]["depth"] == 2
    tokenizer = load_tokenizer(files.tokenizer.parent)
    assert tokenizer.vocab_size == 400
    sizes = torch.load(files.tokenizer.parent / "token_bytes.pt", weights_only=True)
    assert sizes.shape == (400,)


def test_the_same_input_gives_the_same_bytes_in_another_process(
    models: tuple[Path, list[Pretrained], list[str]], tmp_path: Path
) -> None:
    code = "from fractal_k8s.cli import main; main()"
    done = subprocess.run(
        [
            *(sys.executable, "-c", code, "pretrain", *OPTIONS, "--depth", "1", "--json"),
            *("--out", str(tmp_path / "again")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert report["digest"] == models[1][0].files.digest()
    assert report["sft_loss"] == list(models[1][0].sft_loss or ())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_while_a_model_is_made_leaves_nothing(
    number: int, code: int, tmp_path: Path
) -> None:
    place = {"FRACTAL_K8S_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "fractal_k8s", "pretrain", "--preset", "tiny"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **place, "PYTHONPATH": str(Path(__file__).parents[1])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("base "):  # it trains
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=240)
    assert process.returncode == code
    assert said.strip().endswith("stopped before it was done; run the same command to begin again")
    assert not [path for path in (tmp_path / "cache" / "pretrained").iterdir() if path.is_dir()]


def test_another_seed_gives_another_model(
    models: tuple[Path, list[Pretrained], list[str]], tmp_path: Path
) -> None:
    recipe = Recipe(**{**vars(SMALL), "seed": 1, "conversations": None, "tokens": 2048})
    made = pretrain(recipe, [1], tmp_path / "m", lambda line: None)[0]
    other = load_weights(made.files).tensors["transformer.wte.weight"]
    same = load_weights(models[1][0].files).tensors["transformer.wte.weight"]
    assert made.sft_loss is None
    assert (other - same).abs().mean() > 0.1


def test_bits_per_byte_are_those_of_the_model_that_was_saved(
    models: tuple[Path, list[Pretrained], list[str]], tmp_path: Path
) -> None:
    recipe = Recipe(**{**vars(SMALL), "conversations": None, "tokens": 2048})
    made = pretrain(recipe, [1], tmp_path, lambda line: None)[0]
    weights = load_weights(made.files)
    config = config_from_dict(weights.model_config)
    model = GPT.from_weights(config, weights.tensors, compute_dtype=torch.float32)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    nats, size = 0.0, 0
    for document in list(running_text(400))[19::20]:
        ids = [tokenizer.special["<|bos|>"], *tokenizer.encode(document)][:65]
        row = torch.tensor(ids)
        with torch.no_grad():
            nats += float(model.loss_sum(row[None, :-1], row[1:]))
        size += len(tokenizer.decode(ids[1:]).encode())
    assert made.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_conversations_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = Recipe(**{**vars(SMALL), "conversations": "forms:300", "sequence_len": 150})
    recipe = Recipe(**{**vars(recipe), "tokens": 1200, "epochs": 1})
    pretrain(recipe, [1], tmp_path, lines.append)
    (line,) = (line for line in lines if line.startswith("left out"))
    assert 0 < int(line.split()[2]) < 200
    assert "of 300 conversations" in line


def test_base_only_from_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for number in range(2):
        text = "\n".join(running_text(300))
        (tmp_path / "books" / f"{number}.txt").write_text(text)
    output = run(
        *"pretrain --text books --stage base --depth 1 --out m --vocab 300".split(),
        *"--tokens 4096 --sequence-len 64".split(),
    ).output
    assert "bits per byte of held-out text" in output
    assert "sft" not in output
    assert find_checkpoint(tmp_path / "m").step == 4


def test_a_short_text_is_read_again(run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in running_text(20))
    )
    output = run(
        *"pretrain --text short.jsonl --stage base --depth 1 --out m --vocab 280".split(),
        *"--tokens 8192 --sequence-len 64".split(),
    ).output
    assert re.search(r"text begun [23] times", output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param("--text nowhere", "text nowhere: no such file or folder", id="no text"),
        pytest.param("--text few.txt", "fewer than 20 documents", id="too little text"),
        pytest.param("--conversations no.jsonl", "no.jsonl: no such file", id="no conversations"),
        pytest.param("--conversations few.jsonl", "at least 21 are needed", id="few conversations"),
        pytest.param("--vocab 264", "at least 265 tokens", id="vocabulary too small"),
        pytest.param("--vocab 60000", "give more text, or --vocab", id="vocabulary too large"),
        pytest.param("--tokens 511", "less than one step", id="no step"),
        pytest.param("--depth 2,2", "names a depth twice", id="depth twice"),
        pytest.param("--depth two", "no number of layers", id="no depth"),
        pytest.param("--out full", "already holds a checkpoint", id="out is taken"),
        pytest.param("--stage base", "reads no --conversations", id="conversations for nothing"),
        pytest.param("--preset tiny", "give no other option", id="preset and more"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    change: str, message: str, run: Run, tmp_path: Path, golden: Path
) -> None:
    (tmp_path / "few.txt").write_text("A short text.\n")
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "few.jsonl").write_text(json.dumps(row) + "\n")
    shutil.copytree(golden, tmp_path / "full")
    before = sorted(tmp_path.rglob("*"))
    output = run("pretrain", *OPTIONS, *"--depth 1 --out m".split(), *change.split(), code=2).output
    assert message in " ".join(output.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_missing_is_named_at_once(run: Run) -> None:
    output = run("pretrain", "--depth", "2", code=2).output
    assert "give --text, --out, --conversations" in output


# --- parts ---


def test_the_schedule_is_nanochats() -> None:
    assert [warmdown(step, 10) for step in range(10)] == [1.0] * 9 + [0.5]
    assert warmdown(16, 20) == 1.0
    assert [warmdown(step, 20) for step in (17, 18, 19)] == [0.75, 0.5, 0.25]


def test_momentum_reaches_the_update() -> None:
    moved = []
    for momentum in (0.85, 0.95):
        generator = torch.Generator().manual_seed(3)
        weight = torch.nn.Parameter(torch.zeros(16, 16))
        muon = Muon([{"params": [weight], "lr": 1.0, "momentum": momentum}])
        for _ in range(3):
            weight.grad = torch.randn(16, 16, generator=generator)
            muon.step()
        moved.append(weight.detach())
    assert (moved[0] - moved[1]).abs().max() > 0.01


def test_a_tokenizer_is_trained_as_nanochat_does(golden: Path, tmp_path: Path) -> None:
    texts = list(running_text(300))
    encoding = train_encoding(iter(texts), 500)
    tokenizer = save_encoding(encoding, tmp_path)
    assert [*tokenizer.special] == list(SPECIAL_TOKENS)
    assert [*tokenizer.special.values()] == list(range(491, 500))
    again = load_tokenizer(tmp_path)
    for text in (texts[0], "Zürich, 東京 12345 \t\n\n  end", ""):
        ids = again.encode(text)
        assert ids == encoding.encode_ordinary(text)
        assert again.decode(ids) == text
    assert len(again.encode(texts[0])) < 0.6 * len(texts[0])
    assert encoding._pat_str == load_tokenizer(golden / "tokenizer")._encoding._pat_str
    sizes = token_bytes(encoding)
    assert int(sizes[torch.tensor(again.encode(texts[0]))].sum()) == len(texts[0])
    assert not sizes[491:].any()
    assert sizes.dtype == torch.int32


def test_the_golden_table_of_bytes_is_reproduced(golden: Path) -> None:
    """But for parts of characters, which nanochat counts as the character that replaces them."""
    encoding = load_tokenizer(golden / "tokenizer")._encoding
    recorded = torch.load(golden / "tokenizer" / "token_bytes.pt", weights_only=True)
    parts = torch.tensor(["\ufffd" in encoding.decode([k]) for k in range(encoding.n_vocab)])
    assert parts.sum() < 200
    assert torch.equal(token_bytes(encoding)[~parts], recorded[~parts])
    assert token_bytes(encoding)[200] == 3


def test_a_long_document_counts_with_its_beginning() -> None:
    texts = ["ab" * 5_000 + "xyz" * 10_000, "ab " * 100]
    ranks = train_encoding(texts, 268)._mergeable_ranks
    assert b"ab" in ranks
    assert not any(b"y" in token for token in ranks if len(token) > 1)
    cut = train_encoding(iter([*texts, *(["yz"] * 100_000)]), 268, max_characters=10_000)
    assert not any(b"y" in token for token in cut._mergeable_ranks if len(token) > 1)


def test_text_is_one_stream_of_tokens(golden: Path) -> None:
    tokenizer = load_tokenizer(golden / "tokenizer")
    texts = [f"document {k}, with some words in it" for k in range(9)]
    bos = tokenizer.special["<|bos|>"]
    flat = [token for text in texts for token in (bos, *tokenizer.encode(text))]
    stream = TextBatches(lambda: iter(texts), tokenizer, (2, 16), torch.device("cpu"))
    seen: list[int] = []
    while stream.readings < 3:
        part = next(stream)
        assert part.ids.shape == (2, 16)
        assert part.num_labels == 32 == len(part.labels)
        assert torch.equal(part.ids.flatten()[1:], part.labels[:-1])
        seen += [*part.ids.flatten().tolist(), int(part.labels[-1])]
    assert seen == (flat * 4)[: len(seen)]


# --- models that are made once ---


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a recipe that takes a second."""
    monkeypatch.setenv("FRACTAL_K8S_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(**{**vars(SMALL), "tokens": 2048, "conversations": "statements:60"})
    monkeypatch.setitem(RECIPES, "small", recipe)
    return tmp_path / "cache"


def test_a_model_is_made_once(cache: Path) -> None:
    lines: list[str] = []
    folder = provide("small", lines.append)
    assert folder == cached_folder("small")
    assert folder.is_relative_to(cache)
    assert lines[0].startswith("pretraining small, a depth-1 model; this is done once")
    assert find_checkpoint(folder).digest() == (folder / "sha256").read_text()
    lines.clear()
    assert provide("small", lines.append) == folder
    assert not lines


def test_a_damaged_model_is_made_again(cache: Path) -> None:
    folder = provide("small", lambda line: None)
    files = find_checkpoint(folder)
    digest = files.digest()
    files.model.write_bytes(files.model.read_bytes()[:-100])
    leftover = folder.with_name(f".{folder.name}-cutshort")
    leftover.mkdir()
    lines: list[str] = []
    provide("small", lines.append)
    assert "is damaged and is made again" in lines[0]
    assert find_checkpoint(folder).digest() == digest
    assert not leftover.exists()


def test_a_model_that_was_cut_short_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fractal_k8s.train.pretrain.save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            provide("small", lambda line: None)
    assert [path.suffix for path in (cache / "pretrained").iterdir()] == [".lock"]


def test_two_at_once_make_it_once(cache: Path) -> None:
    lines: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: provide("small", lines.append), range(2)))
    assert folders[0] == folders[1]
    assert sum(line.startswith("pretraining") for line in lines) == 1


def test_the_cache_has_its_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "fractal-k8s"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fractal-k8s"
    monkeypatch.setenv("FRACTAL_K8S_CACHE", "/proc/nothing")
    assert cache_folder() == Path("/proc/nothing")
    with pytest.raises(UsageError, match="set FRACTAL_K8S_CACHE to a folder that can be written"):
        provide("tiny", lambda line: None)


def small_sweep(**changes: Any) -> Sweep:
    raw = parse_text(preset_text("tiny"), source="tiny")
    raw.update({"checkpoint": "pretrained:small", "dataset": "forms:40", **changes})
    settings = ["training.max_seq_len=200", "training.tokens=1600"]
    return resolve(raw, settings=settings, resolution=2, source="test")


def test_a_launch_makes_its_model_and_the_next_one_does_not(
    run: Run, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.json").write_text(json.dumps(small_sweep().to_dict()))
    first = run("launch", "s.json", "--backend", "inline")
    assert "pretraining small" in first.stderr
    assert "2 x 2 points, 100.0% with a verdict" in first.stdout
    shown = json.loads(run("show", "tiny-", "--json").stdout)
    assert shown["checkpoint_digest"] == find_checkpoint(cached_folder("small")).digest()
    again = run("launch", "s.json", "--backend", "inline")
    assert "every point is stored, nothing to train" in again.output
    assert not again.stderr


def test_a_plan_makes_nothing(run: Run, cache: Path) -> None:
    output = run("plan", "--preset", "tiny").output
    assert "tiny is not on this machine yet; launch makes it, once" in output
    assert "memory            about" in output
    assert not cache.exists()


def test_a_worker_without_the_model_says_what_to_do(run: Run, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"sweep": small_sweep().to_dict()}))
    sweep = small_sweep(checkpoint="pretrained:tiny")
    with pytest.raises(UsageError, match="make it with: fractal-k8s pretrain --preset tiny") as e:
        open_trainer(sweep)
    assert e.value.worker_code == 64
    assert not cache.exists()


def test_a_worker_of_a_pod_makes_the_model_that_its_sweep_names(
    run: Run, cache: Path, tmp_path: Path
) -> None:
    """No one can have made it there before: a pod's cache is its own."""
    (tmp_path / "s.json").write_text(Plan(small_sweep(), Deal(points_per_shard=4)).to_json())
    arguments = ("worker", "--store", "runs", "--sweep", "s.json", "--shard", "0")
    output = run(*arguments).output
    assert "pretraining small" in output
    assert "complete: 4 points trained" in output
    assert find_checkpoint(cached_folder("small"))


def test_a_name_that_no_recipe_has_is_refused(run: Run, cache: Path) -> None:
    output = run("launch", "--preset", "tiny", "--checkpoint", "pretrained:large", code=2).output
    assert "no pretrained model 'large'; known: tiny" in output


# --- sweeps over depth ---


@pytest.fixture
def by_depth(models: tuple[Path, list[Pretrained], list[str]]) -> Callable[..., Sweep]:
    """Makes sweeps of depth against matrix_lr over the two models."""

    def make(depths: tuple[int, ...] = (1, 2), **changes: Any) -> Sweep:
        raw: dict[str, Any] = {
            "name": "deep",
            "model": "gpt",
            "checkpoint": str(models[0] / "d{depth}"),
            "dataset": "forms:40",
            "axes": {
                "y": {"knob": "depth", "values": list(depths)},
                "x": {"knob": "matrix_lr", "low": 1e-3, "high": 1e-1},
            },
            "training": {"tokens": 1200, "batch_size": 2, "max_seq_len": 200},
            "verdict": {"window": 1},
        }
        return resolve({**raw, **changes}, resolution=2, source="test")

    return make


def losses(sweep: Sweep, indexes: list[int]) -> dict[int, bytes]:
    trainer = open_trainer(sweep)
    assert isinstance(trainer, DepthTrainer)
    outcomes = trainer.train([sweep.point(p) for p in indexes], lambda: None)
    return {outcome.index: outcome.losses.tobytes() for outcome in outcomes}


def test_points_of_a_depth_are_those_of_its_model_alone(by_depth: MakeSweep) -> None:
    sweep = by_depth()
    assert sweep.depths == (1, 2)
    whole = losses(sweep, [0, 2, 1, 3])
    assert len(set(whole.values())) == 4
    for depth, row in ((1, (0, 1)), (2, (2, 3))):
        alone = GPTTrainer(sweep.at_depth(depth))
        for outcome in alone.train([sweep.point(p) for p in row]):
            assert outcome.losses.tobytes() == whole[outcome.index]
    for index in (3, 0):
        assert losses(sweep, [index])[index] == whole[index]
    assert losses(sweep, [3, 1, 2]) == {p: whole[p] for p in (3, 1, 2)}


def test_a_depth_can_be_chosen_without_an_axis(by_depth: MakeSweep) -> None:
    axes = {
        "y": {"knob": "unembedding_lr", "low": 1e-3, "high": 1e-1},
        "x": {"knob": "matrix_lr", "low": 1e-3, "high": 1e-1},
    }
    training = {"tokens": 1200, "batch_size": 2, "max_seq_len": 200}
    sweep = by_depth(axes=axes, training={**training, "depth": 2})
    assert sweep.depths == (2,)
    assert (
        losses(sweep, [0])[0]
        == next(GPTTrainer(sweep.at_depth(2)).train([sweep.point(0)])).losses.tobytes()
    )


def test_launch_and_plan_know_several_models(run: Run, by_depth: MakeSweep, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(json.dumps(by_depth().to_dict()))
    plan = json.loads(run("plan", "deep.json", "--json").stdout)
    weights = 2 * 12 * 128**2 + 2 * 448 * 128
    assert plan["memory_bytes"]["weights"] == 4 * weights  # of the deeper one
    summary = json.loads(run("launch", "deep.json", "--backend", "inline", "--json").stdout)
    assert summary["complete"]
    shown = json.loads(run("show", "deep", "--json").stdout)
    assert shown["checkpoint_digest"] == verified(by_depth())[0].spec.checkpoint_digest


def test_all_missing_depths_are_named(by_depth: MakeSweep) -> None:
    with pytest.raises(UsageError) as error:
        verified(by_depth((1, 3, 4)))
    message = str(error.value)
    assert message.startswith("2 of 3 depths have no model")
    assert "d3: no such folder" in message
    assert "d4: no such folder" in message
    assert "fractal-k8s pretrain --text TEXT --out FOLDER --depth 3,4" in message


def test_a_model_of_another_depth_is_refused(by_depth: MakeSweep, tmp_path: Path) -> None:
    source = Path(str(by_depth().at_depth(1).spec.checkpoint))
    for depth in (1, 2):
        shutil.copytree(source, tmp_path / f"d{depth}")
    with pytest.raises(CorruptError, match="the model has 1 layers, the sweep takes it for depth"):
        verified(by_depth(checkpoint=str(tmp_path / "d{depth}")))


def test_other_models_than_those_of_the_launch_are_refused(by_depth: MakeSweep) -> None:
    sweep = by_depth()
    tied, _ = verified(sweep)
    open_trainer(tied)
    data = tied.spec.dataset_digest
    with pytest.raises(CorruptError, match="not those that the sweep was launched with"):
        open_trainer(sweep.pinned(checkpoint_digest="0" * 64, dataset_digest=data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"axes": {"y": {"knob": "depth", "low": 1, "high": 2}}},
            "axes.y: depth has no range; give values = [2, 3, 4], say",
            id="range",
        ),
        pytest.param(
            {"axes": {"y": {"knob": "depth", "values": [1, 1.5]}}},
            "must be a whole number of at least 1, got 1.5",
            id="half a layer",
        ),
        pytest.param(
            {"checkpoint": "/models/d2"},
            "is one model; an axis over depth needs one for each depth",
            id="one model",
        ),
        pytest.param(
            {"axes": {"y": {"knob": "unembedding_lr", "low": 1e-3, "high": 1e-1}}},
            "needs a depth; set training.depth, or give an axis",
            id="no depth",
        ),
        pytest.param(
            {
                "axes": {"y": {"knob": "unembedding_lr", "low": 1e-3, "high": 1e-1}},
                "checkpoint": "/models/d2",
                "training": {"depth": 2},
            },
            "is one model; training.depth needs one for each depth",
            id="depth for nothing",
        ),
    ],
)
def test_a_depth_that_makes_no_sense_is_refused(
    changes: dict[str, Any], message: str, by_depth: MakeSweep
) -> None:
    if "axes" in changes:
        axis = {"knob": "matrix_lr", "low": 1e-3, "high": 1e-1}
        changes = {**changes, "axes": {**changes["axes"], "x": axis}}
    with pytest.raises(SweepError) as error:
        by_depth(**changes)
    assert message in str(error.value)


def test_saving_twice_gives_the_same_bytes(golden: Path, tmp_path: Path) -> None:
    weights = {"a": torch.arange(5.0), "b": torch.ones(2, 2)}
    saved: Iterator[bytes] = (
        save_checkpoint(
            tmp_path / name, 3, weights, {"model_config": {}}, golden / "tokenizer"
        ).model.read_bytes()
        for name in ("one", "two")
    )
    assert np.array_equal(*(np.frombuffer(content, np.uint8) for content in saved))
