"""Seconds of box counting and of all analyses, beside porespy's box counting where it is installed.

Every number is the best of several rounds. Targets: a 4096 x 4096 map's boxes in under 0.5 s, all
analyses of a 128 x 128 map in under 5 s.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from edges import surface
from fractal_k8s.aggregate import read_grid
from fractal_k8s.analysis.boundary import Mask, find_edge
from fractal_k8s.analysis.box_dimension import windows
from fractal_k8s.analysis.dimension import measure_dimension
from fractal_k8s.analysis.registry import load, names
from fractal_k8s.analysis.subject import Subject
from fractal_k8s.cli.common import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=4096, help="points a side of the large map")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    bench_boxes(arguments.side, arguments.rounds)
    bench_analyses(arguments.rounds)


def bench_boxes(side: int, rounds: int) -> None:
    labels = surface(side, 1.5, np.random.default_rng(0))
    print(f"{side} x {side} points, an edge of dimension 1.5")
    sizes = windows(labels).sizes
    report(f"boxes of {len(sizes)} sizes at every offset", rounds, lambda: windows(labels))
    report("with interval and baselines", rounds, lambda: measured(labels))
    try:
        from porespy.metrics import boxcount
    except ImportError:
        print("  porespy is not installed: pip install porespy")
        return
    cells = find_edge(labels).cells
    report("porespy, its 10 default sizes at one offset", rounds, lambda: boxcount(cells))
    ours = np.array(sizes)
    report("porespy, our sizes at one offset", 1, lambda: boxcount(cells, bins=ours))


def bench_analyses(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as store:
        launch = [sys.executable, "-m", "fractal_k8s", "launch", "--preset", "tanh"]
        subprocess.run([*launch, "--store", store], check=True, capture_output=True)
        folder, plan = open_store(store).plan("tanh")
        subject = Subject.of(read_grid(folder, plan), folder.notes([]))
    print(f"{plan.sweep.rows} x {plan.sweep.columns} points, the tanh preset, all analyses")
    total = 0.0
    for name in names():
        total += report(name, rounds, partial(load(name).analyse, subject))
    print(f"  {'all':<46} {total:8.3f} s")


def measured(labels: Mask) -> object:
    return measure_dimension(labels, np.ones(labels.shape, dtype=bool))


def report(what: str, rounds: int, run: Callable[[], object]) -> float:
    """Prints and returns the best of the rounds, in seconds; on a busy machine processor time says
    what an idle one would take."""
    best = busy = math.inf
    for _ in range(rounds):
        started, worked = time.perf_counter(), time.process_time()
        run()
        best = min(best, time.perf_counter() - started)
        busy = min(busy, time.process_time() - worked)
    print(f"  {what:<46} {best:8.3f} s {busy:8.3f} s of processor time", flush=True)
    return best


if __name__ == "__main__":
    main()
