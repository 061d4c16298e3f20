"""What an incomplete map says of its edge already, on a coarser lattice that is complete."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import edges
from conftest import Run, mlp_sweep
from fractal_k8s.aggregate.announce import end_text
from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.dimension import measure_dimension
from fractal_k8s.analysis.lattice import Lattice, finest_complete
from fractal_k8s.report.criteria import criteria
from fractal_k8s.results import schema
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal, coarse_to_fine
from fractal_k8s.tracking.summary import _numbers
from test_passes import rows_of

SIDE = 128
SWEEP = mlp_sweep(resolution=[SIDE, SIDE], verdict={"window": 1})
WHOLE = SIDE * SIDE
TEXT = "(provisional: 64 x 64 lattice of 128 x 128)"


def flake(side: int = SIDE) -> Mask:
    return edges.koch_flake(side, edges.KOCH, np.random.default_rng(3))


def first_dealt(share: float, shape: tuple[int, int] = (SIDE, SIDE)) -> Mask:
    """Where points are still to come when the first `share` of them is known."""
    order = coarse_to_fine(*shape)
    missing = np.ones(shape, dtype=bool)
    missing.ravel()[order[: round(share * len(order))]] = False
    return missing


# --- which lattice ---


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        pytest.param(first_dealt(0.24), None, id="too few for any"),
        pytest.param(first_dealt(0.25), Lattice(2, 2), id="every second of both"),
        pytest.param(first_dealt(0.49), Lattice(2, 2), id="and some"),
        pytest.param(first_dealt(0.5), Lattice(2, 1), id="every second row"),
        pytest.param(first_dealt(0.99), Lattice(2, 1), id="nearly all"),
        pytest.param(first_dealt(1.0), None, id="the map itself"),
        pytest.param(first_dealt(1 / 16, (256, 256)), Lattice(4, 4), id="every fourth"),
        pytest.param(first_dealt(1 / 8, (256, 256)), Lattice(4, 2), id="every fourth row"),
        pytest.param(first_dealt(0.3, (64, 64)), None, id="no smaller map has a dimension"),
        pytest.param(np.indices((64, 256))[1] % 2 == 1, Lattice(1, 2), id="a wide map"),
        pytest.param(np.arange(WHOLE).reshape(SIDE, SIDE) > 9999, None, id="row by row"),
        pytest.param(np.indices((129, 127))[0] % 2 == 1, Lattice(2, 1), id="odd sides"),
    ],
)
def test_the_finest_lattice_without_open_points_is_found(
    missing: Mask, expected: Lattice | None
) -> None:
    assert finest_complete(missing) == expected


# scripts/calibrate --coverage --steps prints the same for many more maps
@pytest.mark.parametrize("steps", [(2, 2), (2, 1)])
@pytest.mark.parametrize("name", ["Koch flake", "random flake", "straight line", "ellipse"])
def test_the_interval_of_a_lattice_holds_the_truth(name: str, steps: tuple[int, int]) -> None:
    make, dimensions = edges.HELD_OUT[name]
    numbers, wrong = 0, []
    for draw in range(20):
        truth = dimensions[draw % len(dimensions)]
        random = np.random.default_rng([7, draw, zlib.crc32(name.encode())])
        labels = Lattice(*steps).of(make(SIDE, truth, random))
        found = measure_dimension(labels, np.ones(labels.shape, dtype=bool))
        if found["interval"] is not None:
            numbers += 1
            if not found["interval"][0] <= truth <= found["interval"][1]:
                wrong.append((draw, found["interval"]))
    assert numbers >= 18
    assert len(wrong) <= 1, wrong


# --- how it is told ---


def put(folder: SweepStore, shard: str, points: npt.NDArray[np.int64], labels: Mask) -> None:
    last = np.where(labels.ravel()[points], 1.0, 9.0)
    key = folder.outcome_key(shard, "1")
    folder.files.put(key, schema.to_bytes(rows_of(SWEEP, points, last)))


@pytest.fixture
def folder(tmp_path: Path) -> SweepStore:
    """A quarter of a map and some, coarse to fine."""
    folder = Store(str(tmp_path / "runs")).sweep(SWEEP.id)
    folder.write_plan(Plan(SWEEP, Deal()))
    put(folder, "a", coarse_to_fine(SIDE, SIDE)[:6000], flake())
    return folder


def test_it_is_told_everywhere_and_never_as_the_map_s_own(folder: SweepStore, run: Run) -> None:
    stored = ("--store", folder.files.uri)
    output = run("aggregate", SWEEP.id, *stored, code=1).output
    summary = json.loads(folder.files.get(folder.key("summary", "analysis.json")) or b"")
    found = summary["provisional"]
    assert (found["lattice"], found["of"], found["steps"]) == ([64, 64], [SIDE, SIDE], [2, 2])
    whole = np.ones((64, 64), dtype=bool)
    assert found["dimension"] == measure_dimension(flake()[::2, ::2], whole)["dimension"]
    low, high = found["interval"]
    assert low < edges.KOCH < high
    assert (summary["dimension"], summary["interval"]) == (None, None)

    page = (folder.files.get(folder.key("summary", "report.html")) or b"").decode()
    said = f"{found['dimension']:.3f}, 95 % from {low:.3f} to {high:.3f} {TEXT}"
    assert f"so far {said}" in output
    assert said in run("analyze", SWEEP.id, *stored, code=1).output
    assert page.count(said) == 2  # at the top and in the table
    assert f"edge dimension so far {said}" in end_text(folder, summary)
    # where only a final number belongs there is none
    assert {one.judgement for one in criteria(summary)[:2]} == {"not judged"}
    assert _numbers(summary)["dimension"] is None
    (row,) = json.loads(run("list", *stored, "--json").stdout)
    assert row["dimension"] is None


def test_the_map_s_own_dimension_takes_its_place(folder: SweepStore, run: Run) -> None:
    put(folder, "rest", coarse_to_fine(SIDE, SIDE)[6000:], flake())
    assert "provisional" not in run("aggregate", SWEEP.id, "--store", folder.files.uri).output
    summary = folder.read_summary()
    assert summary is not None
    assert summary["provisional"] is None
    assert summary["dimension"] is not None


def test_noise_is_no_dimension_on_a_lattice_either(tmp_path: Path, run: Run) -> None:
    folder = Store(str(tmp_path / "runs")).sweep(SWEEP.id)
    folder.write_plan(Plan(SWEEP, Deal()))
    noise = np.random.default_rng(0).random((SIDE, SIDE)) < 0.5
    put(folder, "a", coarse_to_fine(SIDE, SIDE)[:6000], noise)
    assert "so far" not in run("aggregate", SWEEP.id, "--store", folder.files.uri, code=1).output
    summary = folder.read_summary()
    assert summary is not None
    assert summary["provisional"]["dimension"] is None
    assert "noise or unresolved" in summary["provisional"]["refused"]


def test_failed_points_are_holes_of_a_lattice_and_not_to_come(tmp_path: Path) -> None:
    missing = first_dealt(0.3)
    missing[10, 20] = False  # failed, or known
    assert finest_complete(missing) == Lattice(2, 2)
    missing[10, 22] = True
    assert finest_complete(missing) is None
