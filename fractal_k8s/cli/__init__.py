"""The command line: parse, call one function, print text or JSON.

Commands are loaded when they are used, so that `--help` imports nothing but click.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

import click

from fractal_k8s import __version__
from fractal_k8s.errors import EXIT_INTERRUPTED, EXIT_SETTINGS, FractalError
from fractal_k8s.stopping import Stopped, exit_code

# name -> what `--help` says of it; the command is `command` in the module cli/<name>.py,
# with _ for -.
# A test compares the texts with the commands' own.
COMMANDS: Final = {
    "launch": "Train every missing point of a sweep and draw its map.",
    "resume": "Train what is missing or failed of a stored sweep.",
    "render": "Print the Kubernetes text that trains a sweep.",
    "plan": "Say what a sweep would take, before anything is spent.",
    "probe-batch": "Find the largest batch that survives real training steps.",
    "status": "Show how far a sweep is.",
    "scale": "Give a sweep on a cluster more or fewer GPUs.",
    "pause": "Pause a sweep on a cluster: its GPUs become free.",
    "cancel": "Stop a sweep on a cluster; outcomes stay.",
    "delete": "Delete what a cluster has of a sweep: Jobs and ConfigMaps.",
    "list": "List the sweeps of a store.",
    "logs": "Show what was logged about a sweep's points.",
    "analyze": "Measure a map: dimension of its edge, shares, states.",
    "controls": "Train parts of a map again: unchanged, nudged, and with other seeds.",
    "repro": "Train random points of a map again elsewhere and compare every bit.",
    "zoom": "Train a box of a map as a map of its own.",
    "report": "Draw the figures and the web page again.",
    "aggregate": "Put a sweep's outcomes together: map, numbers, page and table.",
    "fetch": "Copy a stored sweep to this machine: outcomes, logs, summary.",
    "pretrain": "Make a small model from text: tokenizer, base model, chat model.",
    "presets": "List the sweeps that come with fractal-k8s.",
    "show": "Print a sweep file: of a stored sweep or of a preset.",
    "data": "Fetch a data set of conversations from the hub, or make one from DocVQA's pages.",
    "train": "Train one run, with evaluation, samples and checkpoints.",
    "cache": "Fill and check the cache that workers read weights and data from.",
    "doctor": "Look whether everything is there that a sweep needs, and say what is not.",
    "cluster": "Show the GPU nodes of a cluster, how many GPUs are free, and who uses them.",
    "worker": "Train one shard; what a pod and a child process run.",
    "completion": "Print the script that completes commands in your shell.",
}


class _Translated(click.ClickException):
    """One of our errors as click shows it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance


def _worker_failed(text: str, code: int) -> click.ClickException:
    """The end of a worker, whose last words and log may be read by more people than its secrets."""
    from fractal_k8s import termination
    from fractal_k8s.environ import without_secrets

    termination.note(code=code, error=text)
    return _Translated(without_secrets(text), code)


class _Group(click.Group):
    """Loads commands on demand and is the one place where errors become messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]  # the name `list` is the module cli/list.py here, once it is loaded

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"fractal_k8s.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from fractal_k8s.cli.common import near_command

            raise click.UsageError(f"no command {args[0]!r}{near_command(args[0], [*COMMANDS])}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FractalError as error:
            if ctx.meta.get("debug"):
                raise
            if ctx.invoked_subcommand == "worker":
                raise _worker_failed(str(error), error.worker_code) from None
            raise _Translated(str(error), error.exit_code) from None
        except Stopped as stop:
            text = "stopped before it was done; run the same command to begin again"
            raise _Translated(text, exit_code(stop.number)) from None
        except KeyboardInterrupt:  # before there was a command, which says more
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        except click.UsageError as error:
            if ctx.invoked_subcommand == "worker":
                raise _worker_failed(error.format_message(), EXIT_SETTINGS) from None
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.meta.get("debug"):
                raise
            text = (
                f"unexpected {type(error).__name__}: {error}; this is a bug, "
                "run the command again with --debug for the traceback"
            )
            if ctx.invoked_subcommand == "worker":
                raise _worker_failed(text, 1) from error
            raise _Translated(text, 1) from error


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fractal-k8s")
def main() -> None:
    """Map where training a model works and where it breaks.

    A sweep trains a model at every point of a two-dimensional grid of hyperparameters, colours each
    point by what happened, and measures how rough the edge is.

    \b
        fractal-k8s launch --preset tanh --res 128
        fractal-k8s report tanh --open
    """
    if sys.stdout.encoding and "utf" not in sys.stdout.encoding.lower():
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
