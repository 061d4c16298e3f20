"""Objects of a bucket as a source."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fractal_k8s.buckets import open_s3
from fractal_k8s.checkpoints.layout import may_be_part
from fractal_k8s.checkpoints.listing import Blob, Listing
from fractal_k8s.errors import CorruptError, RetryError, UsageError
from fractal_k8s.references import Reference

if TYPE_CHECKING:
    from pyarrow import fs as pafs

_CHUNK: Final = 1 << 24
_ASKED_AT_ONCE: Final = 16
_NO_RIGHTS: Final = ("ACCESS_DENIED", "INVALID_ACCESS", "SIGNATURE", "403", "credentials")


def list_bucket(reference: Reference) -> Listing:
    """The objects below a prefix that may be parts of models, or the one object of that name.

    The exact reference ends with 12 digits of the sha256 over their names, sizes and ETags: what
    else is written beside them, such as optimizers' states, makes no other model of it.

    Raises:
        UsageError: there is nothing, it may not be read, or it is not what the reference says.
        RetryError: the bucket does not answer.
    """
    from pyarrow import fs as pafs

    system = open_s3(reference.uri, reference.options)
    with _translated(reference):
        files = system.get_file_info([reference.place])
        root = reference.place
        if files[0].type == pafs.FileType.File:
            root = reference.place.rpartition("/")[0]
        else:
            infos = system.get_file_info(pafs.FileSelector(root, recursive=True))
            files = [info for info in infos if info.type == pafs.FileType.File]
            if not files:
                raise UsageError(f"{reference.text}: holds nothing; check the prefix")
            files = [info for info in files if may_be_part(info.base_name)]
        paths = [info.path for info in files]
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:  # a listing of pyarrow's has no ETags
            tags = dict(zip(paths, pool.map(functools.partial(_tag, system), paths), strict=True))
    content, blobs = hashlib.sha256(), {}
    for info in sorted(files, key=lambda info: info.path):
        path = info.path[len(root) + 1 :]
        blobs[path] = Blob(path, info.size)
        content.update(f"{path}\0{info.size}\0{tags[info.path]}\n".encode())
    found = content.hexdigest()[:12]
    if reference.version not in (None, found):
        raise UsageError(
            f"{reference.text}: the objects have changed since (they are @{found} now); launch a "
            "new sweep, or put the old ones back"
        )

    def get(blob: Blob, target: Path) -> None:
        path = f"{root}/{blob.path}"
        with _translated(reference):
            _copy(system, path, target)
            if _tag(system, path) != tags[path]:
                raise CorruptError(f"{reference.text}: {blob.path} was changed while it was read")

    return Listing(reference.at(found).text, blobs, get)


def _copy(system: pafs.FileSystem, path: str, target: Path) -> None:
    with system.open_input_stream(path, compression=None) as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            file.write(chunk)


def _tag(system: pafs.FileSystem, path: str) -> str:
    """The object's ETag, which changes with its content."""
    with system.open_input_stream(path, compression=None) as stream:
        facts = {str(key).lower(): str(value) for key, value in stream.metadata().items()}
    return facts["etag"]


@contextlib.contextmanager
def _translated(reference: Reference) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{reference.text}: no such bucket or object") from None
    except OSError as error:
        if "NO_SUCH_" in str(error):
            raise UsageError(f"{reference.text}: no such bucket or object") from None
        text = (str(error).strip().splitlines() or [""])[0]
        # not in the names of keys and buckets, which come before
        if any(word in text.partition("AWS Error")[2] for word in _NO_RIGHTS):
            known = "" if os.environ.get("AWS_ACCESS_KEY_ID") else " (none is set)"
            raise UsageError(
                f"{reference.text}: may not be read; check AWS_ACCESS_KEY_ID{known} and "
                f"AWS_SECRET_ACCESS_KEY, and their rights on the bucket ({text})"
            ) from None
        if "AWS Error" not in text and error.errno:
            raise  # of this machine's disk
        raise RetryError(f"{reference.text}: the bucket does not answer ({text})") from None
