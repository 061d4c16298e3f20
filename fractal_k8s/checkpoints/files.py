"""Files of a nanochat checkpoint in a local folder: where they are, and the model's shape.

Loads no tensors, and no library that could.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal_k8s.checkpoints.tokenizer import FILE_NAME as TOKENIZER_FILE
from fractal_k8s.errors import CorruptError, UsageError

_MODEL = re.compile(r"model_(\d+)\.pt")


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


def read_config(files: CheckpointFiles) -> dict[str, Any]:
    """The `model_config` of a checkpoint.

    Raises:
        CorruptError: the file is damaged or describes no model.
    """
    try:
        config = json.loads(files.meta.read_text())["model_config"]
        if not isinstance(config, dict):
            raise TypeError("model_config is not a table")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{files.meta}: no usable model_config ({error})") from None
    return config
