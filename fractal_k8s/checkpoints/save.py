"""Writes checkpoints in nanochat's layout (karpathy/nanochat at 8f979a8, checkpoint_manager)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fractal_k8s.checkpoints.files import CheckpointFiles


def save_checkpoint(
    home: Path,
    step: int,
    weights: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    tokenizer: Path,
) -> CheckpointFiles:
    """Writes `checkpoints/model_<step>.pt`, `checkpoints/meta_<step>.json` and `tokenizer/`.

    That is the layout of nanochat's artifacts, which nanochat and `find_checkpoint` read. Every
    file gets its name only when it is whole; equal contents give equal bytes.

    Args:
        weights: tensors by nanochat's names, in the dtypes to store.
        meta: what to note, plain data; must hold `model_config`.
        tokenizer: folder of the tokenizer that the model was trained with; it is copied.
    """
    folder = home / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    files = CheckpointFiles(
        folder / f"model_{step:06d}.pt",
        folder / f"meta_{step:06d}.json",
        home / "tokenizer" / "tokenizer.pkl",
    )
    if tokenizer.resolve() != files.tokenizer.parent.resolve():
        shutil.copytree(tokenizer, files.tokenizer.parent, dirs_exist_ok=True)
    text = json.dumps({"step": step, **meta}, indent=2, allow_nan=False)
    _whole(files.meta, lambda file: file.write(text.encode()))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    _whole(files.model, lambda file: torch.save(tensors, file))
    return files


def _whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes through a file object: given a path, torch puts its name into the file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
