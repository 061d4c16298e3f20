"""The made-up documents, and the text that a base model is trained on."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fractal_k8s.checkpoints.tokenizer import load_tokenizer
from fractal_k8s.data import text
from fractal_k8s.data.forms import forms, running_text, statements
from fractal_k8s.data.named import NamedSet, named_set
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.materials import load_materials, read_dataset

MakeSweep = Callable[..., Sweep]

# --- forms ---


def test_rows_have_docvqas_template_and_their_answer_on_the_page() -> None:
    rows = list(forms(500))
    for asked, answered in rows:
        assert (asked["role"], answered["role"]) == ("user", "assistant")
        page, question = asked["content"].split("\n\n")
        assert re.match(r"Document:\nPage \d\n\S", page)
        assert re.fullmatch(r"Question: [A-Z].*\?", question)
        assert answered["content"] in page
        assert answered["content"] not in question
    assert len({asked["content"] for asked, _ in rows}) == 500
    assert len({asked["content"].splitlines()[-1] for asked, _ in rows}) > 50


def test_statements_answer_their_question_in_one_sentence() -> None:
    for asked, answered in statements(200):
        sentence, question = asked["content"].split("\n\n")
        assert answered["content"] in sentence
        assert "\n" not in sentence
        assert question.startswith("Question: ")


def test_running_text_asks_nothing() -> None:
    for document in running_text(100):
        assert document.startswith("Document:\nPage ")
        assert "Question" not in document
        assert "?" not in document


def test_the_content_never_changes() -> None:
    """Stored sweeps know their data by this digest."""
    short = NamedSet("forms", 100).digest()
    assert short == "9ff4f7d9887d4565f4162fd00475e5fd605f4497858bb898899efc3f1e81ba5e"
    assert (
        NamedSet("statements", 100).digest()
        == "6619c9614794d2baa13b5e5ecf54933bbb41bab8254eef63c4c6f36c3e4597e2"
    )
    assert NamedSet("forms", 101).digest() != short
    assert list(forms(101))[:100] == list(forms(100))


def test_names_and_sizes_are_read() -> None:
    assert named_set("forms") == NamedSet("forms", 2000)
    assert named_set("statements:7") == NamedSet("statements", 7)
    assert named_set("conversations:forms.jsonl") is None
    for wrong in ("forms:", "forms:0", "forms:-1", "forms:many", "forms:9999999"):
        with pytest.raises(UsageError, match="is no number of rows; give forms, or forms:ROWS"):
            named_set(wrong)


def test_a_sweep_takes_them_by_name(gpt_sweep: MakeSweep) -> None:
    sweep = gpt_sweep("training.max_seq_len=400", dataset="forms:30")
    materials = load_materials(sweep)
    assert len(materials.rows.rows) == 30
    pinned = sweep.pinned(checkpoint_digest=None, dataset_digest=materials.dataset_digest)
    assert load_materials(pinned).dataset_digest == NamedSet("forms", 30).digest()
    more = gpt_sweep("training.max_seq_len=400", dataset="forms:31")
    wrong = more.pinned(checkpoint_digest=None, dataset_digest=materials.dataset_digest)
    with pytest.raises(CorruptError, match="data set forms:31"):
        load_materials(wrong)
    assert json.loads(pinned.canonical_json())["dataset"] == "forms"


def test_few_positions_are_supervised(golden: Path) -> None:
    rows = read_dataset("forms:200", load_tokenizer(golden / "tokenizer"), 1000).rows
    labels = sum(sum(row.trained[1:]) for row in rows)
    positions = sum(len(row.ids) - 1 for row in rows)
    assert 0.01 < labels / positions < 0.1


def test_an_unknown_data_set_names_the_known_ones(gpt_sweep: MakeSweep) -> None:
    with pytest.raises(UsageError, match="forms or statements"):
        load_materials(gpt_sweep(dataset="form"))


# --- text ---


def test_plain_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {k}. " + "word " * 100 + "\n\n" for k in range(40)]
    path = tmp_path / "book.txt"
    path.write_text("".join(paragraphs))
    found = list(text.documents(path))
    assert "".join(found) == "".join(paragraphs)
    assert len(found) > 5
    assert all(document.startswith("Paragraph") for document in found)
    assert all(
        text.DOCUMENT_CHARACTERS <= len(document) < 2 * text.DOCUMENT_CHARACTERS
        for document in found[:-1]
    )


def test_text_without_blank_lines_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("x" * 300_000)
    found = list(text.documents(path))
    assert len(found) > 3
    assert sum(map(len, found)) == 300_000


def test_all_kinds_of_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n\n"three"\n{"text": " "}\n')
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "sub").mkdir()
    pq.write_table(pa.table({"text": ["four", "five"]}), tmp_path / "sub" / "c.parquet")
    (tmp_path / "notes.csv").write_text("not read")
    assert list(text.documents(tmp_path)) == ["one\n", "two", "three", "four", "five"]


def test_little_of_a_large_file_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_text("a line of some length\n\n" * 100_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in text.documents(path)) > 500
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 5


def test_every_twentieth_document_is_held_out() -> None:
    documents = [str(k) for k in range(100)]
    kept = list(text.held_out_part(documents))
    assert kept == ["19", "39", "59", "79", "99"]
    assert sorted([*text.training_part(documents), *kept]) == sorted(documents)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("x.jsonl", b'{"text": 3}\n', "line 1: is neither a text nor", id="no text"),
        pytest.param("x.jsonl", b'"a"\n{"text"\n', "line 2: not valid JSON", id="no JSON"),
        pytest.param("x.txt", b"ok \xff\xfe", "is not UTF-8", id="bytes"),
        pytest.param("x.parquet", b"PAR1 nothing", "damaged or not parquet", id="no parquet"),
    ],
)
def test_damaged_text_says_where(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptError, match=message):
        list(text.documents(tmp_path / name))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"words": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="no column 'text'"):
        list(text.documents(tmp_path / "x.parquet"))
    (tmp_path / "x.csv").touch()
    with pytest.raises(UsageError, match=r"unknown kind '.csv'; use .txt"):
        text.text_files(tmp_path / "x.csv")
    with pytest.raises(UsageError, match="no such file or folder"):
        text.text_files(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no file of"):
        text.text_files(tmp_path / "empty")
