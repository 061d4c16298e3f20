"""Copies of stored sweeps: whole, checked, gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Run, mlp_sweep
from fractal_k8s.aggregate.passes import Passes
from fractal_k8s.errors import StoreError
from fractal_k8s.results.copy import copy_sweep
from fractal_k8s.results.files import LocalFiles
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
    Passes(folder, PLAN, allow_mixed=False).whole()
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
        f"outcomes have come since the summary was made: fractal-k8s aggregate {SWEEP.id} makes "
        "one of all"
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
