"""Where pages with questions are read from: files of this machine, or a repository of the hub."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from fractal_k8s.data import hub
from fractal_k8s.data.docvqa import MAIN, SOURCE
from fractal_k8s.data.hub import Tell
from fractal_k8s.data.pages import (
    COLUMNS,
    NEEDED,
    Page,
    files_digest,
    page_files,
    page_of,
    read_pages,
)
from fractal_k8s.data.splits import SPLITS, Origin
from fractal_k8s.errors import UsageError

Splits = dict[str, Callable[[], Iterable[Page]]]

_ON_HUB: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([\w./-]+)")


def open_pages(sources: Sequence[str], tell: Tell) -> tuple[Splits, Origin]:
    """The splits of the sources, to be read when they are called, and what to note of them.

    Args:
        sources: files and folders, or one OWNER/NAME@REVISION; none = the published pages.

    Raises:
        UsageError: something is not there, or files and the hub are mixed.
    """
    if not sources:
        return _of_hub(SOURCE, MAIN, tell)
    remote = [text for text in sources if _ON_HUB.fullmatch(text) and not Path(text).exists()]
    if remote and len(sources) > 1:
        raise UsageError(f"--source {remote[0]}: give one repository, or files only")
    if remote:
        repository, revision = remote[0].split("@")
        return _of_hub(repository, revision, tell)
    files = page_files([Path(text).expanduser() for text in sources])
    splits: Splits = {
        split: functools.partial(read_pages, paths) for split, paths in _in_order(files.items())
    }
    digest = f"sha256:{files_digest(files)}"
    return splits, Origin(" ".join(sources), digest)


def _of_hub(repository: str, revision: str, tell: Tell) -> tuple[Splits, Origin]:
    commit = hub.commit_of(repository, revision, tell)
    tell(f"{repository}@{revision} is commit {commit}")
    names = [name for name in SPLITS if name in hub.split_names(repository, commit, tell)]
    if "train" not in names:
        raise UsageError(f"{repository}@{commit[:12]}: has no split 'train'")
    splits: Splits = {
        name: functools.partial(_stream, repository, commit, name, tell) for name in names
    }
    resolved = f"{repository}@{commit}"
    return splits, Origin(f"{repository}@{revision}", resolved)


def _in_order(splits: Iterable[tuple[str, list[Path]]]) -> list[tuple[str, list[Path]]]:
    order = list(SPLITS)
    return sorted(splits, key=lambda item: order.index(item[0]))


def _stream(repository: str, commit: str, split: str, tell: Tell) -> Iterator[Page]:
    rows = hub.stream_rows(repository, commit, split, COLUMNS, NEEDED, tell)
    for number, row in enumerate(rows, start=1):
        yield page_of(row, f"{repository}@{commit[:12]} {split} row {number}")
