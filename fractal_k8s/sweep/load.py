"""Where a sweep is read from: a TOML file, a preset, `--set key=value`, or canonical JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from fractal_k8s.errors import SweepError, UsageError
from fractal_k8s.sweep.axes import near
from fractal_k8s.sweep.definition import Sweep

Raw = dict[str, Any]

_SCHEME: Final = re.compile(r"[a-z][a-z0-9]+:")


def preset_names() -> list[str]:
    folder = resources.files("fractal_k8s.sweep") / "presets"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def preset_text(name: str) -> str:
    """The preset's own file, comments included.

    Raises:
        UsageError: no preset has that name.
    """
    if name not in preset_names():
        raise UsageError(f"no preset {name!r}{near(name, preset_names())}")
    return (resources.files("fractal_k8s.sweep") / "presets" / f"{name}.toml").read_text()


def read_raw(path: Path) -> Raw:
    """A sweep file, TOML or JSON by its suffix, as plain data.

    Raises:
        UsageError: the file is missing or cannot be parsed.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(f"cannot read sweep file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file; a sweep file is TOML or JSON") from None
    return parse_text(text, source=str(path), json_format=path.suffix == ".json")


def parse_text(text: str, *, source: str, json_format: bool = False) -> Raw:
    try:
        raw = json.loads(text) if json_format else tomllib.loads(text)
    except ValueError as error:
        raise UsageError(
            f"{source}: not valid {'JSON' if json_format else 'TOML'}: {error}"
        ) from None
    if not isinstance(raw, dict):
        raise UsageError(
            f"{source}: a sweep file holds keys and values, not a {type(raw).__name__}"
        )
    return raw


def resolve(
    raw: Raw,
    *,
    settings: Sequence[str] = (),
    resolution: int | tuple[int, int] | None = None,
    overrides: Mapping[str, str | None] | None = None,
    source: str,
) -> Sweep:
    """A sweep from plain data and what the command line changed about it.

    Args:
        raw: the file's or preset's content; not modified.
        settings: `key=value` texts, later ones win; the value is read as TOML, else as text.
        resolution: points per axis, or rows and columns; axes that list values keep their own.
        overrides: top-level keys (checkpoint, dataset, name); None leaves the file's. Settings win.

    Paths of checkpoint and data become whole ones, because workers may run in another folder.

    Raises:
        SweepError: every problem of the resulting sweep at once.
    """
    content: Raw = json.loads(json.dumps(raw, default=_refuse_dates))
    for key, value in (overrides or {}).items():
        if value is not None:
            content[key] = value
    _make_way(content, settings)
    problems = [problem for text in settings if (problem := apply_setting(content, text))]
    if problems:
        raise SweepError(problems, source="--set")
    _fit_resolution(content, settings)
    for key, whole in (("checkpoint", whole_checkpoint), ("dataset", whole_dataset)):
        if isinstance(content.get(key), str):
            content[key] = whole(content[key])
    if resolution is not None:
        content["resolution"] = resolution
    _spread_resolution(content)
    sweep = Sweep.parse(content, source=source)
    if idle := [problem for text in settings if (problem := _without_effect(sweep, text))]:
        raise SweepError(idle, source="--set")
    return sweep


def _make_way(content: Raw, settings: Sequence[str]) -> None:
    """Drops what cannot stay beside a setting: another rule's keys, a range beside a list."""
    keys = {text.partition("=")[0].strip() for text in settings}
    if "verdict.rule" in keys:
        content["verdict"] = {}
    axes = content.get("axes")
    for name in ("y", "x"):
        axis = axes.get(name) if isinstance(axes, dict) else None
        if not isinstance(axis, dict):
            continue
        listed = f"axes.{name}.values" in keys
        ranged = {f"axes.{name}.low", f"axes.{name}.high"} & keys
        if listed and not ranged:
            for key in ("low", "high", "scale", "window"):
                axis.pop(key, None)
        elif ranged and not listed:
            axis.pop("values", None)


def _fit_resolution(content: Raw, settings: Sequence[str]) -> None:
    """An axis that a setting lists decides its own length, whatever the file said before."""
    given = content.get("resolution")
    if not isinstance(given, list) or len(given) != 2:
        return
    for place, name in enumerate(("y", "x")):
        if any(text.partition("=")[0].strip() == f"axes.{name}.values" for text in settings):
            given[place] = _list_length(content["axes"][name]) or given[place]


def _without_effect(sweep: Sweep, text: str) -> str | None:
    """Why a setting changes nothing: an axis turns the same key at every point."""
    key = text.partition("=")[0].strip()
    for name, knob in (("y", sweep.y_knob), ("x", sweep.x_knob)):
        if knob.replaces and key in {f"training.{written}" for written in knob.writes}:
            return f"{text!r} has no effect: axes.{name} turns {knob.name}; change that axis"
    return None


def whole_checkpoint(reference: str) -> str:
    """A folder's whole path; a reference with a scheme (hf:, s3://) as it is."""
    if _SCHEME.match(reference):
        return reference
    return str(Path(reference).expanduser().absolute())


def whole_dataset(reference: str) -> str:
    """`conversations:FILE` with the file's whole path; any other reference as it is."""
    kind, _, file = reference.partition(":")
    if kind != "conversations" or not file or _SCHEME.match(file):
        return reference
    return f"{kind}:{Path(file).expanduser().absolute()}"


def _refuse_dates(value: object) -> str:
    raise UsageError(
        f"a sweep holds numbers, texts and lists; {value!r} is a {type(value).__name__}"
    )


def apply_setting(content: Raw, text: str) -> str | None:
    """Applies one `key=value`; returns the problem with it, if any."""
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        return f"{text!r} is not key=value, such as training.tokens=4000"
    node = content
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            return f"{text!r}: {part!r} is a value and has no keys"
        node = child
    node[parts[-1]] = _toml_value(value.strip())
    return None


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _spread_resolution(content: Raw) -> None:
    """One number means rows and columns; an axis that lists its values says its own length."""
    axes = content.get("axes")
    given = content.get("resolution")
    if not isinstance(axes, dict) or isinstance(given, bool):
        return
    lengths = [_list_length(axes.get(name)) for name in ("y", "x")]
    if isinstance(given, int):
        content["resolution"] = [length or given for length in lengths]
    elif given is None and all(lengths):
        content["resolution"] = lengths


def _list_length(axis: Any) -> int | None:
    values = axis.get("values") if isinstance(axis, dict) else None
    return len(values) if isinstance(values, list) and values else None
