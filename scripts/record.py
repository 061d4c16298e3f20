"""The parts of our documents that are made from the program, and the recorded manifests.

Parts of documents stand between `<!-- record NAME -->` and `<!-- end -->`.
Tests compare all of it with what this module makes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# file or folder -> what it is; the test checks that all of them exist and none is left out
TREE = {
    "fractal_k8s/errors.py": "every exception and exit code",
    "fractal_k8s/environ.py": "variables that must be set before numeric libraries load",
    "fractal_k8s/references.py": "how weights and data that lie elsewhere are named",
    "fractal_k8s/sealed.py": "folders that say what they hold, and that they are whole",
    "fractal_k8s/buckets.py": "S3 and GCS as a URI and the environment describe them",
    "fractal_k8s/sweep/": "WHAT to run: config, axes, points, shards, presets, plan. No torch",
    "fractal_k8s/results/": "outcome, verdict, parquet schema, store, grid",
    "fractal_k8s/models/": "one file per model: mlp (the original study), gpt (nanochat)",
    "fractal_k8s/data/": "one file per data set: gaussian, conversations, docvqa",
    "fractal_k8s/checkpoints/": "nanochat's weights and tokenizer, verified",
    "fractal_k8s/caches.py": "a cache of one model and one data set: fill, look, compare",
    "fractal_k8s/train/": "points -> outcomes, bit for bit repeatable",
    "fractal_k8s/worker.py": "a shard: points not done -> train -> store -> exit code",
    "fractal_k8s/stopping.py": "Ctrl-C and SIGTERM: what is done is kept",
    "fractal_k8s/watchdog.py": "ends a worker that hangs",
    "fractal_k8s/fanout.py": "a worker for each GPU of a pod",
    "fractal_k8s/termination.py": "a worker's last words, for Kubernetes",
    "fractal_k8s/tracking/": "Weights & Biases, or a quiet stand-in",
    "fractal_k8s/manifest/": "a sweep -> the Kubernetes text that trains it, pure",
    "fractal_k8s/backends/": "HOW shards run: local (child processes), inline, k8s",
    "fractal_k8s/analysis/": "grid -> numbers, one file per analysis",
    "fractal_k8s/report/": "numbers -> figures and the web page",
    "fractal_k8s/aggregate/": "passes over the store: outcomes -> picture, page, numbers",
    "fractal_k8s/notify.py": "a message to a chat when a sweep ends",
    "fractal_k8s/controller.py": "what launch and resume do on this machine",
    "fractal_k8s/dispatch.py": "what launch and resume do with a cluster",
    "fractal_k8s/repro.py": "what repro does: points again elsewhere, compared bit for bit",
    "fractal_k8s/repro_job.py": "the same with a cluster: a Job and a store of its own",
    "fractal_k8s/cli/": "the commands, one file each",
    "third_party/nanochat/": "the upstream commit we are compatible with; no code",
    "manifests/": "recorded examples of what is sent to a cluster",
    "scripts/": "install, demo, test, check, record, bench/",
    "tests/": "and tests/golden/: what real nanochat computed",
    "docs/": "pictures, and the help of every command",
}
UNLISTED = {
    "fractal_k8s/__init__.py",
    "fractal_k8s/__main__.py",
}


def tree() -> str:
    width = max(len(path) for path in TREE)
    return "```\n" + "\n".join(f"{path:<{width}}  {text}" for path, text in TREE.items()) + "\n```"


def presets() -> str:
    from fractal_k8s.sweep.load import parse_text, preset_names, preset_text, resolve

    rows = ["| preset | plane (rows x columns) | points | steps |", "|---|---|---|---|"]
    for name in preset_names():
        sweep = resolve(parse_text(preset_text(name), source=name), source=name)
        counts = sorted(
            {
                sweep.training_at(sweep.point(index)).num_steps() or 0
                for index in (0, sweep.columns - 1, sweep.num_points - 1)
            }
        )
        steps = " to ".join(f"{count:,}" for count in (counts[0], counts[-1])[: len(counts)])
        rows.append(
            f"| `{name}` | {sweep.y_knob.name} x {sweep.x_knob.name} "
            f"| {sweep.rows} x {sweep.columns} | {steps} |"
        )
    return "\n".join(rows)


def axes() -> str:
    from fractal_k8s.sweep.axes import KNOBS

    rows = ["| knob | model | what it turns | default spacing |", "|---|---|---|---|"]
    rows += [
        f"| `{knob.name}` | {knob.model} | {knob.label} | "
        f"{'listed values only' if knob.listed else knob.scale} |"
        for knob in KNOBS.values()
    ]
    return "\n".join(rows)


def commands() -> str:
    import click
    from click.testing import CliRunner

    from fractal_k8s import cli

    def help_of(*words: str) -> str:
        result = CliRunner().invoke(
            cli.main, [*words, "--help"], prog_name="fractal-k8s", terminal_width=100
        )
        return f"```\n{result.output}```"

    helps = []
    for name in cli.COMMANDS:
        helps.append(help_of(name))
        command = cli.main.get_command(click.Context(cli.main), name)
        helps += [help_of(name, part) for part in getattr(command, "commands", ())]
    return "\n\n".join(helps)


# A digest as `docker inspect` shows it.
_IMAGE = "registry.example.com/fractal-k8s@sha256:" + "5e1f" * 16
_COREWEAVE = (
    "--store=s3://fractal/runs?endpoint=http://cwlota.com&region=US-EAST-04A",
    "--job=client_store=s3://fractal/runs?endpoint=https://cwobject.com&region=US-EAST-04A",
    "--job=store_secret=fractal-store",
    "--job=model_claim=fractal-model",
    "--job=dataset_claim=fractal-dataset",
    f"--image={_IMAGE}",
)
# recorded manifest -> what it shows, and the options of `render` that print it
MANIFESTS = {
    "docvqa-d20-coreweave.yaml": (
        "the default sweep on 64 H200 of CoreWeave, tracked by W&B, results in object storage",
        [
            *("--res=128", "--gpus=64", *_COREWEAVE),
            *("--job=nodes=cks-instance", "--job=usd_per_gpu_hour=6.3"),
            *("--job=wandb_project=fractal", "--job=wandb_secret=wandb"),
        ],
    ),
    "docvqa-d20-generic.yaml": (
        "NVIDIA's feature discovery, results in a claim, a priority class, a private registry",
        [
            *("--res=128", "--gpus=16", f"--image={_IMAGE}", "--priority-class=background"),
            *("--job=nodes=gfd", "--job=interruptible=false", "--job=image_pull_secret=registry"),
            *("--job=service_account=fractal-worker", "--job=deadline_seconds=86400"),
        ],
    ),
    "docvqa-d20-kueue.yaml": (
        "queued by Kueue, in pods of 8 GPUs, begun with as few as two of them",
        [
            *("--res=128", "--gpus=64", "--gpus-per-pod=8", "--queue=research", *_COREWEAVE),
            *("--job=nodes=none", "--job=min_parallelism=2", "--job=queue_priority=background"),
        ],
    ),
    "tiny-cpu.yaml": (
        "a tiny model on four CPU pods of a small cluster",
        [
            *("--preset=tiny", "--gpus=4", "--gpus-per-pod=0", "--job=cpu=2", "--job=memory=4Gi"),
            *("--job=ephemeral_storage=10Gi", "--job=shared_memory=1Gi"),
        ],
    ),
}


def manifest(name: str) -> str:
    """A recorded manifest, made anew."""
    from click.testing import CliRunner

    from fractal_k8s import cli

    result = CliRunner().invoke(cli.main, ["render", *MANIFESTS[name][1]], catch_exceptions=False)
    if result.exit_code:
        raise SystemExit(f"{name}: {result.output}")
    return result.stdout


def manifests() -> str:
    return "\n\n".join(
        f"[{name}]({name}): {about}\n\n```\nfractal-k8s render {_command(options)} > {name}\n```"
        for name, (about, options) in MANIFESTS.items()
    )


def _command(options: Sequence[str]) -> str:
    """Options as they are typed, some to a line."""
    lines = [""]
    for option in options:
        name, _, value = option.partition("=")
        text = f"{name} {shlex.quote(value)}"
        if len(lines[-1]) + len(text) > 80:
            lines.append("   ")
        lines[-1] += f" {text}"
    return " \\\n".join(lines).strip()


def roles() -> str:
    """`manifests/rbac.yaml`, made anew."""
    from fractal_k8s.backends.kube.rights import roles_text

    return roles_text()


def rights() -> str:
    from fractal_k8s.backends.kube.rights import RIGHTS

    rows = ["| verb | resource | where | used by |", "|---|---|---|---|"]
    for right in RIGHTS:
        where = "the cluster" if right.is_wide else "the namespace"
        optional = " (optional)" if right.optional else ""
        _, _, resource = str(right).partition(" ")
        rows.append(
            f"| {right.verb} | `{resource.removesuffix(' everywhere')}` | {where} "
            f"| {', '.join(right.commands)}{optional} |"
        )
    return "\n".join(rows)


VALUES = ROOT / "charts" / "fractal-cache" / "values.yaml"


def described_values() -> Iterator[tuple[str, str]]:
    """Path and description of each value of the chart that has a `# --` comment above it."""
    path: list[str] = []
    about = None
    for line in VALUES.read_text().splitlines():
        if found := re.match(r" *# -- (.*)", line):
            about = found[1]
        elif found := re.match(r"( *)(\w+):", line):
            path[len(found[1]) // 2 :] = [found[2]]
            if about is not None:
                yield ".".join(path), about
            about = None


def values() -> str:
    import yaml

    given = yaml.safe_load(VALUES.read_text())
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for path, about in described_values():
        default: Any = given
        for key in path.split("."):
            default = default[key]
        rows.append(f"| `{path}` | `{json.dumps(default)}` | {about} |")
    return "\n".join(rows)


BLOCKS = {
    "values": values,
    "rights": rights,
    "tree": tree,
    "presets": presets,
    "axes": axes,
    "commands": commands,
    "manifests": manifests,
}

# document -> its recorded parts
DOCUMENTS = {
    "README.md": ("tree", "presets", "axes"),
    "docs/commands.md": ("commands",),
    "docs/kubernetes.md": ("rights",),
    "manifests/README.md": ("manifests",),
    "charts/fractal-cache/README.md": ("values",),
}


def recorded(document: str) -> str:
    """A document's text with every recorded part made anew."""
    text = (ROOT / document).read_text()
    for name in DOCUMENTS[document]:
        make = BLOCKS[name]
        pattern = rf"(<!-- record {name} -->\n).*?(<!-- end -->)"
        parts = re.split(pattern, text, flags=re.S)
        if len(parts) != 4:
            raise SystemExit(f"{document} has {len(parts) // 3} parts named {name}, expected one")
        before, opening, closing, after = parts
        text = f"{before}{opening}{make()}\n{closing}{after}"
    return text


def main() -> None:
    os.environ["NO_COLOR"] = "1"
    for document in DOCUMENTS:
        (ROOT / document).write_text(recorded(document))
    for name in MANIFESTS:
        (ROOT / "manifests" / name).write_text(manifest(name))
    (ROOT / "manifests" / "rbac.yaml").write_text(roles())


if __name__ == "__main__":
    main()
