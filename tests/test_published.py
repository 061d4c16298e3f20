"""Files of a summary: replaced one by one, read as one pass made them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fractal_k8s.errors import CorruptError
from fractal_k8s.results.files import Entry, LocalFiles
from fractal_k8s.results.published import publish_files, published_files
from fractal_k8s.results.store import SweepStore

BEFORE = {"map.png": b"before", "report.html": b"same", "analysis.json": b"{}"}
AFTER = {"map.png": b"after", "report.html": b"same", "analysis.json": b"[1]"}
FACTS = {"complete": False}


class Killed(BaseException):
    pass


class Hooked(LocalFiles):
    """Does something before each write."""

    def __init__(self, root: Path, hook: Callable[[str], None]) -> None:
        super().__init__(root)
        self.hook = hook

    def put(self, key: str, data: bytes) -> None:
        self.hook(key)
        super().put(key, data)


def folder_at(root: Path, hook: Callable[[str], None] = lambda key: None) -> SweepStore:
    return SweepStore(Hooked(root, hook), "sweep")


def found(folder: SweepStore) -> dict[str, bytes]:
    """What a reader is given, without the manifest."""
    published = published_files(folder)
    assert published is not None
    assert published.problems == ()
    assert json.loads(published.files["manifest.json"])["complete"] is False
    return {name: data for name, data in published.files.items() if name != "manifest.json"}


def lying(folder: SweepStore) -> dict[str, bytes]:
    """What a person finds under the names."""
    return {name: folder.files.get(folder.key("summary", name)) or b"" for name in BEFORE}


def lasting(folder: SweepStore) -> list[Entry]:
    return folder.files.entries(folder.key("aggregate", "summary"))


def test_killed_before_each_single_write_it_leaves_the_files_of_one_pass(tmp_path: Path) -> None:
    mixed = 0
    for writes in range(100):
        folder = folder_at(tmp_path / str(writes))
        publish_files(folder, BEFORE, FACTS)
        left = iter(range(writes))

        def kill(key: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed

        try:
            publish_files(folder_at(tmp_path / str(writes), kill), AFTER, FACTS)
        except Killed:
            assert found(folder) == BEFORE
            assert set(lying(folder).values()) <= {*BEFORE.values(), *AFTER.values()}
            mixed += lying(folder) not in (BEFORE, AFTER)
        else:
            break
    assert writes == 2 + 3 + 1  # what is not the same, every name, the manifest
    assert mixed == 2
    assert found(folder) == lying(folder) == AFTER


def test_the_first_pass_shows_nothing_before_its_end(tmp_path: Path) -> None:
    def kill(key: str) -> None:
        if key.endswith("manifest.json"):
            raise Killed

    folder = folder_at(tmp_path, kill)
    with pytest.raises(Killed):
        publish_files(folder, BEFORE, FACTS)
    assert published_files(folder) is None


def test_what_nobody_can_want_any_more_is_deleted(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    folder = folder_at(tmp_path)
    for data in (b"1", b"2", b"3"):
        publish_files(folder, {"a": data}, FACTS)
    assert len(lasting(folder)) == 3  # somebody may be reading them
    hour_ago = time.time_ns() - 3600 * 10**9
    for entry in lasting(folder):
        os.utime(files.path(entry.key), ns=(hour_ago, hour_ago))
    publish_files(folder, {"a": b"2"}, FACTS)
    assert [files.get(entry.key) for entry in lasting(folder)] == [b"2"]
    assert found(folder) == {"a": b"2"}


def test_what_another_pass_tidied_away_is_written_again(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    publish_files(folder, BEFORE, FACTS)
    gone = [entry.key for entry in lasting(folder)]

    def tidy(key: str) -> None:
        if key.endswith("manifest.json"):
            folder.files.discard(gone)

    publish_files(folder_at(tmp_path, tidy), BEFORE, FACTS)
    assert [entry.key for entry in lasting(folder)] == gone


def test_files_under_their_names_do_where_the_others_were_deleted(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    publish_files(folder, BEFORE, FACTS)
    folder.files.remove(folder.key("aggregate"))
    assert found(folder) == BEFORE
    folder.put_summary("map.png", b"noise")
    published = published_files(folder)
    assert published is not None
    assert published.files.keys() == {"report.html", "analysis.json", "manifest.json"}
    assert "summary/map.png is missing or not the one of manifest.json" in published.problems[0]


def test_a_manifest_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    publish_files(folder, BEFORE, FACTS)
    folder.files.remove(folder.key("aggregate"))

    class Replaced(LocalFiles):
        done = False

        def get(self, key: str) -> bytes | None:
            data = super().get(key)
            if key.endswith("manifest.json") and not self.done:
                self.done = True
                publish_files(folder, AFTER, FACTS)
            return data

    assert found(SweepStore(Replaced(tmp_path), "sweep")) == AFTER


def test_a_manifest_that_is_none_is_named(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    for data in (b"noise", b"[]", b'{"files": {"a": 1}}'):
        folder.put_summary("manifest.json", data)
        with pytest.raises(CorruptError, match="not written by fractal-k8s"):
            published_files(folder)
