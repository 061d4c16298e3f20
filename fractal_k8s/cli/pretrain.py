"""`fractal-k8s pretrain`: a small model from scratch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.common import Command, duration, echo_json, json_option
from fractal_k8s.cli.folder import Folder

if TYPE_CHECKING:
    from fractal_k8s.train.pretrain import Pretrained
    from fractal_k8s.train.recipe import Recipe


class _Depths(click.ParamType[list[int]]):
    """`4`, or several depths as `2,3,4`."""

    name = "depths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        parts = str(value).split(",")
        if not all(part.isdecimal() and 1 <= int(part) <= 200 for part in parts):
            self.fail(f"{value!r} is no number of layers, nor several as in 2,3,4", param, ctx)
        depths = [int(part) for part in parts]
        if len(set(depths)) < len(depths):
            self.fail(f"{value!r} names a depth twice", param, ctx)
        return depths


@click.command(cls=Command)
@click.option(
    "--text",
    metavar="PATH|forms",
    help="Text of the base stage: a .txt, .jsonl or .parquet file, a folder of them, or forms, "
    "which is made up.",
)
@click.option(
    "--conversations",
    metavar="FILE|NAME",
    help="Conversations of the second stage: .jsonl or .parquet, or statements or forms, which are "
    "made up.",
)
@click.option("--depth", "depths", type=_Depths(), metavar="N|N,N,...", help="Layers of the model.")
@click.option("--out", type=Folder(), metavar="DIR", help="Where it is saved.")
@click.option(
    "--vocab", type=click.IntRange(min=1), default=4_096, show_default=True, help="Vocabulary."
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="Tokens of the base stage.",
)
@click.option(
    "--sequence-len",
    type=click.IntRange(min=2),
    default=256,
    show_default=True,
    help="Positions of a row.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Rows of a step.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Passes over the conversations.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=42, show_default=True)
@click.option(
    "--stage",
    type=click.Choice(["base", "sft"]),
    default="sft",
    show_default=True,
    help="The last stage: text only, or conversations too.",
)
@click.option(
    "--preset", metavar="NAME", help="Make the model of a preset, such as tiny, in the cache."
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    text: str | None,
    conversations: str | None,
    depths: list[int] | None,
    out: Path | None,
    vocab: int,
    tokens: int,
    sequence_len: int,
    batch_size: int,
    epochs: int,
    seed: int,
    stage: str,
    preset: str | None,
    as_json: bool,
) -> None:
    """Make a small model from text: tokenizer, base model, chat model.

    Depth is the one knob of the model: 64 channels a layer, and nanochat's rates and schedules.
    DIR holds checkpoints/ and tokenizer/ as nanochat writes them, and is what --checkpoint of a
    sweep takes. Several depths share a tokenizer and are saved in DIR/d2, DIR/d3 ...

    \b
        fractal-k8s pretrain --text books/ --conversations chat.jsonl --depth 4 --out models/d4
        fractal-k8s pretrain --text forms --vocab 1024 --conversations forms --depth 2,3 --out m
        fractal-k8s pretrain --preset tiny
    """
    from fractal_k8s.environ import prepare_environment

    if preset is not None:
        _make_preset(ctx, preset, as_json)
        return
    needed = {"--text": text, "--depth": depths, "--out": out}
    if stage == "sft":
        needed["--conversations"] = conversations
    elif conversations is not None:
        raise click.UsageError("--stage base reads no --conversations")
    if missing := [name for name, value in needed.items() if value is None]:
        raise click.UsageError(f"give {', '.join(missing)}")
    assert text is not None  # as just checked
    assert depths is not None
    assert out is not None
    prepare_environment()
    from fractal_k8s.train.pretrain import pretrain
    from fractal_k8s.train.recipe import Recipe

    recipe = Recipe(
        text=text,
        conversations=conversations,
        depth=depths[0],
        vocab_size=vocab,
        sequence_len=sequence_len,
        batch_size=batch_size,
        tokens=tokens,
        epochs=epochs,
        seed=seed,
    )
    made = pretrain(recipe, depths, out, lambda line: click.echo(line, err=as_json))
    if as_json:
        echo_json([_plain(result, recipe) for result in made])
    else:
        for result in made:
            click.echo("\n".join(_lines(result)))


def _make_preset(ctx: click.Context, preset: str, as_json: bool) -> None:
    """The cached model of a preset; no other option has a say in it."""
    from click.core import ParameterSource

    given = [
        name
        for name in ctx.params
        if name not in ("preset", "as_json")
        and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if given:
        raise click.UsageError("--preset decides everything; give no other option but --json")
    from fractal_k8s.environ import prepare_environment

    prepare_environment()
    from fractal_k8s.train.pretrained import provide

    folder = provide(preset, lambda line: click.echo(line, err=as_json))
    if as_json:
        echo_json({"folder": str(folder)})
    else:
        click.echo(folder)


def _plain(made: Pretrained, recipe: Recipe) -> dict[str, Any]:
    return {
        "folder": str(made.files.model.parent.parent),
        "model": str(made.files.model),
        "digest": made.files.digest(),
        "parameters": made.parameters,
        "bits_per_byte": made.bits_per_byte,
        "sft_loss": made.sft_loss,
        "sample": made.sample,
        "text_readings": made.readings,
        "seconds": made.seconds,
        "recipe": asdict(recipe),
    }


def _lines(made: Pretrained) -> list[str]:
    readings = f", text begun {made.readings} times" if made.readings > 1 else ""
    sample = made.sample
    return [
        f"{made.files.model}  {made.parameters:,} parameters, {duration(made.seconds)}{readings}",
        f"  {made.bits_per_byte:.4f} bits per byte of held-out text",
        *_indented("asked", sample["prompt"]),
        *_indented("model", sample["answer"]),
        *_indented("data", sample["expected"]),
    ]


def _indented(label: str, text: str) -> list[str]:
    return [
        f"  {label if not number else '':<6} | {line}"
        for number, line in enumerate(text.strip().splitlines() or [""])
    ]
