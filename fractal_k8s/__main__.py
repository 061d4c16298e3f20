"""The program: `fractal-k8s`, and `python -m fractal_k8s`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Final, NoReturn

from fractal_k8s.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

# commands of pods that train nothing
_OTHERS_IN_PODS: Final = (["aggregate"], ["cache"])


def run() -> None:
    """Runs the command and ends the process at once, with its exit code.

    By then everything is stored and closed. What the interpreter would still do is to tear down
    libraries with threads of their own (arrow, gloo), which now and then aborts the process, and a
    worker that has done its work would count as one that crashed.
    """
    code: object = 0
    # the kernel drops a SIGTERM for which the first process of a container has no handler
    if sys.argv[1:2] == ["worker"]:
        signal.signal(signal.SIGTERM, _end_at_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    elif sys.argv[1:2] in _OTHERS_IN_PODS:
        signal.signal(signal.SIGTERM, _leave)
    try:
        from fractal_k8s.cli import main

        main()
    except SystemExit as exit_:
        code = exit_.code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    if isinstance(code, str):
        sys.stderr.write(code + "\n")
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a pipe that nobody reads any more
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Ends a worker that has not begun."""
    from fractal_k8s import termination

    termination.note(code=EXIT_TERMINATED, error="stopped before it began")
    os._exit(EXIT_TERMINATED)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Ends what may be killed at any moment, so that a pod is gone before its grace is over."""
    raise SystemExit(EXIT_TERMINATED)


if __name__ == "__main__":
    run()
