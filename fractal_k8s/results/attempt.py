"""One attempt at a shard: it owns two objects, outcomes and log, and rewrites them whole."""

from __future__ import annotations

import json
import secrets
import threading
from datetime import UTC, datetime
from typing import Any

from fractal_k8s.results import schema
from fractal_k8s.results.outcome import Environment, Outcome
from fractal_k8s.results.store import SweepStore
from fractal_k8s.sweep.definition import Sweep


class Attempt:
    """Collects outcomes and writes all of them at each flush."""

    def __init__(
        self,
        folder: SweepStore,
        sweep: Sweep,
        shard: str,
        environment: Environment,
        *,
        start_seconds: float | None = None,
    ) -> None:
        now = datetime.now(UTC)
        self.name = f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.folder = folder
        self.sweep = sweep
        self.shard = shard
        self.environment = environment
        # from the start of the worker until it could train; the log's first line tells it
        self.start_seconds = start_seconds
        # (outcome, when it was known, its log line); one append, so that a signal cannot split it
        self._entries: list[tuple[Outcome, datetime, str]] = []
        # how many of them are stored
        self.num_stored = 0
        # a thread that saves in an emergency must not write older content over newer
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, outcome: Outcome, line: dict[str, Any]) -> None:
        """Takes one outcome and its log line (plain data; time, shard and attempt are added)."""
        now = datetime.now(UTC)
        stamp: dict[str, Any] = {"time": now.isoformat(timespec="milliseconds")}
        if not self._entries and self.start_seconds is not None:
            stamp["start_seconds"] = round(self.start_seconds, 3)
        text = json.dumps({**stamp, "shard": self.shard, "attempt": self.name, **jsonable(line)})
        self._entries.append((outcome, now, text))

    def flush(self) -> None:
        """Writes what has been added so far; does nothing when nothing is new.

        Raises:
            StoreError: the store refused; nothing in it was damaged, and a later flush writes all.
        """
        with self._writing:
            entries = self._entries[:]
            if len(entries) == self.num_stored:
                return
            outcomes, times, lines = zip(*entries, strict=True)
            table = schema.to_table(self.sweep, outcomes, times, self.environment)
            log = ("\n".join(lines) + "\n").encode()
            files = self.folder.files
            files.put(self.folder.log_key(self.shard, self.name), log)
            self.folder.put_outcomes(self.shard, self.name, table)
            self.num_stored = len(entries)


def jsonable(line: dict[str, Any]) -> dict[str, Any]:
    """Non-finite numbers as text: JSON has none."""
    return {
        key: repr(value) if isinstance(value, float) and value - value != 0 else value
        for key, value in line.items()
    }
