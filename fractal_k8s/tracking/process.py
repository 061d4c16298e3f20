"""The process that gives a worker's points to W&B: records in on stdin, remarks out on stdout.

The first line is a JSON object with `project`, `entity`, `mode` (shard or point), `sweep`, `shard`
and `config`. Each record after it is a line {"line": a point's log line, "bytes": n} and n bytes of
float32 losses. SIGTERM means that time is up: what is left is written down for a later upload.
It may come early, so that nothing large is loaded before there is a handler.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final

from fractal_k8s.tracking.run import PRIVATE, Tracked, Tracker, open_wandb, why_unusable

# How long the server may take to show that it is there, and to accept a run.
_PROBE_SECONDS: Final = 3.0
_INIT_SECONDS: Final = 15.0
# For the last upload of a run; a hanging server must not keep the worker.
_FINISH_SECONDS: Final = 2.5
# Once time is up: for what is still to be read; half of what the worker then waits.
_REST_SECONDS: Final = 5.0


class _TimeIsUpError(BaseException):
    """Raised only where it may be: while a server is waited for."""


class _Clock:
    """Whether the worker still has time."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self._may_raise = False
        signal.signal(signal.SIGTERM, self._handle)

    @property
    def is_up(self) -> bool:
        return self.deadline is not None

    @property
    def is_over(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.deadline is None:
            self.deadline = time.monotonic() + _REST_SECONDS
            if self._may_raise:
                self._may_raise = False
                raise _TimeIsUpError

    def open(self, tracked: Tracked) -> Tracker:
        """A run; an offline one if the server does not answer, or not in time."""
        importlib.import_module("wandb")  # whole: an exception would leave half of it
        if os.environ.get("WANDB_MODE", "online") == "online":
            try:
                self._may_raise = not self.is_up
                if not self.is_up and _is_usable():
                    return open_wandb(tracked, _say)
            except _TimeIsUpError:
                pass
            finally:
                self._may_raise = False
            os.environ["WANDB_MODE"] = "offline"
        return open_wandb(tracked, _say)


def _is_usable() -> bool:
    if (why := why_unusable(_PROBE_SECONDS)) is not None:
        _say(f"W&B: {why}; the run is kept offline")
    return why is None


def _say(text: str) -> None:
    _write({"say": text})


def _write(message: Mapping[str, Any]) -> None:
    with suppress(OSError):  # nobody listens any more
        os.write(1, json.dumps(message).encode() + b"\n")


def _records(stream: IO[bytes]) -> Iterator[tuple[dict[str, Any], array[float]]]:
    """Log lines and losses until the worker has no more; a record that was cut off is left out."""
    for text in stream:
        record = json.loads(text)
        data = stream.read(record["bytes"])
        if len(data) < record["bytes"]:
            return
        yield record["line"], array("f", data)


class _Session:
    """The runs of one attempt at a shard."""

    def __init__(self, header: Mapping[str, Any], clock: _Clock) -> None:
        self.header = header
        self.clock = clock
        self.uploaded = True
        self.dropped = 0

    def track(self, stream: IO[bytes]) -> None:
        per_point = self.header["mode"] == "point"
        run = None if per_point else self._open(str(self.header["shard"]), {})
        counts: Counter[str] = Counter()
        for line, losses in _records(stream):
            if self.clock.is_over:
                self.dropped += 1
                continue
            counts[str(line["state"])] += 1
            if run is not None:
                _log(run, line, losses)
            else:
                self._track_alone(line, losses)
        if run is not None:
            self._finish(run, {"points": sum(counts.values()), **counts})

    def _track_alone(self, line: dict[str, Any], losses: array[float]) -> None:
        run = self._open(f"{line['i']},{line['j']}", {"point": line})
        _log(run, line, losses)
        self._finish(run, line)

    def _open(self, name: str, more: Mapping[str, Any]) -> Tracker:
        header = self.header
        tracked = Tracked(
            project=header["project"],
            entity=header["entity"],
            name=name,
            group=header["sweep"],
            config={**header["config"], "shard": header["shard"], **more},
            folder=Path(os.environ["WANDB_DIR"]),
            tags=("sweep",),
            settings={
                **PRIVATE,
                "init_timeout": _INIT_SECONDS,
                "finish_timeout": _FINISH_SECONDS,
            },
            stays=False,  # but what no server has is handed back
        )
        return self.clock.open(tracked)

    def _finish(self, run: Tracker, summary: Mapping[str, Any]) -> None:
        run.finish(summary)
        self.uploaded &= run.is_uploaded


def _log(run: Tracker, line: Mapping[str, Any], losses: array[float]) -> None:
    """Every step of a point, then what it came to, all with its i and j."""
    place = {"i": line["i"], "j": line["j"]}
    for step, loss in enumerate(losses.tolist()):
        run.log({**place, "step": step, "train/loss": loss}, None)
    facts = {f"point/{name}": value for name, value in line.items() if name not in place}
    run.log({**place, **facts}, None)


def main() -> None:
    clock = _Clock()
    stream = sys.stdin.buffer
    session = _Session(json.loads(stream.readline()), clock)
    session.track(stream)
    _write({"uploaded": session.uploaded, "dropped": session.dropped})
    os._exit(0)  # the client's own end might wait for a server


if __name__ == "__main__":
    main()
