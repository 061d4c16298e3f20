"""Seven findings about published fractal dimensions: what public code reports, what ours says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import edges
from fractal_k8s.analysis.boundary import Mask, find_edge
from fractal_k8s.analysis.box_dimension import notebook, published, windows
from fractal_k8s.analysis.dimension import measure_dimension
from fractal_k8s.analysis.entropy import measure_mixing
from fractal_k8s.errors import SweepError
from fractal_k8s.results.outcome import State
from fractal_k8s.sweep.load import parse_text, preset_text, resolve
from test_analysis import published_map


def measured(labels: Mask) -> dict[str, Any]:
    return measure_dimension(labels, np.ones(labels.shape, dtype=bool))


# --- 1: the published D = 1.21 cannot be told from a straight line ---


def test_the_published_number_is_mostly_the_map_s_frame() -> None:
    edgeless = published(np.ones((64, 64), dtype=bool))
    assert (edgeless.boundary_pixels, round(edgeless.slope or 0, 3)) == (252, 1.152)
    random = np.random.default_rng(0)
    straight = []
    while len(straight) < 20:
        labels = edges.line(64, 1.0, random)
        if 0.7 < labels.mean() < 0.8:
            straight.append(published(labels).slope)
            assert measured(labels)["dimension"] == pytest.approx(1.0, abs=0.02)
    assert np.mean(straight) == pytest.approx(1.16, abs=0.01)
    assert published(published_map()).slope == pytest.approx(1.214, abs=5e-4)
    ours = measured(published_map())
    assert ours["interval"][0] == 1.0  # a smooth edge is not excluded
    assert ours["interval"][1] < 1.2


# --- 2: rates that float32 cannot separate; one data order per point ---


def test_a_published_deep_zoom_has_24_different_experiments_in_22500_points() -> None:
    rates = {"fc": (0.1020022, 2.5e-8), "attention": (0.02500022, 9e-9)}
    distinct = [
        len(np.unique((low + np.linspace(0, width, 150)).astype(np.float32)))
        for low, width in rates.values()
    ]
    assert distinct == [4, 6]
    raw = parse_text(preset_text("tiny"), source="tiny")
    raw["resolution"] = [150, 2]
    raw["axes"]["y"].update(low=0.1020022, high=0.1020022 + 2.5e-8, scale="linear")
    with pytest.raises(SweepError, match="150 points are finer than float32 can separate"):
        resolve(raw, source="zoom")


def test_a_data_order_drawn_anew_for_every_point_tends_to_two() -> None:
    """A smooth edge whose place depends on the order by a few points, as an unseeded shuffle has
    it; ours draws the order from the sweep's seed, so that all points share it."""
    random = np.random.default_rng(0)
    i, j = np.mgrid[:128, :128]
    edge = i + 0.3 * j - 80
    own_order = edge > random.normal(scale=8, size=edge.shape)
    shared_order = edge > random.normal(scale=8)
    assert (notebook(own_order).slope or 0) > 1.5
    assert measured(own_order)["dimension"] is None
    assert measured(shared_order)["dimension"] == pytest.approx(1.0, abs=0.02)


# --- 3: noise masquerades as a fractal ---


@pytest.mark.parametrize(
    ("width", "reported"),
    [
        pytest.param(1.0, 1.29, id="1 point"),
        pytest.param(2.0, 1.46, id="2 points"),
        pytest.param(4.0, 1.65, id="4 points"),
        pytest.param(8.0, 1.83, id="8 points"),
    ],
)
def test_noise_on_a_straight_edge_gives_any_number(width: float, reported: float) -> None:
    random = np.random.default_rng(1)
    maps = [edges.noise_band(width)(64, 1.0, random) for _ in range(12)]
    assert np.mean([published(m).slope for m in maps]) == pytest.approx(reported, abs=0.05)
    assert [measured(m)["dimension"] for m in maps] == [None] * 12


# --- 4: the ln 2 criterion of basin entropy cannot fire with two labels ---


def test_no_two_label_map_exceeds_ln_2() -> None:
    i, j = np.mgrid[:64, :64]
    checks = (i + j) % 2 == 0  # the most mixed map there is
    found = measure_mixing(checks, np.ones(checks.shape, dtype=bool))
    assert found.boundary_entropy == pytest.approx(math.log(2))
    assert not (found.boundary_entropy or 1) > math.log(2) + 1e-12
    assert found.verdict == "noise or unresolved"


# --- 5: the fit's standard error is two to three times too small ---


def standard_error(labels: Mask) -> tuple[float, float]:
    """Slope of the box counts and the standard error that its fit claims."""
    found = windows(labels)
    assert found.slope is not None
    x, residuals = np.log(found.sizes), np.array(found.residuals)
    spread = np.square(x - x.mean()).sum()
    return found.slope, math.sqrt(np.square(residuals).sum() / (len(x) - 2) / spread)


def test_the_error_of_the_fit_is_not_the_error_of_the_dimension() -> None:
    random = np.random.default_rng(5)
    maps = [edges.surface(128, 1.5, random) for _ in range(20)]
    claims = [standard_error(labels) for labels in maps]
    errors = [abs(slope - 1.5) for slope, _ in claims]
    assert np.median(errors) > 2 * np.median([error for _, error in claims])
    held = [slope - 2 * error < 1.5 < slope + 2 * error for slope, error in claims]
    assert np.mean(held) < 0.6  # where 0.95 is claimed
    intervals = [found["interval"] for found in map(measured, maps) if found["interval"]]
    assert np.mean([low <= 1.5 <= high for low, high in intervals]) >= 0.9


# --- 6: a single 64 x 64 map of a net is smooth ---


def trained_map(side: int, rows: tuple[float, float], columns: tuple[float, float]) -> Mask:
    """A map of the tanh preset: output_lr from rows[0] to rows[1], input_lr by columns."""
    from fractal_k8s.train.mlp import MLPTrainer

    raw = parse_text(preset_text("tanh"), source="tanh")
    raw["resolution"] = [side, side]
    raw["axes"]["y"].update(low=rows[0], high=rows[1])
    raw["axes"]["x"].update(low=columns[0], high=columns[1])
    sweep = resolve(raw, source="tanh")
    points = [sweep.point(index) for index in range(sweep.num_points)]
    outcomes = MLPTrainer(sweep).train(points)
    labels = [outcome.state is State.TRAINED and outcome.ratio < 1 for outcome in outcomes]
    return np.array(labels).reshape(side, side)


def test_a_coarse_map_of_a_net_is_smooth_and_a_zoom_is_not() -> None:
    overview = trained_map(64, (1e0, 1e3), (1e-1, 1e3))
    found = measured(overview)
    assert found["interval"][0] < 1.05  # a smooth edge is not excluded
    assert found["raw_slope"] < 1.1
    assert (published(overview).slope or 0) > 1.12
    zoom = trained_map(32, (8e-3, 1e-2), (2.9e3, 3.05e3))
    assert (windows(zoom).slope or 0) > 1.6


# --- 7: evaluating near the edge only saves less, the rougher the edge ---


def refined(labels: Mask, stride: int, *, closure: bool) -> npt.NDArray[np.bool_]:
    """Which points a corner quadtree looks at: halves the stride in squares whose corners differ.

    With closure also in the eight squares around such a square.
    """
    seen = np.zeros(labels.shape, dtype=bool)
    seen[::stride, ::stride] = True
    active = np.ones(tuple((n - 1) // stride for n in labels.shape), dtype=bool)
    while stride > 1:
        mixed = active & find_edge(labels[::stride, ::stride]).cells
        if closure:
            wide = np.pad(mixed, 1)
            rows, columns = mixed.shape
            mixed = np.any(
                [wide[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0
            )
        stride //= 2
        for i, j in np.argwhere(mixed) * 2 * stride:
            seen[i : i + 2 * stride + 1 : stride, j : j + 2 * stride + 1 : stride] = True
        active = np.kron(mixed, np.ones((2, 2), dtype=bool))
    return seen


def test_adaptive_evaluation_saves_less_on_a_rough_edge_and_loses_cells_without_closure() -> None:
    looked_at, found, bare = {}, {}, {}
    for dimension in (1.2, 1.66):
        maps = [edges.surface(129, dimension, np.random.default_rng(seed)) for seed in range(6)]
        cells = [find_edge(labels).count for labels in maps]
        wide = [refined(labels, 8, closure=True) for labels in maps]
        narrow = [refined(labels, 8, closure=False) for labels in maps]
        looked_at[dimension] = np.mean([seen.mean() for seen in wide])
        for shares, seen_of in ((found, wide), (bare, narrow)):
            pairs = zip(maps, seen_of, cells, strict=True)
            shares[dimension] = np.mean([find_edge(m, s).count / c for m, s, c in pairs])
    assert looked_at[1.2] == pytest.approx(0.30, abs=0.1)
    assert looked_at[1.66] == pytest.approx(0.60, abs=0.12)
    assert found[1.2] > 0.95
    assert found[1.66] > 0.9
    assert bare[1.2] < 0.9
    assert bare[1.66] < 0.75
