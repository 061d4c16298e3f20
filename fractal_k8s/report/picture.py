"""Pictures that came from elsewhere: a map of verdicts as an array or as a two-colour image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.errors import CorruptError, UsageError

Mask = npt.NDArray[np.bool_]

_IMAGES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
# Weights of red, green and blue in brightness (ITU-R BT.601).
_LUMA: Final = np.array([0.299, 0.587, 0.114])


def read_mask(path: Path) -> tuple[Mask, Mask]:
    """Labels and where they are known, both (rows, columns).

    .npy: booleans, or numbers that are 0, 1 or NaN (unknown). Image: two colours. Of a red and a
    blue one, as in this project's figures, blue is trainable; of any others the brighter one is.
    Pixels that are fully transparent are unknown.

    Raises:
        UsageError: the file is missing, of an unknown kind, or not a map of two labels.
        CorruptError: the file is damaged.
    """
    if path.is_dir():
        raise UsageError(f"mask {path}: is a folder; give an .npy file or an image")
    if not path.is_file():
        raise UsageError(f"mask {path}: no such file")
    if path.suffix == ".npy":
        labels, known = _from_array(path)
    elif path.suffix.lower() in _IMAGES:
        labels, known = _from_image(path)
    else:
        raise UsageError(f"mask {path}: unknown kind {path.suffix!r}; use .npy or an image")
    if min(labels.shape) < 2:
        raise UsageError(f"mask {path}: {labels.shape[0]} x {labels.shape[1]} points have no edge")
    return labels, known


def _from_array(path: Path) -> tuple[Mask, Mask]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise CorruptError(f"{path}: damaged or not a NumPy array of labels") from None
    if array.ndim != 2:
        raise UsageError(f"mask {path}: has shape {array.shape}, a map has rows and columns")
    if array.dtype == bool:
        return array, np.ones(array.shape, dtype=bool)
    if array.dtype.kind not in "iuf":
        raise UsageError(f"mask {path}: holds {array.dtype}, not booleans or numbers")
    known = np.isfinite(array)
    values = np.unique(array[known])
    if not np.isin(values, (0, 1)).all():
        some = ", ".join(f"{value:g}" for value in values[:4])
        raise UsageError(f"mask {path}: values must be 0 and 1 (NaN = unknown), got {some}")
    return array == 1, known


def _from_image(path: Path) -> tuple[Mask, Mask]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise CorruptError(f"{path}: damaged or not an image ({error})") from None
    known = pixels[..., 3] > 0
    colours = np.unique(pixels[known][:, :3], axis=0)
    if len(colours) > 2:
        raise UsageError(
            f"mask {path}: has {len(colours)} colours, a map of two labels has two; "
            "save it without smoothing, axes or text"
        )
    if len(colours) < 2:
        return pixels[..., :3] @ _LUMA >= 128, known
    blueness = colours[:, 2].astype(int) - colours[:, 0]
    rank = blueness if blueness.min() < 0 < blueness.max() else colours @ _LUMA
    trainable = colours[int(np.argmax(rank))]
    return (pixels[..., :3] == trainable).all(axis=2), known
