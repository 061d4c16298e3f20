"""Data sets of the hub, fetched once; pages with questions, made into conversations."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal_k8s import sealed
from fractal_k8s.checkpoints.tokenizer import load_tokenizer
from fractal_k8s.data.conversations import read_rows, render
from fractal_k8s.data.docvqa import PUBLISHED_ROWS, hub_set
from fractal_k8s.data.forms import forms
from fractal_k8s.data.hub import translated
from fractal_k8s.data.matching import find_answer
from fractal_k8s.data.pages import Page, page_files, read_pages
from fractal_k8s.data.prepare import (
    LONG_ANSWER,
    LONG_QUESTION,
    NO_ANSWER,
    NO_TEXT,
    Limits,
    Maker,
    Prepared,
    conversation,
    prepare,
)
from fractal_k8s.data.splits import Origin, written
from fractal_k8s.errors import CorruptError, RetryError, UsageError
from fractal_k8s.sealed import file_sha256
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.materials import has_dataset, load_materials, read_facts
from standin.hub import COMMIT, Fault, Hub, Repository, running_hub

MakeSweep = Callable[..., Sweep]
Run = Callable[..., Any]

NANOCHAT = "morgan/docvqa-nanochat"
TRAIN = "data/train-00000-of-00001.parquet"
VALIDATION = "data/validation-00000-of-00001.parquet"


# --- made-up files in the real schemas ---


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def chats(count: int) -> list[dict[str, Any]]:
    return [{"messages": messages} for messages in forms(count)]


def scanned(number: int, **changes: Any) -> dict[str, Any]:
    """A row as pixparse/docvqa-single-page-questions has them."""
    asked, answered = list(forms(number + 1))[-1]
    page, question = asked["content"].split("\n\nQuestion: ")
    texts = page.split("\n")[2:] + [f"line {k} of no use" for k in range(number % 7 * 5)]
    box = [0, 0, 9, 0, 9, 9, 0, 9]
    lines = [
        {
            "bounding_box": box,
            "text": text,
            "words": [{"bounding_box": box, "text": w, "confidence": None} for w in text.split()],
        }
        for text in texts
    ]
    return {
        "image": {"bytes": b"\x89PNG" * 50, "path": "x.png"},
        "question_id": number,
        "question": question,
        "answers": [answered["content"]],
        "data_split": "train",
        "ocr_results": {
            "page": 1,
            "clockwise_orientation": 0.1,
            "width": 1700,
            "height": 2200,
            "unit": "pixel",
            "lines": lines,
        },
        "other_metadata": {
            "ucsf_document_id": f"abcd{number:04}",
            "ucsf_document_page_no": str(number % 9 + 1),
            "doc_id": number,
            "image": "documents/x.png",
        },
        **changes,
    }


# --- commands in a process of their own: the libraries read their environment once ---

_COMMANDS = """
import json, sys
from click.testing import CliRunner
from fractal_k8s import cli
from fractal_k8s.data import hub
hub.PAUSES = (0.01, 0.01, 0.01)
done = [CliRunner().invoke(cli.main, arguments) for arguments in json.load(sys.stdin)]
print(json.dumps([[one.exit_code, one.output] for one in done]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with running_hub() as running:
        running.repositories[NANOCHAT] = Repository(
            {
                "README.md": b"---\nlicense: mit\n---\n",
                TRAIN: parquet(chats(12)),
                VALIDATION: parquet(chats(3)),
            },
            names=("main", "v1"),
        )
        yield running


@pytest.fixture
def commands(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs commands one after another in one process; gives (exit code, output) of each."""
    monkeypatch.setenv("FRACTAL_K8S_CACHE", str(tmp_path / "cache"))

    def invoke(*many: list[str], **environment: str) -> list[tuple[int, str]]:
        given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **environment}
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", _COMMANDS],
            input=json.dumps(many),
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return [(code, said) for code, said in json.loads(done.stdout.splitlines()[-1])]

    return invoke


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
    left = [path.name for path in (tmp_path / "cache" / "dataset").rglob("*.part")]
    assert left == []


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


def test_offline_only_the_right_commit_is_taken_from_the_cache(
    hub: Hub, commands: Run, tmp_path: Path
) -> None:
    other = "f" * 40
    commands(download(f"docvqa@{COMMIT}"))
    hub.asked.clear()
    found = commands(
        download(f"docvqa@{COMMIT}", "--to", str(tmp_path / "second")),
        download(f"docvqa@{other}"),
        download("docvqa@main"),
        download("hf:a/new@" + COMMIT),
        HF_DATASETS_OFFLINE="1",
    )
    assert [code for code, _ in found] == [0, 2, 2, 2], found
    assert damage(tmp_path / "second") == {}
    assert f"holds commit {COMMIT} only" in found[1][1]
    assert "nobody can say which commit main is" in found[2][1]
    assert "forbids to fetch it" in found[3][1]
    assert hub.asked == []


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
    full = OSError(28, "No space left on device")
    assert isinstance(translated(full, "x"), UsageError)
    assert "disk is full" in str(translated(full, "x"))
    assert isinstance(translated(KeyError("a"), "x"), UsageError)
    assert isinstance(translated(TimeoutError("slow"), "x"), RetryError)


# --- where the answer stands ---


@pytest.mark.parametrize(
    ("page", "answer", "match", "where"),
    [
        pytest.param("a\nThe Total Cost\nb", "total cost", "exact", ["Total Cost"], id="case"),
        pytest.param("x New\nYork y", "new york", "exact", ["New\nYork"], id="over a line's end"),
        pytest.param("5 and 15 and 5", "5", "exact", ["5", "5"], id="every place, whole words"),
        pytest.param("in 1975 only", "5", "none", [], id="not inside a word"),
        pytest.param(
            "INTER - OFFICE MEMO", "inter-office memo", "fuzzy", ["INTER - OFFICE MEMO"], id="marks"
        ),
        pytest.param("for Exxon Mobil now", "Exxonmobil", "fuzzy", ["Exxon Mobil"], id="spaces"),
        pytest.param("by Phi1ip Morris Inc", "Philip Morris", "fuzzy", ["Phi1ip Morris"], id="OCR"),
        pytest.param("pay $ 5.00 now", "$5.00", "fuzzy", ["5.00"], id="sign apart"),
        pytest.param("nothing here", "quarterly", "none", [], id="absent"),
        pytest.param("1 2 3", "12", "none", [], id="digits of a table"),
        pytest.param("a - b", "--", "none", [], id="no letters"),
        pytest.param("cost (a+b)* now", "(a+b)*", "exact", ["(a+b)*"], id="signs of patterns"),
    ],
)
def test_an_answer_is_found(page: str, answer: str, match: str, where: list[str]) -> None:
    found = find_answer(page, answer)
    assert found.match == match
    assert [page[start:end] for start, end in found.spans] == where


# --- truncation ---


class Words:
    """A tokenizer of words: a token for each, and for each newline."""

    def __init__(self) -> None:
        names = "bos user_start user_end assistant_start assistant_end".split()
        self.special = {f"<|{name}|>": k for k, name in enumerate(names)}

    def encode(self, text: str) -> list[int]:
        return [9] * len(text.replace("\n", " \n ").split(" "))


def page(*lines: str, question: str = "What is it?", answers: tuple[str, ...] = ("it",)) -> Page:
    return Page("1", question, answers, lines, "abcd0001", "4")


_TEXT = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=40)
_LINE = _TEXT.map(lambda text: " ".join(text.split())).filter(bool)


@settings(max_examples=60, deadline=None)
@given(
    before=st.lists(_LINE, max_size=25),
    after=st.lists(_LINE, max_size=25),
    beside=st.tuples(_LINE, _LINE),
    answer=st.lists(st.sampled_from(["alpha", "7", "Ωmega", "B&H"]), min_size=1, max_size=4),
    question=_LINE,
    room=st.integers(0, 120),
)
def test_question_and_answer_survive_whatever_is_cut(
    before: list[str],
    after: list[str],
    beside: tuple[str, str],
    answer: list[str],
    question: str,
    room: int,
    golden: Path,
) -> None:
    encoder = _golden_tokenizer(golden)
    text = " ".join(answer)
    lines = (*before, f"{beside[0]} {text} {beside[1]}", *after)
    limits = Limits(tokens=60 + room)
    given_page = page(*lines, question=question, answers=(text,))
    made = conversation(given_page, encoder, limits)
    if isinstance(made, str):
        assert made == LONG_QUESTION
        only = [
            {"role": "user", "content": f"Document:\nPage 4\n{text}\n\nQuestion: {question}"},
            {"role": "assistant", "content": text},
        ]
        assert len(render(only, encoder).ids) > limits.tokens
        return
    asked, answered = made.messages
    row = render(made.messages, encoder)
    assert made.tokens == len(row.ids) <= limits.tokens
    assert answered["content"] == text
    head, tail = "Document:\nPage 4\n", f"\n\nQuestion: {question}"
    assert asked["content"].startswith(head)
    assert asked["content"].endswith(tail)
    left = asked["content"][len(head) : -len(tail)]
    assert text in left
    if made.kept_lines:
        rest = iter(lines)
        assert all(line in rest for line in left.split("\n"))  # in the page's order
        assert made.kept_lines == len(left.split("\n"))
    else:
        assert left in "\n".join(lines)
    whole = [{"role": "user", "content": head + "\n".join(lines) + tail}, answered]
    assert (made.kept_lines == len(lines)) == (len(render(whole, encoder).ids) <= limits.tokens)


def _golden_tokenizer(golden: Path) -> Any:
    if golden not in _LOADED:
        _LOADED[golden] = load_tokenizer(golden / "tokenizer")
    return _LOADED[golden]


_LOADED: dict[Path, Any] = {}


def test_lines_nearest_to_the_answer_stay() -> None:
    lines = [f"line {k}" for k in range(20)]
    lines[12] = "it is here"
    made = conversation(page(*lines), Words(), Limits(tokens=30))
    assert isinstance(made, Prepared)
    left = made.messages[0]["content"].split("\n")[2:-2]
    assert left == [f"line {k}" for k in (10, 11)] + ["it is here"] + ["line 13"]
    assert (made.match, made.lines, made.kept_lines) == ("exact", 20, 4)


def test_every_place_of_the_answer_stays_while_there_is_room() -> None:
    lines = ["it"] + [f"line {k}" for k in range(10)] + ["it"]
    made = conversation(page(*lines), Words(), Limits(tokens=24))
    assert isinstance(made, Prepared)
    left = made.messages[0]["content"].split("\n")[2:-2]
    assert left[0] == left[-1] == "it"


def test_a_page_without_the_answer_keeps_its_beginning() -> None:
    lines = [f"line {k}" for k in range(20)]
    made = conversation(page(*lines, answers=("zebra",)), Words(), Limits(tokens=30))
    assert isinstance(made, Prepared)
    assert made.match == "none"
    assert made.messages[0]["content"].split("\n")[2:-2] == lines[: made.kept_lines]


@pytest.mark.parametrize(
    ("given_page", "why"),
    [
        pytest.param(page("a", answers=()), NO_ANSWER, id="no answer"),
        pytest.param(page("a", answers=("b" * 151,)), LONG_ANSWER, id="151 characters"),
        pytest.param(page(), NO_TEXT, id="nothing read"),
        pytest.param(page("it", question="why " * 99), LONG_QUESTION, id="long question"),
    ],
)
def test_what_cannot_be_used_is_dropped_with_a_reason(given_page: Page, why: str) -> None:
    assert conversation(given_page, Words(), Limits(tokens=64)) == why


def test_the_first_answer_that_is_short_enough_is_taken() -> None:
    answers = ("b" * 151, "c" * 150, "it")
    made = conversation(page("a", answers=answers), Words(), Limits())
    assert isinstance(made, Prepared)
    assert made.messages[1]["content"] == "c" * 150


# --- prepare ---


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Files as the source has them: two of train, one of validation, one without answers."""
    folder = tmp_path / "pages"
    folder.mkdir()
    rows = [scanned(k) for k in range(90)]
    rows[3]["answers"] = ["x" * 200]
    rows[4]["other_metadata"]["ucsf_document_page_no"] = None
    rows[5]["ocr_results"] = None
    rows[6]["answers"] = ["not on it at all"]
    (folder / "train-00000-of-00002.parquet").write_bytes(parquet(rows[:50]))
    for row in rows[50:]:
        row["image"] = None
    lines = [json.dumps(row) + "\n" for row in rows[50:]]
    (folder / "train-00001-of-00002.jsonl").write_text("".join(lines))
    held_out = [scanned(k, data_split="val") for k in range(90, 100)]
    (folder / "validation-00000-of-00001.parquet").write_bytes(parquet(held_out))
    unanswered = [scanned(k, answers=None) for k in range(4)]
    (folder / "test-00000-of-00001.parquet").write_bytes(parquet(unanswered))
    return folder


def test_the_bytes_are_the_same_for_1_and_8_workers(
    pages: Path, golden: Path, tmp_path: Path
) -> None:
    files = page_files([pages])
    splits = {split: partial(read_pages, paths) for split, paths in files.items()}
    made = []
    for workers in (1, 8):
        folder = tmp_path / f"by-{workers}"
        maker = Maker(partial(load_tokenizer, golden / "tokenizer"), Limits(160), workers)
        seal = prepare(splits, maker, folder, Origin("pages", "x"), print)
        names = ("train.jsonl", "validation.jsonl", "READY")
        made.append((seal.facts["report"], [(folder / name).read_bytes() for name in names]))
    assert made[0] == made[1]
    report = made[0][0]["train"]
    assert (report["pages"], report["kept"], report["unnumbered"]) == (90, 88, 1)
    assert report["dropped"] == {LONG_ANSWER: 1, NO_TEXT: 1}
    assert report["matches"]["none"] == 1
    assert 0 < report["cut"] < 88
    assert report["longest"] <= 160


def test_the_command_reports_and_its_files_train(
    pages: Path, golden: Path, tmp_path: Path, run: Run
) -> None:
    options = ("--tokenizer", str(golden), "--source", str(pages), "--to", "made")
    said = run("data", "prepare", *options, "--max-tokens", "100").output
    assert "train: 88 of 90 pages kept" in said
    assert "validation: 10 of 10 pages kept" in said
    assert "dropped: 1 answer too long, 1 no text on the page" in said
    lines = (tmp_path / "made" / "train.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["messages"][0]["content"].startswith("Document:\nPage 1\n")
    assert first["metadata"]["match"] == "exact"
    assert first["metadata"]["document"] == "abcd0000"
    tokenizer = load_tokenizer(golden / "tokenizer")
    rows = read_rows(tmp_path / "made" / "train.jsonl", tokenizer, 100)
    assert (len(rows.rows), rows.lost, rows.cut) == (88, 0, 0)

    refused = run("data", "prepare", *options, code=2).output
    assert "made holds a data set; give another --to, or --force" in refused

    settings = ("--set", "axes.y.values=[1e-3]", "--set", "axes.x.values=[1e-3, 1e-2]")
    trained = run(
        *("launch", "--preset", "tiny", "--checkpoint", str(golden), *settings),
        *("--dataset", "conversations:made/train.jsonl", "--backend", "inline", "--json"),
        *("--set", "training.tokens=1200", "--set", "training.max_seq_len=100"),
    )
    assert json.loads(trained.stdout)["coverage"] == 1.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b'{"question": "a"}\n', "lacks one of", id="no answers"),
        pytest.param(b"{\n", "not valid JSON", id="no JSON"),
        pytest.param(
            b'{"question": 1, "answers": [], "ocr_results": null}\n', "question is 1", id="number"
        ),
        pytest.param(
            b'{"question": "a", "answers": "b", "ocr_results": null}\n', "no list", id="one text"
        ),
        pytest.param(
            b'{"question": "a", "answers": [], "ocr_results": {"lines": [{"words": []}]}}\n',
            "has no text",
            id="line without text",
        ),
    ],
)
def test_a_damaged_page_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps(scanned(0, image=None)).encode() + b"\n" + content)
    with pytest.raises(CorruptError, match=words) as caught:
        list(read_pages([path]))
    assert "2" in str(caught.value)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet([scanned(0)])[:-100])
    with pytest.raises(CorruptError, match=r"train.parquet: damaged or not parquet"):
        list(read_pages([path]))


def test_images_and_boxes_of_words_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet([scanned(k) for k in range(3)]))
    read = [(one.question_id, one.number, len(one.lines)) for one in read_pages([path])]
    expected = [(str(k), str(k + 1), len(scanned(k)["ocr_results"]["lines"])) for k in range(3)]
    assert read == expected
    from fractal_k8s.data.pages import _read_parquet

    assert all("image" not in row and "words" not in str(row) for row in _read_parquet(path))


def test_pages_of_the_hub_are_streamed_without_their_images(
    hub: Hub, commands: Run, golden: Path, tmp_path: Path
) -> None:
    hub.repositories["a/pages"] = Repository(
        {TRAIN: parquet([scanned(k) for k in range(40)]), VALIDATION: parquet([scanned(41)])}
    )
    noise = random.Random(0).randbytes(3_000_000)
    heavy = parquet([scanned(40, image={"bytes": noise, "path": "x.png"})])
    hub.repositories["a/pages"].files["data/train-00001-of-00002.parquet"] = heavy
    common = ["data", "prepare", "--tokenizer", str(golden), "--to"]
    [(code, said)] = commands([*common, str(tmp_path / "a"), "--source", "a/pages@main"])
    assert code == 0, said
    assert f"a/pages@main is commit {COMMIT}" in said
    assert "train: 41 of 41 pages kept" in said
    ready = sealed.read_ready(tmp_path / "a")
    assert ready is not None
    assert ready["resolved"] == f"a/pages@{COMMIT}"
    assert hub.sent < 2_000_000


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
