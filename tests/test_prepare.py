"""Pages with questions, made into conversations that fit."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal_k8s import sealed
from fractal_k8s.checkpoints.tokenizer import load_tokenizer
from fractal_k8s.data.conversations import read_rows, render
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
from fractal_k8s.data.splits import Origin
from fractal_k8s.errors import CorruptError, RetryError
from fractal_k8s.sweep.definition import Sweep
from scans import TRAIN, VALIDATION, parquet, scanned
from standin.hub import COMMIT, Hub, Repository

MakeSweep = Callable[..., Sweep]
Run = Callable[..., Any]


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
        pytest.param("Name: " + "_" * 60 + "x", "_" * 20, "none", [], id="a line to write on"),
        pytest.param("by A__Smith now", "A. Smith", "fuzzy", ["A__Smith"], id="underscores"),
        pytest.param("5 STRASSE, Zürich", "5 strasse,\u00a0zürich", "exact", None, id="umlauts"),
        pytest.param("für 5 € netto", "5 €", "exact", ["5 €"], id="a sign of money"),
        pytest.param("東京 支店 長", "支店", "exact", ["支店"], id="no letters of ours"),
        pytest.param("İstanbul ılık", "istanbul", "exact", ["İstanbul"], id="a dotted capital"),
        pytest.param("cost (a+b)* now", "(a+b)*", "exact", ["(a+b)*"], id="signs of patterns"),
    ],
)
def test_an_answer_is_found(page: str, answer: str, match: str, where: list[str] | None) -> None:
    found = find_answer(page, answer)
    assert found.match == match
    assert [page[start:end] for start, end in found.spans] == ([page] if where is None else where)


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


def test_a_page_that_holds_the_answer_on_every_line_takes_no_longer() -> None:
    tried = 0

    class Counting(Words):
        def encode(self, text: str) -> list[int]:
            nonlocal tried
            tried += len(text)
            return super().encode(text)

    lines = [f"line {k} has it" for k in range(3000)]
    made = conversation(page(*lines), Counting(), Limits(tokens=200))
    assert isinstance(made, Prepared)
    assert made.messages[0]["content"].split("\n")[2:-2] == lines[: made.kept_lines]
    whole = sum(map(len, lines))
    assert tried < 3 * whole


def test_an_answer_behind_what_fits_is_kept_from_a_page_of_many() -> None:
    lines = [f"page {k // 50} line {k % 50}" for k in range(2000)]
    lines[1900] = "at last it is said"
    made = conversation(page(*lines), Words(), Limits(tokens=60))
    assert isinstance(made, Prepared)
    left = made.messages[0]["content"].split("\n")[2:-2]
    assert "at last it is said" in left
    assert left == lines[1900 - left.index("at last it is said") :][: len(left)]


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


def test_a_process_that_is_killed_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    splits = {"train": lambda: (page("it") for _ in range(500))}
    maker = Maker(_dying_encoder, workers=2)
    with pytest.raises(RetryError, match="fewer --workers, which gives the same files"):
        prepare(splits, maker, tmp_path / "made", Origin("pages", "x"), print)
    assert not (tmp_path / "made").exists()


def _dying_encoder() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_killed_leaves_no_process_and_is_begun_anew(
    number: int, golden: Path, tmp_path: Path
) -> None:
    rows = [{**scanned(k), "image": None} for k in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "train.jsonl").write_text(text * 200)
    made = tmp_path / "made"
    command = [sys.executable, "-m", "fractal_k8s", "data", "prepare", "--to", str(made)]
    command += ["--tokenizer", str(golden), "--source", str(tmp_path / "train.jsonl")]
    killed = subprocess.Popen(
        [*command, "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not any(path.stat().st_size for path in made.glob(".filling-*/train.jsonl")):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(number)
    killed.communicate(timeout=240)  # ends when the last process that holds the pipe does
    assert killed.returncode == -number
    assert not (made / "READY").exists()
    (tmp_path / "train.jsonl").write_text(text)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in made.iterdir()) == [
        *(".fill.lock", "MANIFEST.json", "READY", "train.jsonl"),
    ]


def test_a_full_disk_is_told_in_a_sentence(golden: Path, tmp_path: Path) -> None:
    rows = [{**scanned(k), "image": None} for k in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "fractal_k8s", "data", "prepare", "--tokenizer", str(golden)]
    command += ["--source", str(tmp_path / "train.jsonl"), "--to", str(tmp_path / "made")]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (9000, 9000)),
    )
    assert done.returncode == 2
    assert "made: the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


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
    again = run("data", "prepare", *options, "--max-tokens", "100", "--force")
    assert (tmp_path / "made" / "train.jsonl").read_text().splitlines() == lines, again.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text("my own")
    elsewhere = (*options[:-1], "mine")
    refused = run("data", "prepare", *elsewhere, code=2).output
    assert "mine/train.jsonl is there, and not by this command" in refused

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


def test_the_split_of_a_file_is_told_by_words_of_its_name_or_its_folder(tmp_path: Path) -> None:
    expected = {
        "train": ["interval.jsonl", "latest.parquet", "train/0000.parquet", "x/train-val.parquet"],
        "validation": ["docvqa_val.jsonl", "validation/0000.parquet", "x/validation-0-of-1.jsonl"],
    }
    left_out = ["test/0000.parquet", "x/test-00000.parquet", "x/read.me"]
    for name in [*expected["train"], *expected["validation"], *left_out]:
        (tmp_path / "val-data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val-data" / name).touch()
    found = page_files([tmp_path / "val-data"])
    assert found == {
        split: [tmp_path / "val-data" / name for name in names] for split, names in expected.items()
    }


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


def test_columns_that_the_hub_lacks_are_named_or_done_without(
    hub: Hub, commands: Run, golden: Path, tmp_path: Path
) -> None:
    rows = [scanned(k) for k in range(5)]
    few = [{key: row[key] for key in ("question", "answers", "ocr_results")} for row in rows]
    unread = [{key: row[key] for key in ("question", "answers", "image")} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in few).encode()
    hub.repositories["a/unread"] = Repository({TRAIN: parquet(unread)})
    hub.repositories["a/few"] = Repository({TRAIN: parquet(few)})
    hub.repositories["a/lines"] = Repository({"train.jsonl": lines})
    common = ["data", "prepare", "--tokenizer", str(golden), "--to"]
    found = commands(
        *(
            [*common, str(tmp_path / name), "--source", f"a/{name}@main"]
            for name in ("unread", "few", "lines")
        )
    )
    assert [code for code, _ in found] == [65, 0, 0], found
    assert "has no column ocr_results" in found[0][1]
    assert "without a page number: 5" in found[1][1]
    made = [(tmp_path / name / "train.jsonl").read_bytes() for name in ("few", "lines")]
    assert made[0] == made[1]
