"""Repositories of the Hugging Face hub as a source."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fractal_k8s.checkpoints.listing import Blob, Listing
from fractal_k8s.errors import FractalError, RetryError, UsageError, first_line
from fractal_k8s.references import Reference
from fractal_k8s.sealed import PART

_TIMEOUT_S: Final = 30
_PASSES: Final = (408, 429)


def list_repository(reference: Reference) -> Listing:
    """The files of a repository, its revision resolved to a commit.

    Raises:
        UsageError: there is no such repository or revision, or it may not be read.
        RetryError: the hub does not answer.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise UsageError(
            f"{reference.text}: reading the hub needs huggingface-hub; install it with: "
            "pip install huggingface-hub"
        ) from None
    endpoint = os.environ.get("HF_ENDPOINT")  # which the client reads when it is loaded only
    with _translated(reference):
        info = HfApi(endpoint).model_info(
            reference.place,
            revision=reference.version,
            files_metadata=True,
            timeout=_TIMEOUT_S,
        )
    commit, blobs = str(info.sha), {}
    for file in info.siblings or ():
        path, size = str(file.rfilename), int(file.size or 0)
        if file.lfs is not None:
            blobs[path] = Blob(path, size, "sha256", str(file.lfs.sha256))
        else:
            blobs[path] = Blob(path, size, "git-sha1", str(file.blob_id))

    def get(blob: Blob, target: Path) -> None:
        with (
            _translated(reference),
            tempfile.TemporaryDirectory(dir=target.parent, prefix=PART) as folder,
        ):
            path = hf_hub_download(
                reference.place,
                blob.path,
                revision=commit,
                local_dir=folder,
                endpoint=endpoint,
            )
            Path(path).replace(target)

    return Listing(reference.at(commit).text, blobs, get, reference.folder)


@contextlib.contextmanager
def _translated(reference: Reference) -> Iterator[None]:
    """Turns what the hub's client raises into what it means."""
    from huggingface_hub import errors

    try:
        yield
    except FractalError:
        raise
    except errors.OfflineModeIsEnabled:
        raise UsageError(
            f"{reference.text}: HF_HUB_OFFLINE says not to ask the hub; unset it, or give a folder"
        ) from None
    except errors.GatedRepoError:
        raise UsageError(
            f"{reference.text}: may be read only after its terms were accepted; do that on the "
            "hub's page, and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        hint = "" if os.environ.get("HF_TOKEN") else "; if it is private, set HF_TOKEN"
        raise UsageError(f"{reference.text}: no such repository{hint}") from None
    except errors.RevisionNotFoundError:
        raise UsageError(
            f"{reference.text}: the repository has no revision {reference.version!r}"
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status >= 500 or status in _PASSES:
            raise RetryError(f"{reference.text}: the hub answers {status}") from None
        hint = "; set HF_TOKEN to a token that may read it" if status in (401, 403) else ""
        raise UsageError(f"{reference.text}: the hub answers {status}{hint}") from None
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise  # of this machine's disk
        raise RetryError(f"{reference.text}: {first_line(error)}") from None
    except Exception as error:
        # of the client's own network library, whichever it is in this release
        raise RetryError(
            f"{reference.text}: the hub cannot be reached ({first_line(error)})"
        ) from None
