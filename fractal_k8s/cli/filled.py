"""A cache of this machine to take weights and data from, and what mends one that is not whole."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from fractal_k8s.cli.folder import Folder
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.termination import VARIABLE

if TYPE_CHECKING:
    from fractal_k8s.caches import Shelf

F = TypeVar("F", bound=Callable[..., Any])

# folder of a cache -> the option, and the key of a sweep, that names the same
_KEYS: Final = {"model": "checkpoint", "dataset": "dataset"}


def cache_option(function: F) -> F:
    """Weights and data from a cache; below `sweep_options`, a part of `asked`."""
    return click.option(
        "--cache",
        type=Folder(),
        metavar="DIR",
        help="Take weights and data from this folder, which `cache fill` has filled.",
    )(function)


def taken(root: Path, given: Mapping[str, str | None]) -> dict[str, str]:
    """The checkpoint and the data set of a cache, without those that are given already.

    Names and sizes of its files are compared; contents are when they are loaded.

    Raises:
        UsageError: it is not filled, or not for this; says how it is.
        CorruptError: it is damaged.
    """
    from fractal_k8s.caches import look

    shelves = [shelf for shelf in look(root) if given[_KEYS[shelf.name]] is None]
    if not shelves:
        raise click.UsageError(
            "--checkpoint and --dataset leave nothing to take from --cache; leave out one of them"
        )
    if all(shelf.state == "empty" for shelf in shelves):
        raise nothing(root, [shelf.name for shelf in shelves])
    wrong = [shelf for shelf in shelves if shelf.state != "ready"]
    if wrong:
        text = "\n".join(f"{shelf.home}: {shelf.state}; {_step(root, shelf)}" for shelf in wrong)
        damaged = any(shelf.state == "damaged" for shelf in wrong)
        raise CorruptError(text) if damaged else UsageError(text)
    return {_KEYS[shelf.name]: _reference(shelf) for shelf in shelves}


def nothing(root: Path, names: Sequence[str]) -> UsageError:
    """The error that a cache holds none of some things, with the command that fills it."""
    wanted = " ".join(f"--{name} REF" for name in names)
    return UsageError(
        f"{root}: holds no {' and no '.join(names)}; fill it with: "
        f"fractal-k8s cache fill --root {shlex.quote(str(root))} {wanted}"
    )


def option(shelf: Shelf) -> tuple[str, str]:
    """The option that names what a folder of a cache holds, and its value."""
    return f"--{_KEYS[shelf.name]}", _reference(shelf)


def _reference(shelf: Shelf) -> str:
    """What a sweep calls it."""
    from fractal_k8s.caches import MODEL
    from fractal_k8s.data.splits import TRAIN

    return str(shelf.home) if shelf.name == MODEL else f"conversations:{shelf.home / TRAIN}"


def _step(root: Path, shelf: Shelf) -> str:
    """`remedy`, or to do without what the cache does not hold."""
    text = remedy(root, shelf)
    return f"{text}, or name one with --{_KEYS[shelf.name]}" if shelf.state == "empty" else text


def remedy(root: Path, shelf: Shelf) -> str:
    """What to do with a cache that is not whole: in a pod, by whoever runs the cluster."""
    if VARIABLE in os.environ:
        return (
            "mend it with: helm upgrade ... --set fill.again=WORD, when no sweep reads it; or fill "
            "another claim"
        )
    if shelf.state == "being filled":
        return "a process fills it now; wait until it is ready"
    source = _source(shelf)
    words = [
        "fractal-k8s",
        "cache",
        "fill",
        "--root",
        str(root),
        f"--{shelf.name}",
        source or "REF",
    ]
    if shelf.state == "empty":
        return f"fill it with: {shlex.join(words)}"
    if shelf.state == "cut short":
        return f"run the fill again, it goes on where it was: {shlex.join(words)}"
    if source is None:
        words.append("--replace")
    return f"mend it with: {shlex.join(words)}"


def _source(shelf: Shelf) -> str | None:
    """What to fill a folder from so that it holds the same again; None if nothing says what."""
    from fractal_k8s import sealed
    from fractal_k8s.references import parse_reference

    told = shelf.seal.ready if shelf.seal else sealed.read_ready(shelf.home) or {}
    source, resolved = told.get("source"), told.get("resolved")
    is_exact = shelf.name == "model" and resolved and parse_reference(resolved) is not None
    return resolved if is_exact else source
