"""Files of a nanochat checkpoint in a local folder: where they are, and the model's shape.

Loads no tensors, and no library that could.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fractal_k8s.checkpoints.tokenizer import FILE_NAME as TOKENIZER_FILE
from fractal_k8s.errors import CorruptError, UsageError, unreadable
from fractal_k8s.sealed import file_sha256, noted_facts

# what an artifact holds side by side
ARTIFACT_FOLDER: Final = "checkpoints"
TOKENIZER_FOLDER: Final = "tokenizer"
MODEL_FILE: Final = re.compile(r"model_(\d+)\.pt")


@dataclass(frozen=True)
class CheckpointFiles:
    """The three files of a checkpoint: weights, their description, and the tokenizer they know."""

    model: Path
    meta: Path
    tokenizer: Path

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return self.model, self.meta, self.tokenizer

    @property
    def step(self) -> int:
        match = MODEL_FILE.fullmatch(self.model.name)
        assert match is not None  # `find_checkpoint` only takes such names
        return int(match[1])

    def digest(self) -> str:
        """sha256 over the contents of the three files, hex."""
        return _digest_of(file_sha256(path) for path in self.paths)

    def sealed_digest(self) -> str | None:
        """`digest` as the seal of the folder that they lie in has it; None if none names them."""
        facts = [noted for path in self.paths if (noted := noted_facts(path)) is not None]
        return _digest_of(one.sha256 for one in facts) if len(facts) == len(self.paths) else None


def _digest_of(sums: Iterable[str]) -> str:
    """sha256 over several sha256, all in hex."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, sums))).hexdigest()


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
        for path in (folder, folder / ARTIFACT_FOLDER, *sorted(folder.glob("*_checkpoints/*")))
        if path.is_dir() and any(MODEL_FILE.fullmatch(file.name) for file in path.iterdir())
    ]
    if not candidates:
        inside = "" if not (folder / "model").is_dir() else f"; of a cache give {folder / 'model'}"
        raise UsageError(
            f"checkpoint {folder}: holds no model_<step>.pt, nor does its checkpoints/ folder"
            f"{inside}"
        )
    if len(candidates) > 1:
        names = ", ".join(str(path) for path in candidates)
        raise UsageError(f"checkpoint {folder}: holds several, name one of them: {names}")
    home = candidates[0]
    weights = [file.name for file in home.iterdir() if MODEL_FILE.fullmatch(file.name)]
    newest = max(weights, key=newer)
    meta = home / newest.replace("model_", "meta_").replace(".pt", ".json")
    if not meta.is_file():
        raise UsageError(
            f"checkpoint {home / newest}: its {meta.name} is missing; "
            "copy it from where the weights come from"
        )
    return CheckpointFiles(home / newest, meta, _find_tokenizer(home))


def newer(name: str) -> tuple[int, str]:
    """A key by which the weights of a later step come later; of one step always the same last."""
    match = MODEL_FILE.fullmatch(name)
    assert match is not None  # the caller has looked
    return int(match[1]), name


def _find_tokenizer(home: Path) -> Path:
    """The tokenizer beside the weights, or beside their folder, or beside the stages' folders."""
    above = (home, home.parent, home.parent.parent)
    places = [home, *(place / TOKENIZER_FOLDER for place in above)]
    for place in places:
        path = place / TOKENIZER_FILE
        if path.is_file():
            return path
    looked = ", ".join(str(place) for place in places)
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


def check_sums(path: Path) -> None:
    """Compares the file's parts with the check sums it carries, which torch does not.

    Raises:
        CorruptError: it is no file of torch, is cut short, or a part has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        raise CorruptError(f"{path}: damaged or truncated; get a whole copy of it") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if damaged is not None:
        raise CorruptError(
            f"{path}: damaged: {damaged} does not match its check sum; get a whole copy of it"
        )
