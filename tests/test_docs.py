"""README and changelog cannot drift from the program."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import fractal_k8s

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def record() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", ROOT / "scripts" / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_every_link_to_a_file_resolves() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_changelog_knows_this_version() -> None:
    assert f"## {fractal_k8s.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_scripts_are_small_and_executable() -> None:
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        if path.is_file() and path.suffix != ".py":
            assert path.stat().st_mode & 0o100, path
            assert len(path.read_text().splitlines()) <= 20, path
