"""What a worker does with a cache that is mounted into its pod, before it reads weights."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from fractal_k8s import sealed
from fractal_k8s.checkpoints.files import ARTIFACT_FOLDER, TOKENIZER_FOLDER, find_checkpoint
from fractal_k8s.checkpoints.filling import Goods, Tell, fill, mixed_in
from fractal_k8s.checkpoints.folder_source import list_paths
from fractal_k8s.checkpoints.listing import Blob
from fractal_k8s.checkpoints.sources import check_model
from fractal_k8s.errors import CorruptError, RetryError, UsageError
from fractal_k8s.references import Reference, parse_reference
from fractal_k8s.sealed import Seal

STAGE: Final = "FRACTAL_K8S_STAGE"


def refuse_mixed_in(folders: Sequence[Path]) -> None:
    """Refuses a cache of a model with files that were put into it later: one may be the newest.

    Raises:
        CorruptError: there are some.
    """
    for folder in folders:
        seal = _model_seal(folder)
        if seal is not None and (others := mixed_in(folder, seal)):
            raise CorruptError(
                f"{folder / others[0]}: no fill of the cache has put it there; move it away"
            )


def refuse_other_model(folders: Sequence[Path], text: str | None) -> None:
    """Refuses a cache that was filled with another model than a sweep names.

    Only what is known counts: a folder that was filled by other means may hold anything, and the
    first worker of the sweep notes its digest.

    Raises:
        UsageError: it was.
    """
    wanted = parse_reference(text or "")
    if wanted is None:
        return
    for folder in folders:
        seal = _model_seal(folder)
        if seal is not None and not _same(wanted, parse_reference(seal.resolved)):
            raise UsageError(
                f"the sweep is of {text}, and {folder} holds {seal.resolved}: name the claim of "
                "the right model (--job model_claim=NAME), or launch a sweep of this one"
            )


def _model_seal(folder: Path) -> Seal | None:
    """The seal of a cache of a model; None where nothing says that it is one."""
    with contextlib.suppress(CorruptError):
        seal = sealed.read_seal(folder)
        return seal if seal is not None and seal.kind == "model" else None
    return None


def _same(wanted: Reference, held: Reference | None) -> bool:
    """Whether a cache's exact reference may be the wanted one; options of a bucket do not count."""
    if held is None:
        return False
    place = (wanted.kind, wanted.place, wanted.folder) == (held.kind, held.place, held.folder)
    return place and (not wanted.is_exact or wanted.version == held.version)


def staged(checkpoint: Path, target: Path, tell: Tell) -> Path:
    """The folder of a copy of a checkpoint's files on a disk of this machine.

    Reads every file once, in order, and compares; processes that ask at once copy once. Where the
    copy cannot be made, such as for want of room, it is the checkpoint's own folder.

    Raises:
        CorruptError: the files are damaged.
    """
    began = time.monotonic()
    lines: list[str] = []
    try:
        size = fill(target, _as_goods(checkpoint), lines.append, hashes=False).size
    except (UsageError, RetryError) as error:
        sealed.drop_all(target.glob(f"{sealed.FILLING}*"))  # the room is the pod's
        tell(f"not staged, {checkpoint} is read where it is: {error}")
        return checkpoint
    seconds = max(time.monotonic() - began, 1e-9)
    if not lines:
        what = f"was there, {size / 1e9:.3g} GB"
    elif all(line.startswith(sealed.WAITING) for line in lines):
        what = f"copied by another process, {size / 1e9:.3g} GB after {seconds:.1f} s"
    else:
        what = (
            f"copied and compared, {size / 1e9:.3g} GB in {seconds:.1f} s "
            f"({size / 1e9 / seconds:.2f} GB/s)"
        )
    tell(f"staged {checkpoint} to {target}: {what}")
    return target


def _as_goods(checkpoint: Path) -> Goods:
    """The files of a checkpoint, to be compared with the seal of the cache that they lie in."""
    files = find_checkpoint(checkpoint)
    paths = {
        f"{ARTIFACT_FOLDER}/{files.model.name}": files.model,
        f"{ARTIFACT_FOLDER}/{files.meta.name}": files.meta,
        f"{TOKENIZER_FOLDER}/{files.tokenizer.name}": files.tokenizer,
    }
    listing = list_paths(checkpoint, paths)
    blobs = {called: _sealed_blob(blob, paths[called]) for called, blob in listing.blobs.items()}
    layout = {called: called for called in paths}
    return Goods("model", str(checkpoint), replace(listing, blobs=blobs), layout, check_model)


def _sealed_blob(blob: Blob, path: Path) -> Blob:
    """A file with the sum that a cache's seal has of it, if it lies in one."""
    facts = sealed.noted_facts(path)
    return blob if facts is None else Blob(blob.path, facts.size, "sha256", facts.sha256)
