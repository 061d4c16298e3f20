"""Dimensions along deep automatic zooms, beside the values of arXiv:2402.06184.

Each preset is trained as a map and zoomed into with `fractal-k8s zoom --auto --depth D`; maps that
the store holds already are only read. Of every level:

- ours: the slope of box counts at every offset, and the `dimension` analysis, which gives a number
  with its interval or says why there is none;
- the study's: local slopes of porespy's box counting at its defaults (at most ten box sides spaced
  evenly in the logarithm from 10 pixels to the whole side, boxes that are neither empty nor full),
  of all levels together; their median is the number that the study prints.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fractal_k8s.aggregate import read_grid
from fractal_k8s.analysis.boundary import find_edge
from fractal_k8s.analysis.box_dimension import notebook, windows
from fractal_k8s.analysis.registry import load
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.results.lineage import deepest_line, read_families
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.load import parse_text, preset_text, resolve

# preset -> dimension in the study's table
PUBLISHED: Final = {"tanh": 1.66, "tanh-minibatch": 1.55, "relu": 1.20, "linear": 1.17}


@dataclass(frozen=True)
class Measured:
    """One level of a zoom."""

    sweep_id: str
    magnification: float
    # share of the 2 x 2 windows that hold both labels
    edge_share: float
    # slope of the box counts, None without an edge
    slope: float | None
    # the `dimension` analysis
    dimension: dict[str, Any]
    # local slopes the study's way; none where its method finds nothing to count
    study_slopes: tuple[float, ...]


def make(preset: str, options: argparse.Namespace) -> list[str]:
    """Trains what is missing of a preset's zooms; returns ids, the first map first."""
    sweep = resolve(
        parse_text(preset_text(preset), source=preset), resolution=options.res, source=preset
    )
    store = Store(options.store)
    families = read_families(store.files)
    line = deepest_line(families, sweep.id) if sweep.id in families else []
    if len(line) <= options.depth:
        place = ["--store", options.store]
        if options.workers:
            place += ["--workers", str(options.workers)]
        zoom = ["zoom", sweep.id, "--auto", "--depth", str(options.depth), "--seek", options.seek]
        for command in (["launch", "--preset", preset, "--res", str(options.res)], zoom):
            program = [sys.executable, "-m", "fractal_k8s", *command, *place]
            subprocess.run(program, check=True, stdout=sys.stderr)
        line = deepest_line(read_families(store.files), sweep.id)
    return line[: options.depth + 1]


def measure(store: Store, line: list[str]) -> list[Measured]:
    """Every level of a line of zooms."""
    found = []
    widest = None
    for sweep_id in line:
        folder, plan = store.plan(sweep_id)
        grid = read_grid(folder, plan)
        start, end = plan.sweep.spec.axes.y.shares
        widest = widest or end - start
        found.append(
            Measured(
                sweep_id,
                float(widest / (end - start)),
                float(find_edge(grid.trainable, grid.known).cells.mean()),
                windows(grid.trainable, grid.known).slope,
                load("dimension").analyse(Subject.of(grid)) or {},
                notebook(grid.trainable, grid.known).local_slopes,
            )
        )
    return found


def _shown(result: dict[str, Any]) -> str:
    if result.get("dimension") is None:
        return "none: " + re.split("[:;]", str(result.get("refused")))[0]
    return "{:.2f} ({:.2f} to {:.2f})".format(result["dimension"], *result["interval"])


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.median(known):.2f}" if known else "none"


def _print_levels(levels: list[Measured]) -> None:
    print("| level | magnification | edge cells | box slope | our D | the study's slope |")
    print("|---|---|---|---|---|---|")
    for number, level in enumerate(levels):
        print(
            f"| {number} | {level.magnification:,.0f} | {level.edge_share:.1%} "
            f"| {_median([level.slope])} | {_shown(level.dimension)} "
            f"| {_median(level.study_slopes)} |"
        )


def _total(preset: str, levels: list[Measured]) -> str:
    own = [level.dimension.get("dimension") for level in levels]
    pooled = [slope for level in levels for slope in level.study_slopes]
    count = len(own) - own.count(None)
    return (
        f"| `{preset}` | {len(levels)} | {_median([level.slope for level in levels])} "
        f"| {_median(own)} ({count} maps) | {_median(pooled)} | {PUBLISHED.get(preset, '')} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=", ".join(PUBLISHED))
    parser.add_argument("--store", default="./runs")
    parser.add_argument("--res", type=int, default=256)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--workers", type=int)
    parser.add_argument(
        "--seek", default="rough", help="rule of the automatic boxes; keep one store per rule"
    )
    options = parser.parse_args()
    totals = []
    for preset in options.presets or PUBLISHED:
        levels = measure(Store(options.store), make(preset, options))
        print(f"\n{preset}, {options.res} x {options.res} points per level\n")
        _print_levels(levels)
        totals.append(_total(preset, levels))
    print("\nMedians over the maps of each preset:\n")
    print("| preset | maps | box slope | our D | the study's pooled slopes | published |")
    print("|---|---|---|---|---|---|")
    print("\n".join(totals))


if __name__ == "__main__":
    main()
