"""The benchmarks of fine-tuning run and say what they should; how fast is theirs to tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fractal_k8s.checkpoints.standin import save_encoding, stand_in_encoding
from fractal_k8s.checkpoints.tokenizer import load_tokenizer
from fractal_k8s.data.conversations import read_rows

BENCH = Path(__file__).parents[1] / "scripts" / "bench"


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)


def bench(*arguments: str, code: int = 0) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(BENCH / arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(BENCH.parents[1])},
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_rows_are_as_long_as_docvqa_s() -> None:
    from rows import row_lengths, sample_rows

    for count in (48, 1000):
        lengths = row_lengths(count)
        assert sum(lengths) / count == pytest.approx(393, rel=0.01)
        assert max(lengths) == 1024
    assert row_lengths(48) == row_lengths(48)
    assert row_lengths(48) != sorted(row_lengths(48))
    assert {sum(row.trained) for row in sample_rows(48)} == {5, 6, 7}


def test_written_rows_are_read_back_as_long(tmp_path: Path) -> None:
    from rows import row_lengths, write_conversations

    save_encoding(stand_in_encoding(65_536), tmp_path)
    write_conversations(tmp_path / "rows.jsonl", 20, longest=300)
    read = read_rows(tmp_path / "rows.jsonl", load_tokenizer(tmp_path), 300)
    assert [len(row.ids) for row in read.rows] == row_lengths(20, longest=300)
    assert {sum(row.trained) for row in read.rows} == {5, 6, 7}


@pytest.mark.parametrize("vocab_size", [200, 264, 65_803])
def test_a_stand_in_tokenizer_has_a_least_and_a_largest_size(vocab_size: int) -> None:
    with pytest.raises(ValueError, match="no tokenizer of bytes and pairs of bytes"):
        stand_in_encoding(vocab_size)


def test_flops_are_those_of_the_formulas() -> None:
    from measure import step_flops

    from fractal_k8s.models.init import config_of_depth

    d20 = config_of_depth(20, vocab_size=65_536)
    flops = step_flops(d20, 1000, [500, 500], 300)
    assert flops["layers"] == 6 * 393_216_000 * 1000
    assert flops["muon"] == pytest.approx(12.58e12, rel=1e-3)
    assert flops["head"] == 6 * 1280 * 65_536 * 300
    assert flops["attention"] == 20 * 6 * 1280 * 2 * 500**2


def test_the_gpu_benchmark_runs_dry(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    text = bench("gpu.py", "--dry-run-cpu", "--only=model,warm,cold,eager", f"--out={out}")
    found = json.loads(out.read_text())
    reached = {target["name"]: target["reached"] for target in found["targets"]}
    assert not any("failed" in section for section in found["sections"].values()), text
    assert reached["same bytes in reverse order"] is True
    assert reached["same bytes after other points"] is True
    assert reached["same bytes in a fresh process"] is True
    assert reached["compiled: same bytes in two processes"] is None
    assert "the figures say nothing about a GPU" in text


def test_a_section_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    from gpu import DRY, run_section

    found = run_section("machine", DRY, tmp_path, limit=0.2)
    assert found["failed"] == "ended after its 0.2 s"
    assert found["wall_seconds"] < 60


def test_without_a_gpu_it_says_so() -> None:
    text = bench("gpu.py", code=2)
    assert "no CUDA GPU here; --dry-run-cpu runs the code without one" in text


def test_unknown_sections_are_refused() -> None:
    assert "no section speed; there are machine" in bench("gpu.py", "--only=speed", code=2)


def test_the_benchmark_of_render_says_how_long_and_how_large() -> None:
    lines = bench("render.py", "--rounds=1", "tanh").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:4]]
    assert [row[:2] for row in cells] == [["tanh", "16"], ["tanh", "1024"]]
    sizes = [int(row[-2].replace(",", "")) for row in cells]
    assert 5_000 < sizes[0] <= sizes[1] <= sizes[0] + 12
    assert lines[-1].startswith("slower than 0.5 s: ")
