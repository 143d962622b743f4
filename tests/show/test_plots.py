"""Every plot is read back from its artists: positions, colours' values, marks; never from pixels."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from attnlens.show import map_plots, plots


@pytest.fixture
def ax():
    return Figure().subplots()


def profile(**changes: list[float]) -> pd.DataFrame:
    numbers = {"layer": [1, 2, 3], "estimate": [0.5, -1.0, 6.0], "low": [0.1, -3.0, 4.0], "high": [0.9, 1.0, 8.0]}
    numbers["p_adjusted"] = [0.01, 0.01, 0.01]
    return pd.DataFrame({"model": "tuned", **(numbers | changes)})


def test_profile_draws_estimates_bands_and_margin(ax):
    assert plots.layer_profile(profile(), ax, margin=2.0) is ax
    line = next(line for line in ax.lines if line.get_label() == "tuned")
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [0.5, -1.0, 6.0])
    assert {line.get_ydata()[0] for line in ax.lines} == {0, -2.0, 2.0, 0.5}
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == -3.0 and band[:, 1].max() == 8.0
    bars = [segment[:, 1].tolist() for segment in ax.collections[1].get_segments()]
    assert bars == [[0.1, 0.9], [-3.0, 1.0], [4.0, 8.0]]


@pytest.mark.parametrize(("margin", "filled"), [(2.0, [False, False, True]), (None, [True, False, True])])
def test_profile_fills_what_lies_beyond_the_margin(ax, margin: float | None, filled: list[bool]):
    plots.layer_profile(profile(), ax, margin=margin)
    faces = [to_hex(face) != "#ffffff" for face in ax.collections[2].get_facecolors()]
    assert faces == filled


def test_profile_leaves_hollow_what_the_p_does_not_bear(ax):
    plots.layer_profile(profile(p_adjusted=[0.01, 0.01, 0.2]), ax)
    assert [to_hex(face) != "#ffffff" for face in ax.collections[2].get_facecolors()] == [True, False, False]


def test_profile_leaves_hollow_what_rounding_makes(ax):
    plots.layer_profile(profile(floor=[0.2, 0.2, 0.2]), ax)
    assert [to_hex(face) != "#ffffff" for face in ax.collections[2].get_facecolors()] == [False, False, True]


def test_profile_sets_models_side_by_side(ax):
    both = pd.concat([profile(), profile().assign(model="other")])
    plots.layer_profile(both, ax, margin=2.0)
    points = [collection.get_offsets() for collection in ax.collections if len(collection.get_offsets()) == 3]
    assert len(points) == 2
    assert (points[0][:, 0] < points[1][:, 0]).all(), "two models must not cover each other"
    assert np.allclose((points[0][:, 0] + points[1][:, 0]) / 2, [1, 2, 3])
    assert ax.get_legend_handles_labels()[1] == ["tuned", "other"]


def heads() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": [1, 1, 2, 2],
            "head": [1, 2, 1, 2],
            "estimate": [0.0, -4.0, 8.0, 1.0],
            "p_adjusted": [1.0, 0.01, 0.001, 0.002],
            "shown": [True, True, True, False],
        }
    )


def test_head_map_holds_the_numbers_around_a_real_zero(ax):
    map_plots.head_map(heads(), ax, limit=8.0)
    mesh = ax.collections[0]
    values = mesh.get_array()
    assert values.shape == (2, 2) and values.mask.tolist() == [[False, False], [False, True]]
    assert values[0].tolist() == [0.0, -4.0] and values[1, 0] == 8.0
    assert mesh.get_clim() == (-8.0, 8.0)
    assert min(mesh.cmap(mesh.norm(0.0))) > 0.94, "no change is white"


def test_head_map_marks_rises_and_falls_and_greys_the_rest(ax):
    map_plots.head_map(heads(), ax, limit=8.0)
    offsets = {
        collection.get_label(): collection.get_offsets().tolist()
        for collection in ax.collections
        if collection.get_label() in ("rise", "fall", "too little")
    }
    wanted = {"rise": [[1.0, 2.0]], "fall": [[2.0, 1.0]], "too little": [[2.0, 2.0]]}
    assert offsets == wanted, "head on x, layer on y; greyed heads carry a cross and no other mark"
    veil = ax.collections[1].get_array()
    assert (~veil.mask).nonzero()[0].tolist() == [1] and (~veil.mask).nonzero()[1].tolist() == [1]


def test_head_map_leaves_missing_heads_blank(ax):
    map_plots.head_map(heads().drop(index=1), ax, limit=8.0)
    assert ax.collections[0].get_array().mask[0, 1]
    assert ax.collections[1].get_array().mask[0, 1], "no head: neither coloured nor greyed"


def test_bars_are_as_high_as_the_change(ax):
    table = pd.DataFrame({"model": "tuned", "layer": [0, 1, 2], "relative": [0.5, 1.0, 4.0], "floor": 0.0})
    plots.weight_bars(table, ax)
    assert [bar.get_height() for bar in ax.patches] == [0.5, 1.0, 4.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["other", "1", "2"]
    assert ax.get_ylim()[0] == 0 and [text.get_text() for text in ax.texts] == ["0.50", "1.0", "4.0"]


def test_a_wide_range_of_changes_is_drawn_on_a_log_axis(ax):
    table = pd.DataFrame({"model": "tuned", "layer": [1, 2, 3], "relative": [0.0, 0.01, 4.0], "floor": 0.0})
    plots.weight_bars(table, ax)
    assert ax.get_yscale() == "log" and not ax.patches
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [np.nan, 0.01, 4.0])
    ax.figure.draw_without_rendering()
    assert {"0.01", "0.1", "1"} <= {label.get_text() for label in ax.get_yticklabels()}, "numbers, no formulas"


def test_bars_stand_beside_what_rounding_makes(ax):
    table = pd.DataFrame({"model": "tuned", "layer": [1, 2], "relative": [0.5, 1.0], "floor": [0.17, 0.0]})
    plots.weight_bars(table, ax)
    lines = next(collection for collection in ax.collections if collection.get_label() == "rounding alone")
    segments = [segment for segment in lines.get_segments() if len(segment)]
    np.testing.assert_allclose(segments, [[[-0.45, 0.17], [0.45, 0.17]]])


def test_module_map_writes_its_cells(ax):
    table = pd.DataFrame({"module": ["query", "key"], "layer": [1, 1], "relative": [0.0, 4.36], "rounding": False})
    map_plots.module_map(table, ax, limit=4.36)
    assert ax.collections[0].get_array().tolist() == [[0.0], [4.36]]
    assert [text.get_text() for text in ax.texts] == ["0", "4.4"]
    assert ax.get_ylim() == (1.5, -0.5), "the first module stands on top"


def test_module_map_sets_the_floor_apart_and_marks_rounding(ax):
    table = pd.DataFrame({"module": ["query", "norm"], "layer": [1, 1], "relative": [4.0, 0.17]})
    map_plots.module_map(table.assign(rounding=[False, True], floor=[0.16, 0.17]), ax, limit=4.0, floor=True)
    assert ax.collections[1].get_array().tolist() == [[0.16], [0.17]]
    assert [text.get_text() for text in ax.texts] == ["4.0", "r", "0.16", "0.17"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "floor"]


def test_change_map_runs_from_nothing_to_the_limit(ax):
    table = pd.DataFrame({"layer": [1, 1, 2], "head": [1, 2, 1], "relative": [0.0, 3.0, 6.0], "rounding": False})
    map_plots.change_map(table, ax, limit=6.0)
    mesh = ax.collections[0]
    assert mesh.get_array().tolist() == [[0.0, 3.0], [6.0, None]] and mesh.get_clim() == (0, 6.0)
    assert len(ax.collections) == 1, "nothing is veiled where nothing is rounding"


def test_levels_begin_at_zero(ax):
    plots.layer_level(profile(estimate=[1.0, 2.0, 6.0], low=[0.5, 1.5, 4.0]), ax)
    assert ax.get_ylim() == (0, pytest.approx(8.8))
    assert ax.lines[0].get_ydata().tolist() == [1.0, 2.0, 6.0]


def test_received_attention_goes_from_base_to_tuned(ax):
    numbers = {"marked_base": 1.5, "marked_tuned": 2.5, "control_base": 1.0, "control_tuned": 0.9}
    plots.received_pairs(pd.DataFrame({"layer": [1], **numbers}), ax, limit=3.0)
    lines = [collection.get_segments()[0][:, 1].tolist() for collection in ax.collections[::3]]
    assert lines == [[1.5, 2.5], [1.0, 0.9]]
    keys = {mark.get_label(): mark for mark in ax.collections if mark.get_label().endswith(("base", "tuned"))}
    assert {label: mark.get_offsets()[0, 1] for label, mark in keys.items()} == {
        "marked words: base": 1.5,
        "marked words: tuned": 2.5,
        "matched words: base": 1.0,
        "matched words: tuned": 0.9,
    }


def test_the_plane_has_release_to_the_right_and_refocusing_up(ax):
    table = pd.DataFrame({"layer": [1, 2], "refocusing": [1.0, -10.0], "sink_release": [0.5, 0.0]})
    limits = plots.plane_limits(table)
    plots.plane(table, ax, limits=limits)
    assert ax.collections[0].get_offsets().tolist() == [[0.5, 1.0], [0.0, -10.0]]
    assert ax.collections[0].get_array().tolist() == [1, 2]
    assert ax.lines[0].get_slope() == -1, "the line where both cancel"
    (left, right), (low, high) = limits
    assert left < 0 < right and low < -10 and high > 1
    assert (right - left) / (high - low) == pytest.approx(0.2, rel=0.1), "a small term does not look large"


def test_curves_hold_what_was_recorded(ax):
    table = pd.DataFrame({"model": "tuned", "step": [1, 2, 2], "loss": [3.0, 2.0, np.nan]})
    table = table.assign(heldout_loss=[np.nan, np.nan, 2.5], macro_f1=[np.nan, np.nan, 0.6])
    plots.loss_curves(table, ax)
    assert ax.lines[0].get_xydata().tolist() == [[1, 3.0], [2, 2.0]]
    assert ax.collections[0].get_offsets().tolist() == [[2, 2.5]] and ax.get_ylim()[0] == 0
    other = Figure().subplots()
    plots.quality_curves(table, other, "macro_f1")
    assert other.lines[0].get_xydata().tolist() == [[2, 0.6]] and other.get_ylim() == (0, 1.03)


def test_top_heads_go_from_base_to_tuned(ax):
    table = pd.DataFrame({"layer": [6, 5], "head": [3, 1], "base": [10.0, 9.0], "tuned": [20.0, 4.0]})
    table = table.assign(estimate=[10.0, -5.0], low=[8.0, -7.0], high=[12.0, -3.0])
    plots.top_heads(table, ax)
    base, tuned = (collection.get_offsets()[:, 0].tolist() for collection in ax.collections[1:])
    assert (base, tuned) == ([10.0, 9.0], [20.0, 4.0])
    assert [text.get_text() for text in ax.texts] == ["+10.0  (+8.0 … +12.0)", "−5.0  (−7.0 … −3.0)"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer 6, head 3", "layer 5, head 1"]


@pytest.mark.parametrize(
    ("value", "text"), [(1.26, "+1.3"), (-0.4, "−0.4"), (0.0, "0.0"), (-0.04, "0.0"), (12.0, "+12.0")]
)
def test_signs(value: float, text: str):
    assert plots.signed(value) == text
    assert plots.plain(value) == text.removeprefix("+")


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.434, "0.43"), (0.999, "1.0"), (3.24, "3.2"), (12.4, "12")])
def test_percentages(value: float, text: str):
    assert plots.percent(value) == text


@pytest.mark.parametrize(("high", "top"), [([0.2, 0.4], 0.44), ([np.nan, np.nan], 0.33), ([0.0, 0.0], 0.33)])
def test_a_level_without_an_interval_has_an_axis(high: list[float], top: float):
    """Three documents have no band: the axis follows the estimates; without any number it goes to 1."""
    table = pd.DataFrame({"model": "m", "layer": [1, 2], "estimate": [0.1, 0.3], "low": 0.0, "high": high})
    ax = plots.layer_level(table, Figure().subplots())
    assert ax.get_ylim() == pytest.approx((0, top))
    empty = plots.layer_level(table.assign(estimate=np.nan, high=np.nan), Figure().subplots())
    assert empty.get_ylim() == (0, 1)


def test_a_null_is_grey_in_bars_and_curves_too(ax):
    """The hues count the runs that answer: a twin takes none, and its lines are broken."""
    kind = ["null", "null", "tuned", "tuned"]
    names = ["twin", "twin", "alf", "alf"]
    bars = pd.DataFrame({"model": names, "kind": kind, "layer": [1, 2] * 2, "relative": 1.0, "floor": 0.0})
    plots.weight_bars(bars, ax)
    colours = [to_hex(patch.get_facecolor()) for patch in ax.patches]
    assert colours[:2] == [plots.NULL_HUE] * 2 and colours[2:] == [plots.HUES[0]] * 2
    curves = pd.DataFrame({"model": names, "kind": kind, "step": [1, 2] * 2, "loss": 1.0, "accuracy": 0.5})
    for draw in (plots.loss_curves, partial(plots.quality_curves, name="accuracy")):
        ax.clear()
        draw(curves, ax)
        twin, real = ax.lines[:2]
        assert (twin.get_color(), real.get_color()) == (plots.NULL_HUE, plots.HUES[0])
        assert (twin.get_linestyle(), real.get_linestyle()) == ("--", "-")
