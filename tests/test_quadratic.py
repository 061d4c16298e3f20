"""The null models: a quadratic whose edge is known, and its rippled kin."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from conftest import Run, mlp_raw
from fractal_k8s.errors import SweepError
from fractal_k8s.models.quadratic import Quadratic, initial_weights
from fractal_k8s.results.outcome import State
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.load import parse_text, preset_text, resolve
from fractal_k8s.train import open_trainer
from fractal_k8s.train.quadratic import QuadraticTrainer


def preset(name: str, *settings: str, resolution: int = 12) -> Sweep:
    raw = parse_text(preset_text(name), source=name)
    return resolve(raw, settings=settings, resolution=resolution, source=name)


@pytest.mark.parametrize("ripple", [None, "additive", "multiplicative"])
def test_the_gradient_is_that_of_the_loss(ripple: Any) -> None:
    model = Quadratic(0.7, ripple, 0.3, 0.9)
    weights = np.random.default_rng(0).normal(size=(2, 50))
    gradient = model.loss_and_gradient(weights)[1]
    for k in (0, 1):
        step = np.zeros((2, 1))
        step[k] = 1e-6
        difference = model.loss_and_gradient(weights + step)[0]
        difference = difference - model.loss_and_gradient(weights - step)[0]
        assert np.allclose(difference / 2e-6, gradient[k], atol=1e-7)


def test_a_ripple_of_amplitude_zero_is_none() -> None:
    weights = np.random.default_rng(0).normal(size=(2, 9))
    plain = Quadratic(0.7, None, 1.0, 1.0).loss_and_gradient(weights)
    for ripple in ("additive", "multiplicative"):
        rippled = Quadratic(0.7, ripple, 0.0, 1.0).loss_and_gradient(weights)  # type: ignore[arg-type]
        assert all(np.array_equal(a, b) for a, b in zip(plain, rippled, strict=True))


def test_starts_lie_on_the_unit_circle() -> None:
    starts = np.array([initial_weights(seed) for seed in range(20)])
    assert np.allclose(np.hypot(*starts.T), 1)
    assert len(np.unique(starts)) == 40


def test_the_plain_edge_is_where_theory_puts_it() -> None:
    """The descent contracts exactly where the spectral radius of 1 - diag(rates) H is below 1."""
    sweep = preset("quadratic", "training.steps=400", resolution=24)
    hessian = np.array([[2.0, 1.0], [1.0, 2.0]])
    compared = 0
    for outcome in open_trainer(sweep).train(
        [sweep.point(p) for p in range(sweep.num_points)], lambda: None
    ):
        step = np.eye(2) - np.diag([outcome.x, outcome.y]) @ hessian
        radius = max(abs(np.linalg.eigvals(step)))
        if abs(radius - 1) > 0.02:  # at the edge itself a run is too short to tell
            compared += 1
            trainable = outcome.state is State.TRAINED and outcome.ratio < 1
            assert trainable == (radius < 1), (outcome.y, outcome.x, radius)
    assert compared > 500


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_point_has_the_same_bits_in_any_company(dtype: str) -> None:
    sweep = preset("ripple", f"training.dtype={dtype}", "training.steps=40", resolution=40)
    trainer = QuadraticTrainer(sweep)
    points = [sweep.point(p) for p in range(sweep.num_points)]
    whole = {o.index: o.losses.tobytes() for o in trainer.train(points)}
    alone = QuadraticTrainer(sweep)
    for index in (0, 777, 1023, 1024, 1599):
        assert next(iter(alone.train([points[index]]))).losses.tobytes() == whole[index]
    for outcome in alone.train(points[1500:900:-7]):
        assert outcome.losses.tobytes() == whole[outcome.index]


def test_a_descent_that_diverges_ends_with_its_last_loss() -> None:
    sweep = preset("quadratic", "axes.x.high=1e9", "axes.y.high=1e9")
    worst = sweep.point(sweep.num_points - 1)
    outcome = next(iter(QuadraticTrainer(sweep).train([worst])))
    assert outcome.state is State.DIVERGED
    assert np.isfinite(outcome.losses[:-1]).all()
    assert not np.isfinite(outcome.losses[-1])
    assert outcome.steps == len(outcome.losses) - 1 < 100


def test_seeds_per_point_start_elsewhere() -> None:
    sweep = preset("ripple", 'seed_policy="per-point"')
    outcomes = list(QuadraticTrainer(sweep).train([sweep.point(p) for p in (0, 1)]))
    assert outcomes[0].data_hash != outcomes[1].data_hash
    assert outcomes[1].run_seed == 43


def test_a_knob_of_another_model_is_refused_with_a_near_one() -> None:
    raw = {**mlp_raw(), "model": "quadratic", "training": {}}
    with pytest.raises(SweepError, match="'input_lr' is not a knob of model 'quadratic'"):
        Sweep.parse(raw)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("quadratic", 0.95, 1.05), ("ripple", 1.25, 1.8), ("ripple-multiplicative", 1.3, 1.9)],
)
def test_the_null_models_measure_what_they_must(
    name: str,
    low: float,
    high: float,
    run: Run,
) -> None:
    """A smooth edge is 1, and a ripple makes it clearly rougher, through the whole pipeline."""
    options = ("--preset", name, "--res", "64", "--backend", "inline", "--json")
    summary = json.loads(run("launch", *options).stdout)
    assert low < summary["raw_slope"] < high
    is_smooth = name == "quadratic"
    if is_smooth:
        assert summary["interval"][0] == 1
        assert summary["interval"][1] < 1.1
    elif summary["interval"]:  # unless it is refused
        assert summary["interval"][0] > 1.1
