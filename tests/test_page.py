"""The page without a browser: its numbers, texts and sections, and that it asks nobody anything."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import mlp_sweep
from fractal_k8s.analysis.measure import convergence_measure, measure_of, steps_to_divergence
from fractal_k8s.analysis.summary import summarise
from fractal_k8s.report import payload
from fractal_k8s.report.content import replica_share
from fractal_k8s.report.criteria import criteria
from fractal_k8s.report.page import render_page
from fractal_k8s.report.payload import NEVER, NO_CODE, loss_curves, packed, rounded, shares
from fractal_k8s.results.grid import Grid
from fractal_k8s.results.outcome import State
from fractal_k8s.results.store import Store
from fractal_k8s.sweep.definition import Sweep
from test_report import mixed_grid, rough_summary
from test_results import grid_of, outcome_of, stored

Floats = npt.NDArray[np.float64]


def element(page: str, name: str) -> str:
    match = re.search(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', page, re.S)
    assert match is not None
    return match[1]


def unplaned(data: bytes, dtype: str) -> npt.NDArray[Any]:
    size = np.dtype(dtype).itemsize
    planes = np.frombuffer(data, np.uint8).reshape(size, -1)
    return np.ascontiguousarray(planes.T).view(np.dtype(dtype).newbyteorder("<")).ravel()


def unpacked(text: str, directory: list[list[Any]]) -> dict[str, npt.NDArray[Any]]:
    data, start, arrays = zlib.decompress(base64.b64decode(text)), 0, {}
    for name, dtype, length in directory:
        end = start + length * np.dtype(dtype).itemsize
        arrays[name] = unplaned(data[start:end], dtype)
        start = end
    assert start == len(data)
    return arrays


def records(page: str) -> dict[str, npt.NDArray[Any]]:
    return unpacked(element(page, "records"), json.loads(element(page, "data"))["arrays"])


def page_of(grid: Grid, **changes: Any) -> str:
    return render_page(grid, {**summarise(grid), **changes})


# --- packing ---


@given(
    st.lists(st.floats(width=32), max_size=30),
    st.lists(st.integers(0, 65535), max_size=30),
)
def test_packed_arrays_come_back(numbers: list[float], codes: list[int]) -> None:
    arrays = {"a": np.array(numbers, np.float32), "b": np.array(codes, np.uint16)}
    found = packed(arrays)
    back = unpacked(found["text"], found["arrays"])
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


@given(st.lists(st.floats(), max_size=30))
def test_rounded_numbers_keep_five_digits_and_stay_finite(numbers: list[float]) -> None:
    values = np.array(numbers)
    found = rounded(values).astype(float)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(values))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    inside = np.isfinite(values) & (np.abs(values) > 1e-37) & (np.abs(values) < 3.3e38)
    np.testing.assert_allclose(found[inside], values[inside], rtol=1e-5)


def test_shares_are_codes_of_their_place_in_the_range() -> None:
    assert shares(np.array([-1.0, 1.0, np.nan]), -1.0, 1.0).tolist() == [0, 65534, NO_CODE]


def decoded(curves: payload.Curves, lengths: list[int]) -> list[Floats]:
    """The curves as the page's script reads them: NaN = not finite, 0 = zero or below."""
    data = zlib.decompress(base64.b64decode(curves.text))
    codes = np.cumsum(unplaned(data, "uint16"), dtype=np.uint16).astype(int)
    logs = curves.low + (codes - 1) * (curves.high - curves.low) / 65532
    losses = np.where(codes == 65534, np.nan, np.where(codes == 0, 0.0, 10**logs))
    return np.split(losses, np.cumsum([min(n, curves.cap) for n in lengths])[:-1])


def curved_grid(tmp_path: Path, series: list[list[float]]) -> Grid:
    """Two rows: the first has the given losses, the second has none."""
    sweep = mlp_sweep(resolution=[2, len(series)], verdict={"window": 1})
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    made = [outcome_of(sweep, index, losses) for index, losses in enumerate(series) if losses]
    stored(folder, sweep, made)
    return grid_of(folder, sweep)


SERIES = [
    [2.0, 1.5, 1e-6],
    [],
    [3.0, 1e30, math.inf],
    [5.0, 0.0, 4.0, 3.0],
    [7.0],
]


def test_loss_curves_come_back_to_the_stated_precision(tmp_path: Path) -> None:
    curves = loss_curves(curved_grid(tmp_path, SERIES))
    stated = re.search(r"rounded to ([\d.e-]+) of their value; every step is shown", curves.note)
    assert stated is not None
    found = decoded(curves, [len(losses) for losses in SERIES if losses])
    for losses, back in zip([losses for losses in SERIES if losses], found, strict=True):
        expected = np.array([loss if math.isfinite(loss) else np.nan for loss in losses])
        np.testing.assert_allclose(back, expected, rtol=float(stated[1]) * 1.1)


def test_long_curves_are_thinned_to_what_fits_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = [[float(k + 1) for k in range(101)], [float(k + 1) for k in range(5)]]
    monkeypatch.setattr(payload, "CURVE_VALUES", 16)
    curves = loss_curves(curved_grid(tmp_path, series))
    assert 8 <= curves.cap <= 11
    assert f"at most {curves.cap} of 101 steps" in curves.note
    long, short = decoded(curves, [101, 5])
    places = np.floor(np.arange(curves.cap) * 100 / (curves.cap - 1) + 0.5)
    np.testing.assert_allclose(long, places + 1, rtol=1e-3)
    np.testing.assert_allclose(short, [1, 2, 3, 4, 5], rtol=1e-3)


def test_curves_that_cannot_fit_are_left_out_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "CURVE_CHARACTERS", 10)
    curves = loss_curves(curved_grid(tmp_path, SERIES))
    assert (curves.text, curves.cap) == ("", 0)
    assert "left out" in curves.note


def test_a_page_of_128_x_128_points_stays_below_10_mb(tmp_path: Path) -> None:
    page = page_of(mixed_grid(tmp_path))
    per_point = sum(array.itemsize for array in records(page).values())
    most = len(page) + payload.CURVE_CHARACTERS + 128 * 128 * per_point * 4 / 3
    assert most < 10e6  # even if nothing could be deflated


# --- the map's numbers ---


def test_the_page_holds_the_map_and_says_what_is_missing(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    page = page_of(grid)
    data, arrays = json.loads(element(page, "data")), records(page)
    assert arrays["states"].tolist() == grid.states.ravel().tolist()
    np.testing.assert_array_equal(arrays["finalLoss"][:4], [1.0, 3.0, 2.0, 9.0])
    assert np.isnan(arrays["finalLoss"][[4, 6, 7]]).all()
    assert arrays["trainability"].tolist()[5:] == [NO_CODE] * 3
    assert data["axes"]["y"]["values"] == list(grid.sweep.y_values)
    assert data["lossRange"] == [1.0, 3.0]
    assert data["errors"] == {"5": "lost"}
    assert "Partial map: 62.5% of the points have a verdict." in page
    assert grid.sweep.id in page


def test_seeds_travel_where_each_point_has_its_own(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path, seed_policy="per-point")
    assert records(page_of(grid))["runSeed"].tolist()[:6] == [
        grid.sweep.run_seed(grid.sweep.point(index)) for index in range(6)
    ]


def test_replicas_are_shown_as_shares_of_what_is_known(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    note = {"trainable": [[2, 0, 1, 0], [0] * 4], "known": [[2, 2, 2, 0], [1] * 4]}
    share = replica_share(grid, {"notes": {"replicas": note}})
    assert share is not None
    assert share[0, :3].tolist() == [1.0, 0.0, 0.5]
    assert np.isnan(share[0, 3])
    page = page_of(grid, notes={"replicas": note})
    assert records(page)["replicaShare"].tolist()[:4] == [65534, 0, 32767, NO_CODE]
    assert "replicaShare" not in records(page_of(grid))


def test_the_measure_of_all_points_is_that_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = curved_grid(tmp_path, SERIES)
    steps = grid.sweep.training.num_steps()
    assert steps is not None
    expected = [
        measure_of(np.array(losses, np.float32), steps, bool(trainable)) if losses else math.nan
        for losses, trainable in zip(SERIES, grid.trainable[0], strict=True)
    ]
    for block in (1, 2, 4, 1 << 19):
        monkeypatch.setattr("fractal_k8s.analysis.measure._BLOCK", block)
        np.testing.assert_allclose(convergence_measure(grid)[0], expected, rtol=1e-12)
        assert np.isnan(convergence_measure(grid)[1]).all()


def test_steps_to_divergence_count_to_the_first_lost_loss(tmp_path: Path) -> None:
    series = [[2.0, 1.0], [], [3.0, math.inf, 4.0, math.nan], [math.nan], [1.0, 2.0, math.nan]]
    grid = curved_grid(tmp_path, series)
    assert steps_to_divergence(grid).tolist() == [[-1, -1, 1, 0, 2], [-1] * 5]
    assert records(page_of(grid))["lostAt"].tolist()[:5] == [NEVER, NEVER, 1, 0, 2]


# --- the page as text ---


def test_the_same_map_gives_the_same_page(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    assert page_of(grid) == page_of(grid)


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    page = page_of(mixed_grid(tmp_path))
    assert "default-src 'none'" in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:)", page)
    addresses = set(re.findall(r"https?://[^\s\"']*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place


def test_texts_from_outside_cannot_break_the_page(tmp_path: Path) -> None:
    raw = mlp_sweep(resolution=[2, 2]).to_dict()
    raw.update(
        model="gpt",
        checkpoint="/x/<b>&</script><script>alert(1)</script>",
        dataset="conversations:/a",
    )
    raw["axes"] = {
        "y": {"knob": "matrix_lr", "low": 1e-3, "high": 1.0},
        "x": {"knob": "unembedding_lr", "low": 1e-3, "high": 1.0},
    }
    raw["training"] = {}
    sweep = Sweep.parse(raw)
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    stored(
        folder,
        sweep,
        [outcome_of(sweep, 0, [1.0], state=State.FAILED, error="</script><b>alert(1)</b>")],
    )
    page = page_of(grid_of(folder, sweep))
    assert "alert(1)</script>" not in page
    assert "</script><b>alert" not in page
    assert "&lt;b&gt;&amp;" in page


def test_short_runs_are_pointed_out(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[2, 2], verdict={"window": 5})
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    stored(folder, sweep, [outcome_of(sweep, index, [4.0, 1.0]) for index in range(4)])
    grid = grid_of(folder, sweep)
    summary = summarise(grid)
    assert summary["biased_points"] == 4
    assert "4 points made so few steps" in render_page(grid, summary)


def test_runs_that_diverged_early_are_not_called_short(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[2, 2], verdict={"window": 5})
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    stored(folder, sweep, [outcome_of(sweep, index, [4.0, math.nan]) for index in range(4)])
    assert summarise(grid_of(folder, sweep))["biased_points"] == 0


def test_the_dimension_is_drawn_with_its_interval_and_residuals(tmp_path: Path) -> None:
    page = page_of(mixed_grid(tmp_path), **rough_summary())
    drawing = page[page.index('<svg class="fit"') : page.index("</svg>")]
    assert "D = 1.410 [1.300, 1.500]" in drawing
    assert "95 % interval" in drawing
    assert drawing.count('class="dot"') == 5 + 5 + 4  # counts, residuals, local slopes
    assert "smooth baseline 1.00" in drawing
    assert "95 % interval 1.300 to 1.500" in page


def test_a_map_without_an_edge_says_so_instead_of_drawing_a_fit(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[2, 2], verdict={"window": 1})
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    stored(folder, sweep, [outcome_of(sweep, index, [4.0, 1.0]) for index in range(4)])
    page = page_of(grid_of(folder, sweep))
    assert '<svg class="fit"' not in page
    assert page.count("no edge: every known point is trainable") >= 3  # tile, card, criterion


def test_every_analysis_has_its_table(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    summary = summarise(grid)
    page = render_page(grid, summary)
    from fractal_k8s.analysis.registry import load

    assert summary["analyses"]
    for name in summary["analyses"]:
        assert f"<h3>{load(name).TITLE}</h3>" in page


def test_the_family_of_zooms_is_linked_by_relative_paths(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    family = {
        "ancestors": [{"id": "root-0123456789", "dimension": 1.25, "box": None}],
        "children": [{"id": "leaf-0123456789", "dimension": None, "box": [[0, 1], [1, 2]]}],
    }
    page = page_of(grid, family=family)
    assert 'href="../../root-0123456789/summary/report.html"' in page
    assert 'href="../../leaf-0123456789/summary/report.html"' in page
    assert "D 1.25" in page
    children = json.loads(element(page, "data"))["children"]
    assert children == [{"id": "leaf-0123456789", "box": [[0, 1], [1, 2]]}]


def test_the_certificate_says_what_was_trained_again(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    assert "Not checked: no point of this map was trained a second time" in page_of(grid)
    unchanged = {
        "edge": {"cells": 64, "flipped": 0},
        "random": {"cells": 36, "flipped": 1},
        "bit_equal": 99,
    }
    certificate = {"line": "Same bits on two nodes."}
    notes = {"controls": {"unchanged": unchanged}, "certificate": certificate}
    page = page_of(grid, notes=notes)
    assert "Same bits on two nodes." in page
    assert (
        "100 points were trained again unchanged: 1 changed their verdict, "
        "99 gave the same losses bit for bit."
    ) in page


# --- criteria ---


OPTIMAL = {"refused": None, "held_out": {"within": 1.0, "tried": 4}}


@pytest.mark.parametrize(
    ("changes", "judgements"),
    [
        pytest.param({}, ["passed", "passed", "not judged", "not judged"], id="rough edge"),
        pytest.param({"interval": [1.2, 1.5]}, ["passed", "not judged"], id="over the range's end"),
        pytest.param({"dimension": 1.1, "interval": [1.01, 1.2]}, ["passed", "failed"], id="low"),
        pytest.param({"dimension": 1.02, "interval": [0.9, 1.1]}, ["failed", "failed"], id="flat"),
        pytest.param({"interval": None}, ["not judged", "passed"], id="no interval"),
        pytest.param(
            {"dimension": None, "interval": None, "refused": "noise"},
            ["not judged", "not judged"],
            id="refused",
        ),
        pytest.param(
            {"dimension": None, "interval": None, "boundary_pixels": 0, "refused": "no edge"},
            ["failed", "not judged"],
            id="no edge",
        ),
        pytest.param(
            {"analyses": {"optimal": OPTIMAL}}, ["passed", "passed", "passed"], id="law holds"
        ),
        pytest.param(
            {"analyses": {"optimal": {"refused": None, "held_out": {"within": 0.5, "tried": 4}}}},
            ["passed", "passed", "failed"],
            id="law misses",
        ),
        pytest.param(
            {"analyses": {"optimal": {"refused": "too few columns", "held_out": None}}},
            ["passed", "passed", "not judged"],
            id="no law",
        ),
        pytest.param(
            {"boundary_pixels": 0, "dimension": None, "coverage": 0.4, "refused": "no edge"},
            ["not judged", "not judged"],
            id="holes hide the edge",
        ),
    ],
)
def test_the_research_plan_s_criteria(changes: dict[str, Any], judgements: list[str]) -> None:
    found = criteria({**rough_summary(), **changes})
    assert [one.judgement for one in found][: len(judgements)] == judgements
    assert all(one.reason for one in found)


def test_a_criterion_names_the_number_it_was_judged_by(tmp_path: Path) -> None:
    found = criteria({**rough_summary(), "analyses": {"optimal": OPTIMAL}})
    assert found[0].reason == "D = 1.410 [1.300, 1.500] lies above a smooth edge's 1"
    assert found[1].reason == "D = 1.410 [1.300, 1.500]"
    assert found[2].reason == "100% of 4 held-out data sizes within 2x"
    page = page_of(mixed_grid(tmp_path), **rough_summary())
    assert '<td class="judged passed">passed</td><td>D = 1.410' in page
