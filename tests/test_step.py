"""Points that share a model, a first step or a whole beginning have the bits of points alone."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fractal_k8s.aggregate import read_grid
from fractal_k8s.errors import RetryError, UsageError
from fractal_k8s.models.gpt import GPT
from fractal_k8s.results.outcome import Outcome, State
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.gpt import GPTTrainer
from fractal_k8s.train.optimizers import Optimizers, build_optimizers, orthogonalize
from fractal_k8s.train.sharing import Run as PointRun
from fractal_k8s.train.sharing import together
from fractal_k8s.train.step import Stepper

MakeSweep = Callable[..., Sweep]
Command = Callable[..., Any]

CONSTANT = ("training.schedule=constant", "training.warmup_frac=0")


def train(trainer: GPTTrainer, indexes: list[int] | None = None) -> dict[int, Outcome]:
    sweep = trainer.sweep
    chosen = range(sweep.num_points) if indexes is None else indexes
    return {outcome.index: outcome for outcome in trainer.train([sweep.point(p) for p in chosen])}


def facts(outcome: Outcome) -> tuple[Any, ...]:
    """Everything of an outcome that the point decides, the losses as bytes."""
    bare = replace(outcome, seconds=0.0, peak_bytes=None, losses=np.zeros(0, np.float32))
    return repr(bare), outcome.losses.tobytes()


def assert_same(found: dict[int, Outcome], expected: dict[int, Outcome]) -> None:
    assert found.keys() <= expected.keys()
    for index, outcome in found.items():
        assert facts(outcome) == facts(expected[index]), index


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at every pass through a model."""
    honest, made = GPT.loss_sum, list[int]()

    def counted(self: GPT, *arguments: Any, **options: Any) -> torch.Tensor:
        made.append(1)
        return honest(self, *arguments, **options)

    monkeypatch.setattr(GPT, "loss_sum", counted)
    return made


# --- one model, point after point ---


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="muon and adamw"),
        pytest.param(["training.optimizer=adamw", "training.clip_norm=0.5"], id="adamw clipped"),
        pytest.param(
            ["training.device_batch_size=1", "training.label_smoothing=0.1"], id="in parts"
        ),
        pytest.param(["seed_policy=per-point", "training.data_order=shuffled"], id="an order each"),
    ],
)
def test_a_point_has_the_bits_it_has_in_a_fresh_trainer(
    settings: list[str], gpt_sweep: MakeSweep
) -> None:
    sweep = gpt_sweep(*settings, resolution=(2, 3))
    warm = train(GPTTrainer(sweep), [5, 0, 4, 1, 3])
    for index in (4, 3):
        assert_same(train(GPTTrainer(sweep, share=False), [index]), warm)


@pytest.mark.parametrize(("y", "x"), [("attention_lr", "mlp_lr"), ("weight_decay", "embedding_lr")])
def test_rates_and_decay_of_a_point_are_gone_at_the_next(
    y: str, x: str, gpt_sweep: MakeSweep
) -> None:
    axes = {"y": {"knob": y, "values": [1e-3, 0.5]}, "x": {"knob": x, "values": [1e-3, 0.5]}}
    groups = {"trainable_param_groups": ["matrix", "embedding", "unembedding"]}
    training = {"tokens": 600, "batch_size": 2, "max_seq_len": 100, **groups}
    sweep = gpt_sweep(axes=axes, training=training)
    warm = train(GPTTrainer(sweep), [3, 2, 1, 0])
    assert len({outcome.losses.tobytes() for outcome in warm.values()}) == 4
    assert_same(train(GPTTrainer(sweep), [0]), warm)


def test_nothing_is_made_anew_between_points(gpt_sweep: MakeSweep) -> None:
    trainer = GPTTrainer(gpt_sweep())

    def places() -> list[int]:
        members = trainer.stepper.optimizers.members
        states = [state for member in members for state in member.state.values()]
        tensors = [value for state in states for value in state.values()]
        rates = [group["lr"] for member in members for group in member.param_groups]
        return [tensor.data_ptr() for tensor in (*trainer.parameters.values(), *tensors, *rates)]

    train(trainer, [0])
    before = places()
    train(trainer, [1, 2])
    assert places() == before


def test_a_momentum_that_leaks_from_point_to_point_would_be_noticed(
    gpt_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third loss: the first update has the direction that all points share."""
    sweep = gpt_sweep("training.tokens=600")
    honest = train(GPTTrainer(sweep))
    original = Optimizers.reset

    def leaking(self: Optimizers, training: GPTTraining) -> None:
        momenta = [state["momentum"] for state in self.members[1].state.values()]
        kept = [momentum.clone() for momentum in momenta]
        original(self, training)
        for momentum, old in zip(momenta, kept, strict=True):
            momentum.copy_(old)

    monkeypatch.setattr(Optimizers, "reset", leaking)
    leaked = train(GPTTrainer(sweep))
    assert leaked[0].losses.tobytes() == honest[0].losses.tobytes()
    assert leaked[3].losses.tobytes() != honest[3].losses.tobytes()


def test_a_weight_that_is_not_reset_would_be_noticed(
    gpt_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = gpt_sweep()
    honest = train(GPTTrainer(sweep))
    original = Stepper.reset

    def leaking(self: Stepper, training: GPTTraining) -> None:
        kept = self.trained[3].detach().clone()
        original(self, training)
        with torch.no_grad():
            self.trained[3].copy_(kept)

    monkeypatch.setattr(Stepper, "reset", leaking)
    leaked = train(GPTTrainer(sweep))
    assert leaked[0].losses.tobytes() == honest[0].losses.tobytes()
    assert leaked[3].losses.tobytes() != honest[3].losses.tobytes()


def test_a_run_that_breaks_in_the_middle_of_an_update_harms_no_other(
    gpt_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first moments of a state are made, the second are not."""
    sweep = gpt_sweep("training.optimizer=adamw")
    honest = train(GPTTrainer(sweep))
    trainer = GPTTrainer(sweep)
    original = torch.zeros_like
    calls: list[int] = []

    def failing(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")
        return original(*arguments, **options)

    monkeypatch.setattr(torch, "zeros_like", failing)
    outcomes = train(trainer)
    assert outcomes.pop(0).state is State.FAILED
    assert_same(outcomes, honest)


# --- losses ---


@pytest.mark.parametrize("read_every", [2, 16])
def test_an_outcome_does_not_depend_on_when_losses_are_read(
    read_every: int, gpt_sweep: MakeSweep
) -> None:
    """At the last rate the weights overflow, so the second loss is not a number."""
    axes = {
        "y": {"knob": "matrix_lr", "values": [1e-3, 1e-2, 1e38]},
        "x": {"knob": "weight_decay", "values": [0.1]},
    }
    training = {"tokens": 1000, "batch_size": 2, "max_seq_len": 100}
    sweep = gpt_sweep(axes=axes, training=training, resolution=(3, 1))
    expected = train(GPTTrainer(sweep, read_every=1))
    assert [outcome.state for outcome in expected.values()] == [
        State.TRAINED,
        State.TRAINED,
        State.DIVERGED,
    ]
    assert (expected[2].steps, len(expected[2].losses)) == (1, 2)
    assert_same(train(GPTTrainer(sweep, read_every=read_every), [2, 1, 0]), expected)


def test_the_memory_of_a_point_is_recorded(gpt_sweep: MakeSweep) -> None:
    outcome = train(GPTTrainer(gpt_sweep()), [0])[0]
    assert outcome.peak_bytes is not None
    assert 50e6 < outcome.peak_bytes < 20e9


# --- what points share ---


def test_the_first_step_is_made_once_with_the_same_bits(
    gpt_sweep: MakeSweep, passes: list[int]
) -> None:
    sweep = gpt_sweep("training.clip_norm=1.0")
    shared = train(GPTTrainer(sweep))
    assert len(passes) == 4 * 2 - 3
    assert_same(shared, train(GPTTrainer(sweep, share=False)))
    assert len(passes) == 5 + 4 * 2


def test_the_first_step_is_not_kept_without_room_for_it(
    gpt_sweep: MakeSweep, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal_k8s.train.sharing.room", lambda device, pooled: 10**6)
    train(GPTTrainer(gpt_sweep()))
    assert len(passes) == 4 * 2


def _over_tokens(gpt_sweep: MakeSweep, *settings: str, rate: float = 1e-2) -> Sweep:
    axes = {
        "y": {"knob": "matrix_lr", "values": [1e-3, rate]},
        "x": {"knob": "tokens", "values": [200, 600, 1000]},
    }
    return gpt_sweep(*settings, axes=axes, resolution=(2, 3))


def test_a_shorter_run_is_read_out_of_a_longer_one(gpt_sweep: MakeSweep, passes: list[int]) -> None:
    sweep = _over_tokens(gpt_sweep, *CONSTANT)
    together = train(GPTTrainer(sweep), [4, 0, 2, 5, 1, 3])
    assert len(passes) == 5 + 4  # five steps for each rate, the first of which is the same
    assert [together[index].steps for index in range(6)] == [1, 3, 5, 1, 3, 5]
    assert all(outcome.seconds > 0 for outcome in together.values())
    assert together[0].seconds < together[1].seconds < together[2].seconds
    assert_same(together, train(GPTTrainer(sweep, share=False)))


def test_probe_rows_are_measured_where_a_shorter_run_ends(gpt_sweep: MakeSweep) -> None:
    sweep = _over_tokens(gpt_sweep, *CONSTANT, "training.probe_rows=3")
    together = train(GPTTrainer(sweep), [3, 4])
    assert together[3].probe_after != together[4].probe_after
    assert_same(together, train(GPTTrainer(sweep, share=False)))


def test_a_schedule_that_depends_on_the_length_is_not_shared(
    gpt_sweep: MakeSweep, passes: list[int]
) -> None:
    sweep = _over_tokens(gpt_sweep, "training.warmup_frac=0.5")
    together = train(GPTTrainer(sweep))
    assert len(passes) == 2 * (1 + 3 + 5) - 5
    assert_same(together, train(GPTTrainer(sweep, share=False)))


def test_runs_that_share_a_beginning_break_as_they_would_alone(gpt_sweep: MakeSweep) -> None:
    sweep = _over_tokens(gpt_sweep, *CONSTANT, rate=1e38)
    together = train(GPTTrainer(sweep, read_every=16))
    states = [together[index].state for index in (3, 4, 5)]
    assert states == [State.TRAINED, State.DIVERGED, State.DIVERGED]
    assert_same(together, train(GPTTrainer(sweep, share=False)))


def test_runs_lie_on_one_another_only_with_the_same_rates_and_data(gpt_sweep: MakeSweep) -> None:
    sweep = _over_tokens(gpt_sweep)
    point = sweep.point

    def made(number: int, steps: int, seed: int = 1, **changes: Any) -> PointRun:
        training = GPTTraining(schedule="constant", **{"warmup_frac": 0.0, **changes})
        return PointRun(point(number), training, steps, seed)

    runs = [
        made(0, 3),
        made(1, 7, tokens=99),
        made(2, 5, warmup_frac=0.5),
        made(3, 5, seed=2),
        made(4, 7, matrix_lr=0.5),
        made(5, 4, warmup_frac=0.1),
    ]
    found = {tuple(each.index for each in trajectory.points) for trajectory in together(runs)}
    assert found == {(0, 5, 1), (2,), (3,), (4,)}


# --- the optimizers ---


@pytest.mark.parametrize("shape", [(5, 64, 64), (3, 32, 96), (3, 96, 32)])
def test_a_stacked_matrix_has_the_direction_it_has_alone(shape: tuple[int, int, int]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    together = orthogonalize(stack)
    for matrix, direction in zip(stack, together, strict=True):
        assert torch.equal(orthogonalize(matrix), direction)


def test_optimizers_go_on_where_their_state_was_saved(gpt_sweep: MakeSweep) -> None:
    """What `train` needs to resume a run; the rates stay in the tensors they were in."""
    weights, copies = (
        {"lm_head.weight": torch.nn.Parameter(torch.ones(8, 4))}
        | {"transformer.h.0.attn.c_q.weight": torch.nn.Parameter(torch.eye(4))}
        for _ in range(2)
    )
    first, second = (build_optimizers(each, GPTTraining(), 4) for each in (weights, copies))

    def step(optimizers: Optimizers, number: int) -> None:
        for place, parameter in enumerate(optimizers.parameters):
            generator = torch.Generator().manual_seed(10 * number + place)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.step(0.5)

    step(first, 0)
    saved = json.loads(json.dumps([state["param_groups"] for state in first.state_dict()]))
    assert [group["lr"] for state in saved for group in state] == [
        0.5 * 0.004 * (4 / 768) ** -0.5,
        0.5 * 0.02,
    ]
    with torch.no_grad():
        for name, parameter in weights.items():
            copies[name].copy_(parameter)
    rates = [group["lr"] for member in second.members for group in member.param_groups]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    after = [group["lr"] for member in second.members for group in member.param_groups]
    assert all(a is b for a, b in zip(rates, after, strict=True))
    for number in (1, 2):
        step(first, number)
        step(second, number)
    assert all(torch.equal(copies[name], weights[name]) for name in weights)


# --- how a step is run ---


def test_the_way_a_step_is_run_is_no_part_of_the_sweep(gpt_sweep: MakeSweep) -> None:
    ways = [gpt_sweep(f"training.execution={way}") for way in ("eager", "compiled", "graphs")]
    assert len({sweep.id for sweep in (gpt_sweep(), *ways)}) == 1


def test_graphs_need_a_gpu(gpt_sweep: MakeSweep) -> None:
    with pytest.raises(UsageError, match="needs a CUDA GPU"):
        GPTTrainer(gpt_sweep("training.execution=graphs"), torch.device("cpu"))


_COMPILED = """
import json, sys
from fractal_k8s.environ import prepare_environment
prepare_environment()
import torch
from torch._dynamo.utils import counters
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.gpt import GPTTrainer
sweep = Sweep.parse(json.loads(sys.argv[1]))
trainer = GPTTrainer(sweep)
found = {"class": trainer.environment.numerics_class}
for index in json.loads(sys.argv[2]):
    (outcome,) = trainer.train([sweep.point(index)])
    assert outcome.error is None, outcome.error
    graphs = counters["stats"]["unique_graphs"]
    assert found.setdefault("graphs", graphs) == graphs > 0, "compiled again"
    found[index] = outcome.losses.tobytes().hex()
try:
    trainer.stepper.gradients(trainer._lay_out(trainer.batches.rows, 1, None)[0])
except RuntimeError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_points_have_the_bits_of_a_fresh_process(
    gpt_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    sweep = gpt_sweep("training.execution=compiled")

    def losses(*indexes: int) -> dict[str, Any]:
        arguments = [json.dumps(sweep.to_dict()), json.dumps(indexes)]
        done = subprocess.run(
            [sys.executable, "-c", _COMPILED, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    warm, fresh = losses(0, 3, 1), losses(1)
    assert "packed compiled" in warm["class"]
    assert "recompile" in warm["refused"]
    assert warm["1"] == fresh["1"]
    eager = train(GPTTrainer(gpt_sweep()))
    for index in (0, 1, 3):
        series = np.frombuffer(bytes.fromhex(warm[str(index)]), np.float32)
        np.testing.assert_allclose(series, eager[index].losses, rtol=1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_have_the_bits_of_the_operations_one_by_one(
    dtype: str, gpt_sweep: MakeSweep
) -> None:
    settings = (f"training.dtype={dtype}", "training.clip_norm=1.0", "training.tokens=2000")
    eager = train(GPTTrainer(gpt_sweep(*settings)))
    graphs = train(GPTTrainer(gpt_sweep(*settings, "training.execution=graphs")), [3, 1, 0, 2])
    assert_same(graphs, eager)


# --- real workers ---


def test_one_worker_and_two_store_the_same_bytes(
    gpt_sweep: MakeSweep, run: Command, tmp_path: Path
) -> None:
    """With real child processes, from a command, over an axis whose runs share a beginning."""
    sweep = _over_tokens(gpt_sweep, *CONSTANT)
    (tmp_path / "sweep.json").write_text(json.dumps(sweep.to_dict()))
    stored: list[dict[tuple[int, int], bytes]] = []
    for workers, size in ((1, 6), (2, 2)):
        store = str(tmp_path / f"store-{workers}")
        options = ["--workers", str(workers), "--points-per-index", str(size), "--store", store]
        launched = run("launch", "sweep.json", "--backend", "local", "--json", *options)
        folder = Store(store).sweep(json.loads(launched.stdout)["sweep"])
        plan = folder.read_plan()
        assert plan is not None
        rows = read_grid(folder, plan).table.to_pylist()
        stored.append(
            {(row["i"], row["j"]): np.array(row["losses"], np.float32).tobytes() for row in rows}
        )
    expected = {
        (outcome.i, outcome.j): outcome.losses.tobytes()
        for outcome in train(GPTTrainer(sweep, share=False), [5, 4, 3, 2, 1, 0]).values()
    }
    assert stored == [expected, expected]


def test_a_loaded_state_lies_where_the_old_one_lay(gpt_sweep: MakeSweep) -> None:
    """A CUDA graph of the update knows the state by its addresses."""
    sweep = gpt_sweep()
    trainer = GPTTrainer(sweep)
    stepper, batch = trainer.stepper, trainer.batches[0]
    stepper.gradients(batch)
    stepper.update(1.0)
    kept = copy.deepcopy(stepper.optimizers.state_dict())
    stepper.reset(trainer.training)

    def places() -> list[int]:
        return [
            value.data_ptr()
            for member in stepper.optimizers.members
            for state in member.state.values()
            for value in state.values()
        ]

    before = places()
    stepper.optimizers.load_state_dict(kept)
    assert places() == before
    again = stepper.optimizers.state_dict()
    for old, new in zip(kept, again, strict=True):
        for index, state in old["state"].items():
            for name, value in state.items():
                assert torch.equal(value, new["state"][index][name])


def test_a_lost_device_leaves_failed_points_and_another_try(
    gpt_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = gpt_sweep()
    trainer = GPTTrainer(sweep)

    def lost(*arguments: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(trainer.stepper, "update", lost)
    monkeypatch.setattr(trainer.stepper, "recover", lost)
    outcomes = trainer.train([sweep.point(0), sweep.point(1)])
    assert next(outcomes).state is State.FAILED
    with pytest.raises(RetryError, match="the device is lost"):
        next(outcomes)
