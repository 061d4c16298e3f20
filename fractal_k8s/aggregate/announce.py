"""What others are told of a sweep's summary: a chat by webhook, W&B. Each thing once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fractal_k8s import notify
from fractal_k8s.aggregate.one_pass import Aggregation
from fractal_k8s.aggregate.record import read_record, update_record
from fractal_k8s.errors import StoreError
from fractal_k8s.results import holes as named
from fractal_k8s.results.published import published_files
from fractal_k8s.results.store import SweepStore
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.tracking import summary as tracked

Say = Callable[[str], None]

_TOLD = "told"
_TRACKED = "tracked"


def publish(
    folder: SweepStore, plan: Plan, done: Aggregation, say: Say, *, has_ended: bool
) -> None:
    """Tells a chat that a sweep has ended, and W&B what it came to. Trouble is said, not raised.

    Args:
        has_ended: False = workers may still add to it: a complete sweep has ended all the same.
    """
    if has_ended or done.summary["complete"]:
        counts = done.summary["counts"]
        _tell(folder, f"end {counts['missing']} {counts['failed']}", end_text(folder, done), say)
    wish = tracked.summary_wish()
    if wish is None or read_record(folder).get(_TRACKED) == done.digest:
        return
    found = published_files(folder)
    files = {} if found is None else found.files
    kept = tracked.log_summary(wish, plan.sweep.id, plan.sweep.to_dict(), done.summary, files, say)
    try:
        for name, data in kept:
            folder.put_tracking("summary", done.digest[:12], name, data)
    except StoreError as error:
        say(f"W&B: what no server has is lost ({error})")
    update_record(folder, {_TRACKED: done.digest})


def announce_failed(folder: SweepStore, failed: Mapping[str, str], say: Say) -> None:
    """Tells a chat that indexes have failed for good, once a Job.

    Args:
        failed: a sentence by the name of the Job.
    """
    for job, text in failed.items():
        _tell(folder, f"failed {job}", f"{folder.sweep_id}: {text}", say)


def end_text(folder: SweepStore, done: Aggregation) -> str:
    """The end of a sweep in a few lines."""
    summary = done.summary
    head = "complete" if summary["complete"] else holes(summary)
    lines = [f"{folder.sweep_id}: {head}", *named.lines(summary["holes"])]
    if summary["trainable_fraction"] is not None:
        lines.append(f"trainable {summary['trainable_fraction']:.1%} of the points with a verdict")
    if summary.get("dimension") is not None:
        lines.append(f"edge dimension {summary['dimension']:.3f}")
    if problems := summary["problems"]:
        lines.append(f"{len(problems)} problems, the first: {problems[0]}")
    lines.append(folder.where("summary"))
    return "\n".join(lines)


def holes(summary: Mapping[str, Any]) -> str:
    """What is missing of a map, as a part of a sentence."""
    counts = summary["counts"]
    return (
        f"ended with holes: {counts['missing']:,} points are missing and {counts['failed']:,} "
        f"failed, {summary['coverage']:.1%} have a verdict"
    )


def _tell(folder: SweepStore, event: str, text: str, say: Say) -> None:
    if not notify.is_wanted():
        return
    told = read_record(folder).get(_TOLD) or []
    if event in told:
        return
    if (why := notify.send(text)) is not None:
        say(f"the webhook could not be told: {why}")
        return
    update_record(folder, {_TOLD: [*told, event]})
