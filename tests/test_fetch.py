"""Copies of stored sweeps: whole, checked, gone on with."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.aggregate.passes import Passes
from fractal_k8s.errors import StoreError
from fractal_k8s.results.copy import copy_sweep
from fractal_k8s.results.files import Entry, LocalFiles
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from test_aggregate import ALL, PLAN, SWEEP, folder, put

__all__ = ["folder"]  # a fixture


@pytest.fixture
def stored(folder: SweepStore) -> SweepStore:
    for shard in range(6):
        put(folder, range(shard, 42, 6), f"s{shard}")
    folder.files.put(folder.log_key("s0", "1"), b'{"time": "2026"}\n')
    Passes(folder, PLAN, allow_mixed=False, say=print).whole()
    return folder


def tree(place: Path) -> dict[str, bytes]:
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != ".fetched.json"
    }


def test_a_copy_is_a_store(stored: SweepStore, run: Run, tmp_path: Path) -> None:
    typed = ("fetch", "small", "--store", stored.files.uri, "--to", str(tmp_path / "copy"))
    facts: dict[str, Any] = json.loads(run(*typed, "--json").stdout)
    assert (facts["problems"], facts["skipped"]) == ([], 0)
    original = tree(Path(stored.files.uri))
    wanted = {key: data for key, data in original.items() if "/aggregate/" not in key}
    assert tree(tmp_path / "copy") == wanted
    assert facts["files"] == len(wanted)
    run("analyze", "small", "--store", str(tmp_path / "copy"))


def test_what_is_there_is_not_read_again(stored: SweepStore, run: Run, tmp_path: Path) -> None:
    copied = copy_sweep(stored, PLAN, tmp_path / "copy")
    put(stored, [0], "late")
    again = copy_sweep(stored, PLAN, tmp_path / "copy")
    assert again.num_files == copied.num_files + 1
    assert again.num_files - again.num_skipped == 1


def test_a_copy_that_was_stopped_goes_on(stored: SweepStore, tmp_path: Path) -> None:
    class Broken(LocalFiles):
        left = 4

        def get(self, key: str) -> bytes | None:
            self.left -= 1
            if self.left < 0:
                raise StoreError("the connection is gone")
            return super().get(key)

    broken = SweepStore(Broken(Path(stored.files.uri)), SWEEP.id)
    with pytest.raises(StoreError):
        copy_sweep(broken, PLAN, tmp_path / "copy")
    assert copy_sweep(stored, PLAN, tmp_path / "copy").problems == []
    wanted = {k: v for k, v in tree(Path(stored.files.uri)).items() if "/aggregate/" not in k}
    assert tree(tmp_path / "copy") == wanted


def test_a_flipped_byte_is_fetched_again(stored: SweepStore, tmp_path: Path) -> None:
    copy_sweep(stored, PLAN, tmp_path / "copy")
    file = tmp_path / "copy" / stored.outcome_key("s0", "1")
    data = bytearray(file.read_bytes())
    data[30] ^= 1
    file.write_bytes(data)
    copy_sweep(stored, PLAN, tmp_path / "copy")
    assert file.read_bytes() == stored.files.get(stored.outcome_key("s0", "1"))


@pytest.mark.parametrize("receipt", ["[]", "{", '{"%s": 5}', '{"%s": [1]}', '{"%s": null}'])
def test_a_receipt_that_is_none_is_no_receipt(
    receipt: str, stored: SweepStore, tmp_path: Path
) -> None:
    copied = copy_sweep(stored, PLAN, tmp_path / "copy")
    place = tmp_path / "copy" / SWEEP.id / ".fetched.json"
    place.write_text(receipt.replace("%s", stored.log_key("s0", "1")))
    again = copy_sweep(stored, PLAN, tmp_path / "copy")
    assert (again.num_files, again.problems) == (copied.num_files, [])
    assert place.read_text().count(".parquet") == 6


def test_what_was_written_again_within_a_second_is_fetched_again(
    stored: SweepStore, tmp_path: Path
) -> None:
    """Object stores tell whole seconds: of the same size it looks the same."""
    key = stored.log_key("s0", "1")
    now = int(time.time()) * 10**9
    for text in (b"first", b"later"):
        stored.files.put(key, text)
        os.utime(Path(stored.files.uri, key), ns=(now, now))
        copy_sweep(stored, PLAN, tmp_path / "copy")
        assert (tmp_path / "copy" / key).read_bytes() == text


def test_nothing_is_written_outside_of_the_folder(stored: SweepStore, tmp_path: Path) -> None:
    class Foreign(LocalFiles):
        """With a name that a bucket takes, and a folder of this machine must not."""

        key = f"{SWEEP.id}/logs/../../../evil"

        def entries(self, prefix: str) -> list[Entry]:
            more = [Entry(self.key, 1, 1)] if prefix == SWEEP.id else []
            return super().entries(prefix) + more

        def get(self, key: str) -> bytes | None:
            return b"x" if key == self.key else super().get(key)

    (tmp_path / "at" / "copy").mkdir(parents=True)
    foreign = SweepStore(Foreign(Path(stored.files.uri)), SWEEP.id)
    (problem,) = copy_sweep(foreign, PLAN, tmp_path / "at" / "copy").problems
    assert problem == f"{Foreign.key}: not a name that fractal-k8s gives; left out"
    assert not (tmp_path / "at" / "evil").exists()
    manifest = json.loads(stored.files.get(stored.key("summary", "manifest.json")) or b"")
    manifest["files"]["../../../evil"] = manifest["files"].pop("map.png")
    stored.files.put(stored.key("summary", "manifest.json"), json.dumps(manifest).encode())
    problems = copy_sweep(stored, PLAN, tmp_path / "at" / "copy").problems
    assert "manifest.json: not written by fractal-k8s" in problems[0]
    assert not (tmp_path / "at" / "evil").exists()


def test_counts_that_are_ahead_of_the_summary_stay_where_they_are(
    stored: SweepStore, tmp_path: Path
) -> None:
    """They are gone as soon as there are new pictures; here they would stay."""
    stored.files.put(stored.key("summary", "progress.json"), b"{}")
    copy_sweep(stored, PLAN, tmp_path / "copy")
    assert not (tmp_path / "copy" / SWEEP.id / "summary" / "progress.json").exists()


def test_what_is_damaged_is_named(stored: SweepStore, run: Run, tmp_path: Path) -> None:
    stored.files.put(stored.outcome_key("bad", "1"), b"noise")
    stored.files.put(stored.key("summary", "map.png"), b"noise")
    stored.files.remove(stored.key("aggregate"))
    typed = ("fetch", "small", "--store", stored.files.uri, "--to", str(tmp_path / "copy"))
    output = run(*typed, code=65).output
    assert "bad-1.parquet: not a readable outcomes file" in output
    assert "summary/map.png is missing or not the one of manifest.json" in output
    run(*typed, code=65)  # and again


def test_a_copy_says_what_is_behind_and_what_is_gone(stored: SweepStore, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    assert copy_sweep(stored, PLAN, place).remarks == []
    put(stored, [0], "late")
    (remark,) = copy_sweep(stored, PLAN, place).remarks
    assert remark == (
        f"outcomes have come since the summary was made: {stored.command('aggregate')} makes one "
        "of all"
    )
    stored.files.remove(stored.key("summary"))
    late = stored.outcome_key("late", "1")
    stored.files.discard([late])
    none, gone = copy_sweep(stored, PLAN, place).remarks
    assert "no summary is stored with these outcomes yet" in none
    assert gone == f"1 files lie here that the store has no more, such as {late}"


def test_no_other_sweep_is_overwritten(stored: SweepStore, run: Run, tmp_path: Path) -> None:
    typed = ("fetch", "small", "--store", stored.files.uri)
    assert "is the store itself" in run(*typed, "--to", stored.files.uri, code=2).output
    other = Plan(mlp_sweep(name="other"), Deal())
    text = other.to_json().replace(other.sweep.id, SWEEP.id)
    there = Store(str(tmp_path / "copy")).files
    there.put(f"{SWEEP.id}/sweep.json", text.encode())
    run(*typed, "--to", str(tmp_path / "copy"), code=65)
    assert list(ALL)
