"""Exponent and entropy of maps whose values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

import edges
from fractal_k8s.analysis import entropy, uncertainty
from fractal_k8s.analysis.entropy import RESOLVED, UNRESOLVED, measure_mixing
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.analysis.uncertainty import measure_uncertainty


def known(shape: tuple[int, ...]) -> edges.Mask:
    return np.ones(shape, dtype=bool)


def test_f_is_the_share_of_pairs_that_differ() -> None:
    labels = np.random.default_rng(0).random((64, 50)) < 0.3
    seen = np.random.default_rng(1).random((64, 50)) < 0.9
    found = measure_uncertainty(labels & seen, seen)
    assert found.lags == (1, 2, 3)
    for index, lag in enumerate(found.lags):
        pairs = [
            labels[i, j] != labels[i, j + lag]
            for i in range(64)
            for j in range(50 - lag)
            if seen[i, j] and seen[i, j + lag]
        ]
        assert found.shares_x[index] == pytest.approx(np.mean(pairs))
    assert "saturated" in (found.refused or "")
    assert found.exponent is None
    assert found.coverage == pytest.approx(0.81, abs=0.02)


@pytest.mark.parametrize("side", [64, 128, 512])
def test_a_straight_edge_has_exponent_one_whatever_its_direction(side: int) -> None:
    i, j = np.mgrid[:side, :side]
    for labels in (i > side / 3, j > side / 2, i + 0.3 * j > side / 2, i + j > side):
        found = uncertainty.analyse(Subject(labels, known(labels.shape)))
        assert found["exponent"] == pytest.approx(1.0, abs=0.04)
        assert found["dimension"] == pytest.approx(1.0, abs=0.04)
        assert found["anisotropy"] < 0.03
        assert found["refused"] is None
    assert measure_uncertainty(i > side / 3, known(i.shape)).exponent_x is None


@pytest.mark.parametrize("dimension", [1.2, 1.4, 1.6])
def test_a_rough_surface_has_exponent_two_minus_its_dimension(dimension: float) -> None:
    found = []
    for seed in range(6):
        labels = edges.surface(512, dimension, np.random.default_rng(seed))
        found.append(measure_uncertainty(labels, known(labels.shape)).dimension)
    assert np.mean(found) == pytest.approx(dimension, abs=0.06)


def test_a_brownian_graph_has_one_half_along_time_and_one_along_its_values() -> None:
    random = np.random.default_rng(0)
    found = []
    for _ in range(10):
        labels = edges.brownian_graph(512, 1.5, random)
        measured = measure_uncertainty(labels, known(labels.shape))
        exponents = (measured.exponent_x or 0.0, measured.exponent_y or 0.0)
        found.append(sorted(exponents))
        assert measured.anisotropy == pytest.approx(found[-1][1] - found[-1][0])
    assert np.mean(found, axis=0) == pytest.approx([0.5, 1.0], abs=0.06)


def test_specks_beside_a_straight_edge_do_not_make_it_rough_along_the_axis() -> None:
    labels = np.indices((128, 128))[0] > 60
    labels[[20, 31, 40], [17, 90, 55]] = True
    found = measure_uncertainty(labels, known(labels.shape))
    assert (found.exponent_x or 1) < 0.1
    assert found.anisotropy == 0.0


def test_small_and_edgeless_maps_are_refused() -> None:
    small = np.indices((40, 40))[0] > 5
    assert "48 points" in (measure_uncertainty(small, known((40, 40))).refused or "")
    assert "no edge" in (measure_uncertainty(known((64, 64)), known((64, 64))).refused or "")
    nothing = np.zeros((64, 64), dtype=bool)
    assert measure_uncertainty(nothing, nothing).refused == "no point is known"
    columns = nothing.copy()
    columns[:, ::2] = True
    refused = measure_uncertainty(nothing, columns).refused
    assert refused == "not measured: no two known points lie 1 columns apart"
    assert uncertainty.lines(uncertainty.analyse(Subject(small, known((40, 40)))))[0][0] == "alpha"


# --- entropy ---


def test_entropies_are_those_of_the_boxes() -> None:
    labels = np.random.default_rng(0).random((20, 26)) < np.linspace(0, 1.2, 26)
    seen = known(labels.shape)
    seen[19, 0] = False
    entropies, holes = [], 0
    for i in range(20 - 7):
        for j in range(26 - 7):
            p = labels[i : i + 8, j : j + 8].mean()
            if seen[i : i + 8, j : j + 8].all():
                entropies.append(-sum(q * math.log(q) for q in (p, 1 - p) if q > 0))
            else:
                holes += 1
    found = entropy.analyse(Subject(labels & seen, seen))
    assert found["entropy"] == pytest.approx(np.mean(entropies))
    assert found["boundary_entropy"] == pytest.approx(np.mean([e for e in entropies if e]))
    assert found["coverage"] == pytest.approx(1 - holes / (len(entropies) + holes))
    assert holes == 1


@pytest.mark.parametrize("column", range(30, 40))
def test_a_straight_edge_along_an_axis_is_no_noise_wherever_it_lies(column: int) -> None:
    labels = np.indices((64, 64))[1] >= column
    found = measure_mixing(labels, known(labels.shape))
    assert found.verdict == RESOLVED
    assert found.boundary_entropy == pytest.approx(0.556, abs=0.001)


def test_noise_is_told_from_edges() -> None:
    random = np.random.default_rng(0)
    for dimension in (1.0, 1.3, 1.6, 1.9):
        labels = edges.surface(256, dimension, random)
        assert measure_mixing(labels, known(labels.shape)).verdict == RESOLVED
    for width in (1.0, 4.0, 16.0):
        labels = edges.noise_band(width)(256, 1.0, random)
        found_band = measure_mixing(labels, known(labels.shape))
        assert found_band.verdict == UNRESOLVED
        assert found_band.specks == pytest.approx(0.125, abs=0.02)
    noise = edges.noise(256, 2.0, random)
    found = entropy.analyse(Subject(noise, known(noise.shape)))
    assert found["verdict"] == UNRESOLVED
    assert found["correlation"] == pytest.approx(0.0, abs=0.02)
    assert 0.6 < found["boundary_entropy"] < math.log(2)


def test_a_map_without_boxes_or_edge_says_so() -> None:
    for shape in ((3, 3), (0, 5), (64, 64)):
        found = entropy.analyse(Subject(np.zeros(shape, bool), known(shape)))
        assert found["verdict"] == "no edge"
        assert entropy.lines(found)[0] == ("labels of neighbours", "no edge, correlation none")
