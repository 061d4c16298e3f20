"""Dimensions along deep automatic zooms, beside the values of arXiv:2402.06184.

Each preset is trained as a map and zoomed into with `fractal-k8s zoom --auto --depth D`; maps that
the store holds already are only read. Two numbers come out of every level:

- ours: the `dimension` analysis of the map, with its interval where there is one;
- the study's: local slopes of porespy's box counting at its defaults (at most ten box sides spaced
  evenly in the logarithm from 10 pixels to the whole side, boxes that are neither empty nor full),
  of all levels together; their median is the number that the study prints.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.aggregate import read_grid
from fractal_k8s.analysis.boundary import Mask, find_edge
from fractal_k8s.analysis.registry import load
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.results.lineage import deepest_line, read_families
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.load import parse_text, preset_text, resolve

# preset -> dimension in the study's table
PUBLISHED: Final = {"tanh": 1.66, "tanh-minibatch": 1.55, "relu": 1.20, "linear": 1.17}
_SMALLEST_BOX: Final = 10
_NUM_SIZES: Final = 10


@dataclass(frozen=True)
class Measured:
    """One level of a zoom."""

    sweep_id: str
    magnification: float
    # share of the 2 x 2 windows that hold both labels
    edge_share: float
    # the `dimension` analysis
    dimension: dict[str, Any]
    slopes: npt.NDArray[np.float64]


def study_slopes(edge: Mask) -> npt.NDArray[np.float64]:
    """Local slopes of one map as the study's notebook gets them. (sizes,)"""
    spaced = np.logspace(np.log10(_SMALLEST_BOX), np.log10(min(edge.shape)), _NUM_SIZES)
    sizes = np.unique(spaced.astype(int))
    counts = np.array([_mixed_boxes(edge, int(size)) for size in sizes], dtype=float)
    sizes, counts = sizes[counts > 0], counts[counts > 0]
    if len(sizes) < 2:
        return np.zeros(0)
    slopes: npt.NDArray[np.float64] = -np.gradient(np.log(counts), np.log(sizes))
    return slopes


def _mixed_boxes(cells: Mask, size: int) -> int:
    """Boxes of a grid from the corner, cut at the frame, that hold some cells but not only such."""
    starts = [np.arange(0, length, size) for length in cells.shape]
    some, every = (
        combine.reduceat(combine.reduceat(cells, starts[0], axis=0), starts[1], axis=1)
        for combine in (np.logical_or, np.logical_and)
    )
    return int((some & ~every).sum())


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
    """Every level that has an edge."""
    found = []
    widest = None
    for sweep_id in line:
        folder, plan = store.plan(sweep_id)
        grid = read_grid(folder, plan)
        edge = find_edge(grid.trainable, grid.known)
        start, end = plan.sweep.spec.axes.y.shares
        widest = widest or end - start
        found.append(
            Measured(
                sweep_id,
                float(widest / (end - start)),
                float(edge.cells.mean()),
                load("dimension").analyse(Subject.of(grid)) or {},
                study_slopes(edge.cells),
            )
        )
    return found


def _shown(result: dict[str, Any]) -> str:
    if result.get("dimension") is None:
        return f"none ({result.get('refused')})"
    text = f"{result['dimension']:.3f}"
    return (
        text + " ({:.2f} to {:.2f})".format(*result["interval"]) if result.get("interval") else text
    )


def _median(values: npt.ArrayLike) -> str:
    numbers = np.asarray(values, dtype=float)
    return f"{np.median(numbers):.2f}" if numbers.size else "none"


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
    rows = []
    for preset in options.presets or PUBLISHED:
        levels = measure(Store(options.store), make(preset, options))
        print(f"\n{preset}, {options.res} x {options.res} points per level\n")
        print(
            "| level | magnification | edge cells | our D | median of its slopes, the study's way |"
        )
        print("|---|---|---|---|---|")
        for number, level in enumerate(levels):
            print(
                f"| {number} | {level.magnification:,.0f} | {level.edge_share:.1%} "
                f"| {_shown(level.dimension)} | {_median(level.slopes)} |"
            )
        own = [d for level in levels if (d := level.dimension.get("dimension")) is not None]
        pooled = np.concatenate([level.slopes for level in levels])
        spread = f"{min(own):.2f} to {max(own):.2f}" if own else "none"
        rows.append(
            f"| `{preset}` | {len(levels)} | {_median(own)} | {spread} "
            f"| {_median(pooled)} | {PUBLISHED.get(preset, '')} |"
        )
    print("\n| preset | maps | our D, median | range | the study's pooled median | published |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
