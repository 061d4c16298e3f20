"""Weights of nanochat checkpoints (karpathy/nanochat at 8f979a8, checkpoint_manager.py)."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fractal_k8s.checkpoints.files import CheckpointFiles, check_sums, read_config
from fractal_k8s.errors import CorruptError, RetryError, unreadable
from fractal_k8s.models.gpt import GPT, config_from_dict

# Scalars that newer releases multiply the residual stream with; at these values they do nothing.
_NEUTRAL_EXTRAS = {"resid_lambdas": 1.0, "x0_lambdas": 0.0}


@dataclass(frozen=True)
class Weights:
    """A checkpoint's tensors by name, in the file's dtypes, and its `model_config`."""

    tensors: dict[str, Tensor]
    model_config: dict[str, Any]


def load_weights(files: CheckpointFiles, *, mapped: bool = False) -> Weights:
    """Reads weights and description; only tensors are ever unpickled.

    Args:
        mapped: leave the tensors in the file, for a look at them that takes no memory.

    Raises:
        CorruptError: a file is damaged, truncated, or not a nanochat checkpoint.
    """
    config = read_config(files)
    loaded = _load(files.model, mapped=mapped)
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise CorruptError(f"{files.model}: not a table of tensors")
    tensors = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in loaded.items()}
    _drop_neutral_extras(tensors, files.model)
    return Weights(tensors, config)


def load_table(path: Path) -> list[int]:
    """A one-dimensional table of whole numbers.

    Raises:
        CorruptError: it is damaged, or something else.
    """
    table = _load(path)
    if not isinstance(table, Tensor) or table.dim() != 1 or table.is_floating_point():
        raise CorruptError(f"{path}: not a table of whole numbers")
    return [int(number) for number in table.tolist()]


def _load(path: Path, *, mapped: bool = False) -> Any:
    """What a file of torch holds, if that is tensors only, and all of it is whole."""
    check_sums(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise CorruptError(
            f"{path}: holds more than tensors, which is not opened; save the weights alone"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        if _is_short_of_memory(error):
            raise RetryError(f"{path}: no memory is left to read it") from None
        raise CorruptError(f"{path}: damaged or truncated; get a whole copy of it") from None


def build_model(
    files: CheckpointFiles,
    weights: Weights,
    *,
    compute_dtype: torch.dtype,
    gradient_checkpointing: bool = False,
) -> GPT:
    """The model that a checkpoint describes, around its tensors.

    Raises:
        CorruptError: its description is of no model that this release knows, or of another one.
    """
    try:
        config = config_from_dict(weights.model_config)
    except ValueError as error:
        raise CorruptError(
            f"{files.meta}: model_config {error}; this release reads nanochat 8f979a8's"
        ) from None
    try:
        return GPT.from_weights(
            config,
            weights.tensors,
            compute_dtype=compute_dtype,
            gradient_checkpointing=gradient_checkpointing,
        )
    except ValueError as error:
        raise CorruptError(f"{files.model}: does not fit {files.meta.name}: {error}") from None


def _is_short_of_memory(error: Exception) -> bool:
    """torch says so with a RuntimeError like any other."""
    return "allocate memory" in str(error)


def _drop_neutral_extras(tensors: dict[str, Tensor], source: Path) -> None:
    """Newer releases add scalars per layer; at their neutral values the model is the old one."""
    for name, neutral in _NEUTRAL_EXTRAS.items():
        tensor = tensors.pop(name, None)
        if tensor is not None and bool((tensor != neutral).any()):
            raise CorruptError(
                f"{source}: {name} is not {neutral} everywhere: a model of a newer nanochat; "
                "this release reads those of 8f979a8"
            )
