"""Makes fractal_k8s/analysis/calibration.json, and tests it on edges it was not made from.

scripts/calibrate                   simulate, write the file
scripts/calibrate --coverage 100    how often the interval holds the truth, 100 maps a family
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edges import CALIBRATION, HELD_OUT, Maker
from fractal_k8s.analysis.calibration import DATA
from fractal_k8s.analysis.dimension import measure_dimension, statistics_of
from fractal_k8s.analysis.lattice import Lattice

Floats = npt.NDArray[np.float64]

SEED = 6
# side -> maps per family and dimension; a family of one dimension gets eight times as many
DRAWS = {64: 96, 128: 96, 256: 64, 512: 40, 1024: 20}
# dimensions on either side whose covariances are averaged
NEIGHBOURS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coverage", type=int, metavar="N", help="maps per family and side")
    parser.add_argument("--sides", type=int, nargs="+", default=[*DRAWS])
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=[1, 1],
        help="of a lattice: every so many rows, columns",
    )
    parser.add_argument("--calibration", action="store_true", help="test the families in the file")
    arguments = parser.parse_args()
    if arguments.coverage:
        families = CALIBRATION if arguments.calibration else HELD_OUT
        lattice = Lattice(*arguments.steps)
        print_coverage(families, arguments.coverage, arguments.sides, lattice)
    else:
        write_calibration()


def write_calibration() -> None:
    sides = {}
    for side, draws in DRAWS.items():
        started = time.perf_counter()
        sides[str(side)] = calibrate(side, draws)
        print(f"{side:5} points: {time.perf_counter() - started:.0f} s", flush=True)
    text = json.dumps({"seed": SEED, "draws": DRAWS, "sides": sides}, separators=(",", ":"))
    DATA.write_text(text.replace('"surface"', '\n"surface"').replace('"64"', '\n"64"') + "\n")


def calibrate(side: int, draws: int, names: Sequence[str] = tuple(CALIBRATION)) -> dict[str, Any]:
    """Mean and covariance of the statistics of every family and dimension."""
    families = {}
    for name in names:
        make, dimensions = CALIBRATION[name]
        times = 8 if len(dimensions) == 1 else 1
        measured = [_statistics(make, side, truth, draws * times) for truth in dimensions]
        means, covariances = _smoothed(np.array(dimensions), measured)
        families[name] = {
            "dimensions": list(dimensions),
            "means": np.round(means, 5).tolist(),
            "covariances": np.round(covariances, 7).tolist(),
        }
    return families


def _statistics(make: Maker, side: int, dimension: float, draws: int) -> Floats:
    """Statistics of the maps that can be measured, at most (draws, 4)."""
    vectors = []
    for draw in range(draws):
        random = np.random.default_rng([SEED, side, round(1000 * dimension), draw])
        if (found := statistics_of(make(side, dimension, random))) is not None:
            vectors.append(found.vector())
    return np.array(vectors)


def _smoothed(dimensions: Floats, measured: list[Floats]) -> tuple[Floats, Floats]:
    """Means on a parabola over the dimensions, covariances averaged over neighbours."""
    means = np.array([vectors.mean(axis=0) for vectors in measured])
    covariances = np.array([np.cov(vectors.T) for vectors in measured])
    if len(dimensions) == 1:
        return means, covariances
    fits = (np.polyfit(dimensions, column, 2) for column in means.T)
    smooth = np.stack([np.polyval(fit, dimensions) for fit in fits], axis=-1)
    averaged = [
        covariances[max(0, index - NEIGHBOURS) : index + NEIGHBOURS + 1].mean(axis=0)
        for index in range(len(dimensions))
    ]
    return smooth, np.array(averaged)


def print_coverage(
    families: dict[str, tuple[Maker, tuple[float, ...]]],
    draws: int,
    sides: list[int],
    lattice: Lattice,
) -> None:
    """Per family and side: share refused, share of the intervals that hold the truth, widths."""
    print("family             side  refused  holds the truth  error of the mean  median width")
    for name, (make, dimensions) in families.items():
        for side in sides:
            held, errors, widths = [], [], []
            for draw in range(draws):
                truth = dimensions[draw % len(dimensions)]
                random = np.random.default_rng([SEED + 1, side, draw, zlib.crc32(name.encode())])
                labels = lattice.of(make(side, truth, random))
                found = measure_dimension(labels, np.ones(labels.shape, dtype=bool))
                if found["dimension"] is not None:
                    low, high = found["interval"]
                    held.append(low - 1e-9 <= truth <= high + 1e-9)
                    errors.append(found["dimension"] - truth)
                    widths.append(high - low)
            row = f"{name:<18} {side:>4}  {1 - len(held) / draws:>7.1%}"
            if held:
                row += f"  {np.mean(held):>15.1%}  {np.mean(errors):>+17.3f}"
                row += f"  {np.median(widths):>12.3f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
