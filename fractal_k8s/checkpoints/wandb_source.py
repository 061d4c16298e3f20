"""Artifacts of Weights & Biases as a source. wandb is loaded when one is asked for."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fractal_k8s.checkpoints.listing import Blob, Listing, from_base64
from fractal_k8s.errors import CorruptError, FractalError, RetryError, UsageError, first_line
from fractal_k8s.references import Reference
from fractal_k8s.sealed import PART

_TIMEOUT_S: Final = 30
# of what it says, with no digits and dashes around a status, which may be part of a name
_NO_RIGHTS: Final = re.compile(
    r"permission denied|(?<![\w/-])40[13](?![\w/-])|unauthorized|forbidden|api key"
)
_NOT_THERE: Final = re.compile(r"not found|(?<![\w/-])404(?![\w/-])|does not exist|could not find")


def list_artifact(reference: Reference) -> Listing:
    """The files of an artifact, with its alias resolved to a version.

    Raises:
        UsageError: there is none, it may not be read, or wandb is not installed.
        RetryError: W&B does not answer.
    """
    try:
        import wandb
    except ImportError:
        raise UsageError(
            f"{reference.text}: reading artifacts needs wandb; install it with: "
            "pip install 'fractal-k8s[wandb]'"
        ) from None
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        raise UsageError(f"{reference.text}: WANDB_MODE says not to ask W&B; unset it")
    logging.getLogger("wandb").setLevel(logging.CRITICAL)
    with _translated(reference):
        api = wandb.Api(timeout=_TIMEOUT_S)
        artifact = api.artifact(f"{reference.place}:{reference.version}")
        entries = artifact.manifest.entries
    blobs = {str(path): _blob(reference, str(path), entry) for path, entry in entries.items()}

    def get(blob: Blob, target: Path) -> None:
        # it writes to a path of its own choice below a folder
        with (
            _translated(reference),
            tempfile.TemporaryDirectory(dir=target.parent, prefix=PART) as folder,
        ):
            entry = artifact.get_entry(blob.path)
            Path(entry.download(root=folder, skip_cache=True)).replace(target)

    return Listing(reference.at(str(artifact.version)).text, blobs, get)


def _blob(reference: Reference, path: str, entry: Any) -> Blob:
    if entry.ref is not None:
        raise UsageError(
            f"{reference.text}: {path} is only a link to {entry.ref}; give that place instead"
        )
    # newer servers may use another sum, which they name
    is_md5 = "md5" in str(entry.extra.get("alg", "md5")).lower()
    digest = from_base64(entry.digest) if is_md5 else ""
    return Blob(path, int(entry.size or 0), "md5" if is_md5 else None, digest)


@contextlib.contextmanager
def _translated(reference: Reference) -> Iterator[None]:
    """Turns what wandb raises, which may be anything, into what it means."""
    try:
        yield
    except (FractalError, OSError) as error:
        if isinstance(error, FractalError) or not _is_network(error):
            raise
        if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
            raise _no_rights(reference, error) from None
        raise RetryError(f"{reference.text}: W&B cannot be reached ({first_line(error)})") from None
    except Exception as error:
        text = str(error).lower().replace(reference.place.lower(), "")
        if _NOT_THERE.search(text):
            raise UsageError(
                f"{reference.text}: no such artifact ({first_line(error)}); check the name, and "
                "that WANDB_API_KEY belongs to somebody who may read it"
            ) from None
        if _NO_RIGHTS.search(text):
            raise _no_rights(reference, error) from None
        if type(error).__name__ == "ValidationError":
            raise CorruptError(f"{reference.text}: its manifest is damaged") from None
        raise RetryError(
            f"{reference.text}: W&B gives no usable answer ({first_line(error)})"
        ) from None


def _no_rights(reference: Reference, error: Exception) -> UsageError:
    return UsageError(
        f"{reference.text}: may not be read ({first_line(error)}); set WANDB_API_KEY to the key of "
        "somebody who may"
    )


def _is_network(error: OSError) -> bool:
    return type(error).__module__.split(".")[0] in ("requests", "urllib3", "http", "socket") or (
        isinstance(error, ConnectionError | TimeoutError)
    )
