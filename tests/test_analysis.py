"""Edges and dimensions of sets whose truth is known; the measure of the original study."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import edges
from fractal_k8s.analysis.boundary import find_edge, published_boundary
from fractal_k8s.analysis.box_dimension import METHODS, aligned, published, scaling_range, windows
from fractal_k8s.analysis.dimension import measure_dimension
from fractal_k8s.analysis.measure import measure_of, rank_colours
from fractal_k8s.results.outcome import loss_facts
from fractal_k8s.results.verdict import is_trainable
from fractal_k8s.sweep.rule import VerdictRule

Mask = npt.NDArray[np.bool_]
Random = np.random.Generator

# The published 64 x 64 map (reference/training.md 8.2): row: first and last trainable column.
PUBLISHED = (
    "0:20-37 1:20-38 2-3:19-38 4:18-38 5:17-38 6:16-38 7:14-39 8:11-39 9:0-39 10-11:0-40 12:0-41 "
    "13:0-42 14:0-43 15:0-44 16:0-45 17:0-46 18:0-48 19:0-50 20:0-53 21:0-54 22:0-55 23:0-56 "
    "24:0-57 25:0-58 26-27:0-59 28-29:0-60 30:0-61 31-32:0-62 33-48:0-63 49:0-62 50-51:0-61 "
    "52:0-59 53-54:0-57 55:0-54 56:0-52 57:0-50 58:0-47 59:0-44 60:0-41 61:0-37"
)


def measured(labels: Mask) -> dict[str, Any]:
    return measure_dimension(labels, np.ones(labels.shape, dtype=bool))


def published_map() -> Mask:
    labels = np.zeros((64, 64), dtype=bool)
    for part in PUBLISHED.split():
        rows, columns = ([int(number) for number in text.split("-")] for text in part.split(":"))
        labels[rows[0] : rows[-1] + 1, columns[0] : columns[1] + 1] = True
    return labels


def straight_edge(side: int, random: Random) -> Mask:
    angle = random.uniform(0, math.pi)
    y, x = np.mgrid[:side, :side] - side / 2
    return np.cos(angle) * x + np.sin(angle) * y > random.uniform(-side / 8, side / 8)


def koch_flake(side: int, random: Random) -> Mask:
    return edges.koch_flake(side, edges.KOCH, random)


def level_set(dimension: float) -> Callable[[int, Random], Mask]:
    """Above or below the median of a fractional Brownian surface; its edge has the dimension."""
    roughness = 2 - dimension

    def make(side: int, random: Random) -> Mask:
        size = 2 * side
        frequency = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.fftfreq(size)[None, :] ** 2
        frequency[0, 0] = np.inf
        amplitude = frequency ** (-(roughness + 1) / 2)
        noise = random.standard_normal((size, size))
        surface = np.fft.ifft2(np.fft.fft2(noise) * amplitude).real[:side, :side]
        return surface > np.median(surface)

    return make


# set, true dimension, tolerance of the mean at 128 and 256 points
KNOWN: list[Any] = [
    pytest.param(straight_edge, 1.0, (0.01, 0.01), id="straight edge"),
    pytest.param(koch_flake, math.log(4) / math.log(3), (0.09, 0.06), id="Koch flake"),
    pytest.param(level_set(1.2), 1.2, (0.09, 0.07), id="Brownian surface 1.2"),
    pytest.param(level_set(1.5), 1.5, (0.09, 0.07), id="Brownian surface 1.5"),
    pytest.param(level_set(1.66), 1.66, (0.09, 0.07), id="Brownian surface 1.66"),
]


@pytest.mark.parametrize(("make", "truth", "tolerances"), KNOWN)
def test_known_edges_have_their_dimension(
    make: Callable[[int, Random], Mask], truth: float, tolerances: tuple[float, ...]
) -> None:
    for side, tolerance in zip((128, 256), tolerances, strict=True):
        maps = (make(side, np.random.default_rng(seed)) for seed in range(8))
        found = [result for result in map(measured, maps) if not result["refused"]]
        assert len(found) >= 7
        mean = float(np.mean([result["dimension"] for result in found]))
        assert abs(mean - truth) < tolerance, (side, mean)
        held = [low <= truth <= high for low, high in (result["interval"] for result in found)]
        assert sum(held) >= 0.85 * len(held), (side, [result["interval"] for result in found])


def test_a_sierpinski_triangle_is_exact() -> None:
    i, j = np.mgrid[:512, :512]
    found = aligned((i & j) == 0)
    assert found.dimension == pytest.approx(math.log(3) / math.log(2), abs=1e-12)


def test_a_sierpinski_carpet_is_exact() -> None:
    carpet = np.ones((1, 1), dtype=bool)
    for _ in range(5):
        hole = np.zeros_like(carpet)
        carpet = np.block(
            [[carpet, carpet, carpet], [carpet, hole, carpet], [carpet, carpet, carpet]]
        )
    assert aligned(carpet).dimension == pytest.approx(math.log(8) / math.log(3), abs=1e-12)


def test_a_filled_square_is_two_dimensional_and_its_edge_is_not_there() -> None:
    filled = np.ones((64, 64), dtype=bool)
    assert aligned(filled).dimension == pytest.approx(2.0, abs=1e-12)
    assert windows(filled).dimension is None


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        pytest.param(np.ones((64, 64), bool), "every known point is trainable", id="all"),
        pytest.param(np.zeros((64, 64), bool), "no known point is trainable", id="none"),
    ],
)
def test_a_map_without_an_edge_has_no_dimension_and_says_so(labels: Mask, reason: str) -> None:
    found = windows(labels)
    assert found.dimension is None
    assert found.boundary_pixels == 0
    assert reason in (found.refused or "")


def test_a_map_that_is_too_small_for_a_slope_says_so() -> None:
    labels = np.zeros((8, 8), dtype=bool)
    labels[:, :4] = True
    found = windows(labels)
    assert found.dimension is None
    assert "0.60 decades; a dimension needs 1.5: use 64 points a side" in (found.refused or "")
    assert found.boundary_pixels == 7
    assert "box sizes that fit: 1, a slope" in (windows(labels[:3, 2:5]).refused or "")


def test_the_published_map_gives_the_published_numbers_and_an_honest_one() -> None:
    labels = published_map()
    assert labels.sum() == 3175
    theirs = published(labels)
    assert theirs.boundary_pixels == 333
    assert theirs.dimension == pytest.approx(1.214, abs=5e-4)
    ours = measured(labels)
    assert ours["dimension"] == pytest.approx(1.07, abs=0.05)
    assert ours["interval"][0] == 1.0
    assert ours["interval"][1] < theirs.dimension


@pytest.mark.parametrize(
    ("labels", "pixels", "dimension"),
    [
        # reference/training.md 6.5: what the public code makes of maps without any structure
        pytest.param(np.ones((64, 64), bool), 252, 1.152, id="all trainable"),
        pytest.param(np.arange(64)[None] + np.zeros((64, 1)) < 32, 252, 1.152, id="half plane"),
        pytest.param(np.greater.outer(np.arange(64), np.arange(64)), 250, 1.231, id="diagonal"),
    ],
)
def test_the_published_method_finds_the_frame_and_ours_does_not(
    labels: Mask, pixels: int, dimension: float
) -> None:
    found = published(labels)
    assert found.boundary_pixels == pixels
    assert found.dimension == pytest.approx(dimension, abs=5e-4)
    ours = measured(labels)["dimension"]
    assert ours is None or ours == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("method", ["published", "aligned"])
def test_methods_that_count_every_cell_refuse_a_map_with_holes(method: str) -> None:
    known = np.ones((64, 64), dtype=bool)
    known[20:30, 7:9] = False
    found = METHODS[method](known, known)
    assert found.dimension is None
    assert found.refused == "the method counts every cell, and the map has holes"


def test_the_frame_is_never_an_edge() -> None:
    labels = np.ones((10, 12), dtype=bool)
    assert find_edge(labels).count == 0
    assert published_boundary(labels).sum() == 2 * 10 + 2 * 12 - 4
    labels[0, 0] = False
    assert find_edge(labels).cells.sum() == 1


def test_a_window_with_an_unknown_label_is_not_judged() -> None:
    labels = np.zeros((4, 4), dtype=bool)
    labels[:, :2] = True
    known = np.ones((4, 4), dtype=bool)
    known[1, 1] = False
    edge = find_edge(labels, known)
    assert edge.cells.sum() == 1  # of three windows across the edge two touch the hole
    assert edge.valid.sum() == 9 - 4
    assert edge.coverage == pytest.approx(5 / 9)


def test_holes_lower_the_coverage_and_not_the_dimension() -> None:
    random = np.random.default_rng(3)
    labels = level_set(1.5)(256, random)
    known = np.ones(labels.shape, dtype=bool)
    known[100:140, 30:90] = False
    labels_shown = labels & known  # what stands in a hole must not matter
    whole, partial = windows(labels), windows(labels_shown, known)
    assert whole.dimension is not None
    assert partial.dimension == pytest.approx(whole.dimension, abs=0.05)
    assert partial.coverage < whole.coverage == 1.0
    assert windows(labels | ~known, known) == partial


@pytest.mark.parametrize("holes", [1, 5, 10, 20])
def test_holes_on_a_straight_edge_leave_it_straight(holes: int) -> None:
    labels = np.zeros((128, 128), dtype=bool)
    labels[:, 64:] = True
    known = np.ones(labels.shape, dtype=bool)
    for row in np.random.default_rng(holes).choice(128, holes, replace=False):
        known[row, 63] = False
    found = windows(labels, known)
    assert found.dimension is None or found.dimension == pytest.approx(1.0, abs=0.02)
    assert found.coverage < 1


def test_a_map_full_of_holes_has_no_dimension_and_says_why() -> None:
    random = np.random.default_rng(0)
    labels = level_set(1.5)(128, random)
    found = windows(labels, random.random(labels.shape) > 0.2)
    assert found.dimension is None
    assert "fit between the holes of the map" in (found.refused or "")


def test_dimension_does_not_depend_on_orientation_or_side() -> None:
    labels = level_set(1.3)(128, np.random.default_rng(1))
    values = [windows(turned).dimension for turned in (labels, labels.T, labels[::-1], ~labels)]
    assert values == pytest.approx([values[0]] * 4, abs=0.02)


def test_a_rectangular_map_is_measured_too() -> None:
    i, j = np.mgrid[:64, :200]
    assert windows(j > 90 + i / 2).dimension == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        pytest.param(32, [1, 2, 3, 4, 6, 8, 11, 16], id="32"),
        pytest.param(64, [1, 2, 3, 4, 6, 8, 11, 16, 23, 32], id="64"),
        pytest.param(128, [1, 2, 3, 4, 6, 8, 11, 16, 23, 32], id="128"),
        pytest.param(512, [2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64], id="512"),
        pytest.param(1024, [4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128], id="1024"),
    ],
)
def test_box_sizes_are_about_sqrt_two_apart(side: int, expected: list[int]) -> None:
    assert scaling_range(side) == expected


@pytest.mark.parametrize("side", [64, 65, 100, 255, 256, 300, 777, 1023, 1024, 3000, 4096])
def test_maps_from_64_points_on_have_one_and_a_half_decades(side: int) -> None:
    sizes = scaling_range(side)
    assert math.log10(sizes[-1] / sizes[0]) >= 1.5
    assert sizes[-1] <= max(side // 8, 32)


# --- the original study's measure ---


def original(losses: npt.NDArray[np.float64], clip: float = 1e6) -> float:
    """The measure as the notebook's cell 13 describes it, on a whole series."""
    values = np.where(np.isfinite(losses), losses, clip) / losses[0]
    values = np.minimum(values, clip)
    return float(-values.sum() if converged(losses) else (1 / values).sum())


def converged(losses: npt.NDArray[np.float64], clip: float = 1e6) -> bool:
    values = np.where(np.isfinite(losses), losses, clip) / losses[0]
    return bool(np.minimum(values, clip)[-20:].mean() < 1)


def test_the_default_rule_is_the_original_study_s_test() -> None:
    rule = VerdictRule()
    for losses in (np.linspace(2, 0.1, 100), np.geomspace(2, 1e30, 100), np.full(100, 1.5)):
        ratio = loss_facts(losses, rule.window).ratio
        found = is_trainable(rule, np.array(True), np.array(ratio))
        assert bool(found) == converged(losses)


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(np.linspace(2, 0.1, 100), id="converging"),
        pytest.param(np.geomspace(2, 1e30, 100), id="diverging"),
        pytest.param(np.full(100, 1.5), id="standing still"),
        pytest.param(np.r_[np.geomspace(1.2, 1e300, 40), [np.inf] * 3, [np.nan] * 57], id="nan"),
        pytest.param(np.r_[[1.2] * 30, [np.inf], np.full(69, 0.3)], id="infinite for a moment"),
    ],
)
def test_the_measure_is_the_original_study_s(losses: npt.NDArray[np.float64]) -> None:
    assert measure_of(losses, 100, converged(losses)) == pytest.approx(original(losses), rel=1e-12)


def test_a_run_that_ended_early_counts_as_lost_for_the_rest() -> None:
    whole = np.r_[np.geomspace(1.2, 1e300, 40), [np.nan] * 60]
    assert measure_of(whole[:41], 100, trainable=False) == pytest.approx(original(whole), rel=1e-12)


def test_rank_colours_keep_the_sides_apart_and_holes_open() -> None:
    measure = np.array([[-50.0, -3.0, np.nan], [7.0, 1.0, 90.0]])
    colours = rank_colours(measure)
    assert np.isnan(colours[0, 2])
    assert colours[0, :2].tolist() == [1.0, 0.25]  # slowest convergence is darkest
    assert colours[1].tolist() == [-0.625, -0.25, -1.0]
    assert rank_colours(np.full((2, 2), np.nan)).shape == (2, 2)
