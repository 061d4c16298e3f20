"""Models that a sweep names as `pretrained:NAME`: made once on a machine and kept in its cache."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Final

from fractal_k8s.checkpoints.cache import cache_lock
from fractal_k8s.checkpoints.files import find_checkpoint
from fractal_k8s.errors import FractalError
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.corpus import Tell
from fractal_k8s.train.pretrain import pretrain
from fractal_k8s.train.recipe import SCHEME, cached_folder, recipe_named

# holds the checkpoint's digest; written last, so that a folder with it is whole
_SEAL: Final = "sha256"


def provide_for(sweep: Sweep, tell: Tell) -> None:
    """Makes the model that a sweep names as `pretrained:NAME`, if this machine does not have it."""
    reference = sweep.spec.checkpoint or ""
    if reference.startswith(SCHEME):
        provide(reference.removeprefix(SCHEME), tell)


def provide(name: str, tell: Tell) -> Path:
    """The folder of the model of that name, which is made if it is not there or is damaged.

    Two processes that ask at once make it once. It is deterministic: the same bytes on every
    machine with the same processor and the same releases.

    Args:
        tell: gets lines of progress, none if the model is there.
    """
    recipe = recipe_named(name)
    folder = cached_folder(name)
    if _is_whole(folder):
        return folder
    with cache_lock(folder, lambda: tell(f"waiting for another process to make {name} ...")):
        if _is_whole(folder):
            return folder
        if folder.exists():
            tell(f"{folder} is damaged and is made again")
            shutil.rmtree(folder)
        tell(
            f"pretraining {name}, a depth-{recipe.depth} model; this is done once on this machine "
            f"and takes about a minute or two; it is kept in {folder}"
        )
        for leftover in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            made = pretrain(recipe, [recipe.depth], scratch, tell)[0]
            (scratch / _SEAL).write_text(made.files.digest())
            scratch.chmod(0o755)
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return folder


def _is_whole(folder: Path) -> bool:
    with contextlib.suppress(OSError, FractalError):
        return find_checkpoint(folder).digest() == (folder / _SEAL).read_text()
    return False
