"""One size of `probe-batch`: whole rows, as many as asked for, trained for a few real steps.

Runs as a process of its own, which reads a `Request` from stdin and prints an `Answer`, both JSON.
What it allocates, fragments or breaks is gone with it: no size is judged by what another has left.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fractal_k8s.environ import prepare_environment
from fractal_k8s.errors import FractalError, UsageError

if TYPE_CHECKING:
    import torch

    from fractal_k8s.data.conversations import Row
    from fractal_k8s.results.outcome import Outcome
    from fractal_k8s.sweep.definition import Sweep
    from fractal_k8s.train.materials import Materials

# nanochat's vocabulary, and what a DocVQA answer has: 5 to 7 ids with its end token
VOCABULARY: Final = 65_536
ANSWER_LABELS: Final = 7
# How allocators say that there is no more: torch's of GPU and CPU, CUDA's libraries, Python, C++.
_FULL: Final = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "memoryerror",
    "bad_alloc",
    "unable to allocate",
)


@dataclass(frozen=True)
class Request:
    """What a trial is to do."""

    # `Sweep.to_dict` of two points, whose batch has the rows to try
    sweep: dict[str, Any]
    # layers of a model with random weights; None = the sweep's checkpoint and data
    depth: int | None
    # bytes that the process, or its GPU, may use; None = what the machine has
    memory_limit: int | None
    # share of that to keep free
    headroom: float


@dataclass(frozen=True)
class Answer:
    """What happened: it fits, memory was full, or (neither) something else went wrong."""

    fits: bool = False
    full: bool = False
    # what went wrong, and the exception's name
    error: str | None = None
    kind: str | None = None
    device: str = ""
    shape: dict[str, int] | None = None
    labels: int = 0
    peak_bytes: int = 0
    allowed_bytes: int = 0
    seconds_per_step: float = 0.0


def is_out_of_memory(text: str) -> bool:
    """Whether an error's name and words say that an allocation was refused."""
    return any(sign in text.lower() for sign in _FULL)


def attempt(request: Request) -> Answer:
    """Trains two points, so that what is kept between points counts as well.

    Raises:
        FractalError: the weights or the data cannot be used.
    """
    import torch

    from fractal_k8s.sweep.definition import Sweep
    from fractal_k8s.train.determinism import cpu_name
    from fractal_k8s.train.environment import training_device

    device = training_device()
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else cpu_name()
    allowed = _limit_gpu(device, request) if on_gpu else _limit_process(request)
    answer = Answer(device=name, allowed_bytes=allowed)
    try:
        answer = _train(Sweep.parse(request.sweep), request.depth, device, answer)
    except (RuntimeError, MemoryError) as error:
        _unlimit_process()  # the answer needs memory too
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        full = is_out_of_memory(said)
        return replace(answer, full=full, error=said, kind=type(error).__name__)
    return answer


def _train(sweep: Sweep, depth: int | None, device: torch.device, answer: Answer) -> Answer:
    from fractal_k8s.train.gpt import GPTTrainer

    materials = _materials(sweep, depth)
    labels = sum(materials.rows.rows[0].trained[1:])
    config = materials.model.config
    names = ("vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    shape = {name: int(getattr(config, name)) for name in names}
    answer = replace(answer, labels=labels, shape=shape)
    # every step is made, or its time would be that of a step taken over
    trainer = GPTTrainer(sweep, device, materials=materials, share=False)
    peak, seconds = 0, 0.0
    for outcome in trainer.train([sweep.point(0), sweep.point(1)]):
        said = trouble(outcome)
        if said is not None:
            return replace(answer, full=is_out_of_memory(said), error=said)
        peak = max(peak, peak_memory(device), outcome.peak_bytes or 0)
        seconds = outcome.seconds / outcome.steps
    if 0 < answer.allowed_bytes < peak:
        said = f"out of memory: {peak:,} bytes, {answer.allowed_bytes:,} allowed"
        return replace(answer, full=True, error=said)
    return replace(answer, fits=True, peak_bytes=peak, seconds_per_step=seconds)


def trouble(outcome: Outcome) -> str | None:
    """What went wrong with a run, or None."""
    if outcome.error is not None:
        return outcome.error
    if outcome.final_loss != outcome.final_loss:  # the only number unlike itself is NaN
        return f"the loss is not finite after {outcome.steps} steps"
    return None


# --- what is trained ---


def _materials(sweep: Sweep, depth: int | None) -> Materials:
    """Weights, and rows of the largest size that the config allows."""
    from fractal_k8s.data.conversations import Rows
    from fractal_k8s.train.materials import gpt_training, load_materials

    training = gpt_training(sweep)
    if depth is None:
        materials = load_materials(sweep)
        rows = materials.rows.rows
        labels = max(sum(row.trained[1:]) for row in rows)
    else:
        materials, labels = random_materials(sweep, depth), ANSWER_LABELS
    worst = whole_rows(
        training.batch_size,
        training.max_seq_len,
        min(labels, training.max_seq_len - 1),
        materials.model.config.vocab_size,
    )
    return replace(materials, rows=Rows(worst, 0))


def random_materials(sweep: Sweep, depth: int, *, vocab_size: int = VOCABULARY) -> Materials:
    """A model of that depth whose weights were never trained, without rows and without files."""
    import torch

    from fractal_k8s.checkpoints.files import CheckpointFiles
    from fractal_k8s.checkpoints.standin import stand_in_encoding
    from fractal_k8s.checkpoints.tokenizer import Tokenizer
    from fractal_k8s.data.conversations import Rows
    from fractal_k8s.models.gpt import GPT
    from fractal_k8s.models.init import config_of_depth, random_weights
    from fractal_k8s.train.materials import Materials, gpt_training

    training = gpt_training(sweep)
    config = config_of_depth(depth, vocab_size=vocab_size)
    if training.max_seq_len > config.max_positions:
        raise UsageError(
            f"training.max_seq_len {training.max_seq_len} is more than the model's "
            f"{config.max_positions} positions"
        )
    model = GPT.from_weights(
        config,
        random_weights(config, sweep.spec.seed),
        compute_dtype=getattr(torch, training.dtype),
        gradient_checkpointing=training.gradient_checkpointing,
    )
    nowhere = CheckpointFiles(Path("model_000000.pt"), Path("meta.json"), Path("tokenizer.pkl"))
    tokenizer = Tokenizer(stand_in_encoding(vocab_size))
    return Materials(
        files=nowhere,
        model=model,
        tokenizer=tokenizer,
        rows=Rows([], 0),
        probe=[],
        checkpoint_digest="0" * 64,
        dataset_digest="0" * 64,
    )


def whole_rows(count: int, max_seq_len: int, labels: int, vocab_size: int) -> list[Row]:
    """Rows of max_seq_len random ids, the last `labels` of them trained; the same every time."""
    import numpy as np

    from fractal_k8s.data.conversations import Row

    ids = np.random.RandomState(0).randint(0, vocab_size, size=(count, max_seq_len))
    trained = (False,) * (max_seq_len - labels) + (True,) * labels
    return [Row(tuple(row), trained) for row in ids.tolist()]


# --- memory ---


def _limit_gpu(device: torch.device, request: Request) -> int:
    """Lets torch's allocator take what is free now, less the headroom; returns the bytes."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    limit = min(request.memory_limit or total, total)
    allowed = int(min(free, limit) - request.headroom * limit)
    torch.cuda.set_per_process_memory_fraction(max(0.0, allowed / total), device)
    return allowed


def _limit_process(request: Request) -> int:
    """Lets this process grow to the limit, less the headroom; returns the bytes.

    The system limits addresses, not memory: what the libraries have mapped without using it is
    added, so that a limit is about the memory that is really taken.

    Raises:
        UsageError: the system does not say how large the process is.
    """
    import resource

    status = _status()
    if not status:
        if request.memory_limit is not None:
            raise UsageError("--memory-limit on a CPU needs Linux; leave it out")
        return 0
    limit = request.memory_limit or _machine_bytes() + status["VmRSS"]
    allowed = int(limit * (1 - request.headroom))
    addresses = status["VmSize"] + max(0, allowed - status["VmRSS"])
    resource.setrlimit(resource.RLIMIT_AS, (addresses, resource.RLIM_INFINITY))
    return allowed


def _unlimit_process() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def peak_memory(device: torch.device) -> int:
    """Most bytes that were held at once: of the GPU by torch, else by the process."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved(device))
    return _status().get("VmHWM", 0)


def _status() -> dict[str, int]:
    """Sizes of this process in bytes, by the names in /proc; empty where there is no such file."""
    return _sizes(Path("/proc/self/status"))


def _machine_bytes() -> int:
    """Memory that processes could still take, of the machine or of this container."""
    free = _sizes(Path("/proc/meminfo"))["MemAvailable"]
    try:
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        return min(free, most - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or one without a limit
        return free


def _sizes(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.replace(":", "").split() for line in lines if line.endswith(" kB"))
    return {name: int(value) * 1024 for name, value, _ in fields}


def main() -> None:
    """Reads the request, and prints the answer as the last line."""
    prepare_environment()
    try:
        answer = attempt(Request(**json.load(sys.stdin)))
    except FractalError as error:
        answer = Answer(error=str(error), kind=type(error).__name__)
    except Exception as error:
        answer = Answer(error=f"{type(error).__name__}: {error}", kind=type(error).__name__)
    sys.stdout.write("\n" + json.dumps(asdict(answer)) + "\n")


if __name__ == "__main__":
    main()
