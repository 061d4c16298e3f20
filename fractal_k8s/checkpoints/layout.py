"""Which files of a source are a model, and where they go: `checkpoints/` beside `tokenizer/`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from fractal_k8s.checkpoints.files import ARTIFACT_FOLDER, MODEL_FILE, TOKENIZER_FOLDER, newer
from fractal_k8s.checkpoints.tokenizer import BYTES_FILE_NAME
from fractal_k8s.checkpoints.tokenizer import FILE_NAME as TOKENIZER_FILE
from fractal_k8s.errors import UsageError

_META_FILE: Final = re.compile(r"meta_\d+\.json")


def may_be_part(name: str) -> bool:
    """Whether a file of that name may be a part of what `model_layout` takes."""
    return (
        MODEL_FILE.fullmatch(name) is not None
        or _META_FILE.fullmatch(name) is not None
        or name in (TOKENIZER_FILE, BYTES_FILE_NAME)
    )


def model_layout(paths: Iterable[str], source: str, folder: str = "") -> dict[str, str]:
    """Where each file of the newest checkpoint goes -> where the source has it.

    Optimizers' states and earlier steps are left out. The tokenizer must be beside the weights, in
    a folder `tokenizer/` beside their folder, or one further up: one from elsewhere might know
    other words.

    Args:
        folder: where the weights are, or any one above; "" = anywhere.

    Raises:
        UsageError: there is no checkpoint, there are several, or a part is missing.
    """
    known = {path for path in map(PurePosixPath, paths) if _lies_below(path)}
    weights = [
        path
        for path in known
        if MODEL_FILE.fullmatch(path.name) and path.is_relative_to(folder or ".")
    ]
    if not weights:
        raise UsageError(f"{source}: holds no model_<step>.pt; give a nanochat checkpoint")
    homes = sorted({path.parent for path in weights})
    if len(homes) > 1:
        names = ", ".join(str(home) for home in homes)
        raise UsageError(f"{source}: holds several checkpoints ({names}); {_choose(source)}")
    newest = max(weights, key=lambda path: newer(path.name))
    step = newest.stem.removeprefix("model_")
    meta = newest.with_name(f"meta_{step}.json")
    if meta not in known:
        raise UsageError(f"{source}: {newest} has no {meta.name} beside it")
    tokenizer = _tokenizer(newest.parent, known, source)
    layout = {f"{ARTIFACT_FOLDER}/{path.name}": str(path) for path in (newest, meta)}
    layout[f"{TOKENIZER_FOLDER}/{TOKENIZER_FILE}"] = str(tokenizer)
    if (beside := tokenizer.with_name(BYTES_FILE_NAME)) in known:
        layout[f"{TOKENIZER_FOLDER}/{BYTES_FILE_NAME}"] = str(beside)
    return layout


def _lies_below(path: PurePosixPath) -> bool:
    """Whether a source's own name for a file leads nowhere else: who fetches may write to it."""
    return not path.is_absolute() and ".." not in path.parts


def _tokenizer(home: PurePosixPath, known: set[PurePosixPath], source: str) -> PurePosixPath:
    places = [
        home,
        *(place / TOKENIZER_FOLDER for place in (home, home.parent, home.parent.parent)),
    ]
    for place in places:
        if place / TOKENIZER_FILE in known:
            return place / TOKENIZER_FILE
    raise UsageError(
        f"{source}: has no {TOKENIZER_FOLDER}/{TOKENIZER_FILE} beside {home}/; weights are used "
        "only with the tokenizer that they were trained with: put both into one folder, "
        f"{ARTIFACT_FOLDER}/ and {TOKENIZER_FOLDER}/ side by side, and give that"
    )


def _choose(source: str) -> str:
    if source.startswith("hf:"):
        return "name one, as in hf:REPO@REVISION:SUBFOLDER"
    if source.startswith("wandb:"):
        return "download it, and give one of its folders"
    return "name one of them"
