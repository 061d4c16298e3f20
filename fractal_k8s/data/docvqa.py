"""DocVQA and other data sets of conversations on the hub: what names them and where they are kept.

A copy is a folder with train.jsonl, perhaps validation.jsonl, MANIFEST.json and READY. Training
reads the copy and nothing else: no network, and the same bytes on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fractal_k8s import sealed
from fractal_k8s.data.splits import TRAIN
from fractal_k8s.errors import CorruptError, UsageError

NAME: Final = "docvqa"
REPOSITORY: Final = "morgan/docvqa-nanochat"
# What it was made from: pages as OCR reads them, with questions and answers.
SOURCE: Final = "pixparse/docvqa-single-page-questions"
# The commit that plain `docvqa` means. None: the one that `main` is at when it is downloaded, which
# is noted, printed, and refused unless it holds `PUBLISHED_ROWS`. To pin it for everybody, copy the
# 40 digits that `fractal-k8s data download docvqa` prints.
PINNED_COMMIT: Final[str | None] = None
PUBLISHED_ROWS: Final[Mapping[str, int]] = {"train": 39_455, "validation": 5_349}
SCHEME: Final = "hf:"
MAIN: Final = "main"

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HELD: Final = re.compile(rf"({_REPOSITORY.pattern})@({_COMMIT.pattern})")
_REVISION: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)*")


@dataclass(frozen=True)
class HubSet:
    """A data set on the hub at a revision: a commit, a tag or a branch."""

    reference: str
    repository: str
    revision: str
    # rows that each split must have; None = whatever the hub says
    rows: Mapping[str, int] | None = None

    def may_be(self, repository: str, commit: str) -> bool:
        """Whether a commit of a repository may be meant, as far as the names tell."""
        named = _COMMIT.fullmatch(self.revision) is not None
        return repository == self.repository and (not named or commit == self.revision)

    @property
    def folder_name(self) -> str:
        return self.reference.replace("/", "--").replace(":", "--")


def hub_set(reference: str) -> HubSet | None:
    """The data set `docvqa`, `docvqa@REVISION` or `hf:REPOSITORY@REVISION`; None if it is none.

    Raises:
        UsageError: the revision is missing, or something is no name.
    """
    name, at, revision = reference.partition("@")
    if name == NAME:
        if not at:
            return HubSet(reference, REPOSITORY, PINNED_COMMIT or MAIN, PUBLISHED_ROWS)
        repository = REPOSITORY
    elif reference.startswith(SCHEME):
        repository = name.removeprefix(SCHEME)
    else:
        return None
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"data set {reference!r}: {repository!r} is no repository, as OWNER/NAME")
    if not at:
        raise UsageError(
            f"data set {reference!r}: say which revision, as in {reference}@COMMIT; {MAIN} moves, "
            f"ask for it by {reference}@{MAIN} and its commit is noted"
        )
    if not _REVISION.fullmatch(revision):
        raise UsageError(f"data set {reference!r}: {revision!r} is no commit, tag or branch")
    return HubSet(reference, repository, revision)


def default_folder(found: HubSet, cache: Path) -> Path:
    """Where the copy of a data set is kept on this machine.

    Args:
        cache: the folder for files that can be fetched again.
    """
    return cache / "dataset" / found.folder_name


def local_folder(found: HubSet, cache: Path) -> Path | None:
    """The folder with the whole copy of a data set, or None.

    `cache/dataset` itself may be one, as in a cluster's claim.
    """
    for folder in (default_folder(found, cache), cache / "dataset"):
        ready = sealed.read_ready(folder)
        if ready is not None and ready.get("source") == found.reference:
            return folder
    return None


def refuse_other_data(folders: Sequence[Path], reference: str) -> None:
    """Refuses a cache that was filled with another data set of the hub than a sweep names.

    Only what is known counts: what was filled by other means, or from a file, may be a copy.

    Raises:
        UsageError: it was.
    """
    wanted = hub_set(reference)
    if wanted is None:
        return
    for folder in folders:
        try:
            seal = sealed.read_seal(folder)
        except CorruptError:
            continue
        held = _HELD.fullmatch(seal.resolved) if seal and seal.kind == "dataset" else None
        if held is not None and not wanted.may_be(*held.groups()):
            raise UsageError(
                f"the sweep is of {reference}, and {folder} holds {held[0]}: name the claim of the "
                "right data (--job dataset_claim=NAME), or launch a sweep of these"
            )


def training_file(found: HubSet, cache: Path) -> Path:
    """The conversations to train on.

    Raises:
        UsageError: they are not on this machine.
        CorruptError: the copy has lost something.
    """
    folder = local_folder(found, cache)
    if folder is None:
        raise UsageError(
            f"data set {found.reference} is not on this machine; fetch it with "
            f"`fractal-k8s data download {found.reference}`"
        )
    if problem := _problem(folder):
        raise CorruptError(
            f"data set {found.reference}: {problem}; fetch it again with "
            f"`fractal-k8s data download {found.reference}`"
        )
    return folder / TRAIN


def _problem(folder: Path) -> str | None:
    """What a look at names and sizes finds wrong with a copy; None if nothing."""
    try:
        seal = sealed.read_seal(folder)
    except CorruptError as error:
        return str(error)
    if seal is None or TRAIN not in seal.files:
        return f"{folder / sealed.MANIFEST} is missing"
    return next(iter(sealed.damage(folder, seal, hashes=False).values()), None)


def check_digest(found: HubSet, file: Path, digest: str) -> None:
    """Compares the sha256 of the training file with what was noted when it was fetched.

    Raises:
        CorruptError: it is another.
    """
    noted = (sealed.read_ready(file.parent) or {}).get("digest")
    if digest != noted:
        raise CorruptError(
            f"data set {found.reference}: {file} is not what was fetched, its sha256 is "
            f"{digest[:12]}...; fetch it again with `fractal-k8s data download {found.reference}`"
        )
