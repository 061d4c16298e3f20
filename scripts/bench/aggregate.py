"""Seconds and memory of the aggregator: a full pass, and passes where little or nothing is new.

Outcomes are made up: a map with a rough edge, no training. Targets: 16,384 rows in 256 objects to a
finished report in under 10 s; 1,000,000 rows in 4,096 objects in under 60 s and 2 GiB; where 1 % of
the objects are new, a pass 10 times faster than a full one. Every pass is a process of its own,
`fractal-k8s aggregate --all`, as the chart's CronJob starts it; those called "running" are made in
one process, as by the aggregator Job (`--until-complete`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from tables import table

from edges import surface
from fractal_k8s.results import schema
from fractal_k8s.results.outcome import loss_facts
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep

SIZES = ((128, 256), (1000, 4096))
HEAD = ("rows", "objects", "pass", "what it makes", "wall", "full / it", "processor", "memory")
_WINDOW = 20
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", type=int, default=50, help="losses of a row")
    parser.add_argument("--size", action="append", metavar="SIDE:OBJECTS", help="repeatable")
    arguments = parser.parse_args()
    sizes = SIZES
    if arguments.size:
        sizes = tuple(tuple(map(int, text.split(":"))) for text in arguments.size)
    rows = []
    for side, objects in sizes:
        with tempfile.TemporaryDirectory() as place:
            rows += bench(Path(place), side, objects, arguments.losses)
    print(table(HEAD, rows))


def bench(place: Path, side: int, objects: int, losses: int) -> list[list[str]]:
    sweep = made_up_sweep(side)
    folder = Store(str(place)).sweep(sweep.id)
    folder.write_plan(Plan(sweep, Deal()))
    few = max(1, objects // 100)

    def write(shards: range) -> None:
        write_objects(folder, sweep, objects, losses, shards)

    write(range(3 * few, objects))
    full = one_pass(place)
    passes = [("the first", full, full)]
    write(range(few))
    passes.append((f"{few} objects are new", one_pass(place), full))
    passes.append(("nothing since", one_pass(place), full))
    passes.append(("again nothing", one_pass(place), full))
    with running(place, sweep) as start:
        all_of_it = start()
        passes.append(("running: all anew", all_of_it, all_of_it))
        write(range(few, 2 * few))
        passes.append((f"running: {few} are new", start(), all_of_it))
    write(range(2 * few, 3 * few))
    passes.append((f"the last {few} objects", one_pass(place), full))
    head = [f"{side * side:,}", f"{objects:,}"]
    return [[*head, name, *done.cells(whole)] for name, done, whole in passes]


@dataclass(frozen=True)
class Done:
    """One pass."""

    # what it made, in the command's words
    state: str
    seconds: float
    # of user and system: what an idle machine of one core would take at most
    cpu_seconds: float
    # the most that the process has had so far
    mebibytes: float

    def cells(self, full: Done) -> list[str]:
        ratio = f"{full.seconds / self.seconds:.1f}x"
        processor = f"{self.cpu_seconds:.2f} s"
        return [self.state, f"{self.seconds:.2f} s", ratio, processor, f"{self.mebibytes:,.0f} MiB"]


# prints what the command does, then the largest resident size
_CODE = """
import json, resource, sys
from fractal_k8s.cli import main
try:
    main(sys.argv[1:])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
"""


def one_pass(place: Path) -> Done:
    typed = ["aggregate", "--all", "--store", str(place), "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *typed], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    seconds = time.perf_counter() - began
    (visit,) = json.loads(done.stdout)
    cpu_seconds, kibibytes = map(float, done.stderr.split()[-2:])
    return Done(visit["state"], seconds, cpu_seconds, kibibytes / 1024)


# A pass to have everything loaded, one that reads all, then one per line of the standard input.
_RUNNING = """
import json, resource, sys, time
from fractal_k8s.aggregate.passes import Look, Passes
from fractal_k8s.results.store import Store
folder, plan = Store(sys.argv[1]).plan(sys.argv[2])
passes = Passes(folder, plan, allow_mixed=False, say=print)
passes.whole()
folder.files.remove(folder.key("aggregate", "rows"))
make = passes.whole
for line in sys.stdin:
    began, used = time.perf_counter(), time.process_time()
    state = "the counts" if isinstance(make(), Look) else "all"
    make = passes.next
    facts = (state, time.perf_counter() - began, time.process_time() - used,
             resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(facts), flush=True)
"""


@contextlib.contextmanager
def running(place: Path, sweep: Sweep) -> Iterator[Callable[[], Done]]:
    """A process that makes a pass whenever it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", _RUNNING, str(place), sweep.id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        asked, answers = child.stdin, child.stdout

        def start() -> Done:
            asked.write("go\n")
            asked.flush()
            return Done(*json.loads(answers.readline()))

        yield start
        asked.close()


def made_up_sweep(side: int) -> Sweep:
    axis = {"low": 1e-2, "high": 1e4}
    return Sweep.parse(
        {
            "name": "made-up",
            "model": "mlp",
            "resolution": [side, side],
            "axes": {"y": {"knob": "output_lr", **axis}, "x": {"knob": "input_lr", **axis}},
            "training": {"width": 16, "steps": 500},
        }
    )


def write_objects(
    folder: SweepStore, sweep: Sweep, objects: int, losses: int, shards: range
) -> None:
    """The outcomes of some shards, each of every `objects`-th point."""
    labels = surface(sweep.rows, 1.5, np.random.default_rng(0)).ravel()
    plan = schema.outcome_schema(sweep)
    for shard in shards:
        points = np.arange(shard, sweep.num_points, objects)
        made = rows_of(sweep, plan, points, labels[points], losses)
        key = folder.outcome_key(f"bench-{shard:05d}", "20260101T000000-000000")
        folder.files.put(key, schema.to_bytes(made))


def rows_of(
    sweep: Sweep, plan: pa.Schema, points: np.ndarray, labels: np.ndarray, losses: int
) -> pa.Table:
    """Outcomes of some points: losses fall where the label is True, else rise or end in NaN."""
    random = np.random.default_rng(int(points[0]))
    steps = np.arange(losses)
    slope = np.where(labels, -1.0, 2.0)[:, None] * random.uniform(0.5, 1.0, (len(points), 1))
    series = np.exp(slope * steps / losses) * random.uniform(0.9, 1.1, (len(points), losses))
    lost = ~labels & (random.random(len(points)) < 0.8)
    series[lost, losses // 2 :] = np.nan
    series = series.astype(np.float32)
    y, x = sweep.values_of(points)
    facts = [loss_facts(one, _WINDOW) for one in series]
    count = len(points)
    columns = {
        "sweep": [sweep.id] * count,
        "i": points // sweep.columns,
        "j": points % sweep.columns,
        sweep.y_knob.name: y,
        sweep.x_knob.name: x,
        "state": np.where(lost, "diverged", "trained").tolist(),
        "first_loss": [fact.first for fact in facts],
        "last_mean_loss": [fact.last_mean for fact in facts],
        "ratio": [fact.ratio for fact in facts],
        "final_loss": [fact.final for fact in facts],
        "mean_loss": [fact.mean for fact in facts],
        "steps": np.full(count, losses),
        "tokens_seen": np.full(count, losses * 16),
        "supervised_tokens": np.full(count, losses * 16),
        "run_seed": np.full(count, 42),
        "seconds": random.random(count),
        "data_hash": ["d" * 64] * count,
        "losses": list(series),
        "numerics_class": ["bench"] * count,
        "node": [f"node-{points[0] % 8}"] * count,
        "pod": [f"pod-{points[0]}"] * count,
        "time": times(points),
    }
    arrays = []
    for field in plan:
        if field.name not in columns:
            arrays.append(pa.nulls(count, field.type))
            continue
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        array = pa.array(columns[field.name], kind)
        arrays.append(array.dictionary_encode() if kind != field.type else array)
    return pa.Table.from_arrays(
        [array.cast(field.type) for array, field in zip(arrays, plan, strict=True)], schema=plan
    )


def times(points: Sequence[int] | np.ndarray) -> list[datetime]:
    return [_BEGAN + timedelta(milliseconds=int(point)) for point in points]


if __name__ == "__main__":
    main()
