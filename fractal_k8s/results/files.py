"""Files under one root, local or in object storage, with the one write the store needs: atomic put.

A reader sees the old content of a key, or the new, or none; never a part. On a local disk that is
a temporary file and a rename, in object storage a single PUT; of what is too large for one PUT, a
temporary object and a copy that the server makes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from urllib.parse import parse_qs, urlsplit

from fractal_k8s.buckets import open_gcs, open_s3
from fractal_k8s.errors import StoreError, UsageError
from fractal_k8s.results.retries import Deadline, in_time, is_refused, told, tried

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileInfo

T = TypeVar("T")

_TEMPORARY: Final = ".writing-"
# of a listing with all its pages, a thousand names each
_LISTING_S: Final = 900.0
# the one file of a claimed folder
_FIRST: Final = "first.json"
# Object stores tell times in whole seconds: who claims within one of them must see the other.
_SETTLE_S: Final = 2.0
# The least part of a multipart upload: whatever is smaller goes in one request.
_ONE_PUT_BYTES: Final = 5 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored file: its key below the root, size in bytes, time of the last write in ns."""

    key: str
    size: int
    modified_ns: int


class Files(Protocol):
    """What the store asks of a place. Keys are relative, with `/` between parts."""

    # what to open it with again, and what to show to a person
    uri: str
    place: str

    def put(self, key: str, data: bytes) -> None: ...
    def get(self, key: str) -> bytes | None: ...

    def open(self, key: str) -> NativeFile | None:
        """A file to read parts of; None if there is none. Reading may raise OSError."""
        ...

    def entries(self, prefix: str) -> list[Entry]: ...
    def folders(self) -> list[str]: ...

    def claim(self, folder: str, data: bytes) -> bytes:
        """Leaves data in a folder unless somebody was there before; returns what was first.

        Everybody who claims the same folder, at the same time or later, is told the same.
        """
        ...

    def claimed(self, folder: str) -> bytes | None:
        """What was first claimed in a folder, or None."""
        ...

    def remove(self, folder: str) -> None:
        """Deletes a folder and all that is in it; nothing happens if there is none."""
        ...

    def discard(self, keys: Iterable[str]) -> None:
        """Deletes files that nobody needs; those that are gone or cannot be deleted are left."""
        ...


def open_files(uri: str) -> Files:
    """The files at a store URI: a path, `file://`, `s3://bucket/prefix` or `gs://bucket/prefix`.

    Raises:
        UsageError: the scheme is unknown or the URI has no bucket.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return LocalFiles(Path(uri))
    if scheme == "file":
        return LocalFiles(Path(urlsplit(uri).path))
    if scheme in ("s3", "gs"):
        return ObjectFiles(uri)
    raise UsageError(f"store {uri}: unknown scheme {scheme!r}; use a path, s3:// or gs://")


class LocalFiles:
    """A folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.uri = self.place = str(self.root)

    def path(self, key: str) -> Path:
        return self.root / key

    def put(self, key: str, data: bytes) -> None:
        target = self.root / key
        with local_errors("write", target), _new_folders(target.parent):
            handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o666 & ~_umask())
                os.replace(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    def get(self, key: str) -> bytes | None:
        path = self.root / key
        with local_errors("read", path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def open(self, key: str) -> NativeFile | None:
        import pyarrow as pa

        path = self.root / key
        with local_errors("read", path):
            try:
                return pa.OSFile(str(path), "rb")
            except (FileNotFoundError, NotADirectoryError):
                return None

    def entries(self, prefix: str) -> list[Entry]:
        base = self.root / prefix
        found: list[Entry] = []
        with local_errors("list", base):
            for folder, _, names in os.walk(base, onerror=_raise_unless_missing):
                for name in names:
                    if name.startswith(_TEMPORARY):
                        continue
                    path = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):
                        stat = path.stat()
                        key = path.relative_to(self.root).as_posix()
                        found.append(Entry(key, stat.st_size, stat.st_mtime_ns))
        return sorted(found, key=lambda entry: entry.key)

    def claim(self, folder: str, data: bytes) -> bytes:
        target = self.root / folder / _FIRST
        if (found := self.claimed(folder)) is not None:
            return found
        mine = target.with_name(f"{_TEMPORARY}{secrets.token_hex(6)}")
        self.put(mine.relative_to(self.root).as_posix(), data)
        with local_errors("write", target):
            with contextlib.suppress(FileExistsError):
                os.link(mine, target)  # unlike a rename it fails where there is one
            mine.unlink()
        return self.claimed(folder) or data

    def claimed(self, folder: str) -> bytes | None:
        return self.get(f"{folder}/{_FIRST}")

    def remove(self, folder: str) -> None:
        target = self.root / folder
        with local_errors("delete", target), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(target)

    def discard(self, keys: Iterable[str]) -> None:
        for key in keys:
            with contextlib.suppress(OSError):
                self.path(key).unlink()

    def remove_leftovers(self, prefix: str) -> None:
        """Deletes the temporary files of writers that were killed. Only while nobody writes."""
        for path in (self.root / prefix).rglob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def free_bytes(self) -> int:
        """Free space where the store is, or will be."""
        place = next(path for path in (self.root, *self.root.parents) if path.exists())
        with local_errors("use", place):
            return shutil.disk_usage(place).free

    def folders(self) -> list[str]:
        with local_errors("list", self.root):
            try:
                return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
            except FileNotFoundError:
                return []


@contextlib.contextmanager
def _new_folders(folder: Path) -> Iterator[None]:
    """The folder with its parents; those that had to be made vanish again if the body fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextlib.contextmanager
def local_errors(verb: str, path: Path) -> Iterator[None]:
    """Turns what the operating system says into a StoreError with a next step."""
    try:
        yield
    except OSError as error:
        raise _store_error(verb, str(path), error) from None


def _store_error(verb: str, place: str, error: OSError) -> StoreError:
    advice = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the disk quota is used up; free some space",
        errno.EROFS: "the file system is read-only; choose another --store",
        errno.EACCES: "permission denied; choose another --store",
        errno.EPERM: "permission denied; choose another --store",
        errno.ENOTDIR: "a part of the path is a file; choose another --store",
        errno.EEXIST: "a part of the path is a file; choose another --store",
    }
    reason = advice.get(error.errno or 0, error.strerror or str(error))
    return StoreError(f"cannot {verb} {place}: {reason}")


class ObjectFiles:
    """A prefix of a bucket, through pyarrow's file systems.

    What may pass, such as "slow down" or a lost connection, is tried again; see `results.retries`.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if not parts.netloc:
            raise UsageError(f"store {uri}: names no bucket; write {parts.scheme}://BUCKET/PREFIX")
        self.uri = uri
        self.place = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self.base = (parts.netloc + parts.path).rstrip("/")
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self._fs = open_s3(uri, options) if parts.scheme == "s3" else open_gcs(uri, options)
        self._is_checked = False

    def put(self, key: str, data: bytes) -> None:
        if len(data) < _ONE_PUT_BYTES:
            self._tried("write", key, lambda: self._upload(key, data))
        else:
            self._tried("write", key, lambda: self._put_large(key, data))

    def _upload(self, key: str, data: bytes) -> None:
        with self._fs.open_output_stream(f"{self.base}/{key}", compression=None) as stream:
            stream.write(data)

    def _put_large(self, key: str, data: bytes) -> None:
        """Uploads beside the key and has the server copy.

        pyarrow completes a multipart upload of which a part has failed: what lay there would be
        replaced by a part of the new, or by nothing.
        """
        folder, _, name = key.rpartition("/")
        temporary = f"{folder}/{_TEMPORARY}{secrets.token_hex(6)}-{name}".lstrip("/")
        try:
            self._upload(temporary, data)
            self._fs.copy_file(f"{self.base}/{temporary}", f"{self.base}/{key}")
        finally:
            self.discard([temporary])

    def get(self, key: str) -> bytes | None:
        def read(deadline: Deadline) -> bytes | None:
            try:
                with self._fs.open_input_file(f"{self.base}/{key}") as file:
                    deadline.allow(file.size())
                    data: bytes = file.read()
            except FileNotFoundError:
                return None
            return data

        data = self._tried("read", key, lambda: in_time(read, Deadline()))
        if data is None:
            self._check_bucket()
        return data

    def open(self, key: str) -> NativeFile | None:
        def opened(_: Deadline) -> NativeFile | None:
            try:
                return self._fs.open_input_file(f"{self.base}/{key}")
            except FileNotFoundError:
                return None

        return self._tried("read", key, lambda: in_time(opened, Deadline()))

    def entries(self, prefix: str) -> list[Entry]:
        from pyarrow import fs as pafs

        infos = self._listed(prefix, recursive=True)
        files = [info for info in infos if info.type == pafs.FileType.File]
        entries = [
            Entry(info.path[len(self.base) + 1 :], info.size, info.mtime_ns or 0)
            for info in files
            if not info.base_name.startswith(_TEMPORARY)
        ]
        return sorted(entries, key=lambda entry: entry.key)

    def _listed(self, prefix: str, *, recursive: bool) -> list[FileInfo]:
        """What lies below a prefix; nothing if there is none of it."""
        from pyarrow import fs as pafs

        selector = pafs.FileSelector(f"{self.base}/{prefix}".rstrip("/"), recursive=recursive)

        def listed(_: Deadline) -> list[FileInfo]:
            # with `allow_not_found` a bucket that is missing, or is said to be in the middle of
            # the listing, would give an empty or a shorter list
            try:
                found: list[FileInfo] = self._fs.get_file_info(selector)
            except FileNotFoundError:
                return []
            return found

        infos = self._tried("list", prefix, lambda: in_time(listed, Deadline(_LISTING_S)))
        if not infos:
            self._check_bucket()
        return infos

    def _check_bucket(self) -> None:
        """Asks once whether nothing is an answer: of an object store, about a bucket it has.

        Raises:
            StoreError: there is no such bucket, or the server says yes to everything.
        """
        from pyarrow import fs as pafs

        if self._is_checked:
            return
        bucket = self.base.partition("/")[0]
        nothing = f"{self.base}/{_TEMPORARY}{secrets.token_hex(6)}"

        def asked() -> list[FileInfo]:
            try:
                found: list[FileInfo] = self._fs.get_file_info([bucket, nothing])
            except OSError as error:
                if is_refused(error):  # who may read objects need not be let ask for their bucket
                    return []
                raise
            return found

        kinds = [info.type for info in self._tried("read", "", asked)]
        if kinds and kinds[0] == pafs.FileType.NotFound:
            raise StoreError(
                f"cannot read {self.place}: no such bucket; check its name and the endpoint"
            )
        if kinds and kinds[1] != pafs.FileType.NotFound:
            raise StoreError(
                f"cannot read {self.place}: the endpoint does not speak S3; check its address and "
                "port"
            )
        self._is_checked = True

    def claim(self, folder: str, data: bytes) -> bytes:
        # pyarrow has no write that fails where there is something: everybody writes an object of
        # its own, waits until the others' are to be seen, and takes the oldest
        if (found := self.claimed(folder)) is not None:
            return found
        # never one's own again, or a later claim would make an earlier one look younger
        self.put(f"{folder}/{secrets.token_hex(6)}.json", data)
        time.sleep(_SETTLE_S)
        return self.claimed(folder) or data

    def claimed(self, folder: str) -> bytes | None:
        entries = self.entries(folder)
        if not entries:
            return None
        return self.get(min(entries, key=lambda entry: (entry.modified_ns, entry.key)).key)

    def remove(self, folder: str) -> None:
        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_dir(f"{self.base}/{folder}")

        self._tried("delete", folder, delete)

    def discard(self, keys: Iterable[str]) -> None:
        for key in keys:
            with contextlib.suppress(OSError):
                self._fs.delete_file(f"{self.base}/{key}")

    def folders(self) -> list[str]:
        from pyarrow import fs as pafs

        infos = self._listed("", recursive=False)
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)

    def _tried(self, verb: str, key: str, request: Callable[[], T]) -> T:
        """What a request gives, tried again while its trouble may pass.

        Raises:
            StoreError: it does not pass; one sentence with the cause and what to do.
        """
        try:
            return tried(request)
        except FileNotFoundError:
            raise StoreError(f"cannot {verb} {self.place}: no such bucket") from None
        except OSError as error:
            place = f"{self.place} ({key})" if key else self.place
            raise StoreError(f"cannot {verb} {place}: {told(error)}") from None
