"""Points without a verdict, by name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from conftest import Run, mlp_sweep
from fractal_k8s.results import schema
from fractal_k8s.results.grid import Grid, build_grid
from fractal_k8s.results.holes import holes_of, lines
from fractal_k8s.results.outcome import Environment, State
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from test_results import outcome_of

SWEEP = mlp_sweep(resolution=[30, 10])
ALL = set(range(300))


def grid_with(missing: set[int], failed: Mapping[int, str | None], place: Path) -> Grid:
    """A grid where some points are missing and some failed with a sentence."""
    folder = Store(str(place)).sweep(SWEEP.id)
    folder.write_plan(Plan(SWEEP, Deal()))
    made = []
    for index in sorted(ALL - missing):
        outcome = outcome_of(SWEEP, index, [1.0, 0.5])
        if index in failed:
            outcome = outcome_of(SWEEP, index, [1.0], state=State.FAILED, error=failed[index])
        made.append(outcome)
    when = [datetime(2026, 1, 1, tzinfo=UTC)] * len(made)
    table = schema.to_table(SWEEP, made, when, Environment(numerics_class="test"))
    folder.files.put(folder.outcome_key("a", "1"), schema.to_bytes(table))
    return build_grid(SWEEP, folder.read_outcomes(SWEEP))


def test_a_whole_map_has_none(tmp_path: Path) -> None:
    found = holes_of(grid_with(set(), {}, tmp_path))
    assert found == {"missing": {"runs": [], "unnamed": 0}, "failed": []}
    assert lines(found) == []


def test_missing_points_are_named_as_runs(tmp_path: Path) -> None:
    found = holes_of(grid_with({0, *range(27, 43), 299}, {}, tmp_path))
    assert found["missing"] == {
        "runs": [
            {"from": [0, 0], "to": [0, 0], "points": 1},
            {"from": [2, 7], "to": [4, 2], "points": 16},
            {"from": [29, 9], "to": [29, 9], "points": 1},
        ],
        "unnamed": 0,
    }
    assert lines(found) == ["missing: (0, 0), (2, 7) to (4, 2), (29, 9)"]


def test_a_map_full_of_holes_gives_a_short_list(tmp_path: Path) -> None:
    found = holes_of(grid_with({*range(0, 300, 2)}, {}, tmp_path))
    assert (len(found["missing"]["runs"]), found["missing"]["unnamed"]) == (100, 50)
    (line,) = lines(found)
    assert line == "missing: (0, 0), (0, 2), (0, 4), (0, 6), (0, 8), and 145 more points"


def test_failed_points_are_named_by_cause(tmp_path: Path) -> None:
    causes = {5: "lost", 17: "lost", 40: "x" * 500 + "\nmore", 41: None}
    found = holes_of(grid_with(set(), causes, tmp_path))
    assert found["failed"][0] == {"error": "lost", "points": 2, "first": [0, 5]}
    assert lines(found) == [
        "failed: 2 points, the first (0, 5): lost",
        f"failed: point (4, 0): {'x' * 160}...",
        "failed: point (4, 1): no reason was given",
    ]
    many = holes_of(grid_with(set(), {k: f"cause {k:02}" for k in range(30)}, tmp_path))
    assert len(many["failed"]) == 20
    assert lines(many)[-1] == "failed: for 15 other reasons, see analysis.json"


def test_who_aggregates_is_told_and_so_is_the_reader(tmp_path: Path, run: Run) -> None:
    grid_with({3, 4}, {7: "<lost>"}, tmp_path)
    output = run("aggregate", SWEEP.id, "--store", str(tmp_path), code=1).output
    assert "missing: (0, 3) to (0, 4)" in output
    assert "failed: point (0, 7): <lost>" in output
    page = (tmp_path / SWEEP.id / "summary" / "report.html").read_text()
    assert "Missing: (0, 3) to (0, 4)" in page
    assert "Failed: point (0, 7): &lt;lost&gt;" in page
