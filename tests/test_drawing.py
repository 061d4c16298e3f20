"""How a sweep is drawn is chosen once, and every later pass draws so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Run
from fractal_k8s.aggregate.pictures import PAPER_FILES
from fractal_k8s.results.copy import copy_sweep
from fractal_k8s.results.published import published_files
from fractal_k8s.results.store import SweepStore
from test_aggregate import ALL, FILES, PLAN, SWEEP, folder, passed, put, summary_of

__all__ = ["folder"]  # a fixture

SAFE = b'"scheme":"safe"'


def note(folder: SweepStore) -> str:
    return folder.key("notes", "drawing.json")


def report(run: Run, folder: SweepStore, *more: str, code: int = 0) -> str:
    return run("report", SWEEP.id, "--store", folder.files.uri, *more, code=code).output


def test_later_passes_draw_as_was_chosen_until_something_else_is(
    folder: SweepStore, run: Run
) -> None:
    put(folder, range(30))
    report(run, folder, "--colours", "safe", "--no-figures")
    drawn = summary_of(folder)
    assert SAFE in drawn["report.html"]
    assert set(drawn) == FILES
    put(folder, range(30, 40), "b")
    passed(folder)
    assert SAFE in summary_of(folder)["report.html"]
    assert summary_of(folder)["map.png"] != drawn["map.png"]
    report(run, folder)  # the colours stay
    assert SAFE in summary_of(folder)["report.html"]
    report(run, folder, "--colours", "original")
    assert SAFE not in summary_of(folder)["report.html"]
    put(folder, ALL, "c")
    run("aggregate", "--all", "--store", folder.files.uri)
    assert SAFE not in summary_of(folder)["report.html"]


def test_figures_for_a_paper_are_never_older_than_the_map(folder: SweepStore, run: Run) -> None:
    put(folder, range(30))
    report(run, folder)
    before = summary_of(folder)
    assert set(before) == {*FILES, "map.pdf"}  # so small a map has no other figure
    put(folder, ALL, "b")
    passed(folder)
    after = summary_of(folder)
    assert set(after) == set(before)
    assert after["map.pdf"] != before["map.pdf"]
    published = published_files(folder)
    assert published is not None
    assert published.files == after
    report(run, folder, "--no-figures")
    assert set(summary_of(folder)) == FILES


def test_figures_that_an_earlier_release_left_go_with_the_next_pass(folder: SweepStore) -> None:
    put(folder, ALL)
    for name in (*PAPER_FILES, "mine.txt"):
        folder.put_summary(name, b"of an older map")
    passed(folder)
    assert set(summary_of(folder)) == {*FILES, "mine.txt"}


def test_a_choice_that_is_known_to_a_pass_changes_nothing_once_more(
    folder: SweepStore, run: Run
) -> None:
    put(folder, ALL)
    report(run, folder, "--colours", "safe")
    assert "unchanged" in run("aggregate", "--all", "--store", folder.files.uri).output
    report(run, folder)
    assert "unchanged" in run("aggregate", "--all", "--store", folder.files.uri).output


def test_another_s_choice_is_followed_by_the_next_pass(folder: SweepStore, run: Run) -> None:
    put(folder, ALL)
    passed(folder)
    folder.put_note("drawing", {"colours": "safe", "figures": False})
    assert "complete" in run("aggregate", "--all", "--store", folder.files.uri).output
    assert SAFE in summary_of(folder)["report.html"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"[]", b"{}", b'{"colours": "pink", "figures": true}', b'{"colours": [], "figures": 1}'],
)
def test_a_damaged_choice_is_none_and_is_told(folder: SweepStore, run: Run, damage: bytes) -> None:
    put(folder, ALL)
    folder.files.put(note(folder), damage)
    output = run("aggregate", SWEEP.id, "--store", folder.files.uri, code=65).output
    assert f"problem: {note(folder)}" in output
    assert set(summary_of(folder)) == FILES
    assert SAFE not in summary_of(folder)["report.html"]
    report(run, folder, "--no-figures")
    assert json.loads(folder.files.get(note(folder)) or b"") == {
        "colours": "original",
        "figures": False,
    }
    run("aggregate", SWEEP.id, "--store", folder.files.uri)


def test_a_copy_keeps_no_figures_that_the_store_has_no_more(
    folder: SweepStore, run: Run, tmp_path: Path
) -> None:
    put(folder, ALL)
    report(run, folder)
    copied = copy_sweep(folder, PLAN, tmp_path / "maps")
    assert (copied.place / "summary" / "map.pdf").exists()
    report(run, folder, "--no-figures")
    copy_sweep(folder, PLAN, tmp_path / "maps")
    assert {path.name for path in (copied.place / "summary").iterdir()} == FILES
