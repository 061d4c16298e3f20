"""Exact positions: the same bits for every resolution and every way they travel."""

from __future__ import annotations

import json
import math
import tomllib
from decimal import Decimal, localcontext
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fractal_k8s.sweep.points import axis_values, coinciding

positive = st.floats(1e-12, 1e12)
counts = st.integers(2, 200)
scales = st.sampled_from(["log", "linear"])


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float, float]:
    low, high = sorted((draw(positive), draw(positive)))
    return (low, high) if low < high else (low, low * 2)


@given(ranges(), scales, counts)
def test_the_ends_are_exact_and_the_values_do_not_fall(
    ends: tuple[float, float], scale: str, count: int
) -> None:
    values = axis_values(*ends, scale, count)  # type: ignore[arg-type]
    assert (values[0], values[-1]) == ends
    assert len(values) == count
    assert all(a <= b for a, b in pairwise(values))


@given(ranges(), scales, counts)
def test_a_grid_is_contained_bit_for_bit_in_the_next_finer_one(
    ends: tuple[float, float], scale: str, count: int
) -> None:
    coarse = axis_values(*ends, scale, count)  # type: ignore[arg-type]
    fine = axis_values(*ends, scale, 2 * count - 1)  # type: ignore[arg-type]
    assert fine[::2] == coarse


@given(ranges(), counts, st.integers(0, 199))
def test_a_log_value_is_the_correctly_rounded_formula(
    ends: tuple[float, float], count: int, step: int
) -> None:
    k = step % count
    low, high = (Decimal(end) for end in ends)
    with localcontext(prec=60):
        exact = low * (high / low) ** (Decimal(k) / Decimal(count - 1))
        assert axis_values(*ends, "log", count)[k] == float(exact)


@given(ranges(), scales, counts)
def test_values_survive_json_and_toml(ends: tuple[float, float], scale: str, count: int) -> None:
    values = list(axis_values(*ends, scale, count))  # type: ignore[arg-type]
    assert json.loads(json.dumps(values)) == values
    assert tomllib.loads(f"values = {values}")["values"] == values


def test_decades_are_what_one_would_write() -> None:
    assert axis_values(1e-3, 1e3, "log", 7) == (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
    assert axis_values(0.0, 1.0, "linear", 5) == (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("width", "dtype", "separable"),
    [
        pytest.param(1e-6, "float32", True, id="float32 separates parts in a million"),
        pytest.param(1e-9, "float32", False, id="float32 does not separate parts in a billion"),
        pytest.param(1e-9, "float64", True, id="float64 does"),
        pytest.param(1e-16, "float64", False, id="float64 has its limit too"),
    ],
)
def test_neighbours_that_the_trainer_cannot_tell_apart_are_found(
    width: float, dtype: str, separable: bool
) -> None:
    high = math.nextafter(0.1 * (1 + width), 1)
    values = axis_values(0.1, high, "log", 5)
    assert (coinciding(values, dtype) is None) == separable


def test_a_value_beyond_float32_is_not_mistaken_for_its_neighbour() -> None:
    assert coinciding((1e38, 1e39), "float32") is None
    assert coinciding((1e39, 2e39), "float32") == (1e39, 2e39)
