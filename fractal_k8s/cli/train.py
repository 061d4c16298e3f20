"""`fractal-k8s train`: one run, with everything a person wants around it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractal_k8s.cli.common import (
    Asked,
    Command,
    echo_json,
    json_option,
    open_store,
    read_sweep,
    repeats_option,
    store_option,
    sweep_options,
)
from fractal_k8s.cli.filled import cache_option
from fractal_k8s.cli.folder import Folder
from fractal_k8s.cli.logs import PointParam

if TYPE_CHECKING:
    from fractal_k8s.sweep.definition import Sweep
    from fractal_k8s.tracking import Tracker
    from fractal_k8s.train.events import Event
    from fractal_k8s.train.parallel import Ranks
    from fractal_k8s.train.run import Run
    from fractal_k8s.train.run_folder import RunConfig, RunFolder

_EVERY = click.IntRange(min=1)


@click.command(cls=Command)
@sweep_options
@cache_option
@click.option(
    "--point",
    type=PointParam(),
    metavar="I,J",
    help="Train this point of the sweep.",
)
@store_option
@click.option("--out", type=Folder(), required=True, metavar="DIR", help="The run's folder.")
@repeats_option
@click.option("--save-every", type=_EVERY, metavar="N", help="Updates between checkpoints.")
@click.option("--eval-every", type=_EVERY, metavar="N", help="Updates between evaluations.")
@click.option(
    "--eval-rows",
    type=click.IntRange(min=0),
    metavar="M",
    help="Keep the last M rows of the data for evaluation; they are not trained on.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="N",
    help="Prompts to answer before and after.",
)
@click.option(
    "--log-every", type=_EVERY, default=1, show_default=True, metavar="N", help="Steps per line."
)
@click.option(
    "--layout",
    type=click.Choice(["artifact", "nanochat"]),
    help="Checkpoints in checkpoints/ (artifact, the default), or as in nanochat's base folder.",
)
@click.option("--wandb", "project", metavar="PROJECT", help="Track the run in a W&B project.")
@click.option(
    "--wandb-artifact", "artifact", metavar="NAME", help="Keep the model as a W&B artifact, too."
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out, if it holds one.")
@json_option
def command(
    asked: Asked,
    point: tuple[int, int] | None,
    store_uri: str,
    out: Path,
    save_every: int | None,
    eval_every: int | None,
    eval_rows: int | None,
    samples: int,
    log_every: int,
    layout: str | None,
    project: str | None,
    artifact: str | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Train one run, with evaluation, samples and checkpoints.

    Its numbers are those of the same point of a sweep, bit for bit. What is trained is a sweep
    file, a preset (docvqa-d20 unless named) or a stored sweep by its id, without its axes; or one
    of its points. Several processes share the rows of every step.

    \b
        fractal-k8s train --checkpoint DIR --dataset conversations:FILE.jsonl --out runs/one
        fractal-k8s train SWEEP-ID --point 3,7 --out runs/point
        torchrun --standalone --nproc-per-node 2 -m fractal_k8s train ... --out runs/two
        fractal-k8s train --out runs/one --resume
    """
    from fractal_k8s.environ import prepare_environment

    if artifact is not None and project is None:
        raise click.UsageError("--wandb-artifact needs --wandb PROJECT")
    if asked.resolution is not None and point is None:
        raise click.UsageError("--res says which points there are; it needs --point I,J")
    if project is not None:
        from fractal_k8s.tracking import require_wandb

        require_wandb()
    prepare_environment()
    from fractal_k8s.train.run import Habits
    from fractal_k8s.train.run_folder import RunConfig, RunFolder

    if eval_rows is not None:
        asked = asked.with_settings(f"training.probe_rows={eval_rows}")
    folder = RunFolder(out)
    what = _What(asked, point)
    begun = folder.config() if resume and (folder.holds_run or not what.is_named) else None
    if begun is None:
        folder.refuse_existing()
    config = RunConfig(
        what.sweep(store_uri, begun.sweep if begun else None),
        "nanochat" if (layout or (begun and begun.layout)) == "nanochat" else "artifact",
    )
    if eval_every is not None and not config.training.probe_rows:
        raise click.UsageError("--eval-every needs --eval-rows M, the rows to evaluate on")
    if begun is not None:
        config = config.continued(begun)
    habits = Habits(save_every, eval_every, samples)
    screen = _Screen(log_every, as_json)
    result = _train(config, folder, habits, screen, (project, artifact), resume=begun is not None)
    if result is None:  # another rank tells
        return
    if as_json:
        echo_json(result)
        return
    screen.result(result)
    if what.is_stored_point:
        screen.say(_against_stored(open_store(store_uri), what, result))


@dataclass(frozen=True)
class _What:
    """The options that say what to train."""

    asked: Asked
    point: tuple[int, int] | None

    @property
    def is_named(self) -> bool:
        """Whether the options alone say what to train, without a folder that holds a run."""
        asked = self.asked
        return any((asked.sweep_file, asked.preset, asked.checkpoint, asked.dataset, asked.cache))

    @property
    def is_stored(self) -> bool:
        """Whether the argument is the id of a stored sweep, and not a file."""
        file = self.asked.sweep_file
        return file is not None and not file.suffix and not file.exists()

    @property
    def is_stored_point(self) -> bool:
        """Whether it is a point as it is stored, unchanged."""
        return self.is_stored and self.point is not None and not self.asked.settings

    def sweep(self, store_uri: str, begun: Sweep | None) -> Sweep:
        """The sweep of one point to train; `begun` is what a resumed run trains."""
        from fractal_k8s.sweep.single import point_of, single

        asked, settings = self.asked, self.asked.settings
        if asked.sweep_file is not None and asked.preset is not None:
            raise click.UsageError("give a sweep or --preset, not both")
        if self.is_stored:
            stored = open_store(store_uri).plan(str(asked.sweep_file))[1].sweep
            raw, source = stored.to_dict(), stored.id
            if self.point is not None:
                raw = point_of(stored, *self.point)
        elif self.point is not None:
            sweep = read_sweep(asked)
            raw, source, settings = point_of(sweep, *self.point), sweep.id, ()
        elif begun is not None and asked.sweep_file is None and asked.preset is None:
            raw, source = begun.to_dict(), begun.id
        else:
            raw, source = asked.raw()
        return single(raw, settings=settings, overrides=asked.overrides(), source=source)


class _Screen:
    """What a person sees: some of the steps, everything else whole."""

    def __init__(self, log_every: int, as_json: bool) -> None:
        self.log_every = log_every
        self.as_json = as_json

    def say(self, text: str) -> None:
        click.echo(text, err=self.as_json)

    def show(self, event: Event) -> None:
        from fractal_k8s.train.events import Stepped

        if isinstance(event, Stepped):
            last = event.step + 1 == event.steps
            if not last and event.step % self.log_every:
                return
        for line in event.lines():
            self.say(line)

    def result(self, content: dict[str, Any]) -> None:
        found = content["result"]
        verdict = "trainable" if found["trainable"] else "not trainable"
        if found["state"] == "diverged":
            verdict = "diverged: a loss is not finite"
        first, final = (_number(found[key]) for key in ("first_loss", "final_loss"))
        self.say(
            f"{found['run']}: loss {first} -> {final} in {found['steps']:,} updates, "
            f"{found['seconds']:.1f} s; {verdict}"
        )
        self.say(f"model    {found['checkpoint']}")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _train(
    config: RunConfig,
    folder: RunFolder,
    habits: Any,
    screen: _Screen,
    wandb: tuple[str | None, str | None],
    *,
    resume: bool,
) -> dict[str, Any] | None:
    """Trains on this rank; the result on the first one."""
    from fractal_k8s.stopping import Stopped, StopSignals, exit_code
    from fractal_k8s.train.parallel import open_ranks
    from fractal_k8s.train.run import Run

    run = None
    with StopSignals() as signals, open_ranks() as ranks:
        try:
            tracker: list[Tracker] = []

            def listen(event: Event) -> None:
                screen.show(event)
                for place in tracker:
                    place.log(event.metrics(), event.step)

            run = Run(config, folder, ranks, listen, resume=resume)
            if ranks.is_first:
                tracker.append(_tracker(run, wandb[0], screen.say))
            result = run.train(habits, signals)
        except Stopped as stop:
            if ranks.is_first:
                _tell_stopped(run, ranks, folder, screen.say)
                for place in tracker:
                    place.finish({})
            sys.exit(exit_code(stop.number))
        for place in tracker:
            if wandb[1] is not None:
                place.add_artifact(wandb[1], run.artifact_files())
            place.finish(_summary(result))
        return result if ranks.is_first else None


def _tracker(run: Run, project: str | None, say: Callable[[str], None]) -> Tracker:
    from fractal_k8s.tracking import NoTracker, Tracked, open_wandb

    if project is None:
        return NoTracker()
    sweep = run.config.sweep
    return open_wandb(
        Tracked(
            project=project,
            name=run.folder.home.name,
            group=sweep.id,
            config={**run.config.to_dict(), **sweep.training.model_dump(mode="json")},
            folder=run.folder.home,
            tags=("finetune", sweep.name),
        ),
        say,
    )


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """What W&B shows of a run beside its series, by fractal-llm's names."""
    found = result["result"]
    names = {
        "final_train_loss": "final_loss",
        "converged": "trainable",
        "stable": "stable",
        "trainable_loss0": "first_loss",
        "trainable_mean_last_k": "last_mean_loss",
        "trainable_ratio": "ratio",
        "tokens_seen": "tokens_seen",
        "runtime_s": "seconds",
    }
    return {name: found[key] for name, key in names.items()}


def _tell_stopped(
    run: Run | None, ranks: Ranks, folder: RunFolder, say: Callable[[str], None]
) -> None:
    if run is None:
        say("stopped before the first step")
        return
    program = "fractal-k8s"
    if ranks.size > 1:
        program = f"torchrun --standalone --nproc-per-node {ranks.size} -m fractal_k8s"
    say(f"stopped after {run.finetune.updates} of {run.finetune.steps} updates")
    say(f"continue with: {program} train --out {folder.home} --resume")


def _against_stored(store: Any, what: _What, result: dict[str, Any]) -> str:
    """Whether the run made the numbers that the store has of the same point."""
    from fractal_k8s.aggregate import read_grid

    assert what.point is not None  # the caller asked `is_stored_point`
    record = read_grid(*store.plan(str(what.asked.sweep_file)), allow_mixed=True).record(
        *what.point
    )
    if record is None:
        return "the store has no outcome of this point yet"
    mine = [loss if loss is not None else float("nan") for loss in result["result"]["losses"]]
    if repr(mine) == repr(record["losses"]):
        return f"losses equal those of the stored point bit for bit ({len(mine)} steps)"
    if record["numerics_class"] != result["environment"]["numerics_class"]:
        return f"the stored point is of another numerics class: {record['numerics_class']}"
    return "losses are NOT those of the stored point"
