"""Random maps whose edge has a known dimension: for calibration, and others to test it on.

Every maker takes (side, dimension, generator) and returns labels of shape (side, side). Families
with one dimension ignore the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Complexes = npt.NDArray[np.complex128]
Random = np.random.Generator
Maker = Callable[[int, float, Random], Mask]

KOCH = math.log(4) / math.log(3)


# --- for calibration ---


def surface(side: int, dimension: float, random: Random) -> Mask:
    """Level set of a fractional Brownian surface of Hurst exponent 2 - dimension.

    Every other one as sampled from a surface with detail below the pitch, the rest without.
    """
    exponent = 3 - dimension
    y, x = np.fft.fftfreq(2 * side)[:, None], np.fft.rfftfreq(2 * side)[None, :]
    aliases = (-1, 0, 1) if random.random() < 0.5 else (0,)
    power = np.zeros((2 * side, side + 1))
    with np.errstate(divide="ignore"):
        for a in aliases:
            for b in aliases:
                power += ((y + a) ** 2 + (x + b) ** 2) ** -exponent
    power[0, 0] = 0
    return _level(np.sqrt(power), side, random)


def smooth(side: int, _dimension: float, random: Random) -> Mask:
    """Level set of a smooth surface with one to several hills."""
    waves = np.fft.fftfreq(2 * side, 1 / (2 * side)), np.fft.rfftfreq(2 * side, 1 / (2 * side))
    radius = np.hypot(waves[0][:, None], waves[1][None, :])
    return _level(np.exp(-((radius / random.uniform(1, 3.5)) ** 2)), side, random)


def loop(side: int, dimension: float, random: Random) -> Mask:
    """The inside, by even and odd, of a closed planar fractional Brownian curve.

    Its trail has dimension 1 / Hurst exponent.
    """
    count = 1 << math.ceil((dimension + 0.05) * math.log2(4 * side))
    waves = np.fft.fftfreq(count, 1 / count)
    waves[0] = np.inf
    noise = random.standard_normal(count) + 1j * random.standard_normal(count)
    curve = np.fft.ifft(noise * np.abs(waves) ** -(1 / dimension + 0.5)) * count
    middle = complex(_middle(curve.real), _middle(curve.imag))
    extent = max(np.ptp(curve.real), np.ptp(curve.imag))
    place = complex(random.uniform(0.35, 0.65), random.uniform(0.35, 0.65))
    return inside(side, ((curve - middle) / extent * random.uniform(0.5, 1.3) + place) * side)


# --- only to test on ---


def koch_flake(side: int, _dimension: float, random: Random) -> Mask:
    """A Koch snowflake of any size and place, turned at random."""
    return _flake(side, np.ones(1), math.pi / 3, 3, random)


def random_flake(side: int, dimension: float, random: Random) -> Mask:
    """A flake on a polygon of 3 to 6 sides, whose spikes point to either side at random."""
    angle = math.acos(min(1.0, 4 ** (1 / dimension) / 2 - 1))
    return _flake(side, np.array([-1.0, 1.0]), angle, int(random.integers(3, 7)), random)


def line(side: int, _dimension: float, random: Random) -> Mask:
    """A straight edge at any angle."""
    return _distance(side, side / 4, random) > 0


def ellipse(side: int, _dimension: float, random: Random) -> Mask:
    angle = random.uniform(0, math.pi)
    y, x = np.mgrid[:side, :side] - side * random.uniform(0.35, 0.65, (2, 1, 1))
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    first, second = side * random.uniform(0.12, 0.45, 2)
    found: Mask = (along / first) ** 2 + (across / second) ** 2 < 1
    return found


def brownian_graph(side: int, _dimension: float, random: Random) -> Mask:
    """Below or above the graph of a Brownian motion that spans 40 to 90 % of the map."""
    path = _brownian(side, side * random.uniform(0.4, 0.9), random)
    labels = np.arange(side)[:, None] - side / 2 > path[None]
    return labels if random.random() < 0.5 else labels.T


def turned_graph(side: int, _dimension: float, random: Random) -> Mask:
    """The same, turned by any angle."""
    length = 2 * side
    path = _brownian(2 * length, length * random.uniform(0.4, 0.9), random)
    places = np.arange(2 * length) / 2 - length / 2
    steps = np.repeat(places, 2)[1:] + 1j * np.repeat(path, 2)[:-1]
    closed = np.append(steps, places[[-1, 0]] + 4j * length)
    turn = np.exp(2j * math.pi * random.random())
    return inside(side, closed * turn + (0.5 + 0.5j) * side + complex(*random.random(2)))


def noise_band(width: float) -> Maker:
    """A straight edge, each label drawn with a logistic probability of that scale in points."""

    def make(side: int, _dimension: float, random: Random) -> Mask:
        distance = _distance(side, side / 8, random)
        found: Mask = random.logistic(size=(side, side)) * width < distance
        return found

    return make


def noise(side: int, _dimension: float, random: Random) -> Mask:
    """Independent labels."""
    found: Mask = random.random((side, side)) < random.uniform(0.3, 0.7)
    return found


def inside(side: int, corners: Complexes) -> Mask:
    """Points (row i, column j) inside a closed polygon with corners j + 1j * i, by even and odd."""
    ends = np.roll(corners, -1)
    left = np.where(corners.real <= ends.real, corners, ends)
    right = np.where(corners.real <= ends.real, ends, corners)
    first, last = (np.clip(np.ceil(z.real), 0, side).astype(np.int64) for z in (left, right))
    counts = last - first
    edge = np.repeat(np.arange(len(corners)), counts)
    column = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    step = (column - left.real[edge]) / (right.real - left.real)[edge]
    height = left.imag[edge] + step * (right.imag - left.imag)[edge]
    row = np.clip(np.ceil(height), 0, side).astype(np.int64)
    crossings = np.bincount(row * side + column, minlength=(side + 1) * side)
    found: Mask = np.cumsum(crossings.reshape(side + 1, side)[:side], axis=0) % 2 == 1
    return found


def _level(amplitude: Floats, side: int, random: Random) -> Mask:
    """Above a random quantile of the Gaussian surface with these amplitudes, (2 side, side + 1)."""
    white = np.fft.rfft2(random.standard_normal((2 * side, 2 * side)))
    field = np.fft.irfft2(white * amplitude, s=(2 * side, 2 * side))[:side, :side]
    found: Mask = field > np.quantile(field, random.uniform(0.25, 0.75))
    return found


def _middle(values: Floats) -> float:
    return float(values.max() + values.min()) / 2


def _distance(side: int, shift: float, random: Random) -> Floats:
    """Distance of every point from a straight line at any angle, within `shift` of the middle."""
    angle = random.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:side, :side] - side / 2
    found: Floats = math.cos(angle) * x + math.sin(angle) * y - random.uniform(-shift, shift)
    return found


def _brownian(count: int, span: float, random: Random) -> Floats:
    path = np.cumsum(random.standard_normal(count))
    path -= _middle(path)
    return path * span / np.ptp(path)


def _flake(side: int, signs: Floats, angle: float, polygon: int, random: Random) -> Mask:
    """Each straight piece becomes four, the middle two a spike of that base angle."""
    ratio = 1 / (2 + 2 * math.cos(angle))
    radius = side * random.uniform(0.25, 0.45)
    corners = np.exp(-2j * math.pi * np.arange(polygon + 1) / polygon)
    for _ in range(math.ceil(math.log(4 * radius) / -math.log(ratio))):
        pieces = np.diff(corners)
        turns = np.exp(1j * angle * random.choice(signs, len(pieces)))
        start, end = corners[:-1] + pieces * ratio, corners[1:] - pieces * ratio
        tips = start + pieces * ratio * turns
        corners = np.append(np.stack([corners[:-1], start, tips, end], axis=1).ravel(), corners[-1])
    turn = np.exp(2j * math.pi * random.random())
    place = complex(*random.uniform(0.47, 0.53, 2)) * side
    return inside(side, corners[:-1] * turn * radius + place)


CALIBRATION: dict[str, tuple[Maker, tuple[float, ...]]] = {
    "surface": (surface, tuple(np.round(np.arange(1.0, 1.96, 0.05), 2).tolist())),
    "loop": (loop, tuple(np.round(np.arange(1.2, 1.56, 0.05), 2).tolist())),
    "smooth": (smooth, (1.0,)),
}

BAND_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

HELD_OUT: dict[str, tuple[Maker, tuple[float, ...]]] = {
    "Koch flake": (koch_flake, (KOCH,)),
    "random flake": (random_flake, (1.05, 1.15, 1.25, 1.35, 1.45)),
    "straight line": (line, (1.0,)),
    "ellipse": (ellipse, (1.0,)),
    "Brownian graph": (brownian_graph, (1.5,)),
    "turned graph": (turned_graph, (1.5,)),
    **{f"noise band {width:g}": (noise_band(width), (1.0,)) for width in BAND_WIDTHS},
}
