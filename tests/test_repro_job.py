"""Points of a map that a cluster trains again, in a Job of their own, against the stand-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Run
from fractal_k8s.manifest import labels
from test_dispatch import Place, busy, still, launched, train_some, wait_for  # noqa: F401


def test_first(busy: Place, tmp_path: Path) -> None:  # noqa: F811
    sweep_id = launched(busy, "--points-per-index", "64")
    wait_for(lambda: bool(busy.job(sweep_id)["status"].get("conditions")))
    out = busy.run("repro", "small", "--sample", "20", "--seed", "2")
    print(out)
    print(busy.names("jobs"))
    print([str(p) for p in busy.store.files.root.rglob("*") if p.is_file()])
    print(busy.standin.objects.list("pods")); assert 0
