"""A map's numbers as the page carries them: arrays, deflated, in base64.

An array lies as planes of equal bytes (all lowest bytes first), which deflates best. Numbers of
records are rounded to 16 bits of mantissa, loss curves to steps of a logarithmic scale.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.results.grid import Grid

# A value between 0 and 1 as 16 bits; the last code says that there is none.
NO_CODE: Final = 65535
_TOP_CODE: Final = 65534

# A step that never came.
NEVER: Final = 0xFFFFFFFF

# Codes of a loss: 0 is zero or below, the last is not finite, the others are its logarithm.
_LOSS_CODES: Final = 65533
_LOSS_NOT_FINITE: Final = 65534

# What all curves of a page may take, in numbers and in base64 characters, and the least numbers of
# one curve that are worth showing.
CURVE_VALUES: Final = 8_000_000
CURVE_CHARACTERS: Final = 5_000_000
MIN_CURVE: Final = 8

_MANTISSA_DROPPED: Final = 7  # of 23 bits
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)

Array = npt.NDArray[Any]


def packed(arrays: dict[str, Array]) -> dict[str, Any]:
    """Arrays of numbers as {"text", "arrays": [[name, type, length]]}, in the given order."""
    planes = [_planes(array) for array in arrays.values()]
    directory = [[name, array.dtype.name, array.size] for name, array in arrays.items()]
    return {"text": _deflated(b"".join(planes)), "arrays": directory}


def _planes(array: Array) -> bytes:
    little = np.ascontiguousarray(array.ravel(), array.dtype.newbyteorder("<"))
    return little.view(np.uint8).reshape(array.size, array.itemsize).T.tobytes()


def _deflated(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode()


def shares(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.uint16]:
    """Values from low..high as 16-bit codes; NaN becomes NO_CODE."""
    known = np.isfinite(values)
    codes = np.full(values.shape, NO_CODE, dtype=np.uint16)
    codes[known] = np.round((values[known] - low) / (high - low) * _TOP_CODE).astype(np.uint16)
    return codes


def rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """As float32 with 16 bits of mantissa (5 digits); what is finite stays finite."""
    finite = np.clip(values, -_FLOAT32_MAX, _FLOAT32_MAX)
    single = np.where(np.isfinite(values), finite, values).astype(np.float32)
    bits = single.view(np.uint32)
    half = np.uint32(1 << (_MANTISSA_DROPPED - 1))
    mask = np.uint32(0xFFFFFFFF << _MANTISSA_DROPPED & 0xFFFFFFFF)
    up = ((bits + half) & mask).view(np.float32)
    down = (bits & mask).view(np.float32)
    kept = np.where(np.isfinite(up), up, down)
    return np.where(np.isfinite(single), kept, single).astype(np.float32)


@dataclass(frozen=True)
class Curves:
    """All loss curves of a map, or why they are left out."""

    # deflated 16-bit differences of codes, points in order; empty when left out
    text: str
    # most numbers of one curve; longer ones are thinned to that many, ends included
    cap: int
    # log10 of the smallest and of the largest loss
    low: float
    high: float
    # what the page says about them
    note: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "cap": self.cap,
            "low": self.low,
            "high": self.high,
            "codes": _LOSS_CODES,
            "note": self.note,
        }


def loss_curves(grid: Grid) -> Curves:
    """The loss curves of all points, thinned until they fit the page."""
    values, offsets = grid.losses()
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=0))
    if not longest:
        return Curves("", 0, 0.0, 1.0, "No losses are stored.")
    low, high = _log_range(values)
    cap = longest
    while cap >= min(longest, MIN_CURVE):
        kept = np.minimum(lengths, cap)
        if kept.sum() <= CURVE_VALUES:
            codes = _loss_codes(values[_kept_indexes(offsets, kept)], low, high)
            text = _deflated(_planes(np.diff(codes, prepend=np.uint16(0))))
            if len(text) <= CURVE_CHARACTERS:
                return Curves(text, cap, low, high, _note(longest, cap, low, high))
        cap = min(cap - 1, int(cap * min(0.7, CURVE_VALUES / kept.sum())))
    note = (
        f"Loss curves are left out: {len(lengths):,} of them, {int(lengths.sum()):,} losses, do "
        "not fit a page. The command below prints this point's."
    )
    return Curves("", 0, low, high, note)


def _kept_indexes(
    offsets: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Where the kept numbers of all curves lie: number k of m is at round(k (n - 1) / (m - 1))."""
    lengths = np.diff(offsets)
    first = np.repeat(offsets[:-1], kept)
    k = np.arange(int(kept.sum())) - np.repeat(np.cumsum(kept) - kept, kept)
    n, m = np.repeat(lengths, kept), np.repeat(kept, kept)
    gaps = np.maximum(m - 1, 1)
    places: npt.NDArray[np.int64] = first + (2 * k * (n - 1) + gaps) // (2 * gaps)
    return np.where(m > 1, places, first)


def _log_range(losses: npt.NDArray[np.float32]) -> tuple[float, float]:
    """log10 of the smallest and the largest loss that is finite and above zero."""
    usable = losses[np.isfinite(losses) & (losses > 0)]
    if not usable.size:
        return 0.0, 1.0
    low, high = np.log10([float(usable.min()), float(usable.max())])
    return float(low), float(high if high > low else low + 1)


def _loss_codes(values: npt.NDArray[np.float32], low: float, high: float) -> npt.NDArray[np.uint16]:
    losses = values.astype(np.float64)
    usable = np.isfinite(losses) & (losses > 0)
    codes = np.where(np.isfinite(losses), 0, _LOSS_NOT_FINITE).astype(np.uint16)
    shares_of_range = (np.log10(losses[usable]) - low) / (high - low)
    codes[usable] = (1 + np.round(shares_of_range * (_LOSS_CODES - 1))).astype(np.uint16)
    return codes


def _note(longest: int, cap: int, low: float, high: float) -> str:
    error = 10 ** ((high - low) / (_LOSS_CODES - 1) / 2) - 1
    digits = f"Losses of the curve are rounded to {error:.2g} of their value"
    if cap == longest:
        return f"{digits}; every step is shown."
    return (
        f"{digits}; to keep this page small at most {cap} of {longest} steps of a curve are shown."
    )
