"""Several workers in one pod, one on each of its GPUs: started, watched and ended together.

It trains nothing and loads nothing that does. Each worker is the same program that a pod with one
GPU runs, with a shard of its own.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Final

from fractal_k8s import termination
from fractal_k8s.errors import (
    EXIT_COMPLETE,
    EXIT_CORRUPT,
    EXIT_HUNG,
    EXIT_NOT_READY,
    EXIT_RETRY,
    EXIT_SETTINGS,
    EXIT_TERMINATED,
)
from fractal_k8s.stopping import GRACE_SECONDS, GRACE_VARIABLE, PARENT_PID

# Codes from the one that decides most to the one that decides least; then any other, then 0.
_ORDER: Final = (EXIT_CORRUPT, EXIT_SETTINGS, EXIT_TERMINATED, EXIT_HUNG, EXIT_RETRY)
_FATAL: Final = (EXIT_SETTINGS, EXIT_CORRUPT)
# Share of the grace after which a child is killed: it ends itself before, if it can at all.
_KILL_SHARE: Final = 0.9
# seconds between two updates of the pod's termination message
_NOTE_SECONDS: Final = 15.0

Emit = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """One worker to start."""

    # what its lines begin with
    label: str
    # arguments of this program
    arguments: Sequence[str]
    # CUDA_VISIBLE_DEVICES; None = as it is
    device: str | None = None


@dataclass
class _Child:
    part: Part
    process: subprocess.Popen[bytes]
    readers: list[threading.Thread]
    message: Path


@dataclass(frozen=True)
class _Ended:
    child: _Child
    code: int


def merge_codes(codes: Iterable[int], *, told: bool) -> int:
    """The exit code of a pod from those of its workers.

    65 before 64 before 143, which counts if the pod was told to stop, before 70, 75 and any other;
    69, which is no failure, last.
    """
    bad = [code for code in codes if code != EXIT_COMPLETE]
    found = [code for code in bad if code != EXIT_NOT_READY] or bad
    for code in _ORDER:
        if code in found and (told or code != EXIT_TERMINATED):
            return code
    return found[0] if found else EXIT_COMPLETE


class Fanout:
    """Workers that live and end together.

    One that ends badly leaves the others alone, unless what it found is wrong for every shard
    (64, 65): then they are asked to stop, which they do as for a SIGTERM.

    Args:
        parts: what to start.
        emit: gets every line that a worker prints, after its label.
        grace_seconds: between SIGTERM and SIGKILL; None = FRACTAL_K8S_GRACE_SECONDS, else 120.
    """

    def __init__(self, parts: Sequence[Part], emit: Emit, grace_seconds: float | None = None):
        self.parts = parts
        self.emit = emit
        given = os.environ.get(GRACE_VARIABLE)
        self.grace_seconds = grace_seconds or (float(given) if given else GRACE_SECONDS)
        # children that ended, and None for a signal, which only wakes the main thread up
        self._news: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._printing = threading.Lock()
        self._children: list[_Child] = []
        self._told = False
        self._kill_at: float | None = None

    def run(self) -> int:
        """Starts the workers, waits for all of them and returns the pod's exit code."""
        previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            with tempfile.TemporaryDirectory(prefix="fractal-k8s-pod-") as folder:
                return self._run(Path(folder))
        finally:
            self._kill()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run(self, folder: Path) -> int:
        for number, part in enumerate(self.parts):
            self._children.append(self._start(part, folder / f"{number}.json"))
            if self._kill_at is not None:  # the signal came when this one could not be told yet
                self._terminate([self._children[-1]])
        self._note(code=None, error=None)
        codes: dict[str, int] = {}
        noted = time.monotonic()
        while len(codes) < len(self._children):
            ended = self._next_news()
            if ended is not None:
                codes[ended.child.part.label] = ended.code
                self._say(ended.child.part.label, _ending(ended.code))
                if ended.code in _FATAL:
                    self._stop_all()
            if ended is not None or time.monotonic() - noted >= _NOTE_SECONDS:
                self._note()
                noted = time.monotonic()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._kill()
        code = merge_codes(codes.values(), told=self._told)
        self._note(code=code)
        self.emit(f"{len(codes)} workers have ended; exit code {code}")
        return code

    def _next_news(self) -> _Ended | None:
        limit = _NOTE_SECONDS
        if self._kill_at is not None:
            limit = min(limit, max(0.1, self._kill_at - time.monotonic()))
        with suppress(queue.Empty):
            return self._news.get(timeout=limit)
        return None

    # --- children ---

    def _start(self, part: Part, message: Path) -> _Child:
        environment = {
            **os.environ,
            PARENT_PID: str(os.getpid()),
            termination.VARIABLE: str(message),
            **({} if part.device is None else {"CUDA_VISIBLE_DEVICES": part.device}),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "fractal_k8s", *part.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches this process only
        )
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [
            threading.Thread(target=self._read, args=(part.label, stream), daemon=True)
            for stream in (process.stdout, process.stderr)
        ]
        child = _Child(part, process, readers, message)
        for thread in (*readers, threading.Thread(target=self._wait, args=(child,), daemon=True)):
            thread.start()
        return child

    def _read(self, label: str, stream: IO[bytes]) -> None:
        for line in stream:
            self._say(label, line.decode(errors="replace").rstrip("\n"))

    def _wait(self, child: _Child) -> None:
        code = child.process.wait()
        for reader in child.readers:
            reader.join(timeout=5)  # a grandchild may keep the pipe open
        self._news.put(_Ended(child, code if code >= 0 else 128 - code))

    def _say(self, label: str, line: str) -> None:
        with self._printing:
            self.emit(f"[{label}] {line}")

    def _note(self, **changes: object) -> None:
        messages = (termination.read(child.message) for child in self._children)
        termination.note(**{**termination.merged(messages), **changes})

    # --- ends ---

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._told:
            self._told = True
            self._stop_all()
            self._news.put(None)

    def _stop_all(self) -> None:
        """Asks every worker to end; those that do not are killed at the end of the grace."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + _KILL_SHARE * self.grace_seconds
            self._terminate(self._children)

    def _terminate(self, children: Iterable[_Child]) -> None:
        for child in children:
            with suppress(OSError):
                child.process.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        for child in self._children:
            if child.process.returncode is None:
                with suppress(OSError):
                    os.killpg(child.process.pid, signal.SIGKILL)


def _ending(code: int) -> str:
    words = {
        EXIT_COMPLETE: "is done",
        EXIT_SETTINGS: "ended: the sweep or its settings are wrong",
        EXIT_CORRUPT: "ended: weights or data are damaged",
        EXIT_NOT_READY: "ended: its cache is not filled yet",
        EXIT_HUNG: "ended: it hung",
        EXIT_RETRY: "ended: may be tried again",
        EXIT_TERMINATED: "was stopped",
        128 + signal.SIGKILL: "was killed (out of memory?)",
    }
    return f"worker {words.get(code, 'ended')} (exit code {code})"
