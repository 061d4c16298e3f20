"""Rows of data sets on the hub, through `datasets`, with errors that say what to do."""

from __future__ import annotations

import errno
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from fractal_k8s.errors import CorruptError, FractalError, RetryError, UsageError, first_line

T = TypeVar("T")
Tell = Callable[[str], None]

# Pauses between attempts, in seconds, each lengthened by up to a half.
PAUSES: tuple[float, ...] = (2.0, 4.0, 8.0)

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
# what `datasets` says of a split with another number of rows than the repository's card has
_COUNTS: Final = re.compile(
    r"'expected': \w+\(name='(\w+)'[^)]*num_examples=(\d+)[^)]*\), "
    r"'recorded': [^)]*num_examples=(\d+)"
)
_UNWRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})
# What the hub answers when it is busy or being repaired.
_PASSING_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 522, 524})
# Exceptions by name, of several libraries that need not be loaded to be known.
_OFFLINE: Final = frozenset({"OfflineModeIsEnabled"})
_ABSENT: Final = frozenset(
    {"RepositoryNotFoundError", "RevisionNotFoundError", "DatasetNotFoundError"}
)
_EMPTY: Final = frozenset({"EmptyDatasetError", "DataFilesNotFoundError"})
_DAMAGED: Final = frozenset(
    {
        "ArrowInvalid",
        "ChecksumVerificationError",
        "SplitsVerificationError",
        "JSONDecodeError",
        "UnicodeDecodeError",
    }
)
# Those that say less than what led to them.
_WRAPPING: Final = frozenset({"DatasetGenerationError", "DatasetGenerationCastError"})
_PASSING: Final = frozenset(
    {
        "ConnectionError",
        "TimeoutError",
        "TransportError",
        "ChunkedEncodingError",
        "IncompleteRead",
        "LocalEntryNotFoundError",
    }
)


def commit_of(repository: str, revision: str, tell: Tell) -> str:
    """The commit that a branch, a tag or a short hash means now; 40 digits are taken as they are.

    Raises:
        UsageError: there is no such revision, or a folder here hides it from `datasets`;
        RetryError: the hub cannot be asked.
    """
    if Path(repository).is_dir():
        raise UsageError(
            f"data set {repository}: a folder of that name lies here, and `datasets` would read it "
            "instead of the hub; run the command in another folder"
        )
    if _COMMIT.fullmatch(revision):
        return revision

    def ask() -> str:
        from huggingface_hub import HfApi

        if _datasets().config.HF_HUB_OFFLINE:
            raise UsageError(
                f"data set {repository}: offline, so nobody can say which commit {revision} is; "
                "name the commit, or unset HF_DATASETS_OFFLINE and HF_HUB_OFFLINE"
            )
        return str(HfApi().dataset_info(repository, revision=revision).sha)

    return persistently(f"{repository}@{revision}", ask, tell)


def load_splits(repository: str, commit: str, tell: Tell) -> dict[str, Any]:
    """Fetches a data set whole into the libraries' own cache: split -> `datasets.Dataset`.

    With HF_DATASETS_OFFLINE=1 it is taken from there, if it is that commit.

    Raises:
        UsageError: there is no such thing, or no right to it; CorruptError: it is damaged;
        RetryError: the hub went on failing.
    """
    what = f"{repository}@{commit[:12]}"

    def fetch(mode: str | None = None) -> dict[str, Any]:
        builder = _datasets().load_dataset_builder(repository, revision=commit, download_mode=mode)
        if builder.hash != commit:  # offline it takes the newest that it has
            raise UsageError(
                f"data set {what}: offline, and the cache of `datasets` holds commit "
                f"{builder.hash} only; ask for that one, or go online"
            )
        builder.download_and_prepare(download_mode=mode)
        return {str(name): part for name, part in builder.as_dataset().items()}

    try:
        return persistently(what, fetch, tell)
    except CorruptError as error:
        tell(f"{error}; fetching all of it again")
    return persistently(what, lambda: fetch("force_redownload"), tell)


def stream_rows(
    repository: str,
    commit: str,
    split: str,
    columns: Sequence[str],
    needed: Sequence[str],
    tell: Tell,
) -> Iterator[dict[str, Any]]:
    """A split's rows in order, a batch at a time.

    Args:
        columns: what of a row is asked for, if there is such a column; of parquet files nothing
            else is fetched.
        needed: those of them that there must be.

    Raises:
        UsageError, CorruptError, RetryError: as `load_splits`; nothing is retried once rows came.
    """
    what = f"{repository}@{commit[:12]}"

    def begin() -> Any:
        builder = _datasets().load_dataset_builder(repository, revision=commit)
        rows = builder.as_streaming_dataset(split=split)
        names = rows.column_names  # of parquet without reading a row; None = the rows will tell
        if names is not None and (missing := [name for name in needed if name not in names]):
            raise CorruptError(f"data set {what}: has no column {', '.join(missing)}")
        if names is None or not hasattr(builder.config, "columns"):
            return rows
        there = [name for name in columns if name in names]
        return _datasets().load_dataset(
            repository, split=split, revision=commit, streaming=True, columns=there
        )

    rows = persistently(what, begin, tell)
    try:
        yield from rows
    except Exception as error:
        raise translated(error, what) from error


def split_names(repository: str, commit: str, tell: Tell) -> list[str]:
    """The names of a data set's splits."""

    def ask() -> list[str]:
        return [*map(str, _datasets().get_dataset_split_names(repository, revision=commit))]

    return persistently(f"{repository}@{commit[:12]}", ask, tell)


def _datasets() -> Any:
    """The library, without progress bars and chatter: the command says what it does."""
    import datasets
    import huggingface_hub.utils

    hub_utils: Any = huggingface_hub.utils  # says less of its types than it has
    hub_utils.disable_progress_bars()
    hub_utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    return datasets


def persistently(what: str, attempt: Callable[[], T], tell: Tell) -> T:
    """Does it, and again after a pause while the trouble is of a kind that may pass.

    Raises:
        FractalError: the trouble of the last attempt.
    """
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except FractalError:
            raise
        except Exception as error:
            trouble = translated(error, what)
            if not isinstance(trouble, RetryError):
                raise trouble from error
            if pause is None:
                raise RetryError(
                    f"{trouble}; run the same command again later, check the network and its proxy "
                    "(HTTPS_PROXY, HF_ENDPOINT), or name files of this machine"
                ) from error
            wait = pause * (1 + random.random() / 2)
            tell(f"{trouble}; trying again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def translated(error: BaseException, what: str) -> FractalError:
    """One of our errors for whatever the libraries raise: what may pass, and what will not."""
    chain = list(_chain(error))
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    said = first_line(_telling(error))
    if names & _OFFLINE or any(name in said for name in _OFFLINE):
        return UsageError(
            f"data set {what}: not in the cache, and HF_DATASETS_OFFLINE or HF_HUB_OFFLINE forbids "
            "to fetch it; unset them once"
        )
    numbers = {link.errno for link in chain if isinstance(link, OSError)}
    if errno.ENOSPC in numbers or errno.EDQUOT in numbers:
        return UsageError(f"data set {what}: the disk is full; set HF_HOME to a larger one")
    if numbers & _UNWRITABLE:
        return UsageError(
            f"data set {what}: {said}; set HF_HOME to a folder that this user may write to"
        )
    statuses = {status for link in chain if (status := _status(link)) is not None}
    if statuses & {401, 403} or "GatedRepoError" in names:
        return UsageError(
            f"data set {what}: the hub refuses it; accept its terms there and set HF_TOKEN to a "
            "token that may read it"
        )
    if names & _ABSENT or 404 in statuses:
        return UsageError(
            f"data set {what}: the hub has no such repository or revision; if it is private, set "
            "HF_TOKEN to a token that may read it"
        )
    if names & _EMPTY:
        return UsageError(f"data set {what}: the repository holds no data files ({said})")
    if statuses & _PASSING_STATUS:
        return RetryError(f"data set {what}: the hub answers {min(statuses & _PASSING_STATUS)}")
    if "NonMatchingSplitsSizesError" in names and (counts := _COUNTS.findall(said)):
        told = "; ".join(
            f"{name}: {came} rows came, its card says {due}" for name, due, came in counts
        )
        return CorruptError(f"data set {what}: {told}")
    if names & _DAMAGED:
        return CorruptError(f"data set {what}: what the hub sends is damaged ({said})")
    if names & _PASSING:
        return RetryError(f"data set {what}: the hub cannot be reached ({said})")
    return UsageError(f"data set {what}: {type(error).__name__}: {said}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _telling(error: BaseException) -> BaseException:
    """The error, or what led to it where that says more."""
    while type(error).__name__ in _WRAPPING and error.__cause__ is not None:
        error = error.__cause__
    return error
