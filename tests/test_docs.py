"""README and changelog cannot drift from the program."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import fractal_k8s
from fractal_k8s.manifest import labels
from fractal_k8s.manifest.settings import make_settings
from fractal_k8s.manifest.site import parse_site
from standin.fixtures import Kubectl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_recorded_parts_are_what_the_program_says(record: ModuleType) -> None:
    for document in record.DOCUMENTS:
        assert record.recorded(document) == (ROOT / document).read_text(), "run scripts/record"


def test_the_tree_lists_every_part_and_nothing_else(record: ModuleType) -> None:
    for path in record.TREE:
        assert (ROOT / path).exists(), path
    parts = {
        f"fractal_k8s/{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in (ROOT / "fractal_k8s").iterdir()
        if entry.name != "__pycache__"
    }
    assert parts == {path for path in record.TREE if path.startswith("fractal")} | record.UNLISTED


@pytest.mark.parametrize(
    "document",
    ["README.md", "docs/kubernetes.md", "docs/chart.md", "charts/fractal-cache/README.md"],
)
def test_every_link_resolves(document: str) -> None:
    path = ROOT / document
    text = path.read_text()
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target
            assert target or anchor in anchors, anchor


# --- the guide for clusters ---


def shown_commands(document: str) -> list[list[str]]:
    """The arguments of every `fractal-k8s` line that a document shows, and of those in a text."""
    text = (ROOT / document).read_text()
    lines = re.findall(r"^    (?:\$ )?fractal-k8s (.*)$", text, flags=re.M)
    lines += re.findall(r"`fractal-k8s ([^`]*)`", text)
    return [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]


@pytest.mark.parametrize(
    "arguments",
    [*shown_commands("docs/kubernetes.md"), *shown_commands("docs/chart.md")],
    ids=lambda found: " ".join(found),
)
def test_a_command_in_the_guides_is_one_that_there_is(arguments: list[str]) -> None:
    name, *rest = arguments
    command = importlib.import_module(f"fractal_k8s.cli.{name.replace('-', '_')}").command
    command.make_context(name, rest)


def objects_in_the_guide() -> list[dict[str, Any]]:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/kubernetes.md").read_text(), flags=re.S)
    return [item for block in blocks for item in yaml.safe_load_all(block)]


def test_the_site_s_settings_in_the_guide_are_valid_and_nearly_all_there_are() -> None:
    (site,) = [item for item in objects_in_the_guide() if item["metadata"]["name"] == labels.SITE]
    values = parse_site(site["data"][labels.SITE_KEY], source="guide")
    assert make_settings(("guide", values)).gpus == 64


def test_a_cluster_takes_the_objects_of_the_guide_and_the_roles(kubectl: Kubectl) -> None:
    texts = [yaml.safe_dump_all(objects_in_the_guide())]
    texts.append((ROOT / "manifests" / "rbac.yaml").read_text())
    for text in texts:
        kubectl("apply", "--server-side", "-f", "-", stdin=text)


def test_the_changelog_knows_this_version() -> None:
    assert f"## {fractal_k8s.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_scripts_are_small_and_executable() -> None:
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        if path.is_file() and path.suffix != ".py":
            assert path.stat().st_mode & 0o100, path
            # what is longer belongs into the package; image has none to call, it makes the first
            limit = 100 if path.name == "image" else 30
            assert len(path.read_text().splitlines()) <= limit, path
