"""The set of figures: findings, captions with n, and CSV files that hold the drawn numbers."""

import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from attnlens.analysis.results import Comparison
from attnlens.show import findings
from attnlens.show.drawing import NARROW, WIDE, Drawing, labels, style
from attnlens.show.figures import figure_set
from attnlens.show.venues import VENUES
from tests.show.synthetic import make_comparison

LAYERS = ["layer_profile", "entropy_profile", "jsd_profile"]
DEFINITIONS = ["definitions"]
CONTROLS = ["controls", "agreement"]
HEADS = ["focus_heads", "entropy_heads"]
TOPS = ["focus_top_heads", "entropy_top_heads", "word_maps"]
WORDS = ["received_profile", "refocusing", "passage"]
WEIGHTS = ["weight_change", "weight_modules", "circuit_change"]
UNTESTED = {*WEIGHTS, "passage", "word_maps", "training"}  # figures that no sample of texts stands behind


def drawn(drawing: Drawing, width: float = WIDE):
    with matplotlib.rc_context(style()):
        return drawing.draw(width)


@pytest.fixture(scope="module")
def drawings(comparison: Comparison) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in figure_set(comparison)}


def test_the_set(comparison: Comparison, drawings: dict[str, Drawing]):
    assert list(drawings) == [*LAYERS, *DEFINITIONS, *HEADS, *TOPS, *CONTROLS, *WORDS, *WEIGHTS, "training"]
    for drawing in drawings.values():
        assert drawing.name in UNTESTED or "n = " in drawing.caption
        assert drawing.title and not drawing.title.endswith(".") and drawing.caption.endswith(".")


def test_files_of_every_figure(written: Path, drawings: dict[str, Drawing]):
    for name, drawing in drawings.items():
        files = {path.suffix for path in (written / "figures").glob(f"{name}.*")}
        assert files == {".pdf", ".svg", ".png", ".csv", ".txt", ".tex"}
        assert (written / "figures" / f"{name}.txt").read_text() == f"{drawing.title}. {drawing.caption}\n"
    assert not list(written.rglob(".*")), "no temporary file is left"


def test_csv_holds_the_drawn_profile(written: Path, drawings: dict[str, Drawing]):
    table = pd.read_csv(written / "figures" / "layer_profile.csv")
    assert table["layer"].unique().tolist() == [1, 2, 3, 4, 5, 6]
    for ax, salience in zip(drawn(drawings["layer_profile"]).axes, ("spans", "keyness"), strict=True):
        line = next(line for line in ax.lines if line.get_label() == "minilm-contracts")
        rows = table[table["salience"] == salience]
        np.testing.assert_allclose(line.get_ydata(), rows["estimate"], rtol=1e-8)
        bars = [segment[:, 1] for segment in ax.collections[1].get_segments()]
        np.testing.assert_allclose(bars, rows[["low", "high"]], rtol=1e-8)
        assert ax.get_xlabel() == "layer" and ax.get_title(loc="left") == f"marked words: {salience}"


@pytest.mark.parametrize("name", ["focus_heads", "entropy_heads"])
def test_csv_holds_the_drawn_map(written: Path, drawings: dict[str, Drawing], name: str):
    table = pd.read_csv(written / "figures" / f"{name}.csv")
    values = drawn(drawings[name]).axes[0].collections[0].get_array()
    shown = table[table["shown"]]
    np.testing.assert_allclose(values[shown["layer"] - 1, shown["head"] - 1], shown["estimate"], rtol=1e-8)
    hidden = table[~table["shown"]]
    assert sorted(zip(hidden["layer"], hidden["head"], strict=True)) == [(3, 4), (4, 8)]
    assert values.mask.sum() == 2 and (hidden["content_mass"] < 5).all()


def test_head_estimates_are_tuned_minus_base(comparison: Comparison, drawings: dict[str, Drawing]):
    table = drawings["focus_heads"].table
    np.testing.assert_allclose(table["tuned"] - table["base"], table["estimate"], atol=1e-9)
    focus = comparison.data["focus"].sel(salience="spans").isel(layer=5, head=4)
    change = 100 * (focus[1] - focus[0])
    by_document = pd.Series(change.values).groupby(comparison.data["document"].values).mean()
    row = table[(table["layer"] == 6) & (table["head"] == 5)].iloc[0]
    assert row["estimate"] == pytest.approx(by_document.mean())


def test_csv_holds_the_drawn_bars(written: Path, drawings: dict[str, Drawing], comparison: Comparison):
    table = pd.read_csv(written / "figures" / "weight_change.csv")
    heights = [bar.get_height() for bar in drawn(drawings["weight_change"]).axes[0].patches]
    np.testing.assert_allclose(heights, table["relative"], rtol=1e-8)
    layer = comparison.weights[comparison.weights["layer"] == 2]
    pooled = np.sqrt((layer["delta_norm"] ** 2).sum() / (layer["base_norm"] ** 2).sum())
    assert table.set_index("layer").loc[3, "relative"] == pytest.approx(100 * pooled)


def test_narrow_figures_stack_their_panels(drawings: dict[str, Drawing]):
    wide, narrow = drawn(drawings["layer_profile"]), drawn(drawings["layer_profile"], NARROW)
    assert (wide.get_figwidth(), narrow.get_figwidth()) == (WIDE, NARROW)
    tops = [[ax.get_subplotspec().rowspan.start for ax in figure.axes] for figure in (wide, narrow)]
    assert tops == [[0, 0], [0, 1]]


def test_three_tuned_models_keep_order_and_colour():
    tuned = ("zeta", "alpha", "mid")
    drawings = {drawing.name: drawing for drawing in figure_set(make_comparison(tuned=tuned))}
    for name in ("layer_profile", "weight_change"):
        assert tuple(drawings[name].table["model"].unique()) == tuned
    assert [ax.get_title(loc="left") for ax in drawn(drawings["focus_heads"]).axes[:3]] == list(tuned)
    texts = [text.get_text() for text in drawn(drawings["layer_profile"]).legends[0].get_texts()]
    assert texts == list(tuned)
    assert "in 3 of 3 tuned models" in drawings["layer_profile"].title


def test_without_marked_words_entropy_divergence_and_weights_remain():
    names = [drawing.name for drawing in figure_set(make_comparison(salience=()))]
    assert names == [*LAYERS[1:], HEADS[1], *TOPS[1:], "passage", *WEIGHTS, "training"]


def test_an_older_comparison_is_drawn_as_far_as_it_goes():
    drawings = {drawing.name: drawing for drawing in figure_set(make_comparison(older=True))}
    assert list(drawings) == [*LAYERS[:2], *DEFINITIONS, *HEADS, *TOPS, "passage", *WEIGHTS[:2]]
    for name in WEIGHTS[:2]:
        assert (drawings[name].table["floor"] == 0).all() and "rounding" not in drawings[name].caption


def test_identical_models_draw_zeros():
    drawings = {drawing.name: drawing for drawing in figure_set(make_comparison(scale=0.0))}
    assert list(drawings) == [*LAYERS, *DEFINITIONS, *HEADS, *CONTROLS, *WORDS, *WEIGHTS, "training"], (
        "no head changed: no list of changed heads"
    )
    for drawing in drawings.values():
        drawn(drawing).draw_without_rendering()
    assert drawings["jsd_profile"].title == "The attention maps are the same in every layer"
    assert drawings["received_profile"].title == "Marked words receive what they received before"
    assert drawings["refocusing"].title == "Attention on the marked words did not move"
    assert drawings["circuit_change"].title == "No head's weights changed what it computes"
    assert (drawn(drawings["focus_heads"]).axes[0].collections[0].get_array().compressed() == 0).all()
    assert drawings["layer_profile"].title == "Attention did not change: the two models are identical"
    assert drawings["weight_change"].title == "No layer's weights changed"


def texts_of(figure: Figure) -> list[Text]:
    """Every text of a figure that is shown: ticks inside their axes, titles, axis labels, keys, notes."""
    found = [text for legend in figure.legends for text in legend.get_texts()]
    for ax in figure.axes:
        if not ax.get_visible():
            continue
        found += [*ax.texts, ax.xaxis.label, ax.yaxis.label, ax.title, ax._left_title]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def assert_legible(drawing: Drawing, width: float, settings: dict | None = None) -> None:
    """No text reaches over the edge or over another one."""
    with matplotlib.rc_context(settings or style()):
        figure = drawing.draw(width)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # as it is saved: laid out at one resolution, drawn at another
        figure.dpi = float(matplotlib.rcParams["savefig.dpi"])
        figure.draw_without_rendering()
        texts = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    for text, box in texts:
        where = f"{drawing.name}, {width} inches: {text!r}"
        assert figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, f"{where} is cut at the side"
        assert figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, f"{where} is cut above or below"
    if drawing.name != "passage":  # words of a text stand close
        for (one, a), (other, b) in itertools.combinations(texts, 2):
            assert not a.overlaps(b), f"{drawing.name}, {width} inches: {one!r} over {other!r}"


@pytest.mark.parametrize(
    ("tuned", "shape"),
    [(("minilm-contracts",), (6, 12)), (("full fine-tuning", "LoRA", "last-2"), (24, 16))],
)
def test_every_text_is_legible(tuned: tuple[str, ...], shape: tuple[int, int]):
    for drawing in figure_set(make_comparison(tuned=tuned, shape=shape)):
        for width in (WIDE, NARROW):
            assert_legible(drawing, width)


def test_every_text_is_legible_in_the_narrowest_column():
    tuned = tuple(f"organisation/a-very-long-name-of-a-model-v{number}" for number in (1, 2))
    place = VENUES["acl"]
    for drawing in figure_set(make_comparison(tuned=tuned, shape=(12, 12))):
        assert_legible(drawing, place.width, place.settings())


def test_no_figure_is_higher_than_a_page():
    for drawing in figure_set(make_comparison(tuned=("a", "b", "c", "d"), shape=(24, 8))):
        assert drawn(drawing, NARROW).get_figheight() <= 8.5, drawing.name


def test_labels_are_drawable_short_and_distinct():
    long = "an-organisation/a-very-long-model-name-with-every-option"
    found = labels(["plain", "$x$", "a\nb\u202e", "🙂 smile", f"{long}-1", f"{long}-2", f"{long}-2b"])
    assert found["plain"] == "plain" and found["$x$"] == "$x$"
    assert found["a\nb\u202e"] == "a□b□" and found["🙂 smile"] == "□ smile"
    assert max(map(len, found.values())) <= 34 and len(set(found.values())) == 7


def test_hostile_names_are_drawn_as_they_stand():
    comparison = make_comparison(tuned=("$\\frac$ <b>&", "🙂\u202e"))
    for drawing in figure_set(comparison):
        drawn(drawing).draw_without_rendering()


def test_no_global_setting_is_touched(comparison: Comparison):
    before = dict(matplotlib.rcParams)
    for drawing in figure_set(comparison):
        drawn(drawing)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("layers", "text"),
    [([6], "layer 6"), ([6, 5], "layers 5 and 6"), ([1, 4, 5, 6, 9], "layers 1, 4–6 and 9"), ([2, 3, 4], "layers 2–4")],
)
def test_layers_in_words(layers: list[int], text: str):
    assert findings.layers_named(layers) == text


def test_findings_say_what_the_numbers_say():
    table = pd.DataFrame({"layer": [1, 2, 3], "estimate": [0.1, -4.0, 2.0], "p_adjusted": [0.5, 0.001, 0.01]})
    table = table.assign(low=table["estimate"] - 1, high=table["estimate"] + 1)
    assert findings.entropy_finding(table) == (
        "Attention became more concentrated in layer 2 and more spread out in layer 3, most in layer 2 (−4.0 points)"
    )
    heads = table.assign(layer=[1, 2, 2])
    assert findings.heads_finding(heads, "focus") == "2 of 3 heads changed their focus, all in layer 2"
    weights = pd.DataFrame({"layer": [0, 1, 2, 3], "relative": [9.0, 0.0, 1.0, 3.2]})
    assert findings.weights_finding(weights) == (
        "Weights changed most in layer 3 (3.2 % of their size); layer 1 did not change"
    )
