"""Findings claim what their numbers bear: no data, rounding, several layers at once, shared weights, what got worse."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from attnlens.analysis.results import Comparison
from attnlens.core.resampling import document_means
from attnlens.show import findings, plots
from attnlens.show.drawing import Drawing, of_documents
from attnlens.show.figures import figure_set
from attnlens.show.page_tables import layer_rows
from attnlens.show.report import report
from attnlens.show.tables import circuits_table, layers_table, shares_layers, weight_layers
from attnlens.show.training_tables import training_records
from attnlens.show.word_tables import received_table, refocusing_table
from tests.show.synthetic import make_comparison

NAN = float("nan")


def with_data(comparison: Comparison, **variables: xr.DataArray) -> Comparison:
    return dataclasses.replace(comparison, data=comparison.data.assign(variables))


def drawings_of(comparison: Comparison) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in figure_set(comparison)}


# No data


def without_data(comparison: Comparison) -> Comparison:
    """Every measured number of the tuned model missing, as of a model whose rows could not be read."""
    data = comparison.data.copy(deep=True)
    for name in data.data_vars:
        data[name][...] = np.nan
    numbers = ["estimate", "low", "high", "p", "p_adjusted", "p_equivalence", "effect_size"]
    tests = comparison.tests.assign(**dict.fromkeys(numbers, np.nan), n=0)
    empty = [dataclasses.replace(text, received=np.full_like(text.received, np.nan)) for text in comparison.passages]
    return dataclasses.replace(comparison, data=data, tests=tests, passages=tuple(empty))


def test_findings_on_no_data_say_so():
    layers = pd.DataFrame({"layer": [1, 2], "estimate": NAN, "low": NAN, "high": NAN, "p_adjusted": NAN})
    heads = layers.assign(head=1, refocusing=NAN, sink_release=NAN, change=NAN, relative=NAN, circuit="QK")
    received = heads.assign(marked_base=NAN, marked_tuned=NAN, control_base=NAN, control_tuned=NAN)
    told = [
        findings.jsd_finding(layers),
        findings.entropy_finding(layers),
        findings.heads_finding(heads, "focus"),
        findings.received_finding(received),
        findings.refocusing_finding(heads),
        findings.refocusing_finding(heads.head(0)),
        findings.circuits_finding(heads.assign(rounding=False)),
        findings.weights_finding(heads),
    ]
    assert [sentence for sentence in told if not sentence.startswith("No data")] == []
    assert findings.heads_finding(heads.head(0), "focus") == "No head gives words enough attention to be judged"


def test_a_table_without_documents_is_captioned(comparison: Comparison):
    for n in ([], [NAN], [0]):
        assert of_documents(comparison, pd.DataFrame({"n": n}, dtype=float)) == "n = 0 documents (60 texts)"
    assert of_documents(comparison, pd.DataFrame({"n": [0, 40, 37]})) == "n = 37–40 documents (60 texts)"


def test_without_data_the_report_is_written_and_draws_weights_alone(comparison: Comparison, tmp_path: Path):
    nothing = without_data(comparison)
    names = ["weight_change", "weight_modules", "circuit_change", "training"]
    assert list(drawings_of(nothing)) == names
    text = report(nothing, tmp_path).read_text()
    assert "No data on how concentrated attention is" in text and ">nan<" not in text
    assert json.loads((tmp_path / "summary.json").read_text())["verdict"] == "yes"


def test_one_model_without_data_does_not_stop_the_others():
    comparison = make_comparison(tuned=("hooked", "full"))
    data = comparison.data.copy(deep=True)
    for name in ("jsd", "received", "received_matched", "received_control", "mass", "share"):
        data[name][1] = np.nan
    tests = comparison.tests.copy()
    hooked = (tests["family"] == "jsd layer") & (tests["model"] == "hooked")
    tests.loc[hooked, ["estimate", "low", "high"]] = np.nan
    found = drawings_of(dataclasses.replace(comparison, data=data, tests=tests))
    assert found["jsd_profile"].title == "hooked: no data on how far the attention maps moved apart"
    assert found["received_profile"].title == "hooked: no data on the attention that marked words receive"
    assert "nan" not in found["received_profile"].caption
    assert found["refocusing"].title == "hooked: no data on the attention on marked words"


# Layers that share their weights


def albert(comparison: Comparison, layer: int) -> Comparison:
    """The same attention, of one block that all layers run through; its matrices are numbered `layer`."""
    first = comparison.weights[comparison.weights["layer"] <= 0]
    weights = first.assign(layer=first["layer"].where(first["layer"] < 0, layer))
    heads = comparison.heads[comparison.heads["layer"] == 3].assign(layer=layer)
    return dataclasses.replace(comparison, weights=weights, heads=heads)


@pytest.mark.parametrize("layer", [-1, 0])
def test_layers_that_share_their_weights(comparison: Comparison, layer: int):
    shared = albert(comparison, layer)
    assert shares_layers(shared) and not shares_layers(comparison)
    table = layers_table(shared)
    assert table["layer"].dropna().tolist() == [1, 2, 3, 4, 5, 6], "the attention layers are all there"
    whole = table[table["layer"].isna()]
    assert len(whole) == 1 and whole["relative"].iloc[0] > 0 and table["relative"].notna().sum() == 1
    assert table["focus_spans_estimate"].notna().sum() == 6
    rows = layer_rows(shared)
    assert len(rows["rows"]) == 6 and "weight change (%)" not in rows["columns"]
    found = drawings_of(shared)
    percent = plots.percent(whole["relative"].iloc[0])
    assert found["weight_change"].title == (
        f"The whole backbone, whose layers share their weights, changed by {percent} % of its size"
    )
    assert "layer" not in found["circuit_change"].title and "head" in found["circuit_change"].title
    assert "shared by all layers" in found["circuit_change"].caption
    assert found["weight_modules"].caption.startswith("Weight change by kind of matrix, ")
    figure = found["circuit_change"].draw(6.75)
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["1"], "one block, no halves of it"
    for name in ("weight_change", "weight_modules", "circuit_change"):
        found[name].draw(6.75).draw_without_rendering()


def test_layers_without_weights_of_their_own_keep_their_row(comparison: Comparison):
    less = dataclasses.replace(comparison, weights=comparison.weights[comparison.weights["layer"] != 4])
    table = layers_table(less)
    assert table["layer"].dropna().tolist() == [1, 2, 3, 4, 5, 6] and pd.isna(table["relative"].iloc[5])


# Rounding


def test_weights_are_ranked_among_what_rounding_did_not_make():
    table = pd.DataFrame(
        {"layer": [1, 2, 3, 4], "relative": [0.05, 0.17, 0.18, 0.0], "rounding": [False, True, True, False]}
    )
    assert findings.weights_finding(table) == (
        "Weights changed most in layer 1 (0.05 % of their size); rounding alone in layers 2 and 3; "
        "layer 4 did not change"
    )
    tiny = pd.DataFrame({"layer": [1], "relative": [0.0003], "rounding": [False]})
    assert "(<0.01 % of their size)" in findings.weights_finding(tiny)


def test_heads_at_their_floor_are_rounding(comparison: Comparison):
    cast = comparison.heads.assign(floor=comparison.heads["relative"])
    table = circuits_table(dataclasses.replace(comparison, heads=cast))
    assert table["rounding"].all()
    assert findings.circuits_finding(table) == "What the heads compute differs by rounding alone (up to 13 %)".replace(
        "13", plots.percent(table["relative"].max())
    )
    chosen = (cast["layer"] == 1) & (cast["head"] == 4)
    cast.loc[chosen, "floor"] = cast.loc[chosen, "relative"] / 2
    edited = drawings_of(dataclasses.replace(comparison, heads=cast))["circuit_change"]
    assert "QK of layer 2, head 5" in edited.title and "OV of layer 2, head 5" in edited.title
    assert "Grey: " in edited.caption and (~edited.table["rounding"]).sum() == 2
    veils = [part for part in edited.draw(6.75).axes[0].collections if part.get_label() == "rounding alone"]
    assert np.ma.count(veils[0].get_array()) == 71
    plain = circuits_table(comparison)
    assert (plain["floor"] == 0).all() and not plain["rounding"].any(), "heads without a floor: none is rounding"


def jsd(estimate: list[float], floor: float = 0.0) -> pd.DataFrame:
    values = np.array(estimate)
    numbers = {"estimate": values, "low": 0.8 * values, "floor": floor}
    return pd.DataFrame({"layer": np.arange(1, len(values) + 1), **numbers})


def test_a_divergence_too_small_to_print_is_no_move():
    assert findings.jsd_finding(jsd([0.0, 0.0001, 0.003])) == (
        "Attention maps are all but the same in every layer (JSD below 0.01 % of its maximum)"
    )
    assert findings.jsd_finding(jsd([0.0, 0.02])) == (
        "Attention maps moved apart most in layer 2 (JSD 0.02 % of its maximum)"
    )
    assert findings.jsd_finding(jsd([0.1, 0.2], floor=0.17)) == (
        "Attention maps moved apart no further than rounding moves them (JSD up to 0.20 % of its maximum)"
    )
    assert "most in layer 1" in findings.jsd_finding(jsd([3.0, 0.2], floor=0.17))


def test_the_floor_of_a_comparison_reaches_its_findings(comparison: Comparison):
    rounding = {"model": "rounding to bfloat16", "jsd": 0.4, "entropy_content": 0.9}
    told = comparison.provenance | {"rounding": rounding}
    cast = dataclasses.replace(comparison, provenance=told, weights=comparison.weights.assign(floor=0.00166))
    found = drawings_of(cast)
    assert "no further than rounding moves them" in found["jsd_profile"].title
    assert found["entropy_profile"].title.startswith("No layer's attention became detectably")
    assert "Rounding" in found["jsd_profile"].caption and "rounding" in found["entropy_profile"].caption
    same = dataclasses.replace(comparison, provenance=told)
    for name, caption in ((name, drawings_of(same)[name].caption) for name in ("jsd_profile", "entropy_profile")):
        assert "rounding" not in caption.lower(), f"{name}: this model was stored as the base was"


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.0049, "<0.01"), (0.005, "0.01"), (0.26, "0.26")])
def test_a_small_percentage_is_never_written_as_zero(value: float, text: str):
    assert plots.percent(value) == text


# Several layers, one claim


def received(comparison: Comparison, change: np.ndarray) -> Comparison:
    """`comparison` whose marked words receive `change` (text, layer) more than before, over controls that stay."""
    base = np.ones((len(change), change.shape[1]))
    marked = np.stack([base, base + change])[..., None, None] + np.zeros((1, 1, 1, 12, 2))
    dims = comparison.data["received"].dims
    control = xr.DataArray(np.ones_like(marked), dims=dims)
    return with_data(comparison, received_matched=xr.DataArray(marked, dims=dims), received_control=control)


def test_received_attention_has_a_band_for_all_layers_at_once(comparison: Comparison):
    rng = np.random.default_rng(5)
    claims = 0
    for _ in range(100):
        table = received_table(received(comparison, rng.normal(size=(60, 6))))
        claims += "beyond chance" not in findings.received_finding(table)
    assert claims <= 13, "of 100 nulls about 5 may look like a finding (binomial: 14 or more once in 2,000)"


def test_received_band_is_over_document_means(comparison: Comparison):
    change = np.random.default_rng(6).normal(0.5, 1.0, size=(60, 6))
    table = received_table(received(comparison, change))
    means = document_means(change, comparison.data["document"].values)
    np.testing.assert_allclose(table["change"], means.mean(0))
    error = means.std(0, ddof=1) / np.sqrt(len(means))
    width = ((table["high"] - table["low"]) / 2 / error).to_numpy()
    assert (width > 2.4).all() and (width < 3.6).all(), "wider than 2.02 standard errors, the t of a single layer"
    assert "simultaneous over layers" in drawings_of(received(comparison, change))["received_profile"].caption


def test_too_few_documents_for_a_band_are_told():
    row = {"marked_base": 1.0, "marked_tuned": 2.0, "control_base": 1.0, "control_tuned": 1.0}
    table = pd.DataFrame([{"layer": 1, "change": 1.0, "low": NAN, "high": NAN, **row}])
    assert findings.received_finding(table).endswith("; too few documents for an interval")


def test_entropy_needs_band_and_p_and_its_markers_agree():
    table = pd.DataFrame(
        {
            "layer": [1, 2, 3],
            "estimate": [-1.0, -2.0, 3.0],
            "low": [-2.0, -4.5, 1.0],
            "high": [-0.1, 0.5, 5.0],
            "p_adjusted": [0.2, 0.01, 0.01],
            "model": "tuned",
        }
    )
    assert findings.entropy_finding(table) == "Attention became more spread out in layer 3 (+3.0 points)"
    assert findings.detected(table).tolist() == [False, False, True]
    none = table.assign(p_adjusted=0.2)
    assert findings.entropy_finding(none).startswith("No layer's attention became detectably")
    small = table.assign(estimate=[0.0, 0.0, 0.01], low=0.005, high=0.02, p_adjusted=0.01)
    assert findings.entropy_finding(small).endswith("most in layer 3 (below 0.1 points)")


# Texts of decoders


def decoder(comparison: Comparison) -> Comparison:
    return dataclasses.replace(
        comparison, data=comparison.data.assign_coords(stack=("layer", ["decoder"] * comparison.data.sizes["layer"]))
    )


def test_a_causal_model_s_passage_is_called_position_corrected(comparison: Comparison):
    plain, causal = drawings_of(comparison)["passage"], drawings_of(decoder(comparison))["passage"]
    assert "position-corrected" not in plain.title + plain.caption
    assert "of the position-corrected attention on words, then" in causal.title
    assert "position-corrected" in causal.caption and "share" in causal.caption
    assert "position-corrected" in [text.get_text() for text in causal.draw(6.75).texts][-1]


@pytest.mark.usefixtures("unpictured")
def test_a_causal_model_s_page_says_what_is_corrected_for_position(comparison: Comparison, tmp_path: Path):
    assert "corrected for position" in report(decoder(comparison), tmp_path).read_text()


def test_a_passage_with_a_hole_gets_no_number(comparison: Comparison):
    received = [text.received.copy() for text in comparison.passages]
    for values in received:
        values[1, :, 0] = np.nan
    texts = [
        dataclasses.replace(text, received=values, marked=tuple(text.is_word))
        for text, values in zip(comparison.passages, received, strict=True)
    ]
    title = drawings_of(dataclasses.replace(comparison, passages=tuple(texts)))["passage"].title
    assert title == "One text as the models read it"


# Training


def trained(comparison: Comparison, **metrics: object) -> str:
    record = {"method": "full", "metrics": metrics, "history": []}
    models = [comparison.provenance["models"][0], comparison.provenance["models"][1] | {"training": record}]
    told = dataclasses.replace(comparison, provenance=comparison.provenance | {"models": models})
    return findings.training_finding(told, training_records(told))


@pytest.mark.parametrize(
    ("metrics", "title"),
    [
        (
            {"base_perplexity": 41.0, "perplexity": 1_956_383.2},
            "Training made the held-out perplexity worse: 41.0 → 1,956,383",
        ),
        ({"base_perplexity": 41.0, "perplexity": 7.389}, "Held-out perplexity: 41.0 before training, 7.4 after"),
        ({"base_perplexity": NAN, "perplexity": 7.389}, "Training reached a held-out perplexity 7.4"),
        ({"base_accuracy": 0.9, "accuracy": 0.5}, "Training made the held-out accuracy worse: .900 → .500"),
        ({"macro_f1": 0.813}, "Training reached a held-out macro-F1 .813"),
        ({"perplexity": NAN}, "Training loss over steps"),
    ],
)
def test_training_says_what_it_was_before(comparison: Comparison, metrics: dict, title: str):
    assert trained(comparison, **metrics) == title


def test_training_of_several_models_is_listed():
    comparison = make_comparison(tuned=("good", "bad"))
    records = {
        "good": {"metrics": {"base_perplexity": 41.0, "perplexity": 20.0}},
        "bad": {"metrics": {"base_perplexity": 41.0, "perplexity": 4100.0}},
    }
    assert findings.training_finding(comparison, records) == (
        "Held-out results: good perplexity 41.0 → 20.0, bad perplexity 41.0 → 4,100 (worse)"
    )


# Refocusing


def test_refocusing_adds_up_to_the_change_of_the_mass_that_was_measured(comparison: Comparison):
    table = refocusing_table(comparison)
    data = comparison.data.sel(salience="spans")
    documents = data["document"].values
    mass = document_means(100 * (data["mass"][1] - data["mass"][0]).values, documents)
    wanted = np.nanmean(mass, 0)
    place = table["layer"].to_numpy() - 1, table["head"].to_numpy() - 1
    np.testing.assert_allclose(table["change"], wanted[place], atol=1e-12)
    np.testing.assert_allclose(table["refocusing"] + table["sink_release"], table["change"], atol=1e-12)
    product = document_means(100 * (data["content_mass"] * data["share"]).diff("model")[0].values, documents)
    assert not np.allclose(np.nanmean(product, 0)[place], table["change"], atol=0.01), "means of other rows"


def test_without_the_mass_there_is_no_refocusing(comparison: Comparison):
    less = dataclasses.replace(comparison, data=comparison.data.drop_vars("mass"))
    assert "refocusing" not in drawings_of(less) and "received_profile" in drawings_of(less)


def test_weight_layers_still_hold_one_row_a_layer(comparison: Comparison):
    assert weight_layers(comparison)["layer"].dropna().tolist() == [1, 2, 3, 4, 5, 6]


def test_a_rounded_copy_changed_by_rounding_alone(comparison: Comparison):
    copy = dataclasses.replace(comparison, weights=comparison.weights.assign(rounding=True, floor=1.0))
    found = drawings_of(copy)
    for name in ("entropy_heads", "focus_top_heads", "refocusing", "received_profile", "jsd_profile"):
        assert found[name].title.startswith("By rounding alone: "), name
    assert not drawings_of(comparison)["entropy_heads"].title.startswith("By rounding")


def test_a_change_too_small_to_print_is_no_move():
    heads = pd.DataFrame({"layer": [1], "refocusing": 0.02, "sink_release": 0.01, "change": 0.03})
    assert findings.refocusing_finding(heads) == (
        "Attention on the marked words moved by less than 0.1 points in every layer"
    )
    top = pd.DataFrame({"layer": [1], "head": [2], "estimate": [-0.01], "p_adjusted": [0.01]})
    assert findings.top_heads_finding(top, "focus") == "Layer 1, head 2 changed its focus most (below 0.1 points)"
    row = {"marked_base": 1.0, "marked_tuned": 1.002, "control_base": 1.0, "control_tuned": 1.0}
    received = pd.DataFrame([{"layer": 1, "change": 0.002, "low": 0.001, "high": 0.003, **row}])
    assert findings.received_finding(received).endswith("what they received before, within 0.01 × uniform")
