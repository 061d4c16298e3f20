"""The forecast: what is trained, which columns cannot tell, and what it costs."""

from __future__ import annotations

import pytest

from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.load import parse_text, preset_text, resolve
from fractal_k8s.sweep.plan import forecast


def preset(name: str, *settings: str, resolution: int | None = None) -> Sweep:
    raw = parse_text(preset_text(name), source=name)
    return resolve(raw, settings=settings, resolution=resolution, source=name)


@pytest.mark.parametrize(
    ("settings", "steps", "distinct", "one_step", "few"),
    [
        # reference/features.md E: 128 levels, "few" there means fewer than 20 steps, here at most
        pytest.param(
            ("training.batch_size=8", "training.max_seq_len=128"), (1, 977), 92, 1, 55, id="8x128"
        ),
        pytest.param(("training.batch_size=8",), (1, 123), 54, 39, 93, id="8x1024"),
        pytest.param((), (1, 21), 21, 72, 126, id="48x1024"),
        pytest.param(("axes.x.low=5e3", "axes.x.high=5e5"), (1, 11), 11, 64, 128, id="5K-500K"),
    ],
)
def test_degenerate_token_columns_are_counted(
    settings: tuple[str, ...], steps: tuple[int, int], distinct: int, one_step: int, few: int
) -> None:
    sweep = preset("docvqa-d20-lr-tokens", *settings, "verdict.window=19")
    made = forecast(sweep)
    assert made.steps == steps
    assert made.distinct == distinct * 128
    assert len(made.one_step_columns) == one_step
    assert len(made.few_step_columns) == few
    assert f"{one_step} of 128 columns make a single step" in made.notes[0]


def test_a_sweep_whose_every_run_is_shorter_than_the_window_is_called_out() -> None:
    made = forecast(preset("docvqa-d20"))
    expected = (
        "128 of 128 columns make at most 20 steps, so the verdict's window of 20 losses holds the "
        "first loss; give more tokens or a smaller verdict.window"
    )
    assert made.notes == [expected]


def test_long_runs_need_no_note() -> None:
    assert forecast(preset("tanh")).notes == []


def test_time_and_cost_follow_from_seconds_per_point() -> None:
    made = forecast(
        preset("tanh", resolution=10), seconds_per_point=36.0, workers=4, price_per_hour=2.5
    )
    assert made.worker_seconds == 3600.0
    assert made.cost == 2.5
    assert made.to_dict()["wall_seconds"] == 900.0


def test_time_follows_from_seconds_per_step_of_the_distinct_points() -> None:
    sweep = preset("docvqa-d20-lr-tokens")
    made = forecast(sweep, seconds_per_step=0.5)
    # distinct step counts 1..21, each at 128 learning rates
    assert made.total_steps == 128 * sum(range(1, 22))
    assert made.worker_seconds == 0.5 * made.total_steps


def test_steps_that_depend_on_the_data_are_not_guessed() -> None:
    made = forecast(
        preset("docvqa-d20", "training.token_accounting=supervised"), seconds_per_step=1
    )
    assert made.steps is None
    assert made.worker_seconds is None
    assert made.distinct == 16_384


def test_a_token_axis_over_the_rows_names_rows() -> None:
    raw = preset("docvqa-d20-lr-tokens").to_dict()
    raw["axes"]["y"], raw["axes"]["x"] = raw["axes"]["x"], raw["axes"]["y"]
    made = forecast(Sweep.parse(raw))
    assert (len(made.one_step_rows), len(made.one_step_columns)) == (72, 0)
