"""`fractal-k8s completion`: tab completion for a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from fractal_k8s.cli.common import Command


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands in your shell.

    \b
        eval "$(fractal-k8s completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None  # the choices are those click knows
    root = ctx.find_root().command
    click.echo(kind(root, {}, "fractal-k8s", "_FRACTAL_K8S_COMPLETE").source())
