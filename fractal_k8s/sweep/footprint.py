"""What a sweep leaves behind and asks for: bytes in the store, requests, calls to the cluster.

Sizes were measured on sweeps of 256 to 2,304 points; a test compares them with a real sweep.
"""

from __future__ import annotations

import math
from typing import Any, Final

# --- storage, bytes ---

# A loss is a float32 that hardly compresses.
LOSS_BYTES: Final = 4
_STORED_LOSS_BYTES: Final = 3.2
# A row of an outcomes file without its losses, a log line, and the point's part of the summary.
_ROW_BYTES: Final = 30
_LOG_BYTES: Final = 335
_SUMMARY_POINT_BYTES: Final = 80
# What every outcomes file holds besides rows, and the page with its script, figures and numbers.
_OBJECT_BYTES: Final = 10_900
_SUMMARY_BYTES: Final = 255_000
# under its names, and for readers while it is replaced (`results.published`)
_SUMMARY_COPIES: Final = 2
POINT_BYTES: Final = _ROW_BYTES + _LOG_BYTES + _SUMMARY_POINT_BYTES

# --- calls ---

# An attempt rewrites its objects this often: nothing on a disk, a little in S3.
FLUSH_SECONDS_LOCAL: Final = 2.0
FLUSH_SECONDS_REMOTE: Final = 30.0
# Per attempt: sweep.json, deals and its record, objects of the shard, classes and their record,
# golden hashes and the first of them.
_SHARD_READS: Final = 8
_SHARD_WRITES: Final = 3
# A flush puts the log and the outcomes.
_FLUSH_WRITES: Final = 2
# Of the summary: grid, two figures, page, numbers, each twice, and the manifest.
_SUMMARY_WRITES: Final = 11
# Reads of what launch needs (rights, claims, secrets, nodes, defaults, earlier objects) and the
# three objects it creates: ConfigMap, Job, aggregator Job.
_LAUNCH_CALLS: Final = 10
# A watching launcher asks for the Job's status this often.
WATCH_SECONDS: Final = 10.0
# Creating a pod, its event, and removing its finalizer, by the cluster's own controllers.
_POD_CALLS: Final = 3


def upper_bytes(points: int, steps: int) -> int:
    """Bytes that so many points need at most, for the check of free space before a launch."""
    return points * (POINT_BYTES + LOSS_BYTES * steps)


def storage(points: int, losses: int | None, shards: int) -> dict[str, int] | None:
    """Bytes in the store by kind; None if the number of losses is not known.

    Args:
        losses: recorded losses of all points together.
        shards: outcomes files.
    """
    if losses is None:
        return None
    parts = {
        "outcomes": round(
            shards * _OBJECT_BYTES + points * _ROW_BYTES + losses * _STORED_LOSS_BYTES
        ),
        "logs": points * _LOG_BYTES,
        "summary": _SUMMARY_COPIES * (_SUMMARY_BYTES + points * _SUMMARY_POINT_BYTES),
    }
    return {**parts, "total": sum(parts.values())}


def store_requests(
    shards: int, points_per_shard: int, shard_seconds: float | None, flush_seconds: float
) -> dict[str, int]:
    """Requests to the store: workers, and one pass of the aggregator over their objects.

    writes = shards * (3 + 2 * flushes) + 5; flushes = seconds of a shard / flush_seconds, at least
    1 and at most one a point; reads = shards * (6 + 1) + 3.
    """
    flushes = max(1, min(points_per_shard, math.ceil((shard_seconds or 0.0) / flush_seconds)))
    writes = shards * (_SHARD_WRITES + _FLUSH_WRITES * flushes) + _SUMMARY_WRITES
    reads = shards * (_SHARD_READS + 1) + 3
    return {"writes": writes, "reads": reads, "total": writes + reads}


def api_calls(pods: int, wall_seconds: float | None) -> dict[str, Any]:
    """Calls to a cluster's API server if the sweep runs as one Indexed Job.

    launch = 10; watch = wall seconds / 10 (None while the time is unknown); controllers = 3 a pod,
    made by the cluster itself (create, event, finalizer).
    """
    watch = None if wall_seconds is None else math.ceil(wall_seconds / WATCH_SECONDS)
    controllers = pods * _POD_CALLS
    return {
        "launch": _LAUNCH_CALLS,
        "watch": watch,
        "controllers": controllers,
        "total": _LAUNCH_CALLS + (watch or 0) + controllers,
    }


def wandb_calls() -> dict[str, int]:
    """W&B runs and log calls of a tracked sweep: one run with one summary, nothing per point."""
    return {"runs": 1, "log_calls": 1, "per_point": 0}
