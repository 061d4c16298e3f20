"""Models that a sweep names and this machine may not have: made or fetched once, then cached."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Final

from fractal_k8s.checkpoints.cache import cache_lock
from fractal_k8s.checkpoints.fetched import fetch
from fractal_k8s.checkpoints.files import find_checkpoint
from fractal_k8s.errors import FractalError, UsageError
from fractal_k8s.references import parse_reference
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.train.corpus import Tell
from fractal_k8s.train.materials import require_dataset
from fractal_k8s.train.pretrain import pretrain
from fractal_k8s.train.recipe import SCHEME, cached_folder, recipe_named

# holds the checkpoint's digest; written last, so that a folder with it is whole
_SEAL: Final = "sha256"


def provide_for(sweep: Sweep, tell: Tell) -> Sweep:
    """The sweep, with its model or models on this machine.

    What is named as `pretrained:NAME` is made and what lies elsewhere is fetched, unless this
    machine has it. A reference that may mean something else tomorrow becomes what it means now.
    The data are looked for first: gigabytes of weights are of no use without them.

    Raises:
        FractalError: it cannot be had, the data are not on this machine, or one reference stands
            for a model of every depth and does not say which.
    """
    text = sweep.spec.checkpoint or ""
    reference = parse_reference(text)
    if reference is None and not text.startswith(SCHEME):
        return sweep
    require_dataset(sweep)
    if reference is None:
        provide(text.removeprefix(SCHEME), tell)
        return sweep
    if not sweep.depths:
        return sweep.from_checkpoint(fetch(reference, tell).text)
    if not reference.is_exact:
        raise UsageError(
            f"checkpoint {text!r}: models of several depths need a reference that stays the same: "
            "a version, a commit, or a folder"
        )
    for depth in sweep.depths:
        member = parse_reference(sweep.at_depth(depth).spec.checkpoint or "")
        assert member is not None  # as the reference with a depth in it is one
        fetch(member, tell)
    return sweep


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
