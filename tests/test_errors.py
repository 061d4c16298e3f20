from __future__ import annotations

import re

import pytest

from fractal_k8s import errors
from fractal_k8s.errors import FractalError, SweepError


def all_errors() -> list[type[FractalError]]:
    found = [FractalError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == "fractal_k8s.errors"]


def test_the_drawn_tree_is_the_tree_of_classes() -> None:
    drawn = re.findall(r"^ *[│├└─ ]*(\w+Error) +(\d+)", errors.__doc__ or "", flags=re.M)
    assert dict(drawn) == {kind.__name__: str(kind.exit_code) for kind in all_errors()}


def test_a_worker_never_ends_with_a_code_that_stops_the_job_for_trouble_of_one_shard() -> None:
    stops_the_job = {errors.EXIT_SETTINGS, errors.EXIT_CORRUPT}
    assert errors.StoreError.worker_code not in stops_the_job
    assert errors.RetryError.worker_code not in stops_the_job
    assert errors.SweepError.worker_code in stops_the_job
    assert errors.CorruptError.worker_code in stops_the_job


@pytest.mark.parametrize("count", [1, 3])
def test_a_sweep_error_shows_every_problem_with_its_source(count: int) -> None:
    problems = [f"axes.x.low: wrong {number}" for number in range(count)]
    text = str(SweepError(problems, source="sweep.toml"))
    assert text.startswith("sweep.toml: ")
    assert all(problem in text for problem in problems)
    assert len(text.splitlines()) == (1 if count == 1 else count + 1)
