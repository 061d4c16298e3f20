"""W&B for the points of a worker, from a process of its own.

The worker only puts each point into a queue. Whatever W&B's client or server do, the worker waits
for none of it: what does not fit into the queue is dropped and counted, and at the end the process
has a few seconds. What no server has then is handed back as files, for `wandb sync`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from fractal_k8s.environ import without_secrets
from fractal_k8s.tracking.child import kill, start
from fractal_k8s.tracking.modes import Wish

Say = Callable[[str], None]

# Bytes that may wait for the process: the losses of a million steps are 4 MB.
_MOST_WAITING: Final = 32 << 20
# Bytes of files that are handed back.
_MOST_KEPT: Final = 64 << 20
# What a file holds of a run that was given up before it began.
_EMPTY_BYTES: Final = 7
# Seconds at the end: to upload the rest, then to write it down, which takes one or two unless the
# processor is busy with other things.
_UPLOAD_SECONDS: Final = 4.0
_WRITE_SECONDS: Final = 10.0


class ShardTracker:
    """The points of one attempt at a shard, on their way to W&B.

    Args:
        header: what the process must know; see `tracking.process`.
        folder: where it writes its files.
        say: gets a line when something is not as it should be; from another thread.
    """

    # the most seconds that `close` takes unless it is given fewer
    patience: Final = _UPLOAD_SECONDS + _WRITE_SECONDS

    def __init__(self, header: Mapping[str, Any], folder: Path, say: Say) -> None:
        self.folder = folder
        self.say = say
        self.num_dropped = 0
        self._result: dict[str, Any] = {}
        self._waiting = 0
        self._counting = threading.Lock()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._process = start("process", folder)
        self._queue.put(json.dumps(header).encode() + b"\n")
        self._threads = [
            threading.Thread(target=self._feed, args=(self._process.stdin,), daemon=True),
            threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def point(self, line: Mapping[str, Any], losses: npt.NDArray[np.float32]) -> None:
        """Tracks a point: its log line, and the losses of its steps, shape (steps,)."""
        data = losses.tobytes()
        record = json.dumps({"line": dict(line), "bytes": len(data)}).encode() + b"\n" + data
        with self._counting:
            fits = self._waiting + len(record) <= _MOST_WAITING
            self._waiting += len(record) if fits else 0
        if fits:
            self._queue.put(record)
        else:
            self.num_dropped += 1

    def close(self, *, most_seconds: float | None = None) -> list[tuple[str, bytes]]:
        """Ends tracking in time; returns the files, by name, that hold what no server has."""
        deadline = time.monotonic() + (self.patience if most_seconds is None else most_seconds)
        self._queue.put(None)
        if not self._ends_within(deadline - _WRITE_SECONDS - time.monotonic()):
            with suppress(OSError):
                self._process.terminate()  # writes the rest down, for later
            self._ends_within(deadline - time.monotonic())
        self._kill()
        self._tell()
        kept = [] if self._result.get("uploaded") else self._files()
        if "WANDB_DIR" not in os.environ:
            shutil.rmtree(self.folder, ignore_errors=True)
        return kept

    # --- the process ---

    def _feed(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):  # it is gone
            while (record := self._queue.get()) is not None:
                stream.write(record)
                stream.flush()
                with self._counting:
                    self._waiting -= len(record)
        with suppress(OSError):
            stream.close()

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            for text in stream:
                with suppress(ValueError):
                    message = json.loads(text)
                    if "say" in message:
                        self.say(without_secrets(str(message["say"])))
                    else:
                        self._result = message

    def _ends_within(self, seconds: float) -> bool:
        try:
            self._process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _kill(self) -> None:
        """Ends the process, if it still runs, and whatever it has started."""
        kill(self._process)
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _tell(self) -> None:
        dropped = self.num_dropped + int(self._result.get("dropped", 0))
        if dropped:
            self.say(f"W&B: {dropped} points are not tracked, it did not keep up")
        if not self._result:
            self.say("W&B: tracking was ended before it was done")

    def _files(self) -> list[tuple[str, bytes]]:
        """Runs as W&B's client keeps them, whole files only, as far as they are not too much."""
        kept: list[tuple[str, bytes]] = []
        left = _MOST_KEPT
        for path in sorted(self.folder.rglob("*.wandb")):
            with suppress(OSError):
                size = path.stat().st_size
                if size <= _EMPTY_BYTES:
                    continue
                left -= size
                if left < 0:
                    self.say(f"W&B: {path.name} and what follows are too large to be kept")
                    break
                kept.append((f"{path.parent.name}/{path.name}", path.read_bytes()))
        return kept


def open_shard_tracker(
    wish: Wish | None, facts: Mapping[str, Any], *, attempt: str, say: Say
) -> ShardTracker | None:
    """A tracker for one attempt at a shard; None if nothing is to be tracked, or it cannot be.

    Args:
        facts: `sweep` (id), `shard` (name) and `config`, which W&B shows of the run.
        attempt: its name.
    """
    if wish is None:
        return None
    if importlib.util.find_spec("wandb") is None:
        say("W&B: not tracked, the wandb library is not installed")
        return None
    try:
        return ShardTracker({**facts, **vars(wish)}, _folder(f"{facts['shard']}-{attempt}"), say)
    except OSError as error:
        say(f"W&B: not tracked ({error.strerror})")
        return None


def _folder(name: str) -> Path:
    chosen = os.environ.get("WANDB_DIR")
    if chosen is None:
        return Path(tempfile.mkdtemp(prefix="fractal-k8s-wandb-"))
    folder = Path(chosen) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
