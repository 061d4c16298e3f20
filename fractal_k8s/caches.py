"""A cache of one model and one data set, filled once and read by every worker.

`<root>/model/` and `<root>/dataset/` are two claims of a cluster, mounted at /cache in every pod,
or two folders of a laptop. The model lies as `checkpoints.files.find_checkpoint` finds it, the data
set is `train.jsonl`, perhaps with `validation.jsonl` and with its rows as the model's tokenizer
makes them. See `sealed` for the files that say what a folder holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fractal_k8s import sealed
from fractal_k8s.checkpoints.filling import Goods, Tell, add_file, fill, persistently, standing
from fractal_k8s.checkpoints.folder_source import list_files
from fractal_k8s.checkpoints.listing import Listing
from fractal_k8s.checkpoints.sources import list_reference, model_goods
from fractal_k8s.data.docvqa import hub_set
from fractal_k8s.data.download import download
from fractal_k8s.data.splits import TRAIN, VALIDATION
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.references import parse_reference
from fractal_k8s.sealed import Seal

MODEL: Final = "model"
DATASET: Final = "dataset"

_CONVERSATIONS: Final = "conversations:"


@dataclass(frozen=True)
class Shelf:
    """One of the two folders of a cache."""

    # "model" or "dataset"
    name: str
    home: Path
    # what it holds; None = it was not filled, or nothing says with what
    seal: Seal | None
    # "ready", "being filled", "cut short", "empty", "damaged", "ready, filled by other means"
    state: str


def fill_model(root: Path, reference: str, tell: Tell, *, replace: bool = False) -> Seal:
    """Fills `<root>/model` with the newest checkpoint of a source, unless it holds it.

    Where it holds what an exact reference names, undamaged, nobody is asked.

    Raises:
        FractalError: see `checkpoints.filling.fill`.
    """
    home = root / MODEL
    if not replace and (found := standing(home, reference, tell)) is not None:
        return found
    goods = persistently(lambda: model_goods(reference), tell)
    return fill(home, goods, tell, replace=replace)


def fill_dataset(root: Path, reference: str, tell: Tell, *, replace: bool = False) -> Seal:
    """Fills `<root>/dataset` with a data set, unless it holds it.

    Raises:
        UsageError: the reference is none of a data set that can be kept.
        FractalError: see `checkpoints.filling.fill`.
    """
    home, found = root / DATASET, hub_set(reference)
    if found is None:
        goods = persistently(lambda: _dataset_goods(reference), tell)
        return fill(home, goods, tell, replace=replace)
    copy = download(found, home, tell, replace=replace)
    if not copy.fetched:
        tell(f"{home}: whole, every byte compared")
    return copy.seal


def keep_tokens(root: Path, tell: Tell) -> None:
    """Keeps the rows of the data set as the model's tokenizer makes them, if both are there.

    Raises:
        CorruptError: a conversation is none; says which.
    """
    from fractal_k8s.checkpoints.files import find_checkpoint
    from fractal_k8s.checkpoints.tokenizer import load_tokenizer
    from fractal_k8s.data.tokens import save_tokens, tokens_name

    homes = root / MODEL, root / DATASET
    model, dataset = (sealed.read_whole(home) for home in homes)
    if model is None or dataset is None:
        return
    tokenizer = find_checkpoint(homes[0]).tokenizer
    digest, train = sealed.file_sha256(tokenizer), homes[1] / TRAIN
    name = tokens_name(train, digest)
    if name in dataset.files:
        return
    began = time.monotonic()
    counts: list[int] = []
    encoder = load_tokenizer(tokenizer.parent)
    add_file(homes[1], name, lambda path: counts.append(save_tokens(train, encoder, digest, path)))
    for count in counts:
        tell(f"{homes[1]}: {count:,} conversations tokenized in {time.monotonic() - began:.1f} s")


def look(root: Path) -> list[Shelf]:
    """What the cache holds, as far as names and sizes tell."""
    return [_shelf(name, root / name) for name in (MODEL, DATASET)]


def problems(shelf: Shelf) -> list[str]:
    """What of a folder is not as it was sealed; reads every byte of it.

    A folder that is not ready, or that was filled by other means, is a problem too.
    """
    if shelf.seal is None or shelf.state in ("empty", "being filled", "cut short"):
        return [f"{shelf.home}: {shelf.state}; nothing to compare with"]
    found = [*sealed.damage(shelf.home, shelf.seal).values()]
    found += [
        f"{shelf.home / name}: no fill has put it there; move it away"
        for name in sealed.strangers(shelf.home, shelf.seal)
    ]
    if sealed.are_at_odds(shelf.home, shelf.seal):
        found.append(
            f"{shelf.home}: {sealed.READY} and {sealed.MANIFEST} are of different contents"
        )
    return found


def _shelf(name: str, home: Path) -> Shelf:
    ready = sealed.read_ready(home)
    try:
        seal = sealed.read_seal(home)
    except CorruptError:
        return Shelf(name, home, None, "damaged")
    if ready is not None and seal is None:
        return Shelf(name, home, None, "ready, filled by other means")
    if ready is None:
        begun = home.is_dir() and any(path.is_dir() for path in home.glob(f"{sealed.FILLING}*"))
        if not (begun or seal):
            return Shelf(name, home, None, "empty")
        return Shelf(
            name, home, seal, "being filled" if sealed.is_being_filled(home) else "cut short"
        )
    state = "ready" if sealed.read_whole(home) is not None else "damaged"
    return Shelf(name, home, seal, state)


# --- data sets ---


def _dataset_goods(reference: str) -> Goods:
    """A file of conversations, here or in a bucket, as `train.jsonl`."""
    if not reference.startswith(_CONVERSATIONS):
        raise UsageError(
            f"data set {reference!r}: cannot be kept in a cache; give conversations:FILE.jsonl, "
            "docvqa, docvqa@REVISION or hf:OWNER/NAME@REVISION"
        )
    text = reference.removeprefix(_CONVERSATIONS)
    if not text:
        raise UsageError(f"data set {reference!r}: which file? give {_CONVERSATIONS}FILE.jsonl")
    listing, name = _conversations(text)
    if not name.endswith((".jsonl", ".ndjson")):
        raise UsageError(
            f"data set {reference!r}: a cache holds {TRAIN}; write one conversation a line as "
            ".jsonl"
        )
    layout = {TRAIN: name}
    if VALIDATION in listing.blobs and name != VALIDATION:
        layout[VALIDATION] = VALIDATION
    return Goods(DATASET, reference, listing, layout, check_dataset)


def _conversations(text: str) -> tuple[Listing, str]:
    """What lies where a file of conversations is, and its name there."""
    bucket = parse_reference(text)
    if bucket is not None:
        listing = list_reference(bucket)
        name = bucket.place.rpartition("/")[2]
        if bucket.kind != "s3" or name not in listing.blobs:
            raise UsageError(f"data set {text!r}: must be a file, or one object of a bucket")
        return listing, name
    path = Path(text).expanduser().absolute()
    beside = path.with_name(VALIDATION)
    return list_files([path, *([beside] if beside.is_file() and beside != path else [])]), path.name


def check_dataset(folder: Path) -> str:
    """sha256 of a folder's training file, after a look whether its lines are conversations.

    Raises:
        CorruptError: a line is damaged; says which.
    """
    from fractal_k8s.data.conversations import read_messages

    path = folder / TRAIN
    if not sum(1 for _ in read_messages(path)):
        raise CorruptError(f"{path}: is empty; give a file with one conversation a line")
    return sealed.file_sha256(path)
