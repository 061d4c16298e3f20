"""What a GPT sweep trains with: weights, tokenizer and rows, found, loaded and checked.

torch is loaded with the weights: `plan` reads the rows without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fractal_k8s.checkpoints import fetched
from fractal_k8s.checkpoints.cache import cache_folder
from fractal_k8s.checkpoints.files import CheckpointFiles, find_checkpoint
from fractal_k8s.checkpoints.tokenizer import Tokenizer, load_tokenizer
from fractal_k8s.data.conversations import (
    Row,
    Rows,
    read_messages,
    read_rows,
    render_rows,
    shuffled,
    usable_rows,
)
from fractal_k8s.data.docvqa import check_digest, hub_set, local_folder, training_file
from fractal_k8s.data.named import NAMES, named_set
from fractal_k8s.data.tokens import load_tokens
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.references import parse_reference
from fractal_k8s.sealed import file_sha256, noted_facts
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.flops import with_flops
from fractal_k8s.sweep.memory import Shape
from fractal_k8s.sweep.supply import DataFacts
from fractal_k8s.sweep.training import GPTTraining
from fractal_k8s.train.recipe import SCHEME, cached_folder, pretrained_folder

if TYPE_CHECKING:
    from torch import Tensor

    from fractal_k8s.models.gpt import GPT


@dataclass(frozen=True)
class Materials:
    """What a sweep trains with, loaded, and checked against each other."""

    files: CheckpointFiles
    model: GPT
    tokenizer: Tokenizer
    # rows to train on, in file order, and the probe rows, which are held out
    rows: Rows
    probe: list[Row]
    checkpoint_digest: str
    dataset_digest: str


def load_materials(sweep: Sweep) -> Materials:
    """Finds, loads and checks the checkpoint and the data of a sweep.

    Raises:
        UsageError: something is missing, or tokenizer and weights do not fit together.
        CorruptError: something is damaged, or is not what the sweep was launched with.
    """
    import torch

    from fractal_k8s.checkpoints.nanochat import build_model, load_weights

    training = gpt_training(sweep)
    files = find_checkpoint(checkpoint_folder(sweep))
    data = _dataset_reference(sweep)
    digest = files.digest()
    fetched.check_digest(sweep.spec.checkpoint or "", digest)
    _check_seal(files.model, files.sealed_digest(), digest)
    _check_digest("checkpoint", files.model, sweep.spec.checkpoint_digest, digest)
    weights = load_weights(files)
    model = build_model(
        files,
        replace(weights, tensors=_masters(weights.tensors, files)),
        compute_dtype=getattr(torch, training.dtype),
        gradient_checkpointing=training.gradient_checkpointing,
    )
    config = model.config
    tokenizer = load_tokenizer(files.tokenizer.parent)
    if tokenizer.vocab_size != config.vocab_size:
        raise CorruptError(
            f"{files.tokenizer}: has {tokenizer.vocab_size:,} tokens, the weights in {files.model} "
            f"have {config.vocab_size:,}; use the tokenizer that was trained with them"
        )
    if training.max_seq_len > config.max_positions:
        raise UsageError(
            f"training.max_seq_len {training.max_seq_len} is more than the checkpoint's "
            f"{config.max_positions} positions"
        )
    rows, probe = _held_out(read_dataset(data, tokenizer, training.max_seq_len), training)
    data_digest = dataset_digest(data)
    _check_digest("data set", data, sweep.spec.dataset_digest, data_digest)
    return Materials(files, model, tokenizer, rows, probe, digest, data_digest)


def pinned(sweep: Sweep, materials: Materials) -> Sweep:
    """The sweep tied to the content of its files, with what its model takes a position."""
    shape = Shape.of_config(vars(materials.model.config), source=str(materials.files.meta))
    return with_flops(sweep, shape).pinned(
        checkpoint_digest=materials.checkpoint_digest, dataset_digest=materials.dataset_digest
    )


def read_facts(sweep: Sweep) -> DataFacts:
    """What the sweep's data hold, without loading the weights.

    Raises:
        UsageError: something is missing, or too little for the probe rows.
        CorruptError: something is damaged.
    """
    if sweep.depths:  # models that are made together have one tokenizer
        sweep = sweep.at_depth(sweep.depths[-1])
    files = find_checkpoint(checkpoint_folder(sweep))
    tokenizer = load_tokenizer(files.tokenizer.parent)
    training = gpt_training(sweep)
    rows = read_dataset(_dataset_reference(sweep), tokenizer, training.max_seq_len)
    return data_facts(sweep, *_held_out(rows, training))


def data_facts(sweep: Sweep, rows: Rows, probe: list[Row]) -> DataFacts:
    """Rows and probe rows in numbers."""
    training = gpt_training(sweep)
    ordered = in_order(rows.rows, training, sweep.spec.seed)
    return DataFacts(
        max_seq_len=training.max_seq_len,
        positions=np.array([len(row.ids) - 1 for row in ordered]),
        labels=np.array([sum(row.trained[1:]) for row in ordered]),
        probe_rows=len(probe),
        conversations=len(rows.rows) + len(probe) + rows.left_out,
        lost=rows.lost,
        unanswered=rows.unanswered,
        cut=rows.cut,
    )


def in_order(rows: list[Row], training: GPTTraining, seed: int) -> list[Row]:
    """The rows in the order in which a run of that seed takes them."""
    return shuffled(rows, seed) if training.data_order == "shuffled" else rows


def _held_out(rows: Rows, training: GPTTraining) -> tuple[Rows, list[Row]]:
    """Rows to train on, and the last `probe_rows` of them apart."""
    count = training.probe_rows
    if count >= len(rows.rows):
        raise UsageError(
            f"training.probe_rows {count} leaves nothing to train on: the data hold "
            f"{len(rows.rows):,} rows"
        )
    split = len(rows.rows) - count
    return replace(rows, rows=rows.rows[:split]), rows.rows[split:]


def gpt_training(sweep: Sweep) -> GPTTraining:
    assert isinstance(sweep.training, GPTTraining)  # a gpt sweep has a gpt config
    return sweep.training


def has_checkpoint(sweep: Sweep) -> bool:
    """Whether the checkpoint whose tokenizer `read_facts` takes is on this machine."""
    if sweep.depths:
        sweep = sweep.at_depth(sweep.depths[-1])
    text = sweep.spec.checkpoint or ""
    if text.startswith(SCHEME):
        return cached_folder(text.removeprefix(SCHEME)).is_dir()
    if (reference := parse_reference(text)) is not None:
        return fetched.is_fetched(reference)
    return Path(text).expanduser().is_dir()


def checkpoint_folder(sweep: Sweep) -> Path:
    """Where this machine has the one checkpoint of a sweep.

    Raises:
        UsageError: none is named, or what is named is not in the cache.
    """
    text = sweep.spec.checkpoint
    if text is None:
        raise UsageError(f"{sweep.name} needs weights: give --checkpoint FOLDER")
    if text.startswith(SCHEME):
        return pretrained_folder(text.removeprefix(SCHEME))
    if (reference := parse_reference(text)) is not None:
        return fetched.fetched_folder(reference)
    return Path(text).expanduser()


def _dataset_reference(sweep: Sweep) -> str:
    """The data as `read_dataset` takes them."""
    kind, _, file = sweep.spec.dataset.partition(":")
    if named_set(sweep.spec.dataset) is not None or hub_set(sweep.spec.dataset) is not None:
        return sweep.spec.dataset
    if kind != "conversations":
        raise UsageError(
            f"data set {sweep.spec.dataset!r} is unknown; give --dataset docvqa, "
            "hf:OWNER/NAME@REVISION, conversations:FILE.jsonl, conversations:FILE.parquet, or "
            f"{' or '.join(NAMES)}, which are made up"
        )
    if not file:
        raise UsageError(f"{sweep.name} needs data: give --dataset conversations:FILE")
    return file


def has_dataset(sweep: Sweep) -> bool:
    """Whether the sweep's data are on this machine, or can be made here."""
    reference = sweep.spec.dataset
    if named_set(reference) is not None:
        return True
    if (found := hub_set(reference)) is not None:
        return local_folder(found, cache_folder()) is not None
    file = reference.partition(":")[2]
    return bool(file) and Path(file).expanduser().exists()


def require_dataset(sweep: Sweep) -> None:
    """Looks whether the sweep's data are on this machine, as far as names and the first row tell.

    Raises:
        UsageError: they are not; CorruptError: they are damaged.
    """
    reference = _dataset_reference(sweep)
    if named_set(reference) is None:
        next(read_messages(_dataset_file(reference)), None)


def is_fetchable(sweep: Sweep) -> bool:
    """Whether the sweep's data are of the hub and not on this machine yet."""
    return hub_set(sweep.spec.dataset) is not None and not has_dataset(sweep)


def read_dataset(reference: str, tokenizer: Tokenizer, max_seq_len: int) -> Rows:
    """The rows of a file, of a data set of the hub that was fetched, or of one that is made up.

    Rows that are kept beside a file (`data.tokens`) are taken from there.

    Raises:
        UsageError: there is nothing to train on; CorruptError: the file is damaged.
    """
    named = named_set(reference)
    if named is None:
        path = _dataset_file(reference)
        if (kept := load_tokens(path, tokenizer.sha256)) is not None:
            return usable_rows(kept, max_seq_len, source=reference)
        return read_rows(path, tokenizer, max_seq_len)
    numbered = ((f"row {k}", messages) for k, messages in enumerate(named.messages(), start=1))
    return render_rows(numbered, tokenizer, max_seq_len, source=reference)


def dataset_digest(reference: str) -> str:
    """sha256 of what `read_dataset` reads, hex."""
    if (named := named_set(reference)) is not None:
        return named.digest()
    file = _dataset_file(reference)
    digest = file_sha256(file)
    if (found := hub_set(reference)) is not None:
        check_digest(found, file, digest)
    if (noted := noted_facts(file)) is not None:
        _check_seal(file, noted.sha256, digest)
    return digest


def _dataset_file(reference: str) -> Path:
    found = hub_set(reference)
    return Path(reference).expanduser() if found is None else training_file(found, cache_folder())


def _check_seal(path: Path, sealed: str | None, found: str) -> None:
    """Refuses files of a cache that have changed since it was filled: nobody may have meant that.

    Args:
        path: the first of them.
        sealed: their digest by the seal; None = nobody has sealed them.
    """
    if sealed is not None and sealed != found:
        raise CorruptError(
            f"{path}: the content's digest is {found[:12]}..., the folder was filled with "
            f"{sealed[:12]}...; fetch it again (`fractal-k8s cache verify` says which file and "
            "how), or, to train on it as it is, copy it to a folder of its own"
        )


def _check_digest(what: str, path: Path | str, expected: str | None, found: str) -> None:
    if expected is not None and expected != found:
        raise CorruptError(
            f"{what} {path}: its sha256 is {found[:12]}..., the sweep was launched with "
            f"{expected[:12]}...; give the original files, or launch a new sweep"
        )


def _masters(tensors: dict[str, Tensor], files: CheckpointFiles) -> dict[str, Tensor]:
    """The weights in float32, whatever the file has: small updates must not be rounded away."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CorruptError(f"{files.model}: {name} holds {tensor.dtype}, not weights")
        if not bool(tensor.isfinite().all()):
            raise CorruptError(f"{files.model}: {name} holds values that are not finite")
    return {name: tensor.float() for name, tensor in tensors.items()}
