"""Sweeps that are made from another sweep to find out something about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fractal_k8s.errors import UsageError
from fractal_k8s.sweep.checks import SEEDS, room_for_name
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.intervals import format_intervals
from fractal_k8s.sweep.scatter import PAIR_DISTANCES, can_be_moved


def pilot_of(sweep: Sweep, pairs: int) -> Sweep:
    """The sweep's plane by random pairs, at least that many.

    Raises:
        SweepError: its axes cannot be drawn from.
    """
    refuse_scattered(sweep)
    scatter = {"kind": "pairs", "distances": PAIR_DISTANCES}
    resolution = (-(-pairs // len(PAIR_DISTANCES)), 1 + len(PAIR_DISTANCES))
    return _derived(sweep, "pilot", resolution, {"scatter": scatter})


def cells_of(sweep: Sweep, groups: Mapping[str, list[int]], *, ulps: tuple[int, ...]) -> Sweep:
    """Chosen points of the sweep once more, in groups.

    Args:
        groups: name -> rising point indexes.
        ulps: how many representable numbers the rates are moved by, one column each.
    """
    cells = {group: format_intervals(indexes) for group, indexes in groups.items()}
    scatter = {
        "kind": "cells",
        "plane": (sweep.rows, sweep.columns),
        "cells": cells,
        "ulps": ulps,
    }
    resolution = (sum(len(indexes) for indexes in groups.values()), len(ulps))
    return _derived(sweep, "controls", resolution, {"scatter": scatter})


def reseeded(sweep: Sweep, number: int) -> Sweep:
    """The same sweep with the `number`-th seed after its own; for a map its replica.

    A fine-tune has one set of weights, so its seed decides the order of the data.

    Raises:
        UsageError: there is no such seed.
    """
    changes: dict[str, Any] = {"seed": sweep.spec.seed + number}
    if changes["seed"] >= SEEDS:
        raise UsageError(f"{sweep.id}: seed {changes['seed']} is more than a generator takes")
    if sweep.model == "gpt":
        training = sweep.training.model_dump(mode="json")
        changes["training"] = {**training, "data_order": "shuffled"}
    word = "controls" if sweep.is_scattered else "replica"
    return _derived(sweep, word, (sweep.rows, sweep.columns), changes)


def ulps_of(sweep: Sweep) -> tuple[int, ...]:
    """The moves that a control of the sweep makes: none, and one representable number up."""
    movable = can_be_moved(sweep.y_knob) or can_be_moved(sweep.x_knob)
    return (0, 1) if movable else (0,)


def refuse_scattered(sweep: Sweep) -> None:
    """Refuses what needs a map.

    Raises:
        UsageError: the sweep's points are scattered.
    """
    if sweep.is_scattered:
        raise UsageError(f"the points of {sweep.id} are scattered and not a map")


def _derived(
    sweep: Sweep, word: str, resolution: tuple[int, int], changes: Mapping[str, Any]
) -> Sweep:
    """The sweep under the name `<name>-<word>`, with other points or settings."""
    raw = {**sweep.to_dict(), **changes, "resolution": list(resolution), "origin": None}
    suffix = f"-{word}"
    stem = sweep.name.removesuffix(suffix)
    room = room_for_name(resolution[0] * resolution[1]) - len(suffix)
    raw["name"] = stem[:room].rstrip("-") + suffix
    return Sweep.parse(raw, source=f"{word} of {sweep.id}", version=sweep.version)
