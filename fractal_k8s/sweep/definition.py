"""The sweep itself: validated whole, with an id that is a hash of its content."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from fractal_k8s.errors import SweepError
from fractal_k8s.sweep.axes import KNOBS, Axis, Knob, knob_names, near
from fractal_k8s.sweep.base import Spec
from fractal_k8s.sweep.points import Point, coinciding
from fractal_k8s.sweep.rule import VerdictRule
from fractal_k8s.sweep.training import GPTTraining, MLPTraining, Training

# Raised when the meaning of a key or a default changes; part of what the id hashes.
FORMAT: Final = 1

ID_DIGITS: Final = 10
# <name>-<10 hex>-<index>-<5 characters> is a pod's name, and a pod's hostname has 63 characters.
NAME_LIMIT: Final = 63
_POD_SUFFIX: Final = 5
_MIN_INDEX_DIGITS: Final = 5
MAX_POINTS: Final = 1 << 24

_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


class Axes(Spec):
    """Two knobs: y runs over the rows i, x over the columns j."""

    y: Axis
    x: Axis


class _Sweep(Spec):
    """What the sweeps of every model have in common."""

    # lower-case name; with a hash behind it the id, the folder, the Job name
    name: str
    axes: Axes
    # rows, columns
    resolution: tuple[int, int]
    # seed of weights and data (mlp) and of anything else that is drawn
    seed: int = Field(default=42, ge=0)
    # one seed for all points, so that the edge belongs to the hyperparameters and not to the seeds;
    # or seed + 1000 i + j
    seed_policy: Literal["shared", "per-point"] = "shared"
    verdict: VerdictRule = VerdictRule()
    # sha256 of the weights and of the data that a launch found; None before a launch
    checkpoint_digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    dataset_digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                "must be lower-case letters, digits and '-', starting with a letter "
                f"and not ending with '-', got {name!r}"
            )
        return name

    @field_validator("resolution")
    @classmethod
    def _resolution_is_a_grid(cls, resolution: tuple[int, int]) -> tuple[int, int]:
        rows, columns = resolution
        if rows * columns > MAX_POINTS:
            raise ValueError(f"{rows} x {columns} is more than {MAX_POINTS:,} points")
        return resolution


class MLPSweep(_Sweep):
    """A sweep of the original study's two-layer net."""

    model: Literal["mlp"]
    checkpoint: None = None
    dataset: Literal["gaussian"] = "gaussian"
    training: MLPTraining = MLPTraining()


class GPTSweep(_Sweep):
    """A sweep of fine-tunes of a nanochat checkpoint."""

    model: Literal["gpt"]
    # where the weights come from: a folder; None = must be given at launch
    checkpoint: str | None = None
    # `conversations:FILE` or a named data set
    dataset: str
    training: GPTTraining = GPTTraining()


_ADAPTER: TypeAdapter[MLPSweep | GPTSweep] = TypeAdapter(
    Annotated[MLPSweep | GPTSweep, Field(discriminator="model")]
)


class Sweep:
    """A validated sweep, with its points. Build it with `Sweep.parse`."""

    def __init__(self, spec: MLPSweep | GPTSweep) -> None:
        self.spec = spec

    @classmethod
    def parse(cls, raw: dict[str, Any], *, source: str = "sweep") -> Sweep:
        """Validates a sweep given as plain data.

        Raises:
            SweepError: with every problem found, each with its path, value and what is allowed.
        """
        try:
            spec = _ADAPTER.validate_python(raw)
        except ValidationError as error:
            raise SweepError(_readable(error, raw), source=source) from None
        sweep = cls(spec)
        if problems := sweep._problems():
            raise SweepError(problems, source=source)
        return sweep

    # --- identity ---

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def model(self) -> str:
        return self.spec.model

    @property
    def training(self) -> Training:
        return self.spec.training

    @property
    def verdict(self) -> VerdictRule:
        return self.spec.verdict

    @cached_property
    def id(self) -> str:
        """`name-<10 hex>` of the sha256 of `canonical_json`."""
        digest = hashlib.sha256(self.canonical_json().encode()).hexdigest()
        return f"{self.name}-{digest[:ID_DIGITS]}"

    def canonical_json(self) -> str:
        """What the id hashes: the content that differs from the defaults, keys sorted.

        A checkpoint or data file whose digest is known counts by its content, not by its path, so
        that a sweep begun on one machine is the same sweep on another.
        """
        content = self.spec.model_dump(mode="json", exclude_defaults=True)
        if self.spec.checkpoint_digest is not None:
            content.pop("checkpoint", None)
        if self.spec.dataset_digest is not None:
            content["dataset"] = content["dataset"].partition(":")[0]
        content["format"] = FORMAT
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal sweep: every key, defaults included."""
        return self.spec.model_dump(mode="json", exclude_none=True)

    def pinned(self, *, checkpoint_digest: str | None, dataset_digest: str | None) -> Sweep:
        """The same sweep, tied to the content of its files."""
        digests = {"checkpoint_digest": checkpoint_digest, "dataset_digest": dataset_digest}
        return Sweep(self.spec.model_copy(update=digests))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sweep) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.canonical_json())

    # --- grid ---

    @property
    def rows(self) -> int:
        return self.spec.resolution[0]

    @property
    def columns(self) -> int:
        return self.spec.resolution[1]

    @property
    def num_points(self) -> int:
        return self.rows * self.columns

    @property
    def y_knob(self) -> Knob:
        return KNOBS[self.model, self.spec.axes.y.knob]

    @property
    def x_knob(self) -> Knob:
        return KNOBS[self.model, self.spec.axes.x.knob]

    @cached_property
    def y_values(self) -> tuple[float, ...]:
        """Values of the row axis, shape (rows,)."""
        return self.spec.axes.y.points(self.y_knob, self.rows)

    @cached_property
    def x_values(self) -> tuple[float, ...]:
        """Values of the column axis, shape (columns,)."""
        return self.spec.axes.x.points(self.x_knob, self.columns)

    def point(self, index: int) -> Point:
        i, j = divmod(index, self.columns)
        return Point(index, i, j, self.y_values[i], self.x_values[j])

    def training_at(self, point: Point) -> Training:
        """The training config with both knobs turned to the point's values."""
        return self.x_knob.turn(self.y_knob.turn(self.training, point.y), point.x)

    def run_seed(self, point: Point) -> int:
        if self.spec.seed_policy == "shared":
            return self.spec.seed
        return self.spec.seed + 1000 * point.i + point.j

    # --- what pydantic cannot see ---

    def _problems(self) -> list[str]:
        problems = self._axis_problems()
        if not problems:
            problems = self._neighbour_problems()
        index_digits = max(_MIN_INDEX_DIGITS, len(str(self.num_points - 1)))
        room = NAME_LIMIT - ID_DIGITS - index_digits - _POD_SUFFIX - 3
        if len(self.name) > room:
            problems.append(
                f"name: has {len(self.name)} characters, at most {room} fit: the longest pod name, "
                f"<name>-<{ID_DIGITS} hex>-<index>-<{_POD_SUFFIX} characters>, "
                f"must stay within {NAME_LIMIT}"
            )
        if self.spec.seed_policy == "per-point" and self.columns > 1000:
            problems.append(
                f"seed_policy: per-point seeds (seed + 1000 i + j) collide at {self.columns} "
                'columns, at most 1000; use "shared"'
            )
        return problems

    def _axis_problems(self) -> list[str]:
        problems: list[str] = []
        axes = (
            ("y", self.spec.axes.y, self.rows, "rows"),
            ("x", self.spec.axes.x, self.columns, "columns"),
        )
        for name, axis, count, word in axes:
            path = f"axes.{name}"
            knob = KNOBS.get((self.model, axis.knob))
            if knob is None:
                problems.append(
                    f"{path}.knob: {axis.knob!r} is not a knob of model {self.model!r}"
                    f"{near(axis.knob, knob_names(self.model))}"
                )
                continue
            if axis.values is not None and len(axis.values) != count:
                problems.append(
                    f"resolution: {count} {word}, but {path}.values has {len(axis.values)}"
                )
            if axis.values is None and count < 2:
                problems.append(
                    f"resolution: an axis over a range needs at least 2 {word}, got {count}"
                )
            if knob.group and isinstance(self.training, GPTTraining):
                groups = self.training.trainable_param_groups
                if knob.group not in groups:
                    problems.append(
                        f"{path}.knob: {axis.knob} does nothing: group {knob.group!r} is not in "
                        f"training.trainable_param_groups {list(groups)}"
                    )
        if self.spec.axes.y.knob == self.spec.axes.x.knob:
            problems.append(f"axes: both axes turn {self.spec.axes.y.knob!r}; choose two knobs")
        return problems

    def _neighbour_problems(self) -> list[str]:
        problems: list[str] = []
        axes = (("y", self.y_knob, self.y_values), ("x", self.x_knob, self.x_values))
        for name, knob, values in axes:
            dtype = self.training.rate_dtype if knob.kind != "count" else "float64"
            if pair := coinciding(values, dtype):
                grain = "whole numbers" if knob.kind == "count" else dtype
                problems.append(
                    f"axes.{name}: {len(values)} points are finer than {grain} can separate: "
                    f"{pair[0]!r} and {pair[1]!r} are one {knob.name}; "
                    "widen the range or lower the resolution"
                )
        return problems


# --- pydantic's errors in our words ---


def _readable(error: ValidationError, raw: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for item in error.errors(include_url=False):
        path = [str(part) for part in item["loc"] if part not in ("mlp", "gpt")]
        where = ".".join(path) or "sweep"
        kind = item["type"]
        if kind == "extra_forbidden":
            known = _known_keys(raw, path[:-1])
            lines.append(f"{where}: unknown key{near(path[-1], known)}")
        elif kind == "missing":
            lines.append(f"{where}: missing{_HINTS.get(where, '')}")
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            got = raw.get("model")
            lines.append(f"model: must be 'mlp' or 'gpt', got {got!r}")
        elif kind == "value_error":
            lines.append(f"{where}: {item['ctx']['error']}")
        else:
            lines.append(
                f"{where}: {item['msg'][:1].lower()}{item['msg'][1:]}, got {item['input']!r}"
            )
    return lines


_HINTS = {
    "resolution": " (rows, columns); give --res 128 or resolution = [128, 128]",
    "dataset": "; give --dataset conversations:FILE",
    "axes.y": "; the row axis needs a [axes.y] table",
    "axes.x": "; the column axis needs a [axes.x] table",
}


def _known_keys(raw: dict[str, Any], path: list[str]) -> list[str]:
    """The keys allowed at a path of the sweep, for a near match."""
    model: type[Spec] = MLPSweep if raw.get("model") == "mlp" else GPTSweep
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, Spec)):
            return []
        model = annotation
    return sorted(model.model_fields)
