"""A folder or a file of this machine as a source."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from fractal_k8s.checkpoints.files import ARTIFACT_FOLDER, TOKENIZER_FOLDER
from fractal_k8s.checkpoints.layout import may_be_part
from fractal_k8s.checkpoints.listing import Blob, Listing
from fractal_k8s.checkpoints.tokenizer import FILE_NAME as TOKENIZER_FILE
from fractal_k8s.errors import UsageError, unreadable


def list_folder(path: Path) -> Listing:
    """The files of a folder's models, and the tokenizer that lies beside it or one further up.

    Looked for where `files.find_checkpoint` looks, whatever else lies below the folder. Its exact
    reference changes with their sizes and times.

    Raises:
        UsageError: there is no such folder, or it may not be read.
    """
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder")
    stages = sorted(path.glob("*_checkpoints/*"))
    homes = [path, path / ARTIFACT_FOLDER, path / TOKENIZER_FOLDER, *stages]
    homes += [stage / TOKENIZER_FOLDER for stage in (*stages, path / ARTIFACT_FOLDER)]
    homes += [stage.parent / TOKENIZER_FOLDER for stage in stages]
    files = [file for home in dict.fromkeys(homes) for file in _parts_of_models(home)]
    found = {file.relative_to(path).as_posix(): file for file in files}
    if not any(file.name == TOKENIZER_FILE for file in files):
        beside = (place / TOKENIZER_FOLDER / TOKENIZER_FILE for place in path.parents[:2])
        for file in [file for file in beside if file.is_file()][:1]:
            found[f"{TOKENIZER_FOLDER}/{TOKENIZER_FILE}"] = file
    return list_paths(path, found)


def _parts_of_models(home: Path) -> list[Path]:
    """The files of a folder that may be of a model, by their names."""
    try:
        files = sorted(home.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(home, error) from None
    return [file for file in files if may_be_part(file.name) and file.is_file()]


def list_files(paths: list[Path]) -> Listing:
    """Some files of one folder; the first one names the source.

    Raises:
        UsageError: one is not there.
    """
    for path in paths:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; give a .jsonl file")
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

    return Listing(f"{name}@{state.hexdigest()[:12]}", blobs, get, files=paths)
