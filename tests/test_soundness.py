"""Outcome objects that are whole and say what no worker writes: refused, named, no other's loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fractal_k8s.aggregate import aggregate
from fractal_k8s.errors import CorruptError
from fractal_k8s.results import schema
from fractal_k8s.results.attempt import Attempt
from fractal_k8s.results.collect import collect
from fractal_k8s.results.outcome import RESULT_COLUMNS, Environment
from fractal_k8s.results.store import SweepStore
from test_aggregate import PLAN, SWEEP, new_folder, outcome, put
from test_results import NOON

Change = Callable[[pa.Table], pa.Table]


def sound() -> pa.Table:
    return schema.to_table(SWEEP, [outcome(0), outcome(1)], [NOON] * 2, Environment("test"))


def column(name: str, values: list[Any], kind: pa.DataType | None = None) -> Change:
    """Other values in a column; texts without their dictionary."""

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        given = table.schema.field(name).type
        wanted = kind or (given.value_type if pa.types.is_dictionary(given) else given)
        return table.set_column(place, name, pa.array(values, wanted))

    return change


def header(key: bytes, value: bytes) -> Change:
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, key: value})


def twice(name: str) -> Change:
    return lambda table: table.append_column(name, table.column(name))


WRONG: dict[str, tuple[Change, str]] = {
    "unknown state": (column("state", ["odd", "trained"]), "holds the state 'odd', which this"),
    "no state": (column("state", [None, "trained"]), "a point without state"),
    "no row": (column("i", [None, 0]), "a point outside 6 x 7"),
    "row as text": (column("i", ["a", "0"], pa.string()), "not a readable outcomes file"),
    "row too large": (column("i", [2**40, 0], pa.int64()), "not a readable outcomes file"),
    "row between": (column("i", [0.5, 0], pa.float64()), "not a readable outcomes file"),
    "no steps": (column("steps", [None, 3]), "a point without steps"),
    "steps below zero": (column("steps", [-5, 3]), "a point whose steps cannot be"),
    "too many tokens": (column("tokens_seen", [2**62, 3]), "a point whose tokens_seen cannot be"),
    "no seed": (column("run_seed", [None, 3]), "a point without run_seed"),
    "no time": (column("time", [None, NOON]), "a point without time"),
    "late": (column("time", [2**62, 0], pa.int64()), "a point whose time cannot be"),
    "no class": (column("numerics_class", [None, "test"]), "a point without numerics_class"),
    "no losses": (column("losses", [None, [1.0]]), "a point without losses"),
    "a loss short": (column("losses", [[None, 1.0], []]), "without one of its losses"),
    "no loss": (column("final_loss", [None, 1.0]), "a point without final_loss"),
    "endless": (column("seconds", [math.inf, 1.0]), "a point whose seconds cannot be"),
    "no number of seconds": (column("seconds", [math.nan, 1.0]), "whose seconds cannot be"),
    "seconds below zero": (column("seconds", [-1.0, 1.0]), "whose seconds cannot be"),
    "memory below zero": (column("peak_bytes", [-1, None]), "whose peak_bytes cannot be"),
    "no sweep": (column("sweep", [None, SWEEP.id]), "a point without sweep"),
    "a column twice": (twice("steps"), "several columns of one name"),
    "owner of no text": (header(b"fractal_k8s.sweep", b"\xff"), "holds outcomes of"),
    "version of no text": (header(b"fractal_k8s.schema", b"\xff"), "upgrade fractal-k8s"),
    "version too long": (header(b"fractal_k8s.schema", b"9" * 5000), "upgrade fractal-k8s"),
    "another's name": (header(b"fractal_k8s.object", b"b-1.parquet"), "the rows of b-1.parquet"),
}

RIGHT: dict[str, Change] = {
    "infinite losses": column("final_loss", [math.inf, -math.inf]),
    "infinite ratio": column("ratio", [math.inf, math.nan]),
    "nothing measured": column("probe_before", [None, math.nan]),
    "no machine": column("node", [None, None]),
    "odd versions": column("versions", ["{not json", "[1]"]),
    "text of any kind": column("error", ["<script>\n\x00", None]),
    "no memory": column("peak_bytes", [None, 0]),
    "no rows": lambda table: table.slice(0, 0),
    "own name": header(b"fractal_k8s.object", b"x.parquet"),
}


def read(data: bytes) -> pa.Table:
    return schema.from_bytes(data, sweep=SWEEP, source="folder/x.parquet")


@pytest.mark.parametrize("name", WRONG)
def test_what_no_worker_writes_is_refused(name: str) -> None:
    change, said = WRONG[name]
    with pytest.raises(CorruptError) as caught:
        read(schema.to_bytes(change(sound())))
    text = str(caught.value)
    assert text.startswith("folder/x.parquet: ")
    assert said in text
    assert "\n" not in text


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_odd_is_no_error(name: str) -> None:
    table = read(schema.to_bytes(RIGHT[name](sound())))
    wanted = schema.outcome_schema(SWEEP)
    assert table.schema.equals(wanted)
    assert table.schema.metadata == wanted.metadata


def test_each_is_named_and_costs_no_other_point(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    put(folder, range(2, 42), "sound")
    for number, (change, _) in enumerate(WRONG.values()):
        data = schema.to_bytes(change(sound()))
        folder.files.put(folder.outcome_key(f"wrong{number}", "1"), data)
    done = aggregate(folder, PLAN)
    assert done.exit_code == 65
    assert done.summary["counts"]["missing"] == 2
    named = "\n".join(done.summary["problems"])
    assert [name for name, (_, said) in WRONG.items() if said not in named] == []
    assert len(done.summary["problems"]) == len(WRONG)


def test_odd_rows_do_not_stop_a_pass(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "store")
    put(folder, range(2, 42), "sound")
    for number, change in enumerate(RIGHT.values()):
        table = change(sound()).replace_schema_metadata(sound().schema.metadata)
        folder.files.put(folder.outcome_key(f"odd{number}", "1"), schema.to_bytes(table))
    done = aggregate(folder, PLAN)
    assert done.summary["counts"]["missing"] == 0
    assert all("results that differ" in problem for problem in done.summary["problems"])


def test_no_flipped_bit_changes_a_result() -> None:
    data = schema.to_bytes(sound())
    names = (*RESULT_COLUMNS, "i", "j", "numerics_class", "time", "seconds")
    expected = repr(read(data).select(names).to_pylist())
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        try:
            found = repr(read(bytes(flipped)).select(names).to_pylist())
        except CorruptError:
            continue
        assert found == expected, place


def test_an_attempt_s_object_is_read_under_its_own_name_only(tmp_path: Path) -> None:
    folder: SweepStore = new_folder(tmp_path / "store")
    attempt = Attempt(folder, SWEEP, "s0", Environment("test"))
    attempt.add(outcome(1), {"i": 0, "j": 1, "state": "trained"})
    attempt.flush()
    (entry,) = folder.outcome_entries()
    folder.files.put(folder.outcome_key("s1", "x"), folder.files.get(entry.key) or b"")
    done = collect(folder, SWEEP)
    assert len(done.table) == 1
    assert done.problems == [
        f"{folder.outcome_key('s1', 'x')}: holds the rows of {entry.key.rpartition('/')[2]}"
    ]
