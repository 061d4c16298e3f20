"""Whole numbers as short text: "0-3,7,12-40"."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def format_intervals(numbers: npt.ArrayLike) -> str:
    """Rising whole numbers as "0-3,7,8": runs of three or more are shortened.

    The grammar is that of a Job's completedIndexes (kubernetes indexed_job_utils.go).
    """
    rising = np.asarray(numbers, dtype=np.int64)
    if not len(rising):
        return ""
    runs = np.split(rising, np.flatnonzero(np.diff(rising) != 1) + 1)
    texts = [
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(str(number) for number in run)
        for run in runs
    ]
    return ",".join(texts)


def parse_intervals(text: str) -> npt.NDArray[np.int64]:
    """The numbers of "0-3,7,8", rising.

    Raises:
        ValueError: the text does not follow the grammar, or does not rise.
    """
    parts = []
    for piece in text.split(",") if text else []:
        first, dash, last = piece.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{piece!r} is neither a number nor a range such as 4-9")
        parts.append(np.arange(int(first), int(last or first) + 1, dtype=np.int64))
    numbers = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if np.any(np.diff(numbers) <= 0) or any(len(part) == 0 for part in parts):
        raise ValueError(f"{text!r} does not rise")
    return numbers
