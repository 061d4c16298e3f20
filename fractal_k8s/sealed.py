"""Folders that were filled once and are only read from then on, such as a cluster's caches.

Beside its files such a folder has `MANIFEST.json`, which says where they are from and what they
hold, and, written last, `READY`: who finds it finds everything else. The folder may be a mount, so
it is never renamed; each file is, when it is whole. One process of a machine fills it at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fractal_k8s.errors import CorruptError, RetryError, UsageError

MANIFEST: Final = "MANIFEST.json"
READY: Final = "READY"
LOCK: Final = ".fill.lock"
# folders in it with what is not whole yet
FILLING: Final = ".filling-"
# what names of single files and folders begin with while they are on their way
PART: Final = ".part-"

# how the line begins that tells who has the lock
WAITING: Final = "waiting for another process"

_FORMAT: Final = 1
# folders between a sealed folder and its files, at most
_DEEPEST: Final = 3
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# tries to open a lock while others remove its folder
_OPENINGS: Final = 5
# what a network file system says when it is not well
_PASSING: Final = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Size in bytes and sha256 (hex) of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Seal:
    """What `MANIFEST.json` says of the folder it lies in."""

    # "model" or "dataset"
    kind: str
    # the reference as it was given, and the exact one that it stood for
    source: str
    resolved: str
    # sha256 that training knows the content by, hex
    digest: str
    # relative path -> what it holds
    files: Mapping[str, FileFacts]
    # UTC, ISO 8601
    created: str = ""
    # whatever else is worth knowing of it, such as rows; beside the rest in the file
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """What the file `MANIFEST.json` says."""
        known = asdict(self)
        facts = known.pop("facts")
        return {"format": _FORMAT, **known, **facts}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(facts.size for facts in self.files.values())

    @property
    def ready(self) -> dict[str, str]:
        """What the file `READY` says."""
        return {"source": self.source, "resolved": self.resolved, "digest": self.digest}


_OWN: Final = {"format", *(one.name for one in fields(Seal))}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_manifest(home: Path, seal: Seal) -> None:
    write_whole(home / MANIFEST, json.dumps(seal.content, indent=1) + "\n")


def read_seal(home: Path) -> Seal | None:
    """What the folder's `MANIFEST.json` says; None if it has none.

    Raises:
        CorruptError: it is damaged, or of a newer release.
    """
    path = home / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content["format"] > _FORMAT:
            raise CorruptError(
                f"{path}: of a newer release (format {content['format']}); update fractal-k8s"
            )
        files = {
            str(name): FileFacts(int(facts["size"]), str(facts["sha256"]))
            for name, facts in content["files"].items()
        }
        if any(Path(n).is_absolute() or ".." in Path(n).parts or "\0" in n for n in files):
            raise ValueError("a file outside of the folder")
        return Seal(
            **{key: str(content[key]) for key in ("kind", "source", "resolved", "digest")},
            files=files,
            created=str(content.get("created", "")),
            facts={key: value for key, value in content.items() if key not in _OWN},
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CorruptError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptError(f"{path}: damaged; fill the folder again") from None


def noted_facts(path: Path) -> FileFacts | None:
    """What the seal of the folder that a file lies in, or one of those above, says of the file."""
    for home in path.parents[:_DEEPEST]:
        with contextlib.suppress(CorruptError):
            seal = read_seal(home)
            name = path.relative_to(home).as_posix()
            if seal is not None and name in seal.files:
                return seal.files[name]
    return None


def with_file(home: Path, name: str, facts: FileFacts) -> Seal:
    """Adds a file to the folder's `MANIFEST.json`, and leaves everything else that it says."""
    seal = read_seal(home)
    assert seal is not None  # only what is ready gets another file
    seal = replace(seal, files={**seal.files, name: facts})
    write_manifest(home, seal)
    return seal


def without_files(home: Path, seal: Seal, names: Collection[str]) -> Seal:
    """Deletes files of a folder; its seal then names them no more."""
    if not names:
        return seal
    seal = replace(seal, files={name: seal.files[name] for name in seal.files if name not in names})
    write_manifest(home, seal)
    for name in names:
        (home / name).unlink(missing_ok=True)
    return seal


def write_ready(home: Path, seal: Seal) -> None:
    """Says that everything is there."""
    write_whole(home / READY, json.dumps(seal.ready) + "\n")


def read_ready(home: Path) -> dict[str, Any] | None:
    """What `READY` says; None if there is none, empty if it was made by hand."""
    try:
        content = json.loads((home / READY).read_bytes() or b"{}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def are_at_odds(home: Path, seal: Seal) -> bool:
    """Whether `READY` says something else than the seal; one that was made by hand says nothing."""
    ready = read_ready(home)
    return bool(ready) and ready != seal.ready


def read_whole(home: Path) -> Seal | None:
    """The seal of a folder that is ready and has every file in its size; else None."""
    try:
        seal = read_seal(home)
        if seal is None or read_ready(home) is None:
            return None
        whole = all(
            (home / name).stat().st_size == facts.size for name, facts in seal.files.items()
        )
    except (CorruptError, OSError):
        return None
    return seal if whole else None


def contents(homes: Iterable[Path]) -> list[str]:
    """What folders hold by their seals, a line each; those without a seal are left out."""
    lines = []
    for home in homes:
        with contextlib.suppress(CorruptError):
            if (seal := read_seal(home)) is not None:
                lines.append(f"{home} holds {seal.resolved}, sha256 {seal.digest[:12]}...")
    return lines


def damage(home: Path, seal: Seal, *, hashes: bool = True) -> dict[str, str]:
    """The files that are not as the folder's seal says, with a sentence each.

    Args:
        hashes: compare contents too, which reads every byte.
    """
    found = {}
    for name, facts in seal.files.items():
        path = home / name
        try:
            size = path.stat().st_size
            if size != facts.size:
                found[name] = f"{path}: has {size:,} bytes, was sealed with {facts.size:,}"
            elif hashes and (digest := file_sha256(path)) != facts.sha256:
                found[name] = (
                    f"{path}: its sha256 is {digest[:12]}..., was sealed with "
                    f"{facts.sha256[:12]}...: bytes have changed"
                )
        except OSError as error:
            found[name] = f"{path}: {error.strerror}"
    return found


def strangers(home: Path, seal: Seal) -> list[str]:
    """Files of a folder that its seal does not name, as relative paths.

    Hidden ones, such as a lock or a file system's own, and `lost+found` do not count.
    """
    known = {*seal.files, MANIFEST, READY}
    found = []
    for folder, folders, names in os.walk(home):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "lost+found")
        paths = (Path(folder, name).relative_to(home) for name in names if name[0] != ".")
        found += [path.as_posix() for path in paths if path.as_posix() not in known]
    return sorted(found)


def facts_of(path: Path) -> FileFacts:
    return FileFacts(path.stat().st_size, file_sha256(path))


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Writes a small file that is seen whole or not at all, and that everybody may read."""
    temporary = path.with_name(f"{PART}{secrets.token_hex(4)}-{path.name}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# --- one process after another ---


@contextlib.contextmanager
def being_filled(home: Path, tell: Callable[[str], None]) -> Iterator[bool]:
    """Makes the folder and holds its lock; false where its file system has no locks.

    Raises:
        UsageError: it cannot be written; RetryError: it may be written later.
    """
    with _errors_said(home):
        # innermost first
        made = [path for path in (home, *home.parents) if not path.exists()]
        with _locked(home, tell) as alone:
            if alone:  # so that what is on its way belongs to nobody who lives
                drop_all(home.glob(f"{PART}*"))
            try:
                yield alone
            except BaseException:
                if alone:
                    _unmake(home, made)
                raise


def is_being_filled(home: Path) -> bool:
    """Whether a process holds the folder's lock; true where its file system has no locks."""
    try:
        handle = os.open(home / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _unmake(home: Path, made: list[Path]) -> None:
    """Removes folders that were made for nothing: no file but the lock lies there."""
    inside = sorted(home.rglob("*"), reverse=True)
    if home not in made or [path.name for path in inside if not path.is_dir()] != [LOCK]:
        return
    with contextlib.suppress(OSError):  # such as: others have put something there meanwhile
        (home / LOCK).unlink()
        for folder in (*(path for path in inside if path.is_dir()), *made):
            folder.rmdir()


def drop_all(paths: Iterable[Path]) -> None:
    """Deletes files and folders, as far as they can be."""
    for path in [*paths]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(home: Path, tell: Callable[[str], None]) -> Iterator[bool]:
    handle = _open_lock(home)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"{WAITING} to fill {home} ...")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # some network file systems; names are unique, so that nothing breaks
            yield False
            return
        if not _is_still(handle, home / LOCK):
            # who had it has removed the folder, with nothing in it
            with _locked(home, tell) as alone:
                yield alone
            return
        yield True
    finally:
        os.close(handle)


def _open_lock(home: Path) -> int:
    """A folder's lock, open; both are made where another process has just removed them."""
    for _ in range(_OPENINGS):
        with contextlib.suppress(FileNotFoundError):
            home.mkdir(parents=True, exist_ok=True)
            return os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(home / LOCK))


def _is_still(handle: int, path: Path) -> bool:
    """Whether an open file is the one that has a name now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _errors_said(home: Path) -> Iterator[None]:
    """Turns what the operating system says of the folder into what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UsageError(
                f"{home}: the disk is full, or no larger file is allowed; free some space and run "
                "the same command again, which takes up what is there"
            ) from None
        if error.errno in _PASSING:
            raise RetryError(f"{home}: the file system fails ({error.strerror})") from None
        where = f" ({error.filename})" if error.filename else ""
        raise UsageError(
            f"{home}: cannot be filled: {error.strerror or error}{where}; "
            "let this user write there, or name another folder"
        ) from None
