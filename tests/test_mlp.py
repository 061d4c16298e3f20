"""The batched trainer: the right numbers, and the same bits wherever a net stands in a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from conftest import mlp_raw, mlp_sweep
from fractal_k8s.data.gaussian import minibatches, regression_data
from fractal_k8s.models.mlp import BatchedMLP, initial_weights
from fractal_k8s.results.outcome import Outcome, State
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.points import Point
from fractal_k8s.sweep.training import MLPTraining
from fractal_k8s.train.mlp import MLPTrainer

Floats = npt.NDArray[np.float64]


def with_training(**training: Any) -> Sweep:
    raw = mlp_raw(resolution=[5, 6])
    raw["training"] = {"width": 4, "steps": 30, **training}
    return Sweep.parse(raw)


def reference(sweep: Sweep, point: Point) -> Floats:
    """The original study's run of one point, written as its notebook describes it, by autograd."""
    training = sweep.training_at(point)
    assert isinstance(training, MLPTraining)
    x, y = (
        torch.tensor(part)
        for part in regression_data(sweep.spec.seed, training.num_examples, training.width)
    )
    theta = [torch.tensor(part) for part in initial_weights(sweep.spec.seed, training.width)]
    act = {
        "tanh": lambda z: torch.tanh(z * math.sqrt(2)),
        "relu": lambda z: torch.relu(z) * math.sqrt(2),
        "identity": lambda z: z,
    }[training.nonlinearity]
    rows = (
        None
        if training.minibatch is None
        else torch.tensor(
            minibatches(sweep.spec.seed, training.steps, training.minibatch, training.num_examples)
        )
    )

    def loss_of(weights: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = act(x @ weights[0] / math.sqrt(training.width))
        out = hidden @ weights[1] / math.sqrt(training.width) / math.sqrt(training.width)
        return ((out - y) ** 2).mean()

    losses = []
    for step in range(training.steps):
        theta = [(theta[0] + training.init_offset).requires_grad_(), theta[1].requires_grad_()]
        losses.append(loss_of(theta, x, y).item())
        part = slice(None) if rows is None else rows[step]
        grads = torch.autograd.grad(loss_of(theta, x[part], y[part]), theta)
        rates = (training.input_lr, training.output_lr)
        theta = [
            (weight - rate * grad).detach()
            for weight, rate, grad in zip(theta, rates, grads, strict=True)
        ]
    return np.array(losses)


def train(sweep: Sweep, indexes: Sequence[int] | None = None) -> dict[int, Outcome]:
    chosen = range(sweep.num_points) if indexes is None else indexes
    trainer = MLPTrainer(sweep)
    return {outcome.index: outcome for outcome in trainer.train([sweep.point(p) for p in chosen])}


@pytest.mark.parametrize(
    "training",
    [
        pytest.param({}, id="tanh"),
        pytest.param({"nonlinearity": "relu"}, id="relu"),
        pytest.param({"nonlinearity": "identity"}, id="deep linear"),
        pytest.param({"minibatch": 3}, id="minibatch"),
        pytest.param({"examples": 1}, id="one example"),
        pytest.param({"width": 8, "steps": 50}, id="the notebook's width"),
    ],
)
def test_losses_are_those_of_the_original_study(training: dict[str, Any]) -> None:
    sweep = with_training(**training)
    outcomes = train(sweep)
    for index in (0, 8, 15, 21, 29):
        expected = reference(sweep, sweep.point(index))
        # rounding differences grow with the loss: compare until it explodes or chaos has had time
        calm = np.flatnonzero(~(np.abs(expected) < 1e12))
        steps = min(12, int(calm[0]) if len(calm) else 12)
        assert steps >= (12 if index == 0 else 1)
        found = outcomes[index].losses[:steps]
        np.testing.assert_allclose(found, expected[:steps], rtol=2e-5)


def test_the_offset_is_added_before_every_step() -> None:
    raw = mlp_raw(resolution=[3, 4])
    raw["axes"] = {
        "y": {"knob": "lr", "low": 1e-2, "high": 1.0},
        "x": {"knob": "init_offset", "values": [-0.5, 0.0, 0.01, 1.0]},
    }
    sweep = Sweep.parse(raw)
    outcomes = train(sweep)
    for index in range(12):
        expected = reference(sweep, sweep.point(index))
        np.testing.assert_allclose(outcomes[index].losses, expected, rtol=1e-4)


def same(a: Outcome, b: Outcome) -> bool:
    return (
        a.losses.tobytes() == b.losses.tobytes()
        and (a.state, a.steps) == (b.state, b.steps)
        and np.array([a.ratio, a.final_loss]).tobytes()
        == np.array([b.ratio, b.final_loss]).tobytes()
    )


@pytest.mark.parametrize(
    "training",
    [
        pytest.param({}, id="float64"),
        pytest.param({"dtype": "float32"}, id="float32"),
        pytest.param({"nonlinearity": "relu", "width": 8}, id="relu"),
        pytest.param({"minibatch": 5, "width": 8}, id="minibatch"),
        pytest.param({"width": 7}, id="odd width"),
    ],
)
def test_a_point_has_the_same_bits_alone_and_in_any_company(training: dict[str, Any]) -> None:
    raw = mlp_raw(resolution=[24, 24])
    raw["training"] = {"width": 4, "steps": 45, **training}
    sweep = Sweep.parse(raw)
    everything = train(sweep)
    random = np.random.default_rng(0)
    for size in (1, 2, 7, 64):
        chosen = random.choice(sweep.num_points, size, replace=False).tolist()
        for index, outcome in train(sweep, chosen).items():
            assert same(outcome, everything[index])
    backwards = train(sweep, range(sweep.num_points)[::-1])
    assert all(same(backwards[index], everything[index]) for index in everything)


def test_every_place_of_a_batch_computes_the_same_bits() -> None:
    for dtype in (torch.float64, torch.float32):
        inputs, targets = regression_data(0, 72, 8)
        program = BatchedMLP(
            inputs, targets, nonlinearity="tanh", dtype=dtype, device=torch.device("cpu")
        )
        lanes = program.replicate(*initial_weights(0, 8), program.num_lanes)
        lanes.input_lr.fill_(20.0)
        lanes.output_lr.fill_(9.0)
        for _ in range(40):
            losses = program.step(lanes)
        assert (losses == losses[0]).all()
        assert (lanes.input_weights == lanes.input_weights[:, :1]).all()


def test_the_way_without_matrix_products_gives_the_same_numbers() -> None:
    inputs, targets = regression_data(0, 20, 4)
    results = []
    for uses_gemm in (True, False):
        program = BatchedMLP(
            inputs, targets, nonlinearity="tanh", dtype=torch.float64, device=torch.device("cpu")
        )
        program.uses_gemm = uses_gemm
        assert program._place_does_not_matter()
        lanes = program.replicate(*initial_weights(0, 4), program.num_lanes)
        lanes.input_lr.fill_(1.0)
        lanes.output_lr.copy_(torch.linspace(0.1, 3, program.num_lanes))
        results.append(torch.stack([program.step(lanes).clone() for _ in range(20)]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=0)


def test_a_machine_whose_places_differ_gets_a_program_that_does_without_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = BatchedMLP._place_does_not_matter
    monkeypatch.setattr(
        BatchedMLP,
        "_place_does_not_matter",
        lambda self: not self.uses_gemm and honest(self),
    )
    inputs, targets = regression_data(0, 20, 4)
    program = BatchedMLP(
        inputs, targets, nonlinearity="tanh", dtype=torch.float64, device=torch.device("cpu")
    )
    assert program.mode.endswith("-lanes")


def test_a_run_that_can_only_yield_nan_ends_early_and_is_diverged() -> None:
    sweep = with_training(nonlinearity="identity", steps=200)
    outcomes = train(sweep)
    diverged = [outcome for outcome in outcomes.values() if outcome.state is State.DIVERGED]
    assert diverged
    for outcome in diverged:
        assert len(outcome.losses) <= outcome.steps + 1
        assert not np.isfinite(outcome.losses[-1])
        assert outcome.steps < 200
    trained = [outcome for outcome in outcomes.values() if outcome.state is State.TRAINED]
    assert trained
    assert all(len(outcome.losses) == outcome.steps == 200 for outcome in trained)


def test_dropping_dead_nets_changes_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = with_training(nonlinearity="relu", steps=90)
    packed = train(sweep)
    monkeypatch.setattr("fractal_k8s.train.mlp.REPACK_STEPS", 10_000)
    unpacked = train(sweep)
    assert any(outcome.state is State.DIVERGED for outcome in packed.values())
    assert all(same(packed[index], unpacked[index]) for index in packed)


def test_per_point_seeds_change_the_weights_and_not_the_data() -> None:
    shared = train(mlp_sweep(resolution=[3, 3]))
    own = train(mlp_sweep(resolution=[3, 3], seed_policy="per-point"))
    assert same(shared[0], own[0])  # seed + 1000 * 0 + 0
    assert len({outcome.first_loss for outcome in shared.values()}) == 1
    assert len({outcome.first_loss for outcome in own.values()}) == 9
    assert {outcome.data_hash for outcome in own.values()} == {shared[0].data_hash}
    assert own[5].run_seed == 42 + 1000 + 2


def test_data_and_weights_are_fixed_for_good() -> None:
    """NumPy's legacy streams are frozen; these digits must never change."""
    inputs, targets = regression_data(42, 3, 2)
    first, second = initial_weights(42, 2)
    found = [float(array.ravel()[0]) for array in (inputs, targets, first, second)]
    np.testing.assert_allclose(found, RECORDED, rtol=1e-12)
    assert minibatches(42, 2, 3, 10).tolist() == RECORDED_ROWS


RECORDED = [-2.008613345751427, -0.09571913521123729, -0.8884850829608542, 1.261901163008568]
RECORDED_ROWS = [[0, 4, 0], [4, 5, 7]]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_point_has_the_same_bits_in_any_company_on_a_gpu() -> None:
    raw = mlp_raw(resolution=[40, 40])
    raw["training"] = {"width": 16, "steps": 60}
    sweep = Sweep.parse(raw)
    everything = train(sweep)
    for index, outcome in train(sweep, [3, 500, 777]).items():
        assert same(outcome, everything[index])
