"""Figures of divergence, words, weights and training: the drawn numbers against plain computations of their own."""

import dataclasses
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from attnlens.analysis.results import Comparison
from attnlens.show.drawing import NARROW, WIDE, Drawing, style
from attnlens.show.figures import figure_set
from attnlens.show.tables import models_table, weight_modules_table
from attnlens.show.training_tables import curves_table, training_table
from attnlens.show.word_tables import refocusing_table
from tests.show.synthetic import make_comparison


@pytest.fixture(scope="module")
def drawings(comparison: Comparison) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in figure_set(comparison)}


def drawn(drawing: Drawing, width: float = WIDE):
    with matplotlib.rc_context(style()):
        return drawing.draw(width)


def over_documents(comparison: Comparison, values: np.ndarray) -> float:
    """Mean of one number a text over the documents that have it."""
    return float(pd.Series(values).groupby(comparison.data["document"].values).mean().mean())


def test_jsd_is_in_percent_of_its_maximum(comparison: Comparison, drawings: dict[str, Drawing]):
    table = drawings["jsd_profile"].table.set_index("layer")
    mean = over_documents(comparison, comparison.data["jsd"][1, :, 5].mean("head").values)
    assert table["estimate"][6] == pytest.approx(100 * mean / math.log(2))
    line = drawn(drawings["jsd_profile"]).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), table["estimate"])
    assert "not zero" in drawings["jsd_profile"].caption and "p_adjusted" not in table, "zero is no null of JSD"


def test_a_divergence_that_could_not_be_measured_is_not_drawn(comparison: Comparison):
    tests = comparison.tests.copy()
    tests.loc[tests["family"] == "jsd layer", ["estimate", "low", "high"]] = np.nan
    names = [drawing.name for drawing in figure_set(dataclasses.replace(comparison, tests=tests))]
    assert "jsd_profile" not in names and "layer_profile" in names


def test_refocusing_and_sink_release_are_the_parts_of_the_change(comparison: Comparison):
    table = refocusing_table(comparison)
    content = comparison.data["content_mass"][:, :, 4, 6].values
    mass = comparison.data["mass"].sel(salience="spans")[:, :, 4, 6].values
    row = table[(table["layer"] == 5) & (table["head"] == 7)].iloc[0]
    assert row["change"] == pytest.approx(100 * over_documents(comparison, mass[1] - mass[0]))
    middle = 100 * (content[0] + content[1]) / 2 * (mass[1] / content[1] - mass[0] / content[0])
    assert row["refocusing"] == pytest.approx(over_documents(comparison, middle))


def test_each_term_is_zero_where_its_cause_is_absent(comparison: Comparison):
    content, mass = comparison.data["content_mass"], comparison.data["mass"]
    still = mass.isel(model=[0, 0]).assign_coords(model=comparison.models)
    share = still / content.isel(model=[0, 0]).assign_coords(model=comparison.models)
    released = refocusing_table(dataclasses.replace(comparison, data=comparison.data.assign(mass=share * content)))
    np.testing.assert_allclose(released["refocusing"], 0, atol=1e-12)
    assert released["sink_release"].abs().max() > 0.1
    fixed = content.isel(model=[0, 0]).assign_coords(model=comparison.models)
    refocused = refocusing_table(dataclasses.replace(comparison, data=comparison.data.assign(content_mass=fixed)))
    assert (refocused["sink_release"] == 0).all() and (refocused["refocusing"] != 0).any()


def test_exchanging_base_and_tuned_negates_both_terms(comparison: Comparison):
    turned = comparison.data.isel(model=[1, 0]).assign_coords(model=comparison.models)
    one, other = (refocusing_table(dataclasses.replace(comparison, data=data)) for data in (comparison.data, turned))
    for column in ("refocusing", "sink_release", "change"):
        np.testing.assert_allclose(one[column], -other[column], atol=1e-12)


def test_the_plane_is_drawn_from_its_table(drawings: dict[str, Drawing]):
    table = drawings["refocusing"].table
    dots = drawn(drawings["refocusing"]).axes[0].collections[0]
    np.testing.assert_allclose(dots.get_offsets(), table[["sink_release", "refocusing"]])
    assert len(table) == 72 and dots.get_array().tolist() == table["layer"].tolist()


def test_received_attention_is_a_mean_over_documents(comparison: Comparison, drawings: dict[str, Drawing]):
    row = drawings["received_profile"].table.set_index("layer").loc[6]
    chosen = comparison.data.sel(salience="spans").isel(layer=5).mean("head")
    for column, (name, model) in {
        "marked_tuned": ("received_matched", 1),
        "control_base": ("received_control", 0),
    }.items():
        assert row[column] == pytest.approx(over_documents(comparison, chosen[name][model].values))
    gap = (chosen["received_matched"] - chosen["received_control"]).values
    assert row["change"] == pytest.approx(over_documents(comparison, gap[1] - gap[0]))
    assert row["low"] < row["change"] < row["high"] and f"{row['change']:.2f}" in drawings["received_profile"].caption


def test_weights_show_their_floor_and_title_leaves_rounding_out():
    comparison = make_comparison(tuned=("full", "cast"))
    table = weight_modules_table(comparison).set_index(["model", "module", "layer"])
    assert table.loc[("cast", "norm", 1), "rounding"] and not table.loc[("cast", "query", 1), "rounding"]
    assert not table.loc[("full", "norm", 1), "rounding"], "what did not change at all is not called rounding"
    assert table.loc[("cast", "query", 3), "floor"] == pytest.approx(0.166)
    drawings = {drawing.name: drawing for drawing in figure_set(comparison)}
    texts = [text.get_text() for text in drawn(drawings["weight_modules"]).axes[1].texts]
    assert texts.count("r") == 6 and "r: nothing but rounding" in drawings["weight_modules"].caption
    assert "rounding to the narrower" in drawings["weight_change"].caption
    only = comparison.weights.assign(delta_norm=0.00166 * comparison.weights["base_norm"], rounding=True)
    rounded = {d.name: d for d in figure_set(dataclasses.replace(comparison, weights=only))}
    assert rounded["weight_modules"].title == "No kind of matrix changed beyond rounding"
    assert rounded["weight_change"].title.endswith("weights differ by rounding alone (up to 0.17 % of their size)")


def test_pooled_weights_are_those_of_the_comparison(comparison: Comparison, drawings: dict[str, Drawing]):
    wanted = comparison.layers().query("layer >= 0")["relative"]
    np.testing.assert_allclose(drawings["weight_change"].table["relative"], 100 * wanted)


def test_circuits_hold_one_map_a_product(comparison: Comparison, drawings: dict[str, Drawing]):
    axes = drawn(drawings["circuit_change"]).axes
    for ax, circuit in zip(axes, ("QK", "OV"), strict=False):
        rows = comparison.heads[comparison.heads["circuit"] == circuit]
        wanted = 100 * rows.sort_values(["layer", "head"])["relative"].to_numpy().reshape(6, 12)
        np.testing.assert_allclose(ax.collections[0].get_array(), wanted)
        assert ax.get_title(loc="left").startswith(circuit)


def test_a_text_is_set_word_by_word(comparison: Comparison, drawings: dict[str, Drawing]):
    drawing = drawings["passage"]
    table = drawing.table
    passage = next(
        p for p in comparison.passages if p.words == tuple(table[table["model"] == "minilm-contracts"]["piece"])
    )
    layer = passage.heads.index((5, -1))
    words = table[table["is_word"]]
    np.testing.assert_allclose(words["received"], passage.received[:, layer][:, list(passage.is_word)].ravel())
    for width in (WIDE, NARROW):
        ax = drawn(drawing, width).axes[0]
        boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
        assert len(boxes) == len(words), "a coloured box for each word, in each model"
        light = np.array([sum(patch.get_facecolor()[:3]) for patch in boxes])
        order = np.argsort(words["received"].to_numpy())
        assert (np.diff(light[order]) <= 1e-9).all(), "the more it receives, the darker"
        assert len(ax.lines) == table["marked"].sum(), "marked words are underlined"
        shown = [text.get_text() for text in ax.texts]
        assert shown[0] == comparison.models[0] and set(words["piece"]) <= set(shown)


def test_a_long_text_is_shown_around_its_greatest_change(comparison: Comparison):
    words = tuple(piece for number in range(200) for piece in (f"word{number}", " "))
    is_word = tuple(number % 2 == 0 for number in range(400))
    received = np.tile(np.where(is_word, 0.5, 0.0), (2, 1, 1))
    received[1, 0, 300] = 4.0
    long = dataclasses.replace(
        comparison.passages[0], words=words, is_word=is_word, marked=(False,) * 400, heads=((5, -1),), received=received
    )
    drawing = next(d for d in figure_set(dataclasses.replace(comparison, passages=(long,))) if d.name == "passage")
    pieces = drawing.table[drawing.table["is_word"] & (drawing.table["model"] == comparison.models[0])][
        "piece"
    ].tolist()
    assert len(pieces) == 60 and pieces[30] == "word150" and "(part of the text)" in drawing.caption
    assert drawing.title == "Of the words shown “word150” changed most (+3.5 points)"


def test_training_curves_are_the_history(comparison: Comparison, drawings: dict[str, Drawing]):
    history = comparison.provenance["models"][1]["training"]["history"]
    table = curves_table(comparison)
    assert len(table) == len(history) and table["step"].tolist() == [row["step"] for row in history]
    losses = [row["loss"] for row in history if "loss" in row]
    left, right = drawn(drawings["training"]).axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), losses)
    assert (left.get_ylabel(), right.get_ylabel()) == ("loss (nats)", "held-out macro-F1")
    assert drawings["training"].title == "Training reached a held-out macro-F1 .813"


def test_a_language_model_shows_its_perplexity(comparison: Comparison):
    history = [{"step": 1, "loss": 3.0, "learning_rate": 1e-4}, {"step": 2, "heldout_loss": 2.0, "perplexity": 7.389}]
    metrics = {"loss": 2.0, "perplexity": 7.389}
    record = {"method": "full", "task": "causal-lm", "metrics": metrics, "history": history}
    models = [comparison.provenance["models"][0], comparison.provenance["models"][1] | {"training": record}]
    told = dataclasses.replace(comparison, provenance=comparison.provenance | {"models": models})
    drawing = next(drawing for drawing in figure_set(told) if drawing.name == "training")
    assert drawing.title == "Training reached a held-out perplexity 7.4"
    axes = drawn(drawing).axes
    assert axes[1].get_ylabel() == "held-out perplexity" and axes[1].get_ylim()[0] == 1
    assert training_table(told).iloc[0]["perplexity"] == 7.389


@pytest.mark.parametrize("history", [None, "x", [], [1, {"loss": 2.0}], [{"step": "1", "loss": "high"}]])
def test_a_strange_history_is_left_out(comparison: Comparison, history: object):
    record = {"method": None, "metrics": None, "parameters": {"trainable": "all"}, "history": history}
    models = [comparison.provenance["models"][0], {"name": "x", "training": record}]
    strange = dataclasses.replace(comparison, provenance=comparison.provenance | {"models": models})
    assert "training" not in [drawing.name for drawing in figure_set(strange)]
    assert training_table(strange)["accuracy"].isna().all()


def test_models_stand_side_by_side():
    comparison = make_comparison(tuned=("full", "lora"))
    table = models_table(comparison).set_index("model")
    profile = comparison.tests.query("family == 'profile' and salience == 'spans' and model == 'lora'")
    top = profile.loc[profile["estimate"].abs().idxmax()]
    assert table.loc["lora", "focus"] == pytest.approx(100 * top["estimate"])
    assert table.loc["lora", "focus_layer"] == top["layer"] + 1 and table.loc["full", "verdict"] == "yes"
    backbone = comparison.weights.query("model == 'full' and kind == 'backbone'")
    whole = math.sqrt((backbone["delta_norm"] ** 2).sum() / (backbone["base_norm"] ** 2).sum())
    assert table.loc["full", "weight_change"] == pytest.approx(100 * whole)


def test_of_an_encoder_decoder_only_the_measured_stack_is_drawn(comparison: Comparison):
    def both(frame: pd.DataFrame, size: str) -> pd.DataFrame:
        other = frame.assign(stack="decoder", **{size: 9 * frame[size]})
        return pd.concat([frame.assign(stack="encoder"), other], ignore_index=True)

    two = dataclasses.replace(
        comparison, weights=both(comparison.weights, "delta_norm"), heads=both(comparison.heads, "relative")
    )
    one, other = ({d.name: d.table for d in figure_set(made)} for made in (comparison, two))
    for name in ("weight_change", "weight_modules", "circuit_change"):
        pd.testing.assert_frame_equal(one[name], other[name])
