"""Figures and page: the defined colours in the right places, holes open, nothing fetched."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_rgb
from PIL import Image

from conftest import mlp_sweep
from fractal_k8s import cli
from fractal_k8s.aggregate import aggregate, grid_table
from fractal_k8s.aggregate.drawing import Drawing
from fractal_k8s.aggregate.pictures import map_files, zoom_levels
from fractal_k8s.analysis.summary import summarise
from fractal_k8s.cli import report as report_command
from fractal_k8s.errors import CorruptError, UsageError
from fractal_k8s.report.colours import ORIGINAL, SAFE, SCHEMES, Scheme, trainability_values
from fractal_k8s.report.dimension_figure import dimension_figure
from fractal_k8s.report.figures import (
    PANEL_TITLES,
    ZoomLevel,
    study_picture,
    three_panels,
    zoom_strip,
)
from fractal_k8s.report.fit import fit_of
from fractal_k8s.report.picture import read_mask
from fractal_k8s.report.typography import COLUMN, PAGE, pdf, png
from fractal_k8s.report.view import axis_views
from fractal_k8s.results.grid import Grid, build_grid
from fractal_k8s.results.outcome import State
from fractal_k8s.results.store import Outcomes, Store
from fractal_k8s.sweep.assignment import Plan
from fractal_k8s.sweep.deal import Deal
from fractal_k8s.sweep.definition import Sweep
from fractal_k8s.sweep.rule import VerdictRule
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
    found = ORIGINAL.trainability()((value + 1) / 2)[:3]
    assert found == pytest.approx(to_rgb(colour), abs=1e-9)


def test_a_lower_loss_is_darker() -> None:
    colours = ORIGINAL.trainability()(np.linspace(0.65, 1.0, 50))[:, :3]
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


# What people with no long, middle or short cones see of linear RGB (Machado et al. 2009, at full
# severity).
VISION = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour: str, vision: str) -> npt.NDArray[np.float64]:
    """A colour in CIE Lab (D65) as seen with one kind of colour vision."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION.get(vision, np.eye(3))) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ seen / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def least_difference(scheme: Scheme, vision: str) -> float:
    """The smallest colour difference between kinds of cells that must not be mistaken."""
    blues = [colour for value, colour in scheme.stops if value >= 0.3]
    pairs = [(scheme.binary[0], scheme.binary[1]), (scheme.failed, scheme.binary[0])]
    pairs += [(scheme.stops[0][1], blue) for blue in blues]
    pairs += [(scheme.failed, blue) for blue in blues]
    pairs += [(scheme.marginal, other) for other in (*blues, scheme.binary[0], scheme.failed)]
    return min(float(np.linalg.norm(lab(a, vision) - lab(b, vision))) for a, b in pairs)


def lightness_step(scheme: Scheme, vision: str) -> float:
    """How much brighter one side of the edge is; fine detail is seen by brightness, not by hue."""
    first, second = (lab(colour, vision)[0] for colour in scheme.binary)
    return abs(float(first - second))


@pytest.mark.parametrize("vision", ["common", *VISION])
def test_the_safe_colours_differ_in_every_kind_of_colour_vision(vision: str) -> None:
    assert least_difference(SAFE, vision) > 25
    assert lightness_step(SAFE, vision) > 40


def test_the_original_colours_are_equally_dark() -> None:
    assert lightness_step(ORIGINAL, "protan") < 15


def test_the_command_offers_every_scheme() -> None:
    assert set(report_command._COLOURS) == set(SCHEMES)


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


def test_marginal_cells_have_a_colour_of_their_own(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    rule = VerdictRule(rule="bound", bound=2.5, marginal=5.0)
    grid = build_grid(grid.sweep, Outcomes(grid.table), rule=rule)
    figure = three_panels(grid, summarise(grid))
    data, centres = png(figure), axis_views(grid.sweep)[1].centres
    for panel in (figure.axes[0], figure.axes[2]):
        assert pixel(data, panel, centres[1], -2) == (0x3C, 0x8D, 0x40)
        assert pixel(data, panel, centres[3], -2) == (0x8B, 0, 0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "missing",
        "failed",
        "marginal",
    ]


def test_the_same_map_gives_the_same_picture(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    summary = summarise(grid)
    assert png(three_panels(grid, summary)) == png(three_panels(grid, summary))
    assert png(study_picture(grid)) == png(study_picture(grid))
    first, second = (pdf(three_panels(grid, summary)) for _ in range(2))
    assert first == second
    assert b"CreationDate" not in first


def test_the_reader_s_own_matplotlib_settings_change_nothing(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    expected = png(three_panels(grid, summarise(grid)))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        assert png(three_panels(grid, summarise(grid))) == expected


def rough_summary() -> dict[str, Any]:
    """What a summary says about the edge of a map of 64 x 64 points, made up."""
    sizes = [1, 2, 4, 8, 16]
    counts = [1000.0 * size**-1.4 * (1 + 0.02 * (-1) ** k) for k, size in enumerate(sizes)]
    return {
        "box_sizes": sizes,
        "box_counts": counts,
        "dimension": 1.41,
        "interval": [1.3, 1.5],
        "baselines": {"smooth": 1.0, "noise": 1.9, "absent": None},
        "refused": None,
        "boundary_pixels": 500,
    }


def test_the_fit_is_the_straight_line_through_the_counts() -> None:
    fit = fit_of(rough_summary())
    assert fit is not None
    assert fit.slope == pytest.approx(1.4, abs=0.02)
    assert np.log10(fit.counts) - np.log10(fit.line) == pytest.approx(fit.residuals)
    assert sum(fit.residuals) == pytest.approx(0, abs=1e-12)
    steps = -np.diff(np.log(fit.counts)) / np.diff(np.log(fit.sizes))
    assert list(fit.local_slopes) == pytest.approx(steps.tolist())
    assert fit.baselines == {"smooth": 1.0, "noise": 1.9}
    assert fit.title == "D = 1.410 [1.300, 1.500]"


@pytest.mark.parametrize("changes", [{"box_sizes": [], "box_counts": []}, {"box_sizes": None}])
def test_without_counts_there_is_no_fit(changes: dict[str, Any]) -> None:
    assert fit_of({**rough_summary(), **changes}) is None


def test_a_refused_dimension_still_shows_what_was_measured() -> None:
    fit = fit_of({**rough_summary(), "dimension": None, "interval": None, "refused": "noise"})
    assert fit is not None
    assert fit.title == "no dimension"
    assert pdf(dimension_figure(fit, "x"))[:5] == b"%PDF-"


def test_figures_fit_a_column_or_a_page_and_carry_their_fonts(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    fit = fit_of(rough_summary())
    assert fit is not None
    for figure, width in (
        (three_panels(grid, summarise(grid)), PAGE),
        (dimension_figure(fit, "x"), COLUMN),
        (zoom_strip([ZoomLevel("a", grid, (((0, 1), (1, 2)),)), ZoomLevel("b", grid)]), PAGE),
    ):
        assert figure.get_figwidth() == pytest.approx(width)
        data = pdf(figure)
        box = re.search(rb"/MediaBox \[ ?0 0 ([0-9.]+) ", data)
        assert box is not None
        assert float(box[1]) == pytest.approx(72 * width, abs=0.5)
        assert b"/FontFile2" in data  # TrueType, embedded
        assert b"/Type3" not in data


def test_a_strip_of_zooms_shows_every_map_and_where_the_next_one_lies(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    levels = [ZoomLevel(f"level {k}", grid, (((0, 1), (1, 1.5)),)) for k in range(5)]
    figure = zoom_strip([*levels, ZoomLevel("last", grid)])
    shown = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in shown] == [*(f"level {k}" for k in range(5)), "last"]
    y, x = axis_views(grid.sweep)
    outline = shown[0].patches[-1]
    assert outline.get_extents().transformed(
        shown[0].transData.inverted()
    ).extents == pytest.approx([x.edges[1], y.edges[0], (x.edges[2] + x.edges[3]) / 2, y.edges[2]])
    boxed = [any(not patch.get_fill() for patch in axes.patches) for axes in shown]
    assert boxed == [True] * 5 + [False]


def test_an_irregular_axis_is_drawn_too(tmp_path: Path) -> None:
    sweep_axes = {
        "y": {"knob": "output_lr", "low": 1e-2, "high": 1e4},
        "x": {"knob": "init_offset", "values": [-1.0, 0.0, 5.0, 6.0]},
    }
    grid = mixed_grid(tmp_path, axes=sweep_axes)
    figure = three_panels(grid, summarise(grid))
    assert figure.axes[0].get_xlim() == pytest.approx((-1.5, 6.5))
    assert png(figure)[:4] == b"\x89PNG"


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
    files = ["map.png", "measure.png", "report.html", "grid.parquet", "analysis.json"]
    assert list(first) == [*files, "manifest.json"]
    assert json.loads(first["analysis.json"])["counts"]["missing"] == 2


def test_figures_for_a_paper_are_written_beside_the_page(tmp_path: Path) -> None:
    grid = mixed_grid(tmp_path)
    store = str(tmp_path / "runs")
    typed = ["report", grid.sweep.id, "--store", store, "--colours", "safe", "--json"]
    printed = CliRunner().invoke(cli.main, typed)
    written = json.loads(printed.output)
    # 2 x 4 points have no dimension, so there is no fit
    assert [name for name in written if name.endswith(".pdf")] == ["map.pdf"]
    assert "dimension.png" not in written
    assert '"scheme":"safe"' in Path(written["report.html"]).read_text()
    folder, plan = Store(store).plan(grid.sweep.id)
    done = aggregate(folder, plan)
    assert png(three_panels(grid, done.summary)) != png(three_panels(grid, done.summary, SAFE))
    done.summary.update(rough_summary())
    done.summary["family"] = {
        "ancestors": [],
        "self": {"id": grid.sweep.id},
        "children": [{"id": "gone-0123456789", "box": [[0, 1], [0, 1]]}],
    }
    made = map_files(folder, done.grid, done.summary, Drawing(figures=True))
    assert list(made)[3:] == ["map.pdf", "dimension.pdf", "dimension.png"]


def test_a_zoom_s_strip_leads_from_the_first_map_to_its_own_zooms(tmp_path: Path) -> None:
    grids = [mixed_grid(tmp_path, name=name) for name in ("root", "middle", "leaf")]
    ids = [grid.sweep.id for grid in grids]
    folder, plan = Store(str(tmp_path / "runs")).plan(ids[1])
    done = aggregate(folder, plan)
    done.summary["family"] = {
        "ancestors": [{"id": ids[0], "box": None}],
        "self": {"id": ids[1], "box": [[0, 1], [1, 2]]},
        "children": [{"id": ids[2], "box": [[0, 1], [2, 3]]}],
    }
    levels = zoom_levels(folder, done.grid, done.summary)
    assert [level.grid.sweep.id for level in levels] == ids
    assert [level.boxes for level in levels] == [(((0, 1), (1, 2)),), (((0, 1), (2, 3)),), ()]
    made = map_files(folder, done.grid, done.summary, Drawing(figures=True))
    assert {"zoom.pdf", "zoom.png"} <= set(made)


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
