"""The processes that train one run together: each takes a part of every step's rows.

torchrun starts them and says through the environment which is which. What is added up over the
ranks is the same bits on all of them, so that all make the same update.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist

# Its functions keep the group there is when they are made. Made after a group is opened (the
# compiler imports them) they hold it for ever, with threads that abort Python as it exits.
import torch.distributed.nn.functional
from torch import Tensor

from fractal_k8s.errors import FractalError, RetryError, UsageError
from fractal_k8s.train.environment import training_device

_VARIABLES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
# A ring adds up in one order whatever the timing.
_FIXED_SUMS: Final = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}
# Longer than a rank takes to save, shorter than anyone would wait for a lost one.
_PATIENCE: Final = timedelta(minutes=10)


class Ranks:
    """The processes of a run, seen from one of them; a run of one process is rank 0 of 1."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and saves."""
        return self.rank == 0

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over the ranks, the same bits on all of them.

        Raises:
            RetryError: another rank is gone.
        """
        if self.size == 1:
            return
        with self._collective():
            works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in works:
                work.wait()

    def largest(self, number: int) -> int:
        """The largest of the numbers that the ranks give."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=self.device)
        with self._collective():
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def check_same(self, what: str, digest: bytes) -> None:
        """Makes sure that all ranks hold the same.

        Args:
            what: names it in the error.
            digest: sha256 of what this rank holds.

        Raises:
            FractalError: they do not; on every rank.
        """
        if self.size == 1:
            return
        own = torch.tensor(list(digest), dtype=torch.uint8, device=self.device)
        gathered = [torch.zeros_like(own) for _ in range(self.size)]
        with self._collective():
            dist.all_gather(gathered, own)
        others = [rank for rank, found in enumerate(gathered) if not torch.equal(found, own)]
        if others:
            raise FractalError(
                f"{what}: rank {self.rank} holds something else than rank {others[0]}; "
                "all machines must have the same files, devices and versions"
            )

    @contextmanager
    def _collective(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RetryError(
                f"rank {self.rank} of {self.size}: another rank is gone ({_reason(error)}); "
                "see what it said, then run the same command with --resume"
            ) from None


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """The ranks of this run: those that torchrun started, or this process alone.

    Raises:
        UsageError: there are fewer GPUs than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(0, 1, training_device())
        return
    if absent := [name for name in _VARIABLES if name not in os.environ]:
        raise UsageError(
            f"WORLD_SIZE is {size} and {', '.join(absent)} is not set: start several processes "
            "with torchrun, or unset WORLD_SIZE"
        )
    device = _own_device()
    for name, value in _FIXED_SUMS.items():
        os.environ.setdefault(name, value)
    if device.type == "cuda":
        dist.init_process_group("nccl", timeout=_PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Ranks(int(os.environ["RANK"]), size, device)
    except BaseException:
        if device.type == "cpu":  # NCCL would wait for ranks that are gone
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _reason(error: RuntimeError) -> str:
    """The library's first sentence, without the place in its source."""
    line = str(error).strip().splitlines()[0]
    return re.sub(r"\[[^\]]*/[^\]]*\]\s*", "", line).split(". ")[0][:200]


def _own_device() -> torch.device:
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local >= gpus:
        raise UsageError(
            f"process {local} of this machine has no GPU: there are {gpus}; "
            f"give torchrun --nproc-per-node {gpus}"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
