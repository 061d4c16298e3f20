"""Fills a folder from a source, once: download, check, move into place, say that it is ready.

Several processes may try at once, any of them may be killed at any moment, and the folder may be a
mount, which can be neither renamed nor replaced. So everything lies below it: files come to a
hidden folder under names of their own, get their name there when they are verified, and move to
their places when all of them are. Who begins anew takes up the verified ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from fractal_k8s import sealed
from fractal_k8s.checkpoints.listing import Blob, Listing, sums_of
from fractal_k8s.errors import CorruptError, RetryError, UsageError
from fractal_k8s.sealed import PART, FileFacts, Seal

T = TypeVar("T")
Tell = Callable[[str], None]

# downloads of one file, and the waits between them, which are drawn from half of it to all of it
_TRIES: Final = 4
_WAIT_S: Final = 2.0
# of all tries of a file together; W&B's own client tries for twenty minutes before it gives up
_MOST_S: Final = 1800.0
# nobody fills a folder for so long without beginning a file
_ABANDONED_S: Final = 24 * 3600.0
# what a file system must have left when all is there
_SPARE_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Goods:
    """What to fill a folder with."""

    # "model" or "dataset"
    kind: str
    # the reference as it was given
    source: str
    listing: Listing
    # where each file goes -> where the source has it
    layout: Mapping[str, str]
    # checks the files together, in a folder as they will lie; returns what training knows them by
    check: Callable[[Path], str]

    @property
    def blobs(self) -> dict[str, Blob]:
        """The source's files by where they go."""
        return {name: self.listing.blobs[path] for name, path in self.layout.items()}


def fill(
    home: Path, goods: Goods, tell: Tell, *, replace: bool = False, hashes: bool = True
) -> Seal:
    """The seal of a folder that holds the goods; they are fetched if it does not hold them yet.

    Of what it holds only files that have changed since are fetched.

    Args:
        tell: gets lines of progress.
        replace: fetch everything again, and throw out what else the folder was filled with.
        hashes: compare every byte of what is there with its seal; else only sizes.

    Raises:
        UsageError: it holds something else, or cannot be written, or there is no room.
        CorruptError: what arrives is not what the source says, however often.
        RetryError: the source does not answer.
    """
    goods = goods if replace else _as_known(home, goods)
    exact = goods.listing.exact
    if not replace and (found := standing(home, exact, tell, hashes=hashes)) is not None:
        return found
    with sealed.being_filled(home, tell) as alone:
        if not replace and (found := standing(home, exact, tell, hashes=hashes)) is not None:
            return found
        _refuse_others(home, goods, replace)
        name = sealed.FILLING + hashlib.sha256(exact.encode()).hexdigest()[:10]
        # where there are no locks, each process has a folder of its own
        parts = home / (name if alone else f"{name}-{secrets.token_hex(4)}")
        _sweep_out(home, keep=parts, alone=alone)
        if not replace:
            _take_up(home, parts, goods, tell)
        facts = _fetch_all(goods, parts, tell)
        digest = _checked(goods, parts)
        if not (alone or replace) and (found := standing(home, exact, tell, hashes=hashes)):
            shutil.rmtree(parts, ignore_errors=True)
            return found
        seal = Seal(goods.kind, goods.source, exact, digest, facts, sealed.now())
        _place(home, parts, seal)
    tell(f"{home}: ready, {_count(seal.files)}, {_size(seal.size)}, sha256 {digest[:12]}...")
    return seal


def add_file(home: Path, name: str, write: Callable[[Path], None]) -> Seal:
    """Adds a file to a folder that is ready, unless it is there; the seal then names it too.

    Args:
        write: makes the file at a path.

    Raises:
        CorruptError: the folder is not ready.
    """
    with sealed.being_filled(home, lambda line: None):
        seal = sealed.read_whole(home)
        if seal is None:
            raise CorruptError(f"{home}: is not ready; fill it first")
        if name in seal.files:
            return seal
        part = home / f"{PART}{secrets.token_hex(4)}-{Path(name).name}"
        try:
            write(part)
            part.chmod(0o644)
            facts = sealed.facts_of(part)
            part.replace(home / name)
        finally:
            part.unlink(missing_ok=True)
        return sealed.with_file(home, name, facts)


def standing(home: Path, exact: str, tell: Tell, *, hashes: bool = True) -> Seal | None:
    """The folder's seal if it is ready, undamaged, and holds what an exact reference names.

    Args:
        tell: gets a line on what was compared.
        hashes: compare contents too, which reads every byte.

    Raises:
        UsageError: and other files beside it, which might be taken for a part of it.
    """
    seal = sealed.read_whole(home)
    if seal is None or seal.resolved != exact:
        return None
    if others := mixed_in(home, seal):
        raise _stranger(home, others[0])
    if sealed.are_at_odds(home, seal):
        return None
    if hashes:
        began = time.monotonic()
        if sealed.damage(home, seal):
            return None
        seconds = time.monotonic() - began
        tell(f"{home}: whole, {_count(seal.files)}, {_size(seal.size)} compared in {seconds:.1f} s")
    _tidy(home)
    return seal


def _tidy(home: Path) -> None:
    """Deletes what fills that were killed have left in a folder that is ready, if nobody is at it.

    It may be as large as a model.
    """
    if any(home.glob(f"{sealed.FILLING}*")) and not sealed.is_being_filled(home):
        with (
            contextlib.suppress(UsageError, RetryError),  # such as: it can only be read
            sealed.being_filled(home, lambda line: None) as alone,
        ):
            if alone:
                sealed.drop_all(home.glob(f"{sealed.FILLING}*"))


def mixed_in(home: Path, seal: Seal) -> list[str]:
    """Files that the seal does not name in folders that it does, as relative paths."""
    tops = {name.partition("/")[0] for name in seal.files if "/" in name}
    return [path for path in sealed.strangers(home, seal) if path.partition("/")[0] in tops]


def _stranger(home: Path, path: str) -> UsageError:
    return UsageError(
        f"{home}: holds files that no fill has put there, such as {path}; move them away, fill "
        "another folder, or give --replace"
    )


def _as_known(home: Path, goods: Goods) -> Goods:
    """The goods under the exact reference by which a folder already holds their very bytes.

    That of a folder on this machine is by its files' times, which a copy or a checkout changes.
    """
    seal, listing = sealed.read_whole(home), goods.listing
    if seal is None or not listing.files or seal.resolved == listing.exact:
        return goods
    if seal.resolved.rpartition("@")[0] != listing.exact.rpartition("@")[0]:
        return goods
    for name, blob in goods.blobs.items():
        facts = seal.files.get(name)
        if facts is None or facts.size != blob.size:
            return goods
        if sealed.file_sha256(listing.files[blob.path]) != facts.sha256:
            return goods
    known = dataclasses.replace(listing, exact=seal.resolved)
    return dataclasses.replace(goods, listing=known)


def _refuse_others(home: Path, goods: Goods, replace: bool) -> None:
    """Refuses a folder that others may be reading, or that holds what nobody has sealed."""
    seal, ready = None, sealed.read_ready(home)
    with contextlib.suppress(CorruptError):
        seal = sealed.read_seal(home)
    if ready is not None and not replace:
        # a manifest that was lost is made anew, if READY names the same goods
        if seal is None and ready.get("resolved") != goods.listing.exact:
            raise UsageError(
                f"{home}: was filled by other means (it has {sealed.READY} and no usable "
                f"{sealed.MANIFEST}); fill another folder, or give --replace"
            )
        if seal is not None and seal.resolved != goods.listing.exact:
            raise UsageError(
                f"{home}: holds {seal.resolved}, not {goods.listing.exact}, and workers may be "
                "reading it; fill another folder (on a cluster another claim), or give --replace"
            )
    known = seal.files if seal else () if ready is None else goods.layout
    strangers = [path for path in _lying(home, goods.layout) if path not in known]
    if strangers and not replace:
        raise _stranger(home, strangers[0])


def _lying(home: Path, layout: Iterable[str]) -> list[str]:
    """What lies in the folders of a layout, and where its files go, as relative paths."""
    tops = sorted({name.partition("/")[0] for name in layout})
    paths = [path for top in tops for path in (home / top, *sorted((home / top).rglob("*")))]
    return [path.relative_to(home).as_posix() for path in paths if path.is_file()]


def _sweep_out(home: Path, keep: Path, *, alone: bool) -> None:
    """Deletes what killed processes and other sources have left.

    Args:
        alone: nobody else can be at it; else only what nobody has touched for long is deleted.
    """
    others = [path for path in home.glob(f"{sealed.FILLING}*") if path != keep]
    oldest = time.time() - _ABANDONED_S
    sealed.drop_all(path for path in others if alone or path.stat().st_mtime < oldest)
    sealed.drop_all(keep.rglob(f"{PART}*"))


# --- fetching ---


def persistently(ask: Callable[[], T], tell: Tell) -> T:
    """What a source answers; asked again after a pause while the trouble may pass.

    Raises:
        RetryError: it went on; says what can be done.
    """
    deadline = time.monotonic() + _MOST_S
    for number in itertools.count(1):
        try:
            return ask()
        except RetryError as error:
            if number == _TRIES or time.monotonic() > deadline:
                raise RetryError(
                    f"{error}; run the same command again later, check the network and its proxy "
                    "(HTTPS_PROXY), or copy the files here and name their folder"
                ) from None
            pause = _pause(number)
            tell(f"{error}; trying again in {pause:.0f} s")
        time.sleep(pause)
    raise AssertionError("counting ends by a return or an error")


def _pause(number: int) -> float:
    """Seconds to wait after a try that failed, the first one being number 1."""
    return _WAIT_S * 2.0 ** (number - 1) * random.uniform(0.5, 1)


def _take_up(home: Path, parts: Path, goods: Goods, tell: Tell) -> None:
    """Keeps what is undamaged of a folder that holds the goods, and tells what is not."""
    with contextlib.suppress(CorruptError):
        seal = sealed.read_seal(home)
        if seal is None or seal.resolved != goods.listing.exact:
            return
        damage = sealed.damage(home, seal)
        for name in {*seal.files} & {*goods.layout} - {*damage}:
            (parts / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # there already, or no links: it is fetched
                os.link(home / name, parts / name)
        if sealed.read_ready(home) is not None:
            for name, problem in damage.items():
                tell(f"{problem}: {'fetching' if name in goods.layout else 'making it'} again")


def _fetch_all(goods: Goods, parts: Path, tell: Tell) -> dict[str, FileFacts]:
    """Brings every file to its place below `parts`; what is verified there stays."""
    parts.mkdir(exist_ok=True)
    facts: dict[str, FileFacts] = {}
    for name, blob in goods.blobs.items():
        target = parts / name
        if target.is_file() and (known := _verified(target, blob)) is not None:
            facts[name] = known
    missing = [name for name in goods.layout if name not in facts]
    size = sum(goods.blobs[name].size for name in missing)
    _check_room(parts, size)
    if missing:
        tell(f"fetching {goods.listing.exact}: {_count(missing)}, {_size(size)}")
    for name in missing:
        began = time.monotonic()
        facts[name] = _fetch(goods, name, parts / name)
        seconds = max(time.monotonic() - began, 1e-9)
        speed = f"{_size(facts[name].size / seconds)}/s"
        tell(f"  {name}  {_size(facts[name].size)} in {seconds:.1f} s ({speed})")
    return facts


def _fetch(goods: Goods, name: str, target: Path) -> FileFacts:
    blob = goods.blobs[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _MOST_S
    for number in range(1, _TRIES + 1):
        part = target.with_name(f"{PART}{secrets.token_hex(4)}-{target.name}")
        try:
            goods.listing.get(blob, part)
            if (facts := _verified(part, blob)) is not None:
                part.chmod(0o644)
                _flush(part)
                part.replace(target)
                return facts
            problem: Exception = CorruptError(
                f"{goods.listing.exact}: {blob.path} arrives damaged, {part.stat().st_size:,} "
                f"bytes instead of {blob.size:,} or other ones, {number} times in a row"
            )
        except RetryError as error:
            problem = error
        finally:
            part.unlink(missing_ok=True)
        if time.monotonic() > deadline:
            break
        if number < _TRIES:
            time.sleep(_pause(number))
    raise problem


def _flush(path: Path) -> None:
    """Makes sure that a file outlives the machine, as what says that it is ready will."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _verified(path: Path, blob: Blob) -> FileFacts | None:
    """What a file holds; None if that is not what the source says."""
    if path.stat().st_size != blob.size:
        return None
    sums = sums_of(path, blob)
    return None if sums.matches is False else FileFacts(sums.size, sums.sha256)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE_BYTES > free:
        raise UsageError(
            f"{folder.parent}: {_size(needed)} are to come and {_size(free)} are free, of which "
            f"{_size(_SPARE_BYTES)} stay so; make room, or fill another folder"
        )


def _checked(goods: Goods, parts: Path) -> str:
    try:
        return goods.check(parts)
    except (UsageError, CorruptError) as error:
        # nothing of it is worth keeping for another try
        shutil.rmtree(parts, ignore_errors=True)
        raise CorruptError(
            f"{goods.listing.exact}: {_at_source(str(error), goods, parts)}"
        ) from None


def _at_source(text: str, goods: Goods, parts: Path) -> str:
    """A sentence on files on their way, with the names that the source has for them."""
    for name, path in goods.layout.items():
        text = text.replace(str(parts / name), path)
    return text


# --- placing ---


def _place(home: Path, parts: Path, seal: Seal) -> None:
    """Moves the files to their places, between the manifest, which names them, and `READY`.

    All that needs room on the disk is done while what was there before is still ready.
    """
    sealed.write_manifest(parts, seal)
    sealed.write_ready(parts, seal)
    for folder in {(home / name).parent for name in seal.files} - {home}:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # not of home, which may be a mount that belongs to somebody else
    (home / sealed.READY).unlink(missing_ok=True)
    with contextlib.suppress(CorruptError):
        earlier = sealed.read_seal(home)
        for name in {*(earlier.files if earlier else ()), *_lying(home, seal.files)}:
            if name not in seal.files:
                (home / name).unlink(missing_ok=True)
    for name in (sealed.MANIFEST, *seal.files, sealed.READY):
        (parts / name).replace(home / name)
    shutil.rmtree(parts, ignore_errors=True)


def _count(files: Collection[str]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files)} files"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
