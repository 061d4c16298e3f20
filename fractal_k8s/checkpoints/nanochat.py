"""nanochat checkpoints in a local folder (karpathy/nanochat at 8f979a8, checkpoint_manager.py)."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fractal_k8s.checkpoints.tokenizer import FILE_NAME as TOKENIZER_FILE
from fractal_k8s.errors import CorruptError, UsageError

_MODEL = re.compile(r"model_(\d+)\.pt")
# Scalars that newer releases multiply the residual stream with; at these values they do nothing.
_NEUTRAL_EXTRAS = {"resid_lambdas": 1.0, "x0_lambdas": 0.0}


@dataclass(frozen=True)
class CheckpointFiles:
    """The three files of a checkpoint: weights, their description, and the tokenizer they know."""

    model: Path
    meta: Path
    tokenizer: Path

    @property
    def step(self) -> int:
        match = _MODEL.fullmatch(self.model.name)
        assert match is not None  # `find_checkpoint` only takes such names
        return int(match[1])

    def digest(self) -> str:
        """sha256 over the contents of the three files, hex."""
        total = hashlib.sha256()
        for path in (self.model, self.meta, self.tokenizer):
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()


@dataclass(frozen=True)
class Weights:
    """A checkpoint's tensors by name, in the file's dtypes, and its `model_config`."""

    tensors: dict[str, Tensor]
    model_config: dict[str, Any]


def find_checkpoint(folder: Path) -> CheckpointFiles:
    """The newest checkpoint in a folder, with its tokenizer.

    Accepted: the folder that holds `model_<step>.pt`; a folder with `checkpoints/` and `tokenizer/`
    side by side; nanochat's base folder with one `<stage>_checkpoints/<tag>/`.

    Raises:
        UsageError: there is none, there are several, or a part is missing.
    """
    if not folder.is_dir():
        raise UsageError(f"checkpoint {folder}: no such folder")
    candidates = [
        path
        for path in (folder, folder / "checkpoints", *sorted(folder.glob("*_checkpoints/*")))
        if path.is_dir() and any(_MODEL.fullmatch(file.name) for file in path.iterdir())
    ]
    if not candidates:
        raise UsageError(
            f"checkpoint {folder}: holds no model_<step>.pt, nor does its checkpoints/ folder"
        )
    if len(candidates) > 1:
        names = ", ".join(str(path) for path in candidates)
        raise UsageError(f"checkpoint {folder}: holds several, name one of them: {names}")
    home = candidates[0]
    steps = [match for file in home.iterdir() if (match := _MODEL.fullmatch(file.name))]
    newest = max(steps, key=lambda match: int(match[1]))
    meta = home / f"meta_{newest[1]}.json"
    if not meta.is_file():
        raise UsageError(
            f"checkpoint {home / newest[0]}: its {meta.name} is missing; "
            "copy it from where the weights come from"
        )
    return CheckpointFiles(home / newest[0], meta, _find_tokenizer(home))


def _find_tokenizer(home: Path) -> Path:
    """The tokenizer beside the weights, or beside their folder, or beside the stages' folders."""
    places = [home, home.parent, home.parent.parent]
    for place in places:
        path = place / "tokenizer" / TOKENIZER_FILE
        if path.is_file():
            return path
    looked = ", ".join(str(place / "tokenizer") for place in places)
    raise UsageError(f"checkpoint {home}: no {TOKENIZER_FILE} in {looked}")


def load_weights(files: CheckpointFiles) -> Weights:
    """Reads weights and description; only tensors are ever unpickled.

    Raises:
        CorruptError: a file is damaged, truncated, or not a nanochat checkpoint.
    """
    try:
        meta = json.loads(files.meta.read_text())
        config = meta["model_config"]
        if not isinstance(config, dict):
            raise TypeError("model_config is not a table")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{files.meta}: no usable model_config ({error})") from None
    _check_sums(files.model)
    try:
        loaded = torch.load(files.model, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CorruptError(
            f"{files.model}: holds more than tensors, which is not opened; save the weights alone"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError):
        raise CorruptError(
            f"{files.model}: damaged or truncated; fetch the checkpoint again"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise CorruptError(f"{files.model}: not a table of tensors")
    tensors = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in loaded.items()}
    _drop_neutral_extras(tensors, files.model)
    return Weights(tensors, config)


def _check_sums(path: Path) -> None:
    """Compares the file's parts with the check sums it carries, which torch does not.

    Raises:
        CorruptError: it is no file of torch, is cut short, or a part has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        raise CorruptError(f"{path}: damaged or truncated; fetch the checkpoint again") from None
    if damaged is not None:
        raise CorruptError(
            f"{path}: damaged: {damaged} does not match its check sum; fetch the checkpoint again"
        )


def _drop_neutral_extras(tensors: dict[str, Tensor], source: Path) -> None:
    """Newer releases add scalars per layer; at their neutral values the model is the old one."""
    for name, neutral in _NEUTRAL_EXTRAS.items():
        tensor = tensors.pop(name, None)
        if tensor is not None and bool((tensor != neutral).any()):
            raise CorruptError(
                f"{source}: {name} is not {neutral} everywhere: a model of a newer nanochat; "
                "this release reads those of 8f979a8"
            )
