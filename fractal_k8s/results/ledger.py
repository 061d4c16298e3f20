"""What a launch knew beforehand and when it began, kept beside the outcomes.

The note `forecast` of a sweep:

    predicted       the forecast before anything was trained (`predicted`), or None
    price_per_hour  of a worker, in USD, or None
    launches        one entry per launch or resume: began (ISO time), workers, shards
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from fractal_k8s.errors import FractalError
from fractal_k8s.results.store import Store, SweepStore
from fractal_k8s.results.timings import stored_pace
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.plan import Forecast, Terms, forecast

NOTE: Final = "forecast"


def predicted(made: Forecast) -> dict[str, Any] | None:
    """What of a forecast is compared with the run later; None if no time was known.

    Keys: source, distinct_points, expected_steps, workers, shards, training_seconds (of all workers
    together, nothing but training), start_seconds (of a shard), worker_seconds (wall time times the
    workers that are kept for it), interval (95 %, of worker_seconds), wall_seconds.
    """
    if made.pace is None or made.wall is None:
        return None
    beside = made.pace.start_seconds * made.wall.shards + made.pace.between * made.distinct
    # a worker is paid for until the last one has ended
    held = min(made.terms.workers, made.wall.shards) * made.wall.wall_seconds
    longer = held / made.wall.worker_seconds
    return {
        "source": made.pace.source,
        "distinct_points": made.distinct,
        "expected_steps": made.expected_steps,
        "workers": made.terms.workers,
        "shards": made.wall.shards,
        "training_seconds": made.wall.worker_seconds - beside,
        "start_seconds": made.pace.start_seconds,
        "worker_seconds": held,
        "interval": [end * longer for end in made.interval] if made.interval else None,
        "wall_seconds": made.wall.wall_seconds,
    }


def predict(sweep: Sweep, store: Store, terms: Terms) -> dict[str, Any] | None:
    """The prediction from what the store holds of earlier sweeps; None if it says nothing."""
    try:
        pace = stored_pace(store, sweep)
    except FractalError:  # no forecast is no reason not to train
        return None
    return None if pace is None else predicted(forecast(sweep, pace, terms))


def for_share(prediction: dict[str, Any] | None, share: float) -> dict[str, Any] | None:
    """The prediction for a share of the experiments: the others were taken over."""
    if prediction is None or share >= 1:
        return prediction
    scaled: dict[str, Any] = dict(prediction)
    for key in ("training_seconds", "worker_seconds", "wall_seconds", "expected_steps"):
        if scaled[key] is not None:
            scaled[key] *= share
    scaled["distinct_points"] = round(scaled["distinct_points"] * share)
    if scaled["interval"] is not None:
        scaled["interval"] = [end * share for end in scaled["interval"]]
    return scaled


def record_launch(
    folder: SweepStore,
    prediction: dict[str, Any] | None,
    *,
    workers: int,
    shards: int,
    price_per_hour: float | None,
) -> None:
    """Adds a launch to the sweep's ledger.

    Only the first launch's prediction is kept: a later one would know part of the answer.
    """
    note = folder.notes([]).get(NOTE)
    if note is None:
        note = {"predicted": prediction, "price_per_hour": None, "launches": []}
    if price_per_hour is not None:
        note["price_per_hour"] = price_per_hour
    began = datetime.now(UTC).isoformat(timespec="milliseconds")
    note["launches"].append({"began": began, "workers": workers, "shards": shards})
    folder.put_note(NOTE, note)
