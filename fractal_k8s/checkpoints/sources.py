"""From a reference to files: what a source holds, and which of it is a model."""

from __future__ import annotations

import re
from pathlib import Path

from fractal_k8s.checkpoints.files import find_checkpoint, read_config
from fractal_k8s.checkpoints.filling import Goods
from fractal_k8s.checkpoints.folder_source import list_folder
from fractal_k8s.checkpoints.layout import model_layout
from fractal_k8s.checkpoints.listing import Listing
from fractal_k8s.checkpoints.tokenizer import BYTES_FILE_NAME, FILE_NAME, Tokenizer, load_tokenizer
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.references import Reference, parse_reference

_SCHEME = re.compile(r"([a-z][a-z0-9]+):")
_SOURCES = "a folder, wandb:ENTITY/PROJECT/NAME:VERSION, hf:REPO@REVISION or s3://BUCKET/PREFIX"


def list_source(text: str) -> Listing:
    """What a folder, `wandb:`, `hf:` or `s3://` holds now.

    Raises:
        UsageError: there is no such source, or it may not be read.
        RetryError: it does not answer.
    """
    if not text:
        raise UsageError(f"no source is named; give {_SOURCES}")
    reference = parse_reference(text)
    if reference is not None:
        return list_reference(reference)
    if (scheme := _SCHEME.match(text)) and not Path(text).exists():
        raise UsageError(f"{text!r}: no source {scheme[1]!r} is known; give {_SOURCES}")
    return list_folder(Path(text).expanduser().absolute())


def list_reference(reference: Reference) -> Listing:
    """`list_source` of a parsed reference; the library that it needs is loaded here."""
    if reference.kind == "wandb":
        from fractal_k8s.checkpoints.wandb_source import list_artifact

        return list_artifact(reference)
    if reference.kind == "hf":
        from fractal_k8s.checkpoints.hub_source import list_repository

        return list_repository(reference)
    from fractal_k8s.checkpoints.bucket_source import list_bucket

    return list_bucket(reference)


def model_goods(text: str) -> Goods:
    """The newest checkpoint of a source, as something to fill a folder with.

    Raises:
        FractalError: as `list_source`, or it holds no whole checkpoint.
    """
    listing = list_source(text)
    layout = model_layout(listing.blobs, text, listing.folder)
    return Goods("model", text, listing, layout, check_model)


def check_model(folder: Path) -> str:
    """The digest of a folder's checkpoint, after checking that its parts are whole and fit.

    Raises:
        CorruptError: the weights are damaged, more than tensors or not those that are described,
            or the tokenizer is another model's.
    """
    import torch

    from fractal_k8s.checkpoints.nanochat import build_model, load_weights

    files = find_checkpoint(folder)
    config = read_config(files)
    tokenizer = load_tokenizer(files.tokenizer.parent)
    if tokenizer.vocab_size != config.get("vocab_size"):
        raise CorruptError(
            f"{files.tokenizer.name} has {tokenizer.vocab_size:,} tokens, {files.model.name} was "
            f"trained with {config.get('vocab_size')}; give the tokenizer that belongs to it"
        )
    _check_table(files.tokenizer.with_name(BYTES_FILE_NAME), tokenizer)
    build_model(files, load_weights(files, mapped=True), compute_dtype=torch.float32)
    return files.digest()


def _check_table(path: Path, tokenizer: Tokenizer) -> None:
    """Compares a tokenizer with nanochat's table of bytes per token, if there is one beside it."""
    from fractal_k8s.checkpoints.nanochat import load_table

    if path.is_file() and not tokenizer.has_sizes(load_table(path)):
        raise CorruptError(
            f"{path}: is the table of another tokenizer than {FILE_NAME} beside it; give the "
            "tokenizer that belongs to the weights, with its table or without one"
        )
