"""The calibrated dimension: intervals that hold the truth, and refusals that say why."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import calibrate
import edges
from fractal_k8s.analysis.boundary import Mask
from fractal_k8s.analysis.box_dimension import METHODS, BoxDimension, notebook
from fractal_k8s.analysis.calibration import (
    DATA,
    MAX_MISFIT,
    Statistics,
    estimate,
)
from fractal_k8s.analysis.dimension import (
    _refusal_of_fit,
    analyse,
    lines,
    measure_dimension,
)
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.analysis.summary import summarise_mask
from fractal_k8s.analysis.uncertainty import Uncertainty


def measured(labels: Mask) -> dict[str, Any]:
    return measure_dimension(labels, np.ones(labels.shape, dtype=bool))


def made(name: str, side: int, draw: int) -> tuple[Mask, float]:
    """A map of a family that the calibration was not made from, and its dimension."""
    make, dimensions = edges.HELD_OUT[name]
    truth = dimensions[draw % len(dimensions)]
    random = np.random.default_rng([1, side, draw, zlib.crc32(name.encode())])
    return make(side, truth, random), truth


def brownian_steps(side: int) -> Mask:
    path = np.cumsum(np.random.default_rng(0).standard_normal(side))
    return np.arange(side)[:, None] - side / 2 > path - path.mean()


# scripts/calibrate --coverage prints the same for many more maps; its table is in the README
@pytest.mark.parametrize("name", edges.HELD_OUT)
def test_the_interval_holds_the_truth_or_the_number_is_refused(name: str) -> None:
    wrong = []
    draws = {128: 20, 256: 10, 512: 4, 1024: 1}
    for side, count in draws.items():
        for draw in range(count):
            labels, truth = made(name, side, draw)
            found = measured(labels)
            if found["dimension"] is None:
                assert found["refused"]
                assert found["interval"] is None
                assert found["raw_slope"] is not None  # a reader still sees what was measured
            else:
                low, high = found["interval"]
                assert low <= found["dimension"] <= high
                if not low <= truth <= high:
                    wrong.append((side, draw, low, high))
    assert len(wrong) <= 0.1 * sum(draws.values()), wrong


@pytest.mark.parametrize(
    ("name", "width"),
    [
        pytest.param("Koch flake", 0.3, id="Koch flake"),
        pytest.param("random flake", 0.3, id="random flake"),
        pytest.param("straight line", 0.05, id="straight line"),
        pytest.param("ellipse", 0.1, id="ellipse"),
    ],
)
def test_clean_edges_get_a_number_with_a_useful_interval(name: str, width: float) -> None:
    found = [measured(made(name, 128, draw)[0]) for draw in range(30)]
    widths = [high - low for low, high in (f["interval"] for f in found if f["interval"])]
    assert len(widths) >= 0.95 * len(found)
    assert np.median(widths) < width


@pytest.mark.parametrize("family", edges.CALIBRATION)
def test_fewer_than_one_in_twenty_calibrated_edges_are_refused(family: str) -> None:
    make, dimensions = edges.CALIBRATION[family]
    refused = 0
    for draw in range(60):
        random = np.random.default_rng([2, draw])
        labels = make(128, dimensions[draw % len(dimensions)], random)
        refused += measured(labels)["dimension"] is None
    assert refused <= 3


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        pytest.param(np.zeros((64, 64), bool), "no edge", id="no edge"),
        pytest.param(np.indices((50, 50))[0] > 20, "too short a range", id="small map"),
        pytest.param(
            edges.noise(128, 2.0, np.random.default_rng(0)), "noise or unresolved", id="noise"
        ),
        pytest.param(made("noise band 0.5", 128, 0)[0], "half-ranges disagree", id="noisy edge"),
        pytest.param(made("noise band 4", 128, 0)[0], "noise or unresolved", id="noise band"),
        pytest.param(made("Brownian graph", 256, 0)[0], "differs along the axes", id="graph"),
        pytest.param(brownian_steps(128), "differs along the axes", id="graph of unit steps"),
    ],
)
def test_a_refusal_says_why(labels: Mask, reason: str) -> None:
    found = measured(labels)
    assert found["dimension"] is None
    assert reason in found["refused"]
    assert lines(found)[0] == ("dimension", f"none: {found['refused']}")


def test_every_way_to_misfit_has_its_words() -> None:
    for statistics, words in (
        (Statistics(1.3, 0.4, 1.3, 0.0), "small boxes"),
        (Statistics(1.3, -0.2, 1.3, 0.5), "small distances"),
        (Statistics(1.4, -0.2, 1.8, 0.0), "two ways to measure disagree"),
        (Statistics(1.3, -1.0, 1.3, 0.0), "edges of different kinds"),
    ):
        found = estimate(statistics, 128)
        assert found.misfit > MAX_MISFIT
        box = BoxDimension("windows", statistics.box_slope, None, 1, 1.0, half_slopes=(1.5, 1.1))
        lags = Uncertainty(None, 1.0, exponent=2 - statistics.lag_dimension, halves=(0.5, 0.9))
        assert words in _refusal_of_fit(found, box, lags)


def test_a_map_full_of_holes_is_refused_and_its_coverage_said() -> None:
    random = np.random.default_rng(0)
    labels, _ = made("Koch flake", 128, 0)
    known = random.random(labels.shape) > 0.2
    found = analyse(Subject(labels, known))
    assert found["dimension"] is None
    assert "holes of the map" in found["refused"]
    assert found["coverage"] < 0.5
    assert found == analyse(Subject(labels | ~known, known))


def test_a_few_holes_hardly_change_the_number() -> None:
    labels, truth = made("Koch flake", 256, 3)
    known = np.ones(labels.shape, dtype=bool)
    known[40:50, 100:120] = False
    whole, partial = measured(labels), measure_dimension(labels & known, known)
    assert partial["dimension"] == pytest.approx(whole["dimension"], abs=0.02)
    assert partial["interval"][0] < truth < partial["interval"][1]
    assert partial["coverage"] < 1


def test_the_baselines_are_a_smooth_edge_and_noise_of_the_same_share() -> None:
    for labels in (made("ellipse", 128, 1)[0], made("Koch flake", 64, 2)[0]):
        found = measured(labels)
        assert found["baselines"]["smooth"] == pytest.approx(1.0, abs=0.05)
        assert found["baselines"]["noise"] > 1.7
        assert found["baselines"]["smooth"] - 0.05 < found["raw_slope"]


def test_the_fit_is_shown_with_its_residuals() -> None:
    found = measured(made("Koch flake", 128, 0)[0])
    sizes, counts = np.array(found["box_sizes"]), np.array(found["box_counts"])
    residuals = np.array(found["fit"]["residuals"])
    line = np.log(counts) - residuals
    assert -np.diff(line) / np.diff(np.log(sizes)) == pytest.approx(found["raw_slope"])
    assert residuals.sum() == pytest.approx(0, abs=1e-9)
    assert found["decades"] == pytest.approx(np.log10(32))
    assert found["agreement"] == pytest.approx(found["raw_slope"] - found["lag_dimension"])


def test_every_result_is_plain_data() -> None:
    for labels in (made("Koch flake", 64, 0)[0], np.ones((3, 3), bool), np.ones((2, 2), bool)):
        for method in METHODS:
            found = summarise_mask(labels, np.ones(labels.shape, bool), method=method)
            assert {"dimension", "interval", "refused", "coverage", "raw_slope"} <= found.keys()
            json.dumps(found, allow_nan=False)


# --- the calibration itself ---


def test_the_calibration_is_what_the_script_makes() -> None:
    tables = json.loads(DATA.read_text())
    for name, family in calibrate.calibrate(64, tables["draws"]["64"], ("loop", "smooth")).items():
        stored = tables["sides"]["64"][name]
        for key in ("means", "covariances"):
            assert np.allclose(family[key], stored[key], atol=1e-3), (name, key)


def test_the_estimate_rises_with_the_slopes_and_narrows_with_the_side() -> None:
    def vector(dimension: float, side: int) -> Statistics:
        table = json.loads(DATA.read_text())["sides"][str(side)]["surface"]
        columns = np.array(table["means"]).T
        return Statistics(*(np.interp(dimension, table["dimensions"], c) for c in columns))

    widths = []
    for side in (64, 128, 256, 512, 1024):
        found = [estimate(vector(truth, side), side) for truth in (1.1, 1.3, 1.5, 1.7, 1.9)]
        assert [f.dimension for f in found] == sorted(f.dimension for f in found)
        assert [f.dimension for f in found] == pytest.approx([1.1, 1.3, 1.5, 1.7, 1.9], abs=0.08)
        assert all(f.misfit < MAX_MISFIT for f in found)
        widths.append(np.mean([high - low for low, high in (f.interval for f in found)]))
    assert widths == sorted(widths, reverse=True)


def test_sides_between_the_simulated_ones_are_between_them() -> None:
    statistics = Statistics(1.3, -0.2, 1.3, 0.0)
    at = {side: estimate(statistics, side).dimension for side in (128, 180, 256, 1024, 5000)}
    assert min(at[128], at[256]) < at[180] < max(at[128], at[256])
    assert at[5000] == at[1024]


def test_an_edge_unlike_all_simulated_ones_misfits() -> None:
    found = estimate(Statistics(1.3, 0.4, 1.3, 0.0), 128)
    assert found.misfit > MAX_MISFIT
    assert found.oddest[0] == "box_bend"
    assert found.oddest[1] > 0


# --- the original study's notebook ---


def boxes_of_both(cells: npt.NDArray[np.bool_], size: int) -> int:
    """Boxes from the origin that hold set and unset cells, one at a time."""
    rows, columns = cells.shape
    return sum(
        0 < cells[i : i + size, j : j + size].mean() < 1
        for i in range(0, rows, size)
        for j in range(0, columns, size)
    )


def test_the_notebook_s_method_counts_partly_covered_boxes() -> None:
    labels, _ = made("Koch flake", 128, 0)
    found = notebook(labels)
    cells = edges_of(labels)
    assert found.sizes == (10, 13, 17, 23, 30, 41, 54, 72, 95, 127)
    assert list(found.counts) == [boxes_of_both(cells, size) for size in found.sizes]
    slopes = -np.gradient(np.log(found.counts), np.log(found.sizes))
    assert found.dimension == pytest.approx(float(np.median(slopes)))


def edges_of(labels: Mask) -> npt.NDArray[np.bool_]:
    signs = np.where(labels, 1, -1)
    corners = np.stack([signs[:-1, :-1], signs[1:, :-1], signs[:-1, 1:], signs[1:, 1:]])
    found: npt.NDArray[np.bool_] = corners.max(axis=0) * corners.min(axis=0) < 0
    return found


def test_the_notebook_s_method_refuses_what_it_cannot_count() -> None:
    assert "no edge" in (notebook(np.ones((64, 64), bool)).refused or "")
    small = np.indices((12, 12))[0] > 5
    assert "at least 14 points" in (notebook(small).refused or "")


def test_with_maps_of_other_seeds_the_interval_is_that_of_their_mean() -> None:
    labels, _ = made("straight line", 128, 0)
    alone = analyse(Subject(labels, labels | True))
    assert alone["interval_from"] == "simulation"
    replicas = {"seeds": [1, 2, 3], "interval": [1.1, 1.2], "dimensions": [1.15, 1.1, 1.2]}
    found = analyse(Subject(labels, labels | True, notes={"replicas": replicas}))
    assert found["dimension"] == pytest.approx(1.15)
    assert found["interval"] == pytest.approx([1.06, 1.24])
    assert dict(lines(found))["dimension"] == "1.150, 95 % from 1.060 to 1.240 (by 3 seeds)"
    few = {"seeds": [1, 2], "interval": None}
    assert analyse(Subject(labels, labels | True, notes={"replicas": few})) == alone
