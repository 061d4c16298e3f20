"""Every training option does what it says, and nothing else; what cannot be done is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from conftest import Run, mlp_sweep
from fractal_k8s.errors import SweepError, UsageError
from fractal_k8s.results import schema
from fractal_k8s.results.grid import MARGINAL, NOT_TRAINABLE, STATE_NAMES, TRAINABLE, build_grid
from fractal_k8s.results.outcome import Environment, Outcome, State
from fractal_k8s.results.store import Outcomes
from fractal_k8s.results.verdict import is_marginal, is_trainable
from fractal_k8s.sweep.axes import KNOBS
from fractal_k8s.sweep.deal import representatives
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.flops import flops_per_token, with_flops
from fractal_k8s.sweep.memory import Shape
from fractal_k8s.sweep.plan import forecast
from fractal_k8s.sweep.rule import VerdictRule
from fractal_k8s.sweep.supply import DataFacts, refuse_repeats
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.gpt import GPTTrainer
from fractal_k8s.train.materials import read_facts
from fractal_k8s.train.optimizers import ADAM_BETAS, build_optimizers, group_of
from fractal_k8s.train.schedule import multiplier
from fractal_k8s.worker import judge

MakeSweep = Callable[..., Sweep]

ROW = 100  # ids of a row in the sweeps of `gpt_sweep`
D20 = Shape.of_depth(20)


def listed(knob: str, *values: float) -> dict[str, Any]:
    return {"knob": knob, "values": list(values)}


# --- every axis, trained ---

MATRICES = {"attention", "mlp"}
WEIGHTS = {*MATRICES, "embedding", "unembedding"}
RUN = {"steps", "labels", "data"}

# knob of the rows, of the columns, and what else the sweep sets; every knob is in one of them.
# Runs of one step: what an axis turns is seen before the groups can influence each other.
PLANES = [
    (listed("matrix_lr", 1e-3, 1e-2), listed("unembedding_lr", 1e-3, 1e-2), ("tokens=1",)),
    (listed("attention_lr", 1e-3, 1e-2), listed("mlp_lr", 1e-3, 1e-2), ("tokens=1",)),
    (listed("embedding_lr", 1e-2, 1e-1), listed("weight_decay", 0.0, 1.0), ("tokens=1",)),
    (listed("lr", 1e-3, 1e-2), listed("tokens", 2 * ROW, 4 * ROW), ()),
    (listed("lr", 1e-3, 1e-2), listed("batch_tokens", ROW, 4 * ROW), ("tokens=400",)),
    (listed("lr", 1e-3, 1e-2), listed("warmup_frac", 0.0, 1.0), ("tokens=400",)),
    (listed("lr", 1e-3, 1e-2), listed("flops", 1e9, 2e9), ()),
]
# what each knob changes of a run
CHANGES = {
    "matrix_lr": MATRICES,
    "unembedding_lr": {"unembedding"},
    "embedding_lr": {"embedding"},
    "attention_lr": {"attention"},
    "mlp_lr": {"mlp"},
    "lr": WEIGHTS,
    # Muon decays no weights
    "weight_decay": {"embedding", "unembedding"},
    "warmup_frac": WEIGHTS,
    "tokens": WEIGHTS | RUN,
    "flops": WEIGHTS | RUN,
    # the same rows in fewer steps
    "batch_tokens": WEIGHTS | {"steps", "data", "first loss"},
}


def records(sweep: Sweep) -> list[dict[str, Any]]:
    """What each point's run was, and the weights that it ended with, by point."""
    trainer = GPTTrainer(sweep)
    found = []
    for outcome in trainer.train([sweep.point(p) for p in range(sweep.num_points)]):
        assert outcome.state is State.TRAINED, outcome.error
        weights: dict[str, bytes] = {}
        for name, parameter in trainer.parameters.items():
            group = group_of(name)
            weights[group] = weights.get(group, b"") + parameter.detach().numpy().tobytes()
        facts = {
            "steps": outcome.steps,
            "labels": outcome.supervised_tokens,
            "data": outcome.data_hash,
            "first loss": outcome.first_loss,
        }
        found.append({**facts, **weights})
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize(
    ("y", "x", "settings"),
    PLANES,
    ids=[f"{y['knob']} x {x['knob']}" for y, x, _ in PLANES],
)
def test_an_axis_changes_what_it_says_and_nothing_else(
    y: dict[str, Any], x: dict[str, Any], settings: tuple[str, ...], gpt_sweep: MakeSweep
) -> None:
    sweep = gpt_sweep(
        'training.trainable_param_groups="matrix,embedding,unembedding"',
        *(f"training.{text}" for text in settings),
        axes={"y": y, "x": x},
    )
    corner, right, above, _ = records(sweep)
    assert differences(corner, right) == CHANGES[x["knob"]]
    assert differences(corner, above) == CHANGES[y["knob"]]


def test_every_axis_was_trained() -> None:
    knobs = {axis["knob"] for plane in PLANES for axis in plane[:2]}
    elsewhere = {"depth"}  # takes another model: tests/test_pretrain.py
    assert knobs | elsewhere == {name for model, name in KNOBS if model == "gpt"}


# --- batches ---


def test_parts_of_a_batch_are_weighted_by_their_labels(gpt_sweep: MakeSweep) -> None:
    settings = ("training.batch_size=4", "training.tokens=1200", "axes.y.high=2e-3")
    sweeps = [gpt_sweep(*settings, *more) for more in ((), ("training.device_batch_size=1",))]
    trainers = [GPTTrainer(sweep) for sweep in sweeps]
    means = []  # nanochat's: rows differ in labels, so their mean is another number
    with torch.no_grad():
        for part in trainers[1].batches[0].parts:
            total = trainers[1].model.loss_sum(part.ids, part.labels, part.places, part.layout)
            means.append(float(total) / part.num_labels)
    whole, parts = (
        next(trainer.train([sweep.point(0)]))
        for trainer, sweep in zip(trainers, sweeps, strict=True)
    )
    assert whole.steps == parts.steps == 3
    assert whole.data_hash == parts.data_hash
    assert np.abs(parts.losses / whole.losses - 1).max() < 1e-5
    assert abs(parts.losses[0] / whole.losses[0] - 1) < 1e-6
    assert len(means) == 4
    assert abs(np.mean(means) / whole.losses[0] - 1) > 1e-3


def test_points_of_other_batch_sizes_leave_no_trace(gpt_sweep: MakeSweep) -> None:
    axes = {"y": listed("lr", 1e-3, 1e-2), "x": listed("batch_tokens", 200, 400)}
    sweep = gpt_sweep(
        *("training.tokens=800", "training.device_batch_size=2", "training.probe_rows=3"), axes=axes
    )
    points = [sweep.point(p) for p in range(4)]
    forth, back = (
        {outcome.index: outcome for outcome in GPTTrainer(sweep).train(order)}
        for order in (points, points[::-1])
    )
    assert [forth[p].steps for p in range(4)] == [4, 2, 4, 2]
    for one, other in zip(sorted(forth.items()), sorted(back.items()), strict=True):
        assert one[1].losses.tobytes() == other[1].losses.tobytes()
        assert (one[1].probe_after, one[1].data_hash) == (other[1].probe_after, other[1].data_hash)


def test_a_batch_that_rows_do_not_make_is_refused_with_those_that_do(gpt_sweep: MakeSweep) -> None:
    axes = {"y": listed("lr", 1e-3, 1e-2), "x": {"knob": "batch_tokens", "low": 100, "high": 1000}}
    with pytest.raises(SweepError) as caught:
        gpt_sweep(axes=axes, resolution=(2, 4), name="odd")
    message = str(caught.value)
    assert "axes.x: 215 tokens are no whole batch of rows of max_seq_len 100" in message
    found = re.search(r"values = \[(.*)\]", message)
    assert found is not None
    exact = [float(text) for text in found[1].split(",")]
    assert exact == [100, 200, 500, 1000]
    again = gpt_sweep(axes={**axes, "x": listed("batch_tokens", *exact)}, resolution=(2, 4))
    sizes = [again.training_at(again.point(j)).batch_size for j in range(4)]  # type: ignore[union-attr]
    assert sizes == [1, 2, 5, 10]


def test_doubling_batches_are_exact_over_a_range(gpt_sweep: MakeSweep) -> None:
    axes = {"y": listed("lr", 1e-3, 1e-2), "x": {"knob": "batch_tokens", "low": 128, "high": 4096}}
    sweep = gpt_sweep("training.max_seq_len=128", axes=axes, resolution=(2, 6))
    assert sweep.x_values == (128, 256, 512, 1024, 2048, 4096)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            ["batch_size=6", "device_batch_size=4"],
            "a batch of 6 rows is no whole number of parts of 4 rows; 3 or 6 rows would be",
            id="parts",
        ),
        pytest.param(
            ['trainable_param_groups=["matrices"]'],
            "trainable_param_groups.0: unknown 'matrices'; did you mean 'matrix'?",
            id="near group",
        ),
        pytest.param(
            ["trainable_param_groups=matrix,lm_head"],
            "trainable_param_groups.1: unknown 'lm_head'; known: matrix, embedding, unembedding",
            id="foreign group",
        ),
        pytest.param(
            ["schedule=cosin"], "schedule: unknown 'cosin'; did you mean 'cosine'?", id="schedule"
        ),
        pytest.param(
            ["flops=1e12", "token_accounting=supervised"],
            "flops are spent on every position",
            id="two budgets",
        ),
        pytest.param(["probe_rows=-1"], "probe_rows", id="probe rows"),
        pytest.param(["warmup_frac=1.5"], "warmup_frac", id="warmup"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: list[str], message: str, gpt_sweep: MakeSweep
) -> None:
    with pytest.raises(SweepError, match=re.escape(message)):
        gpt_sweep(*(f"training.{text}" for text in settings))


def test_parts_must_divide_every_batch_of_an_axis(gpt_sweep: MakeSweep) -> None:
    axes = {"y": listed("lr", 1e-3, 1e-2), "x": listed("batch_tokens", 200, 400, 600)}
    settings = ("training.device_batch_size=4",)
    with pytest.raises(SweepError, match=r"in parts of device_batch_size 4.*\[200, 400, 800\]"):
        gpt_sweep(*settings, axes=axes, resolution=(2, 3))
    axes["x"] = listed("batch_tokens", 200, 400, 800)
    gpt_sweep(*settings, axes=axes, resolution=(2, 3))


def test_one_budget_at_a_time(gpt_sweep: MakeSweep) -> None:
    tokens = listed("tokens", 100, 200)
    with pytest.raises(SweepError, match="'flops' and 'tokens' both set tokens"):
        gpt_sweep(axes={"y": listed("flops", 1e9, 2e9), "x": tokens})
    with pytest.raises(SweepError, match=r"tokens does nothing: training\.flops decides"):
        gpt_sweep("training.flops=1e9", axes={"y": listed("lr", 1, 2), "x": tokens})


# --- budgets of FLOPs ---


def test_the_flops_of_a_position_are_nanochats() -> None:
    # reference/training.md 1.7
    assert flops_per_token(D20, 2048) == pytest.approx(3.491758e9, rel=1e-6)
    assert flops_per_token(D20, 1024) == pytest.approx(3.177185e9, rel=1e-6)


def test_flops_decide_the_steps_once_the_model_is_known(gpt_sweep: MakeSweep) -> None:
    axes = {"y": listed("lr", 1e-3, 1e-2), "x": listed("flops", 1e12, 1.1e12, 1e13)}
    sweep = gpt_sweep(axes=axes, resolution=(2, 3))
    unknown = forecast(sweep)
    assert unknown.steps is None
    assert unknown.distinct == 6
    known = with_flops(sweep, D20)
    per_step = 2 * ROW * flops_per_token(D20, ROW)
    steps = [math.ceil(budget / per_step) for budget in (1e12, 1.1e12, 1e13)]
    assert steps[0] == steps[1]
    made = forecast(known)
    assert made.steps == (steps[0], steps[2])
    assert made.distinct == 4
    assert representatives(known).tolist() == [0, 0, 2, 3, 3, 5]
    assert known.id == sweep.id  # the checkpoint decides it, and that is in the id


# --- schedules ---


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        pytest.param("cosine", 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8)), id="cosine"),
        pytest.param("linear", 0.1 + 0.9 * (1 - 7 / 8), id="linear"),
        pytest.param("constant", 1.0, id="constant"),
    ],
)
def test_schedules_at_the_first_the_warmup_and_the_last_step(schedule: Any, last: float) -> None:
    training = GPTTraining(schedule=schedule, warmup_frac=0.2, final_lr_frac=0.1)
    values = [multiplier(training, step, 10) for step in range(10)]
    assert values[0] == 0.5
    assert values[1] == values[2] == 1.0  # the end of the warmup, and the start of what follows
    assert values[-1] == pytest.approx(last, abs=1e-12)


def test_no_warmup_begins_at_the_full_rate() -> None:
    for fraction in (0.0, 0.05):
        training = GPTTraining(warmup_frac=fraction)
        assert training.warmup_steps(10) == 1
        assert multiplier(training, 0, 10) == 1.0


# --- loss and order ---


def test_label_smoothing_is_its_formula(gpt_sweep: MakeSweep) -> None:
    trainer = GPTTrainer(gpt_sweep())
    part = trainer.batches[0].parts[0]
    arguments = (part.ids, part.labels, part.places, part.layout)
    with torch.no_grad():
        plain = float(trainer.model.loss_sum(*arguments))
        smoothed = float(trainer.model.loss_sum(*arguments, label_smoothing=0.1))
        logits = trainer.model(part.ids, part.layout).flatten(0, 1)
        places = torch.arange(len(logits)) if part.places is None else part.places
        chosen = torch.log_softmax(logits[places], dim=-1)[part.labels != -1]
    assert smoothed == pytest.approx(0.9 * plain - 0.1 * float(chosen.mean(-1).sum()), rel=1e-5)


def test_clipping_bounds_the_norm_of_all_gradients_together(gpt_sweep: MakeSweep) -> None:
    trainer = GPTTrainer(gpt_sweep("training.optimizer=adamw", "training.clip_norm=0.01"))
    batch = trainer.batches[0]
    for part in batch.parts:
        loss = trainer.model.loss_sum(part.ids, part.labels, part.places, part.layout)
        (loss / batch.num_labels).backward()  # type: ignore[no-untyped-call]
    optimizers = build_optimizers(trainer.parameters, trainer.training, trainer.model.config.n_embd)
    optimizers.step(1.0)
    # the first moments are (1 - beta1) of what came through
    states = [state for member in optimizers.state_dict() for state in member["state"].values()]
    squares = sum(float(state["exp_avg"].double().square().sum()) for state in states)
    assert math.sqrt(squares) == pytest.approx((1 - ADAM_BETAS[0]) * 0.01, rel=1e-3)


def test_a_seed_per_point_draws_an_order_per_point(gpt_sweep: MakeSweep) -> None:
    settings = ("training.data_order=shuffled", "seed_policy=per-point")
    sweep = gpt_sweep(*settings)
    together = {o.index: o for o in GPTTrainer(sweep).train([sweep.point(p) for p in range(4)])}
    assert [together[p].run_seed for p in range(4)] == [42, 43, 1042, 1043]
    assert len({outcome.data_hash for outcome in together.values()}) == 4
    alone = next(GPTTrainer(sweep).train([sweep.point(2)]))
    assert alone.losses.tobytes() == together[2].losses.tobytes()
    shared = gpt_sweep(settings[0])
    hashes = {o.data_hash for o in GPTTrainer(shared).train([shared.point(p) for p in (0, 3)])}
    assert len(hashes) == 1


def test_supervised_accounting_records_both_counts(gpt_sweep: MakeSweep) -> None:
    sweep = gpt_sweep("training.token_accounting=supervised", "training.tokens=60")
    trainer = GPTTrainer(sweep)
    outcome = next(trainer.train([sweep.point(0)]))
    first = trainer.batches[0].num_labels
    assert outcome.steps == math.ceil(60 / first)
    batches = [trainer.batches[step] for step in range(outcome.steps)]
    assert outcome.supervised_tokens == sum(batch.num_labels for batch in batches)
    assert outcome.tokens_seen == sum(batch.num_tokens for batch in batches)
    assert outcome.tokens_seen > 2 * outcome.supervised_tokens
    facts = read_facts(sweep)
    assert facts.first_labels(2) == first
    assert forecast(sweep, data=facts).steps == (outcome.steps, outcome.steps)


# --- probe rows ---


def test_probe_rows_are_held_out_and_measured_before_and_after(gpt_sweep: MakeSweep) -> None:
    sweep = gpt_sweep("training.probe_rows=5", "verdict={rule='probe'}", "axes.y.high=1")
    trainer = GPTTrainer(sweep)
    facts = read_facts(sweep)
    everything = read_facts(gpt_sweep()).rows
    assert (facts.rows, facts.probe_rows) == (everything - 5, 5)
    assert len(trainer.batches.rows) == everything - 5
    points = [sweep.point(p) for p in range(4)]
    together = {outcome.index: outcome for outcome in trainer.train(points)}
    assert len({outcome.probe_before for outcome in together.values()}) == 1
    assert len({outcome.probe_after for outcome in together.values()}) == 4
    # the probe itself changes no run, and is the same in other company
    plain = GPTTrainer(gpt_sweep("axes.y.high=1"))
    others = {outcome.index: outcome for outcome in plain.train(points)}
    assert others[2].losses.tobytes() == together[2].losses.tobytes()
    assert math.isnan(others[2].probe_before)
    alone = next(GPTTrainer(sweep).train([points[2]]))
    assert (alone.probe_before, alone.probe_after) == (
        together[2].probe_before,
        together[2].probe_after,
    )
    # a calm run gains on rows that it never saw, one at a thousand times its rate loses
    assert judge(sweep, together[0]) == TRAINABLE
    assert judge(sweep, together[2]) == NOT_TRAINABLE


def test_a_diverged_run_has_no_loss_afterwards(gpt_sweep: MakeSweep) -> None:
    sweep = gpt_sweep(
        *("training.probe_rows=3", "training.optimizer=adamw", "training.tokens=2000"),
        axes={"y": listed("matrix_lr", 1e25, 1e30), "x": listed("unembedding_lr", 1e25, 1e30)},
    )
    outcome = next(GPTTrainer(sweep).train([sweep.point(0)]))
    assert outcome.state is State.DIVERGED
    assert math.isfinite(outcome.probe_before)
    assert math.isnan(outcome.probe_after)


def test_probe_rows_must_leave_something(gpt_sweep: MakeSweep) -> None:
    with pytest.raises(UsageError, match=r"training\.probe_rows 64 leaves nothing to train on"):
        GPTTrainer(gpt_sweep("training.probe_rows=64"))


# --- verdicts ---


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param({"rule": "ratio", "threshold": 0.8, "marginal": 1.0}, "tmn", id="ratio"),
        pytest.param({"rule": "bound", "bound": 0.8, "marginal": 1.0}, "tmn", id="bound"),
        pytest.param({"rule": "probe", "threshold": 0.8, "marginal": 1.0}, "tmn", id="probe"),
        pytest.param({"rule": "bound", "bound": 1.0}, "ttn", id="no band"),
    ],
)
def test_the_band_begins_at_the_limit_and_ends_before_its_end(
    rule: dict[str, Any], expected: str
) -> None:
    verdict = VerdictRule(**rule)
    number = np.array([0.79999, 0.8, 1.0, math.nan])
    stable = np.array([True, True, True, True])
    found = np.where(is_trainable(verdict, stable, number), "t", "n")
    found[is_marginal(verdict, stable, number)] = "m"
    assert "".join(found) == expected + "n"
    unstable = np.zeros(4, dtype=bool)
    assert not is_marginal(verdict, unstable, number).any()


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        pytest.param(
            {"rule": "bound", "marginal": 10.0},
            "marginal 10 must be above the limit 10",
            id="empty band",
        ),
        pytest.param({"rule": "bound", "threshold": 0.5}, "threshold does not belong", id="key"),
        pytest.param(
            {"rule": "probe"}, "'probe' needs training.probe_rows above 0", id="no probe rows"
        ),
        pytest.param({"rule": "prob"}, "unknown 'prob'; did you mean 'probe'?", id="name"),
    ],
)
def test_rules_that_cannot_judge_are_refused(
    verdict: dict[str, Any], message: str, gpt_sweep: MakeSweep
) -> None:
    with pytest.raises(SweepError, match=re.escape(message)):
        gpt_sweep(verdict=verdict)


def test_a_model_without_data_has_no_probe_rows() -> None:
    with pytest.raises(SweepError, match="which model 'mlp' does not have"):
        mlp_sweep(verdict={"rule": "probe"})


def outcomes_table(sweep: Sweep, **columns: list[float]) -> pa.Table:
    """One row a point with the given numbers."""
    points = [sweep.point(p) for p in range(sweep.num_points)]
    made = [
        Outcome(
            point.index,
            *(point.i, point.j, point.y, point.x),
            State.TRAINED,
            run_seed=42,
            **{name: values[point.index] for name, values in columns.items()},
        )
        for point in points
    ]
    times = [datetime(2026, 1, 1, tzinfo=UTC)] * len(made)
    return schema.to_table(sweep, made, times, Environment("class"))


def test_marginal_points_are_a_class_of_their_own() -> None:
    rule = {"rule": "bound", "bound": 1.0, "marginal": 2.0}
    sweep = mlp_sweep(resolution=[2, 2], verdict=rule)
    table = outcomes_table(sweep, final_loss=[0.5, 1.0, 1.9, 2.0])
    grid = build_grid(sweep, Outcomes(table))
    assert grid.states.ravel().tolist() == [TRAINABLE, MARGINAL, MARGINAL, NOT_TRAINABLE]
    assert grid.counts()["marginal"] == 2
    assert grid.trainable.sum() == 1
    assert grid.known.all()
    plain = build_grid(sweep, Outcomes(table), rule=VerdictRule(rule="bound", bound=2.0))
    assert plain.trainable.sum() == 3
    assert "marginal" not in plain.counts()


def test_outcomes_of_an_earlier_release_read_without_their_probe_losses() -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    new = outcomes_table(sweep, ratio=[0.5, 2.0, 0.5, 2.0], final_loss=[1.0] * 4)
    old = new.drop_columns(["probe_before", "probe_after", "peak_bytes", "fingerprint"])
    read = schema.from_bytes(schema.to_bytes(old), sweep=sweep, source="old")
    both = pa.concat_tables([read, new]).unify_dictionaries()
    grid = build_grid(sweep, Outcomes(both))
    assert not grid.problems  # not measured is not a difference
    assert grid.trainable.ravel().tolist() == [True, False, True, False]
    assert np.isnan(grid.probe_ratio).all()


def test_probe_losses_that_differ_are_told() -> None:
    sweep = mlp_sweep(resolution=[2, 2])
    tables = [outcomes_table(sweep, probe_after=[1.0, 1.0, 1.0, last]) for last in (1.0, 1.1)]
    grid = build_grid(sweep, Outcomes(pa.concat_tables(tables).unify_dictionaries()))
    assert grid.problems == ["point (1, 1) has 2 results that differ; the first counts"]


# --- what the data hold ---


def facts(labels: list[int], **changes: int) -> DataFacts:
    numbers = {"probe_rows": 0, "lost": 0, "unanswered": 0, "cut": 0}
    return DataFacts(
        max_seq_len=ROW,
        positions=np.full(len(labels), ROW - 1),
        labels=np.array(labels),
        conversations=len(labels),
        **{**numbers, **changes},
    )


def test_rows_seen_again_are_refused_with_how_often(gpt_sweep: MakeSweep) -> None:
    axes = {"y": listed("lr", 1e-3, 1e-2), "x": listed("tokens", 100, 2000, 4100)}
    sweep = gpt_sweep(axes=axes, resolution=(2, 3))
    refuse_repeats(sweep, facts([3] * 42))  # 21 steps of 2 rows
    with pytest.raises(UsageError) as caught:
        refuse_repeats(sweep, facts([3] * 20))
    message = str(caught.value)
    assert "asks for 21 steps of 2 rows = 42 rows, its data hold 20" in message
    assert "rows would be seen up to 3 times" in message
    assert "--allow-repeats" in message
    allowed = gpt_sweep("training.allow_repeats=true", axes=axes, resolution=(2, 3))
    refuse_repeats(allowed, facts([3] * 20))
    assert allowed.id == sweep.id  # a permission, not another experiment
    # the largest batch asks for most rows here: 3 steps of 8 rows against 21 of 1
    axes = {"y": listed("lr", 1e-3, 1e-2), "x": listed("batch_tokens", 100, 800)}
    sweep = gpt_sweep("training.tokens=2100", axes=axes, resolution=(2, 2))
    with pytest.raises(UsageError, match="3 steps of 8 rows = 24 rows"):
        refuse_repeats(sweep, facts([3] * 23))


def test_supervised_steps_follow_from_the_first_batch(gpt_sweep: MakeSweep) -> None:
    axes = {"y": listed("lr", 1e-3, 1e-2), "x": listed("batch_tokens", 100, 300)}
    sweep = gpt_sweep(
        *("training.token_accounting=supervised", "training.tokens=50"),
        axes=axes,
        resolution=(2, 2),
    )
    made = forecast(sweep, data=facts([5, 2, 3, 4]))
    assert made.steps == (5, 10)  # 50 labels by 10 of the first three rows, or by 5 of the first
    assert made.batching is not None
    assert made.batching.rows == (1, 3)
    assert made.batching.tokens == (100, 300)
    assert forecast(sweep).steps is None


def test_columns_that_cannot_differ_are_named(gpt_sweep: MakeSweep) -> None:
    lr = listed("lr", 1e-3, 1e-2)
    settings = ("training.tokens=1600", "verdict.window=3")
    axes = {"y": lr, "x": listed("batch_tokens", 200, 400, 800, 1600)}
    made = forecast(gpt_sweep(*settings, axes=axes, resolution=(2, 4)))
    assert made.steps == (1, 8)
    assert (made.one_step_columns, made.few_step_columns) == ([3], [2, 3])
    assert made.distinct == 8
    axes = {"y": {"knob": "warmup_frac", "low": 0, "high": 0.5}, "x": lr}
    made = forecast(gpt_sweep(*settings, axes=axes, resolution=(9, 2)))
    assert made.batching is not None
    assert made.batching.warmup_steps == (1, 4)
    assert "4 of 9 rows differ: a warmup is made of whole steps" in made.notes
    assert made.distinct == 8


def test_padding_is_what_stands_beside_shorter_rows() -> None:
    data = DataFacts(ROW, np.array([10, 30, 20, 20]), np.ones(4), 0, 4, 0, 0, 0)
    assert data.padding(2, 2) == pytest.approx(20 / 100)
    assert data.padding(4, 4) == pytest.approx(40 / 120)
    assert data.padding(4, 1) == 0


def test_lost_and_cut_answers_are_counted(golden: Path, gpt_sweep: MakeSweep) -> None:
    data = read_facts(gpt_sweep())
    assert data.lost > 0
    assert data.cut > 0
    assert data.rows + data.lost + data.unanswered == data.conversations == 64
    assert data.sentences()[0] == (
        f"{data.lost} of 64 rows lose their answer at max_seq_len 100 and are left out"
    )
    assert read_facts(gpt_sweep("training.max_seq_len=1000")).sentences() == []


# --- through the commands ---

TUNED = """
name = "tuned"
model = "gpt"
checkpoint = "{golden}"
dataset = "conversations:{golden}/conversations.jsonl"
resolution = [2, 2]
[axes.y]
knob = "lr"
values = [1e-3, 1.0]
[axes.x]
knob = "batch_tokens"
values = [200, 800]
[training]
tokens = 1600
max_seq_len = 100
device_batch_size = 4
probe_rows = 4
warmup_frac = 0.5
[verdict]
rule = "probe"
marginal = 1.02
"""


@pytest.fixture
def tuned(golden: Path, tmp_path: Path) -> str:
    (tmp_path / "tuned.toml").write_text(TUNED.format(golden=golden))
    return "tuned.toml"


def test_plan_tells_batches_warmup_and_data(run: Run, tuned: str) -> None:
    text = run("plan", tuned).output
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines()[1:]}
    assert lines["batch"] == "2 to 8 rows = 200 to 800 tokens a step, in parts of 4 rows"
    assert lines["steps"] == "2 to 8 per point, 20 in all"
    assert lines["warmup"] == "1 to 4 steps"
    assert lines["data"] == "30 rows to train on, 4 probe rows"
    assert re.search(r"\d+ of 64 rows lose their answer at max_seq_len 100", text)
    plan = json.loads(run("plan", tuned, "--json").stdout)
    assert plan["batch"] == {
        "rows": [2, 8],
        "tokens": [200, 800],
        "part_rows": 4,
        "warmup_steps": [1, 4],
    }
    assert plan["data"]["probe_rows"] == 4
    refused = run("plan", tuned, "--set", "training.tokens=16000", code=2).output
    assert "160 rows" in refused
    assert "--allow-repeats" in refused
    run("plan", tuned, "--set", "training.tokens=16000", "--allow-repeats")


def test_a_launch_reports_its_data_and_is_judged_anew_without_training(
    run: Run, tuned: str
) -> None:
    refused = run("launch", tuned, "--set", "training.tokens=16000", code=2).output
    assert "rows would be seen up to" in refused
    assert not Path("runs").exists()  # nothing was created
    result = run("launch", tuned, "--backend", "inline")
    assert re.search(r"note: \d+ of 64 rows lose their answer", result.output)
    assert re.search(r"data: \d+ of 64 rows lose their answer", result.output)
    report = next(Path("runs").rglob("report.html")).read_text()
    assert "rows lose their answer at max_seq_len 100" in report
    assert "loss on the probe rows" in report
    first = json.loads(run("analyze", "tuned", "--json").stdout)
    assert first["verdict"]["rule"] == "probe"
    assert sum(first["counts"].values()) == 4
    assert first["counts"]["trainable"] >= 1
    everything = ("--set", "verdict.rule=bound", "--set", "verdict.bound=0.01")
    band = (*everything, "--set", "verdict.marginal=40")
    again = json.loads(run("analyze", "tuned", *band, "--json").stdout)
    assert again["counts"]["marginal"] + again["counts"]["diverged"] == 4
    assert again["trainable_fraction"] == 0


# --- the document ---


def test_probe_rows_are_laid_out_alike_whatever_the_sizes_of_batches(
    gpt_sweep: MakeSweep,
) -> None:
    """An axis of batch sizes replaces the config's own, which must then decide nothing."""
    axes = {
        "y": {"knob": "matrix_lr", "low": 1e-3, "high": 1e-1},
        "x": {"knob": "batch_tokens", "values": [100, 200]},
    }
    found = set()
    for size in (1, 2, 7):
        training = {"batch_size": size, "probe_rows": 6, "tokens": 400, "max_seq_len": 100}
        sweep = gpt_sweep("training.allow_repeats=true", axes=axes, training=training)
        found.add((sweep.id, GPTTrainer(sweep).probe_before))
    assert len(found) == 1


def test_the_table_of_options_is_complete() -> None:
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    rows = {
        match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", text, flags=re.MULTILINE)
    }
    keys, knobs = set(GPTTraining.model_fields), {n for model, n in KNOBS if model == "gpt"}
    rule = {f"verdict.{name}" for name in VerdictRule.model_fields}
    assert set(rows) == keys | knobs
    assert {f"verdict.{name}" for name in re.findall(r"`verdict\.(\w+)`", text)} == {
        name.removeprefix("verdict.") and name for name in rule
    }
    for name, field in GPTTraining.model_fields.items():
        shown = json.dumps(field.default)
        assert f"| {shown} |" in rows[name], f"{name}: default {shown}"
    assert [row for row in rows if "| axis |" in rows[row]] == [row for row in rows if row in knobs]
    assert STATE_NAMES[MARGINAL] in text


# --- settings over a preset or a stored sweep ---


def test_another_rule_or_a_list_of_values_replaces_what_a_preset_says(run: Run) -> None:
    rule = ("--set", "verdict.rule=bound", "--set", "verdict.bound=3")
    plan = json.loads(run("plan", "--preset", "tiny", "--res", "3", *rule, "--json").stdout)
    assert plan["points"] == 9
    listed = ("--set", "axes.x.values=[0.1, 0.2]")
    plan = json.loads(run("plan", "--preset", "tiny", *listed, "--json").stdout)
    assert plan["points"] == 32


def test_an_axis_that_is_given_as_a_key_is_told_so(run: Run) -> None:
    output = run("plan", "--preset", "tiny", "--set", "training.batch_tokens=384", code=2).output
    assert "is an axis and no key; give it as axes.y.knob" in output


def test_a_stored_sweep_is_not_gone_on_with_in_another_way(
    run: Run, gpt_sweep: MakeSweep, tmp_path: Path
) -> None:
    (tmp_path / "tuned.json").write_text(json.dumps(gpt_sweep().to_dict()))
    launch = ("launch", "tuned.json", "--backend", "inline")
    run(*launch)
    before = sorted(path for path in (tmp_path / "runs").rglob("*"))
    output = run(*launch, "--set", "training.packing=padded", code=2).output
    assert "is stored with training.packing = 'packed' and this asks for 'padded'" in output
    assert "give --set training.packing=packed" in output
    assert sorted(path for path in (tmp_path / "runs").rglob("*")) == before
    assert "nothing to train" in run(*launch).output


def test_graphs_are_refused_before_anything_is_made(
    run: Run, gpt_sweep: MakeSweep, tmp_path: Path
) -> None:
    (tmp_path / "tuned.json").write_text(json.dumps(gpt_sweep().to_dict()))
    output = run("launch", "tuned.json", "--set", "training.execution=graphs", code=2).output
    assert "needs a CUDA GPU" in output
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["tuned.json"]
