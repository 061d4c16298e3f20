"""The largest batch that fits: sizes are tried out with real training steps, not estimated.

Each size is tried in a process of its own (see `trial`), on a CPU and on a GPU alike: what a size
leaves behind, a full allocator or a broken device, cannot decide about the next one, and the first
point of a worker finds exactly the memory that the trial found.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from fractal_k8s import errors
from fractal_k8s.errors import FractalError, UsageError
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.trial import Answer, Request, is_out_of_memory

# Rates so small that a run stays where it is: memory is what is asked about.
_RATES: Final = [1e-6, 2e-6]
_WARMUPS: Final = [0.0]


@dataclass(frozen=True)
class Trial:
    """One size that was tried."""

    rows: int
    fits: bool
    answer: Answer


def search(attempt: Callable[[int], Answer], *, stride: int, most: int) -> Iterator[Trial]:
    """Tries sizes, each a multiple of the stride, until the largest that fits is known.

    Doubles from one stride on until a size does not fit or `most` is reached, then halves the gap.
    """
    top = most // stride * stride
    good, bad = 0, None
    while bad is None and good < top:
        rows = min(2 * good or stride, top)
        yield (trial := _judged(rows, attempt(rows)))
        good, bad = (rows, None) if trial.fits else (good, rows)
    while bad is not None and bad - good > stride:
        rows = good + (bad - good) // stride // 2 * stride
        yield (trial := _judged(rows, attempt(rows)))
        good, bad = (rows, bad) if trial.fits else (good, rows)


def _judged(rows: int, answer: Answer) -> Trial:
    """The trial, if memory decided it.

    Raises:
        FractalError: something else did.
    """
    if answer.fits or answer.full:
        return Trial(rows, answer.fits, answer)
    kind = getattr(errors, answer.kind or "", None)
    if isinstance(kind, type) and issubclass(kind, FractalError):
        raise kind(str(answer.error))
    raise FractalError(
        f"the trial of {rows} rows failed, and not for want of memory: {answer.error}; "
        "nothing is known about this size until that is mended"
    )


def try_rows(
    sweep: Sweep,
    rows: int,
    *,
    steps: int,
    depth: int | None = None,
    memory_limit: int | None = None,
    headroom: float = 0.0,
) -> Answer:
    """Trains two points of `steps` steps with `rows` whole rows at once, in a child process.

    Args:
        depth: layers of a model with random weights; None = the sweep's checkpoint and data.
        memory_limit: bytes the process, or its GPU, may use; None = what the machine has.
        headroom: share of that to keep free.
    """
    request = Request(trial_sweep(sweep, rows, steps), depth, memory_limit, headroom)
    done = subprocess.run(
        [sys.executable, "-m", "fractal_k8s.train.trial"],
        input=json.dumps(asdict(request)),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C is for us, who then end it
    )
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and last:
        return Answer(**json.loads(last))
    return _died(done.returncode, done.stderr.strip())


def _died(code: int, stderr: str) -> Answer:
    """The answer for a process that could not give one.

    A system that runs out of memory kills with SIGKILL, and nobody else is expected to.
    """
    words = stderr.rpartition("\n")[2]
    if code < 0:
        name = signal.Signals(-code).name
        full = code == -signal.SIGKILL or is_out_of_memory(stderr)
        return Answer(full=full, error=f"its process was ended by {name} {words}".strip())
    return Answer(full=is_out_of_memory(words), error=words or f"its process ended with {code}")


def trial_sweep(sweep: Sweep, rows: int, steps: int) -> dict[str, Any]:
    """The sweep's model and config with a batch of `rows`, as two points that do not diverge."""
    training = sweep.training
    if not isinstance(training, GPTTraining):
        raise UsageError(
            f"{sweep.name} trains an {sweep.model}: its batch is its data set; "
            "probe-batch is for gpt sweeps"
        )
    content = sweep.to_dict()
    content["training"] |= {
        "batch_size": rows,
        "device_batch_size": None,
        "tokens": rows * training.max_seq_len * steps,
        "flops": None,
        "flops_per_token": None,
        "token_accounting": "all",
    }
    return {
        **content,
        "name": "probe-batch",
        "resolution": [2, 1],
        "axes": {
            "y": {"knob": "lr", "values": _RATES},
            "x": {"knob": "warmup_frac", "values": _WARMUPS},
        },
        "scatter": None,
        "origin": None,
    }
