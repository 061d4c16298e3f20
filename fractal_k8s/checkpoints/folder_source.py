"""A folder or a file of this machine as a source."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from fractal_k8s.checkpoints.files import TOKENIZER_FOLDER
from fractal_k8s.checkpoints.listing import Blob, Listing
from fractal_k8s.checkpoints.tokenizer import FILE_NAME as TOKENIZER_FILE
from fractal_k8s.errors import UsageError


def list_folder(path: Path) -> Listing:
    """The files below a folder, and the tokenizer that lies beside it or one further up.

    Its exact reference changes with their sizes and times.

    Raises:
        UsageError: there is no such folder.
    """
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    found = {file.relative_to(path).as_posix(): file for file in files}
    if not any(file.name == TOKENIZER_FILE for file in files):
        beside = (place / TOKENIZER_FOLDER / TOKENIZER_FILE for place in path.parents[:2])
        for file in [file for file in beside if file.is_file()][:1]:
            found[f"{TOKENIZER_FOLDER}/{TOKENIZER_FILE}"] = file
    return list_paths(path, found)


def list_files(paths: list[Path]) -> Listing:
    """Some files of one folder; the first one names the source.

    Raises:
        UsageError: one is not there.
    """
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
    return list_paths(paths[0], {path.name: path for path in paths})


def list_paths(name: Path, paths: Mapping[str, Path]) -> Listing:
    """Files from anywhere on this machine.

    Args:
        name: of the source.
        paths: what each is called in the listing -> the file.
    """
    blobs, state = {}, hashlib.sha256()
    for called, path in paths.items():
        stat = path.stat()
        blobs[called] = Blob(called, stat.st_size)
        state.update(f"{called}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())

    def get(blob: Blob, target: Path) -> None:
        shutil.copyfile(paths[blob.path], target)

    return Listing(f"{name}@{state.hexdigest()[:12]}", blobs, get)
