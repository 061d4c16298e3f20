"""Who may import whom, and where each outside package lives."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fractal_k8s"

# part of the package -> the parts it may import; everyone may import errors
ALLOWED = {
    "errors": set(),
    "references": {"buckets"},
    "sealed": set(),
    "buckets": set(),
    "sweep": {"references"},
    "results": {"sweep", "buckets"},
    "models": set(),
    "data": {"sealed"},
    "checkpoints": {"references", "sealed", "buckets"},
    "caches": {"checkpoints", "data", "references", "sealed"},
    "train": {
        "sweep",
        "results",
        "models",
        "data",
        "checkpoints",
        "references",
        "sealed",
        "environ",
        "stopping",
    },
    "tracking": {"environ"},
    "environ": set(),
    "stopping": set(),
    "watchdog": set(),
    "termination": {"environ"},
    "fanout": {"termination", "stopping"},
    "worker": {
        "train",
        "results",
        "sweep",
        "watchdog",
        "stopping",
        "environ",
        "termination",
        "tracking",
    },
    "manifest": {"sweep", "buckets"},
    "backends": {"manifest", "worker", "results", "sweep", "stopping"},
    "analysis": {"results", "sweep"},
    "report": {"analysis", "results", "sweep"},
    "aggregate": {"results", "analysis", "report", "sweep", "tracking", "notify"},
    "notify": set(),
    "repro": {"aggregate", "backends", "results", "sweep"},
    "dispatch": {
        "aggregate",
        "backends",
        "checkpoints",
        "environ",
        "manifest",
        "references",
        "results",
        "sweep",
        "train",
    },
    "repro_job": {
        "aggregate",
        "backends",
        "buckets",
        "dispatch",
        "manifest",
        "repro",
        "results",
        "sweep",
    },
    "controller": {"aggregate", "backends", "environ", "results", "sweep", "train", "worker"},
}

# outside package -> the parts of ours that may import it
HOMES = {
    "click": {"cli"},
    "rich": {"cli"},
    "pydantic": {"sweep", "manifest"},
    "jinja2": {"manifest"},
    "yaml": {"manifest"},
    "kubernetes": {"backends"},
    "urllib3": {"backends"},
    "pyarrow": {"results", "data", "aggregate", "worker", "buckets", "checkpoints"},
    "torch": {"models", "data", "train", "checkpoints"},
    "datasets": {"data"},
    "tiktoken": {"checkpoints"},
    "rustbpe": {"checkpoints"},
    "wandb": {"tracking", "checkpoints"},
    "huggingface_hub": {"checkpoints", "data"},
    "matplotlib": {"report"},
    "PIL": {"report"},
    "av": {"report"},
    "scipy": {"analysis"},
}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            yield node.module


def all_imports() -> Iterator[tuple[Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in imports(path):
            yield path, name


def test_parts_import_only_what_lies_below_them() -> None:
    wrong = []
    for path, name in all_imports():
        own = part_of(path)
        if own in ("cli", "__main__", "__init__") or not name.startswith("fractal_k8s."):
            continue
        other = name.split(".")[1]
        if other not in {own, "errors"} | ALLOWED[own]:
            wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_nobody_imports_the_command_line() -> None:
    importers = {
        part_of(path) for path, name in all_imports() if name.startswith("fractal_k8s.cli")
    }
    assert importers <= {"cli", "__main__"}


def test_every_outside_package_has_one_home() -> None:
    wrong = []
    for path, name in all_imports():
        package = name.split(".")[0]
        if package in HOMES and part_of(path) not in HOMES[package]:
            wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_no_other_outside_package_is_imported() -> None:
    known = {*HOMES, "numpy", "fractal_k8s", *sys.stdlib_module_names}
    foreign = {name.split(".")[0] for _, name in all_imports()} - known
    assert not foreign


def test_every_part_is_in_the_table() -> None:
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")}
    assert parts - {"cli", "__main__", "__init__"} == set(ALLOWED)


HEAVY = (
    "torch",
    "datasets",
    "kubernetes",
    "pyarrow",
    "wandb",
    "matplotlib",
    "plotly",
    "numpy",
    "pydantic",
)


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        pytest.param(["--help"], HEAVY, id="help"),
        pytest.param(["launch", "--help"], HEAVY, id="help of a command"),
        pytest.param(["train", "--help"], HEAVY, id="help of train"),
        pytest.param(["presets"], ("torch", "matplotlib", "pyarrow"), id="presets"),
        pytest.param(["plan", "--preset", "tanh"], ("torch", "matplotlib"), id="plan"),
        pytest.param(
            ["plan", "--preset", "tiny"], ("torch", "matplotlib", "datasets"), id="plan of a model"
        ),
        pytest.param(["pretrain", "--help"], HEAVY, id="help of pretrain"),
        pytest.param(
            ["render", "--res", "16"],
            ("torch", "kubernetes", "pyarrow", "wandb", "matplotlib", "scipy", "rich"),
            id="render",
        ),
        pytest.param(["data", "prepare", "--help"], HEAVY, id="help of data"),
        pytest.param(["list"], ("torch", "matplotlib"), id="list"),
        pytest.param(["doctor", "--help"], HEAVY, id="help of doctor"),
        pytest.param(["doctor"], ("torch", "matplotlib", "wandb"), id="doctor"),
        pytest.param(["cluster", "--help"], HEAVY, id="help of cluster"),
        pytest.param(["cache", "fill", "--help"], HEAVY, id="help of cache fill"),
        pytest.param(
            ["cache", "status", "--root", "nowhere"],
            ("torch", "kubernetes", "pyarrow", "wandb", "huggingface_hub", "matplotlib"),
            id="cache status",
        ),
    ],
)
def test_a_command_loads_only_what_it_needs(
    arguments: list[str], unwanted: tuple[str, ...], tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from fractal_k8s.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        f"loaded = [name for name in {unwanted!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
