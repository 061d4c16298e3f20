"""The grid: every point's state and numbers, and which points have no outcome.

A hole stays a hole: nothing here fills, averages or guesses.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fractal_k8s.errors import ConflictError
from fractal_k8s.results.hashes import labels_of, result_hashes
from fractal_k8s.results.outcome import State, loss_facts
from fractal_k8s.results.store import Outcomes
from fractal_k8s.results.verdict import (
    is_marginal,
    is_stable,
    is_trainable,
    judged_number,
    probe_ratio,
)
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.rule import VerdictRule

# Codes of the states of a point, in the order in which they are counted and drawn.
MISSING: Final = 0
FAILED: Final = 1
DIVERGED: Final = 2
NOT_TRAINABLE: Final = 3
MARGINAL: Final = 4
TRAINABLE: Final = 5
STATE_NAMES: Final = ("missing", "failed", "diverged", "not trainable", "marginal", "trainable")


@dataclass
class Grid:
    """A sweep's results under a verdict rule. All arrays have shape (rows, columns)."""

    sweep: Sweep
    rule: VerdictRule
    # code of each point's state, see STATE_NAMES
    states: npt.NDArray[np.uint8]
    first_loss: npt.NDArray[np.float64]
    final_loss: npt.NDArray[np.float64]
    last_mean_loss: npt.NDArray[np.float64]
    ratio: npt.NDArray[np.float64]
    # loss on the probe rows after the run over the one before it, NaN without such rows
    probe_ratio: npt.NDArray[np.float64]
    # updates made, and recorded losses
    steps: npt.NDArray[np.int64]
    num_losses: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    # one row per point that has an outcome, by point index; the schema's columns
    table: pa.Table
    # rows that disagree with another row of the same point, and objects that could not be read
    problems: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Where the verdict is known: neither missing nor failed."""
        return np.greater_equal(self.states, DIVERGED)

    @property
    def trainable(self) -> npt.NDArray[np.bool_]:
        return np.equal(self.states, TRAINABLE)

    @property
    def coverage(self) -> float:
        """Share of the points whose verdict is known."""
        return float(self.known.mean())

    def counts(self) -> dict[str, int]:
        """Points by state; marginal ones are named only where the rule has such a band."""
        return count_states(self.states, self.rule)

    def point_indexes(self) -> npt.NDArray[np.int64]:
        """Index of the point of each row of `table`."""
        return row_indexes(self.sweep, self.table)

    def is_copied(self) -> npt.NDArray[np.bool_]:
        """Which rows of `table` were trained for another sweep, and cost this one nothing."""
        trained_for = self.table.column("sweep").cast(pa.string()).to_numpy(zero_copy_only=False)
        return np.asarray(trained_for != self.sweep.id)

    def losses(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """All loss series end to end, and the offsets of each row of `table` in them."""
        column = self.table.column("losses").combine_chunks()
        return column.values.to_numpy(), column.offsets.to_numpy().astype(np.int64)

    def record(self, i: int, j: int) -> dict[str, Any] | None:
        """Everything stored about a point, or None if it is missing."""
        rows = np.flatnonzero(self.point_indexes() == i * self.sweep.columns + j)
        if not len(rows):
            return None
        record: dict[str, Any] = self.table.slice(int(rows[0]), 1).to_pylist()[0]
        return record


def build_grid(
    sweep: Sweep,
    outcomes: Outcomes,
    *,
    rule: VerdictRule | None = None,
    allow_mixed: bool = False,
) -> Grid:
    """The grid of a sweep from everything that is stored about it.

    Of several rows of one point a result (trained or diverged) counts before a failure; results
    that differ are named in `problems`, and the first by time counts.

    Args:
        rule: judges instead of the sweep's own rule.
        allow_mixed: accept points of different numerics classes as one map.

    Raises:
        ConflictError: the points belong to different numerics classes.
    """
    table, problems = _one_row_per_point(sweep, outcomes.table)
    classes = _classes(sweep, table, allow_mixed)
    rule = rule or sweep.verdict
    shape = (sweep.rows, sweep.columns)
    index = row_indexes(sweep, table)

    def spread(values: npt.ArrayLike, empty: float | int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        full = np.full(sweep.num_points, empty, dtype=dtype)
        full[index] = values
        return full.reshape(shape)

    def column(name: str) -> npt.NDArray[np.float64]:
        return spread(table.column(name).to_numpy(), np.nan, np.float64)

    ratio, last_mean = _ratios(sweep, rule, table)
    probed = probe_ratio(
        table.column("probe_before").to_numpy(), table.column("probe_after").to_numpy()
    )
    codes = state_codes(
        rule,
        texts(table, "state"),
        final_loss=table.column("final_loss").to_numpy(),
        ratio=ratio,
        probe_ratio=probed,
    )
    return Grid(
        sweep=sweep,
        rule=rule,
        states=spread(codes, MISSING, np.uint8),
        first_loss=column("first_loss"),
        final_loss=column("final_loss"),
        last_mean_loss=spread(last_mean, np.nan, np.float64),
        ratio=spread(ratio, np.nan, np.float64),
        probe_ratio=spread(probed, np.nan, np.float64),
        steps=spread(table.column("steps").to_numpy(), 0, np.int64),
        num_losses=spread(pc.list_value_length(table.column("losses")).to_numpy(), 0, np.int64),
        seconds=spread(table.column("seconds").to_numpy(), 0.0, np.float64),
        table=table,
        problems=[*outcomes.problems, *problems],
        classes=classes,
    )


def state_codes(
    rule: VerdictRule,
    state: npt.NDArray[np.object_],
    *,
    final_loss: npt.NDArray[np.float64],
    ratio: npt.NDArray[np.float64],
    probe_ratio: npt.NDArray[np.float64],
) -> npt.NDArray[np.uint8]:
    """Code of the state of each outcome, shape (outcomes,).

    Args:
        state: names of `State`. The other arguments are those of `verdict.judged_number`.
    """
    codes = np.full(len(state), DIVERGED, dtype=np.uint8)
    stable = is_stable(state == State.TRAINED.value, final_loss)
    codes[state == State.FAILED.value] = FAILED
    codes[stable] = NOT_TRAINABLE
    number = judged_number(rule, ratio=ratio, final_loss=final_loss, probe_ratio=probe_ratio)
    codes[is_marginal(rule, stable, number)] = MARGINAL
    codes[is_trainable(rule, stable, number)] = TRAINABLE
    return codes


def count_states(states: npt.NDArray[np.uint8], rule: VerdictRule) -> dict[str, int]:
    """Points by state; marginal ones are named only where the rule has such a band."""
    numbers = np.bincount(states.ravel(), minlength=len(STATE_NAMES))
    counts = {name: int(number) for name, number in zip(STATE_NAMES, numbers, strict=True)}
    if rule.marginal is None:
        del counts[STATE_NAMES[MARGINAL]]
    return counts


def _classes(sweep: Sweep, table: pa.Table, allow_mixed: bool) -> list[str]:
    """Numerics classes of the results; failures have no numbers that could be mixed."""
    results = table.filter(pc.field("state") != State.FAILED.value)
    classes = sorted(str(name) for name in pc.unique(results.column("numerics_class")).to_pylist())
    if len(classes) > 1 and not allow_mixed:
        raise ConflictError(
            f"{sweep.id}: its points were trained in {len(classes)} numerics classes, which are "
            f"not one map: {'; '.join(classes)}. Give --allow-mixed to accept them as one"
        )
    return classes


def row_indexes(sweep: Sweep, table: pa.Table) -> npt.NDArray[np.int64]:
    """Index of the point of each row, shape (rows of the table,)."""
    i: npt.NDArray[np.int64] = table.column("i").to_numpy().astype(np.int64)
    j: npt.NDArray[np.int64] = table.column("j").to_numpy().astype(np.int64)
    return i * sweep.columns + j


def texts(table: pa.Table, name: str) -> npt.NDArray[np.object_]:
    """A column of few different texts, shape (rows,)."""
    values, which = labels_of(table, name)
    return np.array(values, dtype=object)[which]


def _one_row_per_point(sweep: Sweep, table: pa.Table) -> tuple[pa.Table, list[str]]:
    """The row that counts of each point, sorted by point; and the disagreements found."""
    index = row_indexes(sweep, table)
    failed = texts(table, "state") == State.FAILED.value
    times = table.column("time").to_numpy().astype(np.int64)
    count = np.bincount(index, minlength=sweep.num_points)
    row_of = np.full(sweep.num_points, -1, dtype=np.int64)
    row_of[index] = np.arange(len(table))
    several = np.flatnonzero(count[index] > 1)
    several = several[np.lexsort((times[several], failed[several], index[several]))]
    points, starts = np.unique(index[several], return_index=True)
    rivals = table.take(pa.array(several))
    found = _results(rivals)
    when, is_failed = times[several].tolist(), failed[several].tolist()
    problems = []
    for point, start in zip(points.tolist(), starts.tolist(), strict=True):
        same = range(start, start + int(count[point]))
        tied = [k for k in same if (when[k], is_failed[k]) == (when[start], is_failed[start])]
        row_of[point] = several[_first(rivals, tied, found)]
        results = [found[k] for k in same if not is_failed[k]]
        if len(set(results)) > 1:
            i, j = divmod(point, sweep.columns)
            problems.append(
                f"point ({i}, {j}) has {len(results)} results that differ; the first counts"
            )
    rows = row_of[row_of >= 0]
    if np.array_equal(rows, np.arange(len(table))):
        return table, problems
    return table.take(pa.array(rows)), problems


def _first(rivals: pa.Table, tied: Sequence[int], found: Sequence[tuple[int, bytes]]) -> int:
    """The row that counts of some of one point and the same time.

    Their content decides, not the order in which they were read.
    """
    least = min(found[k][0] for k in tied)  # as `tally` chooses, which knows no more of a row
    rows = [k for k in tied if found[k][0] == least]
    if len(rows) == 1:
        return rows[0]
    return min(rows, key=lambda k: repr(rivals.slice(k, 1).to_pylist()))


def _results(rows: pa.Table) -> list[tuple[int, bytes]]:
    """What tells each row's result from others, losses included, shape (rows,)."""
    losses = rows.column("losses").combine_chunks()
    values = np.asarray(losses.values.to_numpy(zero_copy_only=False), np.float32)
    offsets = losses.offsets.to_numpy().tolist()
    series = (values[a:b].tobytes() for a, b in itertools.pairwise(offsets))
    return list(zip(result_hashes(rows).tolist(), series, strict=True))


def _ratios(
    sweep: Sweep, rule: VerdictRule, table: pa.Table
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Ratio and mean of the last losses of each row under the rule's window.

    The trainer stored them for the sweep's own window in full precision; for another window they
    are taken from the stored series.
    """
    ratio = table.column("ratio").to_numpy().astype(np.float64)
    last_mean = table.column("last_mean_loss").to_numpy().astype(np.float64)
    if rule.window == sweep.verdict.window:
        return ratio, last_mean
    ratio, last_mean = ratio.copy(), last_mean.copy()
    for row, losses in enumerate(table.column("losses").to_pylist()):
        if losses:
            facts = loss_facts(np.asarray(losses, dtype=np.float32), rule.window)
            ratio[row], last_mean[row] = facts.ratio, facts.last_mean
    return ratio, last_mean
