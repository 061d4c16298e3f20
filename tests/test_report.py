"""Figures and page: the defined colours in the right places, holes open, nothing fetched."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from conftest import mlp_sweep
from fractal_k8s.aggregate import aggregate, grid_table
from fractal_k8s.analysis.summary import summarise
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.report.colours import trainability_colormap, trainability_values
from fractal_k8s.report.figures import PANEL_TITLES, png, study_picture, three_panels
from fractal_k8s.report.page import render_page
from fractal_k8s.report.picture import read_mask
from fractal_k8s.report.view import axis_views
from fractal_k8s.results.grid import Grid
from fractal_k8s.results.outcome import State
from fractal_k8s.results.store import Plan, Store
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from test_results import grid_of, outcome_of, stored

LOSSES = {
    0: [4.0, 1.0],  # trainable, lowest loss
    1: [4.0, 3.0],  # trainable, highest loss
    2: [4.0, 2.0],  # trainable, in the middle
    3: [4.0, 9.0],  # not trainable
    4: [4.0, math.nan],  # diverged
}


def mixed_grid(tmp_path: Path, **changes: Any) -> Grid:
    """2 x 4 points: three trainable, one not, one diverged, one failed, two missing."""
    sweep = mlp_sweep(resolution=[2, 4], verdict={"window": 1}, **changes)
    outcomes = [outcome_of(sweep, index, losses) for index, losses in LOSSES.items()]
    outcomes.append(outcome_of(sweep, 5, [1.0], state=State.FAILED, error="lost"))
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    folder.write_plan(Plan(sweep, Deal()))
    stored(folder, sweep, outcomes)
    return grid_of(folder, sweep)


# --- colours ---


@pytest.mark.parametrize(
    ("value", "colour"),
    [(-1.0, "#8B0000"), (0.3, "#ADD8E6"), (0.65, "#4169E1"), (1.0, "#00008B")],
)
def test_the_scale_has_the_defined_colours_exactly(value: float, colour: str) -> None:
    found = trainability_colormap()((value + 1) / 2)[:3]
    assert found == pytest.approx(to_rgb(colour), abs=1e-9)


def test_a_lower_loss_is_darker() -> None:
    colours = trainability_colormap()(np.linspace(0.65, 1.0, 50))[:, :3]
    brightness = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) < 0).all()


def test_losses_are_spread_over_the_blue_part_of_the_scale(tmp_path: Path) -> None:
    values = trainability_values(mixed_grid(tmp_path))
    assert values[0].tolist() == pytest.approx([1.0, 0.3, 0.3 + 0.7 / 2, -1.0])
    assert values[1, 0] == -1.0
    assert np.isnan(values[1, 1:]).all()


def test_a_single_trainable_loss_is_the_best_one(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[2, 2], verdict={"window": 1})
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    stored(folder, sweep, [outcome_of(sweep, 0, [4.0, 1.0])])
    assert trainability_values(grid_of(folder, sweep))[0, 0] == 1.0


# --- geometry ---


def test_cells_are_centred_on_their_values() -> None:
    y, x = axis_views(mlp_sweep(resolution=[3, 7]))
    assert y.centres == pytest.approx([-2, 1, 4])
    assert y.edges == pytest.approx([-3.5, -0.5, 2.5, 5.5])
    assert x.edges[0] == pytest.approx(-2.5)
    assert x.edges[-1] == pytest.approx(4.5)
    assert y.is_regular
    assert y.label == "log10 output layer learning rate"


def test_listed_values_have_cells_of_their_own_width() -> None:
    raw = mlp_sweep().to_dict()
    raw["axes"]["x"] = {"knob": "init_offset", "values": [-1.0, 0.0, 5.0]}
    raw["resolution"] = [6, 3]
    _, x = axis_views(Sweep.parse(raw))
    assert not x.is_log
    assert not x.is_regular
    assert x.edges.tolist() == [-1.5, -0.5, 2.5, 7.5]


# --- figures ---


def test_three_panels_show_what_is_known_and_leave_the_rest_open(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    figure = three_panels(grid, summarise(grid))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == list(PANEL_TITLES)
    for axes in panels:
        image = axes.images[0]
        assert image.get_interpolation() == "nearest"
        assert image.origin == "lower"
        assert image.get_extent() == pytest.approx([-3, 5, -5, 7])
    shown = [np.ma.getmaskarray(axes.images[0].get_array()) for axes in panels]
    assert shown[0].tolist() == [[False] * 4, [False, True, True, True]]
    assert shown[1].tolist() == [[False, False, False, True], [True] * 4]
    assert shown[2].tolist() == shown[0].tolist()
    assert "PARTIAL: 62.5% of the points" in figure.get_suptitle()


def pixel(figure_bytes: bytes, axes: Any, x: float, y: float) -> tuple[int, ...]:
    """Colour of the picture at data coordinates."""
    import io

    with Image.open(io.BytesIO(figure_bytes)) as image:
        column, row = axes.transData.transform((x, y))
        found = image.convert("RGB").getpixel((int(column), int(image.height - row)))
    assert isinstance(found, tuple)
    return found


def test_missing_failed_and_untrainable_cells_look_different(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    figure = three_panels(grid, summarise(grid))
    data = png(figure)
    panel = figure.axes[0]
    _, x = axis_views(grid.sweep)
    untrainable = pixel(data, panel, x.centres[3], -2)
    failed = pixel(data, panel, x.centres[1], 4)
    missing = {pixel(data, panel, x.centres[2] + d / 40, 4 + d / 30) for d in range(-20, 20)}
    assert untrainable == (0x8B, 0, 0)
    assert failed == (0xF2, 0xA9, 0)
    assert len(missing) > 1  # hatched
    assert not missing & {untrainable, failed}


def test_the_same_map_gives_the_same_picture(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    summary = summarise(grid)
    assert png(three_panels(grid, summary)) == png(three_panels(grid, summary))
    assert png(study_picture(grid)) == png(study_picture(grid))


def test_an_irregular_axis_is_drawn_too(tmp_path: Path) -> None:
    sweep_axes = {
        "y": {"knob": "output_lr", "low": 1e-2, "high": 1e4},
        "x": {"knob": "init_offset", "values": [-1.0, 0.0, 5.0, 6.0]},
    }
    grid = mixed_grid(tmp_path, axes=sweep_axes)
    figure = three_panels(grid, summarise(grid))
    assert figure.axes[0].get_xlim() == pytest.approx((-1.5, 6.5))
    assert png(figure)[:4] == b"\x89PNG"


# --- page ---


def page_data(page: str) -> Any:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    return json.loads(match[1])


def test_the_page_holds_the_map_and_says_what_is_missing(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    page = render_page(grid, summarise(grid))
    data = page_data(page)
    assert data["states"] == grid.states.tolist()
    assert data["finalLoss"][0] == [1.0, 3.0, 2.0, 9.0]
    assert data["finalLoss"][1][1:] == [1.0, None, None]
    assert data["axes"]["y"]["values"] == list(grid.sweep.y_values)
    assert "Partial map: 62.5% of the points have a verdict." in page
    assert grid.sweep.id in page


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    page = render_page(grid, summarise(grid))
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:)", page)
    own = page[: page.index("<script>")] + page[page.rindex("<script>") :]
    assert "http" not in own.replace("http-equiv", "")


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
    page = render_page(grid_of(folder, sweep), summarise(grid_of(folder, sweep)))
    assert "alert(1)</script>" not in page
    assert "&lt;b&gt;&amp;" in page


def test_runs_that_diverged_early_are_not_called_short(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[2, 2], verdict={"window": 5})
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    stored(folder, sweep, [outcome_of(sweep, index, [4.0, math.nan]) for index in range(4)])
    assert summarise(grid_of(folder, sweep))["biased_points"] == 0


def test_short_runs_are_pointed_out(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[2, 2], verdict={"window": 5})
    folder = Store(str(tmp_path / "runs")).sweep(sweep.id)
    stored(folder, sweep, [outcome_of(sweep, index, [4.0, 1.0]) for index in range(4)])
    grid = grid_of(folder, sweep)
    summary = summarise(grid)
    assert summary["biased_points"] == 4
    assert "4 points made so few steps" in render_page(grid, summary)


# --- aggregate ---


def test_a_pass_writes_the_same_bytes_twice_and_the_numbers_last(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    store = Store(str(tmp_path / "runs"))
    folder, plan = store.plan(grid.sweep.id)
    first = {
        name: Path(place).read_bytes() for name, place in aggregate(folder, plan).written.items()
    }
    again = {
        name: Path(place).read_bytes() for name, place in aggregate(folder, plan).written.items()
    }
    assert first == again
    assert list(first) == ["map.png", "measure.png", "report.html", "grid.parquet", "analysis.json"]
    assert json.loads(first["analysis.json"])["counts"]["missing"] == 2


def test_the_summary_does_not_depend_on_the_attempts_it_came_from(tmp_path: Path) -> None:
    sweep = mlp_sweep(resolution=[2, 3], verdict={"window": 1})
    outcomes = [outcome_of(sweep, index, [4.0, 1.0 + index / 9]) for index in range(6)]
    written = []
    for number, parts in enumerate(([[0, 1, 2], [3, 4, 5]], [[5], [3, 1], [0, 4], [2]])):
        folder = Store(str(tmp_path / str(number))).sweep(sweep.id)
        folder.write_plan(Plan(sweep, Deal()))
        for shard, indexes in enumerate(parts):
            node = f"node-{indexes[0] // 3}"
            at = [outcomes[index] for index in indexes]
            stored(folder, sweep, at, shard=f"aaaaaa-{9 - shard:05d}", node=node)
        done = aggregate(folder, Plan(sweep, Deal()))
        written.append({name: Path(place).read_bytes() for name, place in done.written.items()})
    first, second = written
    for name in ("map.png", "measure.png", "report.html", "analysis.json"):
        assert first[name] == second[name], name


def test_the_grid_file_has_a_verdict_for_every_stored_point(tmp_path: Path) -> None:
    rows = grid_table(mixed_grid(tmp_path)).to_pylist()
    assert [row["verdict"] for row in rows] == [
        "trainable",
        "trainable",
        "trainable",
        "not trainable",
        "diverged",
        "failed",
    ]
    assert [row["trainable"] for row in rows] == [True, True, True, False, False, False]


# --- pictures from elsewhere ---


def test_masks_are_read_from_arrays_and_images(tmp_path: Path) -> None:
    labels = np.zeros((5, 7), dtype=bool)
    labels[1:3, 2:] = True
    np.save(tmp_path / "a.npy", labels)
    np.save(tmp_path / "b.npy", labels.astype(np.float64))
    Image.fromarray((labels * 255).astype(np.uint8)).save(tmp_path / "c.png")
    colours = np.where(labels[..., None], [200, 220, 255], [139, 0, 0]).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "d.png")
    Image.fromarray(labels).save(tmp_path / "e.png")
    for name in ("a.npy", "b.npy", "c.png", "d.png", "e.png"):
        found, known = read_mask(tmp_path / name)
        assert known.all()
        assert found.tolist() == labels.tolist(), name


def test_this_project_s_own_binary_panel_is_read_the_right_way(tmp_path: Path) -> None:
    labels = np.zeros((6, 6), dtype=bool)
    labels[:4] = True
    for trainable, other in (((0, 0, 139), (139, 0, 0)), ((5, 48, 97), (103, 0, 31))):
        colours = np.where(labels[..., None], trainable, other).astype(np.uint8)
        Image.fromarray(colours).save(tmp_path / "panel.png")
        assert read_mask(tmp_path / "panel.png")[0].tolist() == labels.tolist()


def test_unknown_cells_of_a_mask_are_kept_unknown(tmp_path: Path) -> None:
    array = np.array([[1.0, np.nan], [0.0, 1.0]])
    np.save(tmp_path / "a.npy", array)
    labels, known = read_mask(tmp_path / "a.npy")
    assert known.tolist() == [[True, False], [True, True]]
    assert labels.tolist() == [[True, False], [False, True]]
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 3] = [[255, 0], [255, 255]]
    pixels[0, 0, :3] = 255
    Image.fromarray(pixels).save(tmp_path / "b.png")
    assert read_mask(tmp_path / "b.png")[1].tolist() == known.tolist()


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        pytest.param("a.npy", None, UsageError, "no such file", id="missing"),
        pytest.param("a.npy", b"rubbish", CorruptError, "not a NumPy array", id="rubbish"),
        pytest.param("a.png", b"rubbish", CorruptError, "not an image", id="no image"),
        pytest.param("a.csv", b"1,0", UsageError, "unknown kind '.csv'", id="kind"),
        pytest.param("a.npy", np.zeros(5), UsageError, "has shape", id="one dimension"),
        pytest.param("a.npy", np.eye(3) * 2, UsageError, "values must be 0 and 1", id="values"),
        pytest.param("a.npy", np.zeros((1, 5), bool), UsageError, "have no edge", id="one row"),
        pytest.param(
            "a.png",
            np.arange(12, dtype=np.uint8).reshape(3, 4),
            UsageError,
            "has 12 colours",
            id="many",
        ),
    ],
)
def test_a_mask_that_is_none_is_refused(
    name: str, content: Any, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None and name.endswith(".npy"):
        np.save(path, content)
    elif content is not None:
        Image.fromarray(content).save(path)
    with pytest.raises(kind, match=message):
        read_mask(path)
