"""Ends a worker that makes no step: a hung device never returns to Python by itself."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from fractal_k8s.errors import EXIT_HUNG

VARIABLE: Final = "FRACTAL_K8S_HANG_SECONDS"
DEFAULT_SECONDS: Final = 1800.0
# how long saving may take before the process ends without it
_RESCUE_SECONDS: Final = 60.0


class Watchdog:
    """Exits the process with code 70 when `beat` was not called for too long.

    Before that it calls `rescue`, from its own thread, which may still save what is done.
    """

    def __init__(self, rescue: Callable[[], None], *, seconds: float | None = None) -> None:
        given = os.environ.get(VARIABLE)
        self.seconds = seconds or (float(given) if given else DEFAULT_SECONDS)
        self.rescue = rescue
        self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def beat(self) -> None:
        """Tells the watchdog that a step was made."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 4)):
            silent = time.monotonic() - self._last
            if silent > self.seconds:
                self._end(silent)

    def _end(self, silent: float) -> None:
        _say(f"Error: no training step for {silent:.0f} s; the device may hang, try again")
        rescue = threading.Thread(target=self.rescue, daemon=True)
        rescue.start()
        rescue.join(_RESCUE_SECONDS)
        _say("what is done was not stored" if rescue.is_alive() else "what is done is stored")
        os._exit(EXIT_HUNG)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
