"""Models that a sweep names by a reference: fetched once to this machine's cache, then a folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from fractal_k8s import sealed
from fractal_k8s.checkpoints.cache import cache_folder
from fractal_k8s.checkpoints.filling import Tell, fill, persistently
from fractal_k8s.checkpoints.sources import model_goods
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.references import Reference, parse_reference


def fetched_home(reference: Reference) -> Path:
    """Where the cache keeps the model of an exact reference, whether it is there or not."""
    assert reference.is_exact  # another one may mean something else tomorrow
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", reference.place.rpartition("/")[2]).strip("-")
    key = hashlib.sha256(reference.text.encode()).hexdigest()[:10]
    return cache_folder() / "models" / f"{name}-{key}"


def is_fetched(reference: Reference) -> bool:
    """Whether this machine's cache has the model, whole as far as sizes tell."""
    return reference.is_exact and sealed.read_whole(fetched_home(reference)) is not None


def fetched_folder(reference: Reference) -> Path:
    """Where the model is on this machine.

    Raises:
        UsageError: it was not fetched, or the reference does not say which one it is.
    """
    if not reference.is_exact:
        raise UsageError(
            f"{reference.text}: may mean another model tomorrow; launch says which one it is now, "
            "or name a version"
        )
    if not is_fetched(reference):
        raise UsageError(
            f"{reference.text} is not in this machine's cache ({fetched_home(reference)}); launch "
            "fetches it; here give --checkpoint FOLDER with a copy of it"
        )
    return fetched_home(reference)


def check_digest(text: str, digest: str) -> None:
    """Compares a checkpoint's digest with what was noted when its reference was fetched.

    Raises:
        CorruptError: it is another.
    """
    reference = parse_reference(text)
    if reference is None or not reference.is_exact:
        return
    home = fetched_home(reference)
    seal = sealed.read_whole(home)
    if seal is not None and seal.digest != digest:
        raise CorruptError(
            f"checkpoint {text}: the copy in {home} has changed since it was fetched; remove that "
            "folder, and launch fetches it again"
        )


def fetch(reference: Reference, tell: Tell) -> Reference:
    """The exact reference of a model that this machine's cache then holds.

    Nobody is asked if the reference is exact and the model is there.

    Raises:
        FractalError: see `checkpoints.filling.fill`.
    """
    if is_fetched(reference):
        return reference
    goods = persistently(lambda: model_goods(reference.text), tell)
    exact = _exact(goods.listing.exact)
    fill(fetched_home(exact), goods, tell, hashes=False)  # `check_digest` comes
    return exact


def _exact(text: str) -> Reference:
    reference = parse_reference(text)
    assert reference is not None  # sources of references list them as such
    return reference
