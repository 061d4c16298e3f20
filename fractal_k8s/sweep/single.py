"""One run as a sweep of one point, so that it trains exactly what a point of a map trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fractal_k8s.errors import SweepError, UsageError
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.load import apply_setting, whole_checkpoint, whole_dataset
from fractal_k8s.sweep.training import GPTTraining

# What a knob that every fine-tune obeys is allowed to be.
_FITS: Final[dict[str, Callable[[float], bool]]] = {
    "tokens": lambda value: value >= 1,
    "flops": lambda value: value > 0,
    "warmup_frac": lambda value: 0 <= value <= 1,
}
# What says which points there are.
_OF_A_MAP: Final = ("axes", "resolution", "scatter", "origin")


def single(
    raw: Mapping[str, Any],
    *,
    settings: Sequence[str] = (),
    overrides: Mapping[str, str | None] | None = None,
    source: str,
) -> Sweep:
    """The sweep of one point that trains a sweep's own training config; its axes do not count.

    Args:
        raw: a gpt sweep as plain data, axes or not; not modified.
        settings: `key=value` texts, later ones win.
        overrides: top-level keys (checkpoint, dataset, name); None leaves the sweep's.

    Raises:
        SweepError: every problem at once.
        UsageError: it is no sweep of fine-tunes.
    """
    content: dict[str, Any] = json.loads(json.dumps(raw))
    if content.get("model") != "gpt":
        raise UsageError(
            f"{source}: a run of its own is a fine-tune (model gpt), this is {content.get('model')}"
        )
    for key in _OF_A_MAP:
        content.pop(key, None)
    content |= {key: value for key, value in (overrides or {}).items() if value is not None}
    problems = [problem for text in settings if (problem := apply_setting(content, text))]
    problems += [
        f"{key}: a run has no {key}; give --point I,J for a point of the sweep"
        for key in _OF_A_MAP
        if key in content
    ]
    if problems:
        raise SweepError(problems, source="--set")
    for key, whole in (("checkpoint", whole_checkpoint), ("dataset", whole_dataset)):
        if isinstance(content.get(key), str):
            content[key] = whole(content[key])
    content["axes"] = {
        name: {"knob": knob, "values": [_value(content, knob)]}
        for name, knob in zip(("y", "x"), _knobs(content), strict=True)
    }
    content["resolution"] = [1, 1]
    sweep = Sweep.parse(content, source=source)
    return sweep.at_depth(sweep.depths[0]) if sweep.depths else sweep


def point_of(sweep: Sweep, i: int, j: int) -> dict[str, Any]:
    """A point of a sweep as plain data for `single`: its values, and its seed.

    Raises:
        UsageError: there is no such point.
    """
    if not (0 <= i < sweep.rows and 0 <= j < sweep.columns):
        raise UsageError(
            f"point {i},{j} is outside {sweep.id}: rows 0 to {sweep.rows - 1}, "
            f"columns 0 to {sweep.columns - 1}"
        )
    point = sweep.point(i * sweep.columns + j)
    return {
        **sweep.to_dict(),
        "training": sweep.training_at(point).model_dump(mode="json"),
        "seed": sweep.run_seed(point),
        "seed_policy": "shared",
    }


def _knobs(content: Mapping[str, Any]) -> tuple[str, str]:
    """Two knobs that the run obeys and that share no key: the axes of the one point."""
    training = content.get("training")
    by_flops = isinstance(training, dict) and training.get("flops") is not None
    return ("flops" if by_flops else "tokens"), "warmup_frac"


def _value(content: Mapping[str, Any], knob: str) -> float:
    """What the config says of a knob; another that fits where that is not even a number."""
    training = content.get("training")
    value = training.get(knob) if isinstance(training, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and _FITS[knob](value):
        return float(value)
    return float(GPTTraining.model_fields[knob].default or 1)
