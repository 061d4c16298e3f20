"""The knobs that an axis can turn, and the axis itself. A new axis is one entry of KNOBS."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

from pydantic import field_validator, model_validator

from fractal_k8s.sweep.base import Spec
from fractal_k8s.sweep.points import WHOLE, Scale, axis_value, axis_values
from fractal_k8s.sweep.training import GPTTraining, MLPTraining, Training

Model = Literal["mlp", "gpt", "quadratic"]

# a fraction with a denominator, or 0 or 1
_FRACTION: Final = re.compile(r"\d+/0*[1-9]\d*|[01]")

# what else of a run a knob decides, besides the numbers it writes
STEPS: Final = "steps"
WARMUP: Final = "warmup"


@dataclass(frozen=True)
class Knob:
    """One hyperparameter that an axis can vary.

    `kind` says which values make sense: a `rate` is above 0 and so is a `budget`, a `count` is a
    whole number of at least 1, a `fraction` lies in 0..1, an `amount` is at least 0, an `offset` is
    any number.
    `writes` are the keys of the training config that the knob decides, `turn` returns the config
    with the knob at a value.
    """

    name: str
    model: Model
    kind: Literal["rate", "budget", "count", "fraction", "amount", "offset"]
    label: str
    writes: tuple[str, ...]
    turn: Callable[[Any, float], Training]
    scale: Scale = "log"
    # the parameter group that must be trained for the knob to do anything
    group: str | None = None
    # STEPS or WARMUP where the knob decides whole numbers of them
    affects: str | None = None
    # False where the config's own values matter beside the knob's (as ratios, say)
    replaces: bool = True
    # True where only listed values make sense
    listed: bool = False


def _plain(name: str, model: Model, kind: Any, label: str, **more: Any) -> Knob:
    """A knob that writes the key of its own name."""
    cast = int if kind == "count" else float

    def turn(training: Training, value: float) -> Training:
        return training.model_copy(update={name: cast(value)})

    return Knob(name, model, kind, label, (name,), turn, **more)


_GPT_RATES: Final = ("matrix_lr", "embedding_lr", "unembedding_lr", "attention_lr", "mlp_lr")
_MLP_RATES: Final = ("input_lr", "output_lr")


def _all_rates(training: GPTTraining, value: float) -> Training:
    """`lr` is the matrix rate; the other groups keep their ratio to it."""
    ratio = value / training.matrix_lr
    scaled = {
        name: getattr(training, name) * ratio
        for name in _GPT_RATES[1:]
        if getattr(training, name) is not None
    }
    return training.model_copy(update={"matrix_lr": value, **scaled})


def _rows_of(training: GPTTraining, value: float) -> Training:
    """A step of so many tokens; `checks` refuses a number that whole rows do not make."""
    return training.model_copy(update={"batch_size": int(value) // training.max_seq_len})


def _flops(training: GPTTraining, value: float) -> Training:
    return training.model_copy(update={"flops": float(value)})


def _both_layers(training: MLPTraining, value: float) -> Training:
    return training.model_copy(update=dict.fromkeys(_MLP_RATES, value))


_TABLE = (
    _plain("matrix_lr", "gpt", "rate", "matrix learning rate", group="matrix"),
    _plain("unembedding_lr", "gpt", "rate", "unembedding learning rate", group="unembedding"),
    _plain("embedding_lr", "gpt", "rate", "embedding learning rate", group="embedding"),
    Knob("lr", "gpt", "rate", "learning rate", _GPT_RATES, _all_rates, replaces=False),
    _plain("attention_lr", "gpt", "rate", "attention learning rate", group="matrix"),
    _plain("mlp_lr", "gpt", "rate", "MLP learning rate", group="matrix"),
    _plain("tokens", "gpt", "count", "training tokens", affects=STEPS),
    Knob(
        "batch_tokens", "gpt", "count", "tokens of a step", ("batch_size",), _rows_of, affects=STEPS
    ),
    Knob("flops", "gpt", "budget", "training FLOPs", ("flops", "tokens"), _flops, affects=STEPS),
    _plain("warmup_frac", "gpt", "fraction", "warmup fraction", scale="linear", affects=WARMUP),
    _plain("weight_decay", "gpt", "amount", "weight decay"),
    _plain("depth", "gpt", "count", "depth", listed=True),
    _plain("input_lr", "mlp", "rate", "input layer learning rate"),
    _plain("output_lr", "mlp", "rate", "output layer learning rate"),
    Knob("lr", "mlp", "rate", "learning rate", _MLP_RATES, _both_layers),
    _plain("init_offset", "mlp", "offset", "input layer weight offset"),
    _plain("first_lr", "quadratic", "rate", "first coordinate learning rate"),
    _plain("second_lr", "quadratic", "rate", "second coordinate learning rate"),
)

KNOBS: dict[tuple[str, str], Knob] = {(knob.model, knob.name): knob for knob in _TABLE}


def effect_problem(knob: Knob, training: Training) -> str | None:
    """Why turning the knob would change nothing under this training config, or None."""
    if not isinstance(training, GPTTraining):
        return None
    groups = training.trainable_param_groups
    if knob.name == "tokens" and training.flops is not None:
        return "training.flops decides the number of steps"
    if knob.name == "flops" and training.token_accounting == "supervised":
        return 'training.token_accounting = "supervised" counts tokens'
    if knob.group and knob.group not in groups:
        return f"group {knob.group!r} is not in training.trainable_param_groups {list(groups)}"
    if knob.name == "matrix_lr" and training.attention_lr and training.mlp_lr:
        return "training.attention_lr and training.mlp_lr are both set"
    if knob.name == "weight_decay" and training.optimizer == "muon+adamw" and groups == ("matrix",):
        return "only matrices are trained, by Muon, which decays no weights"
    return None


def knob_names(model: str | None = None) -> list[str]:
    return sorted({knob.name for knob in _TABLE if model in (None, knob.model)})


def near(name: str, names: list[str]) -> str:
    """`; did you mean 'x'?` for a near match, else the list of what there is."""
    match = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(names)}"


class Axis(Spec):
    """One knob over a range or over a list of values, in rising order."""

    # name of the knob, from KNOBS
    knob: str
    # first and last value of a range, both included
    low: float | None = None
    high: float | None = None
    # spacing of a range; None = the knob's own (log for rates and tokens)
    scale: Scale | None = None
    # the values themselves instead of a range
    values: tuple[float, ...] | None = None
    # the share of the range that the axis covers, as exact fractions ("48/127", "63/127");
    # None = all of it. A zoom narrows it and leaves low and high as they are, so that its points
    # are bit for bit those of the range wherever they coincide
    window: tuple[str, str] | None = None

    @field_validator("knob")
    @classmethod
    def _knob_is_known(cls, name: str) -> str:
        if name not in knob_names():
            raise ValueError(f"unknown knob {name!r}{near(name, knob_names())}")
        return name

    @field_validator("window")
    @classmethod
    def _window_is_a_share(cls, window: tuple[str, str] | None) -> tuple[str, str] | None:
        """The window in lowest terms, so that one window has one spelling; None for all of it."""
        if window is None:
            return None
        for text in window:
            if not _FRACTION.fullmatch(text):
                raise ValueError(f'must be two fractions such as "48/127", got {text!r}')
        low, high = (Fraction(text) for text in window)
        if not 0 <= low < high <= 1:
            raise ValueError(f"must rise within 0..1, got {window[0]!r} to {window[1]!r}")
        return None if (low, high) == WHOLE else (str(low), str(high))

    @model_validator(mode="after")
    def _range_or_values(self) -> Axis:
        if self.values is not None:
            if self.low is not None or self.high is not None or self.scale is not None:
                raise ValueError("give either low and high (and scale) or values, not both")
            if self.window is not None:
                raise ValueError("window: is a share of a range, and this axis lists its values")
            if not self.values:
                raise ValueError("values: must hold at least one value")
            rising = all(a < b for a, b in zip(self.values, self.values[1:], strict=False))
            if not rising:
                raise ValueError("values: must rise, without repeats")
        elif self.low is None or self.high is None:
            raise ValueError("needs low and high, or values")
        elif self.low == self.high:
            raise ValueError(f"low and high are both {self.low!r}; an axis needs a range")
        elif self.low > self.high:
            raise ValueError(f"low {self.low!r} is above high {self.high!r}; swap them")
        # a knob of several models (lr) takes the same kind of values in each
        knob = next(knob for knob in _TABLE if knob.name == self.knob)
        ends = self.values or (self.low, self.high)
        scale = "linear" if self.values else self.spacing(knob)  # a list has no spacing
        for value in ends:
            if value is not None and (reason := _unfit(knob, scale, value)):
                raise ValueError(f"{reason}, got {value!r}")
        return self

    def spacing(self, knob: Knob) -> Scale:
        return self.scale or knob.scale

    @property
    def shares(self) -> tuple[Fraction, Fraction]:
        """The window as numbers: (0, 1) is the whole range."""
        return (
            WHOLE if self.window is None else (Fraction(self.window[0]), Fraction(self.window[1]))
        )

    def points(self, knob: Knob, count: int) -> tuple[float, ...]:
        """The axis's values as exact float64, `count` of them (a list keeps its own length)."""
        if self.values is not None:
            return self.values
        assert self.low is not None  # a validated axis without values has both ends
        assert self.high is not None
        values = axis_values(self.low, self.high, self.spacing(knob), count, self.shares)
        if knob.kind == "count":
            return tuple(float(round(value)) for value in values)
        return values

    def value_at(self, knob: Knob, share: float) -> float:
        """The exact value at a share of the window, 0 = its low end and 1 = its high; no list."""
        assert self.low is not None  # whoever asks has checked that the axis is a range
        assert self.high is not None
        start, end = self.shares
        place = start + (end - start) * Fraction(share)
        value = axis_value(self.low, self.high, self.spacing(knob), place)
        return float(round(value)) if knob.kind == "count" else value


def _unfit(knob: Knob, scale: Scale, value: float) -> str | None:
    checks = {
        "rate": (value > 0, "a learning rate must be above 0"),
        "budget": (value > 0, "a budget must be above 0"),
        "count": (value >= 1 and value == int(value), "must be a whole number of at least 1"),
        "fraction": (0 <= value <= 1, "a fraction must lie in 0..1"),
        "amount": (value >= 0, "must not be negative"),
        "offset": (True, ""),
    }
    fits, reason = checks[knob.kind]
    if not fits:
        return reason
    if scale == "log" and value <= 0:
        return 'must be above 0 on a log scale (or give scale = "linear")'
    return None
