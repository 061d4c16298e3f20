"""`fractal-k8s data`: data sets of conversations, fetched or made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fractal_k8s.cli.common import Command, echo_json, json_option

if TYPE_CHECKING:
    from fractal_k8s.data.conversations import Encoder

_INTERRUPTED: Final = "no half of it passes for a data set; run the same command to begin again"


@click.group()
def command() -> None:
    """Fetch a data set of conversations from the hub, or make one from DocVQA's pages."""


@command.command(cls=Command, interrupted=_INTERRUPTED)
@click.argument("reference", metavar="REF")
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder to keep it in, instead of the cache, where sweeps look for it.",
)
@json_option
def download(reference: str, folder: Path | None, as_json: bool) -> None:
    """Fetch a data set from the hub once, and check it.

    REF is docvqa, docvqa@REVISION, or hf:OWNER/NAME@REVISION. A copy that is whole is left as it
    is, and needs no network to be checked; a damaged one is fetched again. A sweep with --dataset
    REF trains on the copy.

    \b
        fractal-k8s data download docvqa
        fractal-k8s data download hf:OWNER/NAME@COMMIT --to data/name
    """
    from fractal_k8s.checkpoints.cache import cache_folder
    from fractal_k8s.data.docvqa import default_folder, hub_set
    from fractal_k8s.data.download import download as fetch

    found = hub_set(reference)
    if found is None:
        raise click.UsageError(
            f"REF: {reference!r} is none of docvqa, docvqa@REVISION, hf:OWNER/NAME@REVISION"
        )
    target = folder or default_folder(found, cache_folder())
    copy = fetch(found, target, functools.partial(click.echo, err=as_json))
    facts = {"folder": str(copy.folder), "fetched": copy.fetched, **copy.seal.content}
    if as_json:
        echo_json(facts)
        return
    rows = ", ".join(f"{count:,} {split}" for split, count in copy.seal.facts["rows"].items())
    click.echo(f"{'fetched' if copy.fetched else 'whole already'}: {rows}")
    click.echo(f"  {copy.seal.resolved}")
    click.echo(f"  sha256 {copy.seal.digest}")
    click.echo(f"  {copy.folder}")


@command.command(cls=Command, interrupted=_INTERRUPTED)
@click.option(
    "--to",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for train.jsonl and validation.jsonl.",
)
@click.option(
    "--tokenizer",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Checkpoint or tokenizer folder whose tokens count.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="REF",
    help="Files or folders of .parquet or .jsonl in the schema of "
    "pixparse/docvqa-single-page-questions, or OWNER/NAME@REVISION on the hub, which is that one "
    "unless given. Repeatable for files.",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(64),
    default=1750,
    show_default=True,
    metavar="N",
    help="Tokens of a whole conversation.",
)
@click.option(
    "--max-answer",
    type=click.IntRange(1),
    default=150,
    show_default=True,
    metavar="N",
    help="Characters of an answer.",
)
@click.option("--force", is_flag=True, help="Replace the data set that the folder holds.")
@json_option
def prepare(
    folder: Path,
    tokenizer: Path,
    sources: tuple[str, ...],
    workers: int,
    max_tokens: int,
    max_answer: int,
    force: bool,
    as_json: bool,
) -> None:
    """Make conversations from scanned pages with questions, cut so that answers stay.

    A page that is too long loses the lines that are farthest from the answer; the question and the
    answer are never cut. Says how many were kept, cut and dropped, and why. The files are the same
    whatever the number of workers.

    \b
        fractal-k8s data prepare --tokenizer models/d20 --to data/docvqa --workers 8
        fractal-k8s data prepare --tokenizer models/d20 --to data/mine --source pages/
        fractal-k8s plan --checkpoint models/d20 --dataset conversations:data/docvqa/train.jsonl
    """
    from fractal_k8s.data.page_sources import open_pages
    from fractal_k8s.data.prepare import Limits, Maker
    from fractal_k8s.data.prepare import prepare as make
    from fractal_k8s.data.splits import refuse_strangers
    from fractal_k8s.sealed import read_ready

    if not force:
        if read_ready(folder) is not None:
            raise click.UsageError(f"{folder} holds a data set; give another --to, or --force")
        refuse_strangers(folder)
    maker = Maker(_tokenizer_loader(tokenizer), Limits(max_tokens, max_answer), workers)
    tell = functools.partial(click.echo, err=as_json)
    splits, origin = open_pages(sources, tell)
    seal = make(splits, maker, folder, origin, tell)
    if as_json:
        echo_json({"folder": str(folder), **seal.content})
        return
    for split, report in seal.facts["report"].items():
        for line in _report_lines(split, report):
            click.echo(line)
    click.echo(f"sha256 {seal.digest}")
    click.echo(f"train on it with --dataset conversations:{folder / 'train.jsonl'}")


def _tokenizer_loader(folder: Path) -> Callable[[], Encoder]:
    """A function that loads the tokenizer of a folder, in any process; it is tried at once."""
    from fractal_k8s.checkpoints.files import find_checkpoint
    from fractal_k8s.checkpoints.tokenizer import FILE_NAME, load_tokenizer

    home = folder
    if not (folder / FILE_NAME).is_file():
        inside = folder / "tokenizer"
        home = inside if inside.is_dir() else find_checkpoint(folder).tokenizer.parent
    load_tokenizer(home)
    return functools.partial(load_tokenizer, home)


def _report_lines(split: str, report: dict[str, Any]) -> list[str]:
    """What became of a split's pages, for a terminal."""
    count = report["kept"]
    lines = [f"{split}: {count:,} of {report['pages']:,} pages kept, {report['cut']:,} of them cut"]
    if count:
        matches = ", ".join(f"{number:,} {match}" for match, number in report["matches"].items())
        mean = report["tokens"] / count
        lines += [
            f"  answer on the page: {matches}",
            f"  tokens: {report['tokens']:,}, mean {mean:.0f}, longest {report['longest']:,}",
        ]
    if report["unnumbered"]:
        lines.append(f"  without a page number: {report['unnumbered']:,}")
    if report["dropped"]:
        dropped = ", ".join(f"{number:,} {why}" for why, number in report["dropped"].items())
        lines.append(f"  dropped: {dropped}")
    return lines
