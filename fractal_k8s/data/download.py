"""Fetches a data set from the hub into a folder, once: what is whole is left as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractal_k8s import sealed
from fractal_k8s.data import hub
from fractal_k8s.data.docvqa import NAME, HubSet
from fractal_k8s.data.hub import Tell
from fractal_k8s.data.splits import (
    SPLITS,
    TRAIN,
    Origin,
    Writing,
    line_of,
    refuse_strangers,
    written,
)
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.sealed import Seal


@dataclass(frozen=True)
class Copy:
    """A data set that is whole in a folder."""

    folder: Path
    seal: Seal
    # whether it was fetched now; False = it was there
    fetched: bool


def download(found: HubSet, folder: Path, tell: Tell, *, replace: bool = False) -> Copy:
    """Makes sure that a folder holds a data set, whole and undamaged.

    What is there already is read and compared with its manifest, and not asked for again, so a
    whole copy needs no network. A damaged one is fetched again, at the commit that it was of.

    Args:
        replace: fetch it whatever the folder holds, and put it in the place of that.

    Raises:
        UsageError: the hub has no such thing, or the folder holds something else.
        CorruptError: the rows are not conversations, or not as many as they must be.
        RetryError: the hub went on failing.
    """
    with sealed.being_filled(folder, tell) as alone:
        held = found.revision if replace else _held(found, folder, tell)
        if isinstance(held, Seal):
            if alone:  # of fills that were killed
                sealed.drop_all(folder.glob(f"{sealed.FILLING}*"))
            return Copy(folder, held, fetched=False)
        with written(folder, alone=alone) as writing:
            return Copy(folder, _fetch(found, held, writing, tell), fetched=True)


def _held(found: HubSet, folder: Path, tell: Tell) -> Seal | str:
    """The seal of a folder that holds the data set whole; else the revision to fetch it at.

    Raises:
        UsageError: it holds something else.
    """
    seal, ready = _readable(folder), sealed.read_ready(folder)
    if ready is None:
        refuse_strangers(folder)
        # what was cut short goes on at its commit, wherever the branch is now
        begun = seal is not None and seal.source == found.reference
        return seal.resolved.rpartition("@")[2] if seal and begun else found.revision
    revision = _revision_held(found, seal, ready, folder)
    if seal is None or sealed.are_at_odds(folder, seal):
        what = (
            f"{folder / sealed.MANIFEST} is missing or damaged"
            if seal is None
            else f"{folder}: {sealed.READY} and {sealed.MANIFEST} are of different contents"
        )
        tell(f"{what}: fetching again")
        return revision
    whole = _whole(folder, seal, tell)
    if whole is not None and not ready:
        sealed.write_ready(folder, whole)
    return whole or revision


def _readable(folder: Path) -> Seal | None:
    """What the manifest of a folder says; None if that is of no use."""
    try:
        seal = sealed.read_seal(folder)
    except CorruptError:
        return None
    is_usable = seal is not None and TRAIN in seal.files and "rows" in seal.facts
    return seal if is_usable else None


def _whole(folder: Path, seal: Seal, tell: Tell) -> Seal | None:
    """The seal of a folder whose rows are undamaged; what was made of them goes if it is not."""
    damage = sealed.damage(folder, seal)
    for name, problem in damage.items():
        tell(f"{problem}: {'fetching again' if name in SPLITS.values() else 'removed'}")
    made = [name for name in damage if name not in SPLITS.values()]
    seal = sealed.without_files(folder, seal, made)
    return seal if len(made) == len(damage) else None


def _revision_held(found: HubSet, seal: Seal | None, ready: dict[str, Any], folder: Path) -> str:
    """The revision of a data set that a folder holds, as its manifest and `READY` tell.

    One of them may have been changed by hand: where they differ, the one counts that knows the
    rows which lie there, and of two that do the one that names this data set.

    Raises:
        UsageError: it holds something else.
    """
    told = [facts for facts in (seal.ready if seal else {}, ready) if facts]
    if len(told) == 2 and told[0] != told[1] and (folder / TRAIN).is_file():
        digest = sealed.file_sha256(folder / TRAIN)
        told = [facts for facts in told if facts.get("digest") == digest] or told
    commits = {_commit_told(found, facts) for facts in told} - {None}
    if not commits:
        source, resolved = (told[0].get(key) if told else None for key in ("source", "resolved"))
        held = f"{source} ({resolved})" if source else "data that were put there by other means"
        raise UsageError(
            f"{folder} holds {held}, not {found.reference}; give another folder with --to, or "
            "empty this one"
        )
    return str(commits.pop()) if len(commits) == 1 else found.revision


def _commit_told(found: HubSet, facts: Mapping[str, Any]) -> str | None:
    """The commit of a data set that a manifest or `READY` names; None if it names another set."""
    repository, _, commit = str(facts.get("resolved")).rpartition("@")
    is_it = facts.get("source") == found.reference and repository == found.repository
    return commit if is_it else None


def _fetch(found: HubSet, revision: str, writing: Writing, tell: Tell) -> Seal:
    commit = hub.commit_of(found.repository, revision, tell)
    if commit != revision:
        tell(f"{found.repository}@{revision} is commit {commit}")
    splits = hub.load_splits(found.repository, commit, tell)
    where = f"{found.repository}@{commit[:12]}"
    if "train" not in splits:
        raise CorruptError(f"data set {where}: has no split 'train', only {', '.join(splits)}")
    for split in SPLITS:
        if split in splits:
            rows = splits[split]
            count = writing.write(split, _lines(rows, f"{where} {split}"))
            tell(f"{split}: {count:,} conversations")
            _check_count(found, commit, split, count)
    return writing.finish(Origin(found.reference, f"{found.repository}@{commit}"))


def _check_count(found: HubSet, commit: str, split: str, count: int) -> None:
    """Against the published numbers; those of a repository's own card `datasets` has compared."""
    if split == "train" and not count:
        raise CorruptError(f"data set {found.repository}@{commit[:12]}: train has no rows")
    expected = (found.rows or {}).get(split, count)
    if count != expected:
        raise CorruptError(
            f"data set {found.repository}@{commit[:12]}: {split} has {count:,} rows, "
            f"{expected:,} were published; if that is right, name the commit: {NAME}@{commit}"
        )


def _lines(rows: Any, where: str) -> Iterator[bytes]:
    if "messages" not in rows.column_names:
        raise CorruptError(f"data set {where}: has no column 'messages'")
    for number, messages in enumerate(rows.select_columns(["messages"]), start=1):
        yield line_of({"messages": _cleaned(messages["messages"], f"{where} row {number}")})


def _cleaned(messages: Any, where: str) -> list[dict[str, Any]]:
    """The messages without keys that are empty: a table gives every row all keys.

    Raises:
        CorruptError: they are no conversation.
    """
    if not isinstance(messages, list) or not messages:
        raise CorruptError(f"data set {where}: holds no messages")
    cleaned = []
    for message in messages:
        if (
            not isinstance(message, dict)
            or not message.get("role")
            or message.get("content") is None
        ):
            raise CorruptError(f"data set {where}: a message has no role or no content")
        cleaned.append({key: value for key, value in message.items() if value is not None})
    return cleaned
