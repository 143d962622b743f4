"""Figures of what stands behind an answer: nulls, noise, definitions, controls, agreement, knockout, methods."""

import dataclasses
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from attnlens.analysis.results import Comparison
from attnlens.core.errors import AttnlensError, UnknownName
from attnlens.show import findings, plots
from attnlens.show.drawing import NARROW, WIDE, Drawing, style
from attnlens.show.figures import PICTURES, figure_set, rendered, write_figure
from attnlens.show.redraw import RedrawOptions, figure_table, redraw
from attnlens.show.venues import VENUES
from tests.show.evidence import MODELS, NULL, make_evidence
from tests.show.synthetic import make_comparison
from tests.show.test_figures import assert_legible

NEW = ("layer_profile", "definitions", "controls", "agreement", "reliance", "methods", "word_maps")


@pytest.fixture(scope="module")
def evidence() -> Comparison:
    return make_evidence()


@pytest.fixture(scope="module")
def drawings(evidence: Comparison) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in figure_set(evidence)}


def drawn(drawing: Drawing, width: float = WIDE):
    with matplotlib.rc_context(style()):
        return drawing.draw(width)


def over_documents(comparison: Comparison, values: np.ndarray) -> float:
    """Mean of one number a text over the documents that have it."""
    return float(pd.Series(values).groupby(comparison.data["document"].values).mean().mean())


def test_a_null_is_grey_and_dashed_and_noise_an_area(drawings: dict[str, Drawing]):
    drawing = drawings["layer_profile"]
    ax = drawn(drawing).axes[0]
    lines = {str(line.get_label()): line for line in ax.lines}
    assert [to_hex(lines[name].get_color()) for name in MODELS] == [hue.lower() for hue in plots.HUES[:2]]
    assert to_hex(lines[NULL].get_color()) == plots.NULL_HUE and lines[NULL].get_linestyle() == "--"
    bars = [(bar.get_x() + 0.5, bar.get_y(), bar.get_y() + bar.get_height()) for bar in ax.patches]
    np.testing.assert_allclose(bars, [(layer, -0.4, 0.5) for layer in range(1, 7)])
    table = drawing.table
    assert set(table["kind"]) == {"tuned", "null", "noise"} and (table["margin"] == 2).all()
    names = [text.get_text() for text in drawn(drawing).legends[0].get_texts()]
    assert names == [*MODELS, NULL, plots.NOISE_NAME]
    assert f"Grey, dashed: {NULL}, a null, no answer." in drawing.caption and "over 19 draws" in drawing.caption
    assert "full differs from its null in layer" in drawing.caption and "Over 6 seeds" in drawing.caption
    assert drawings["jsd_profile"].table.loc[lambda t: t["kind"] == "null", "model"].unique().tolist() == [
        NULL,
        "seeds of full",
    ]


def test_divergence_stands_beside_that_between_seeds(evidence: Comparison, drawings: dict[str, Drawing]):
    drawing = drawings["jsd_profile"]
    rows = drawing.table[drawing.table["model"] == "seeds of full"]
    wanted = evidence.tests.query("family == 'jsd seeds'")
    np.testing.assert_allclose(rows["estimate"], 100 * wanted["estimate"] / np.log(2))
    assert "other seeds of its training (6 runs), mean over them." in drawing.caption
    line = next(line for line in drawn(drawing).axes[0].lines if line.get_label() == "seeds of full")
    np.testing.assert_allclose(line.get_ydata(), rows["estimate"])
    assert line.get_linestyle() == "--"


def test_a_definition_with_wide_bands_has_its_own_axis(evidence: Comparison):
    tests = evidence.tests.copy()
    tests.loc[(tests["family"] == "profile") & (tests["salience"] == "keyness"), "low"] = -0.9
    found = {d.name: d for d in figure_set(dataclasses.replace(evidence, tests=tests))}["layer_profile"]
    first, second = drawn(found).axes
    assert first.get_ylim()[0] > -20 and second.get_ylim()[0] < -80 and found.caption.endswith("The axes differ.")


def test_definitions_hold_the_layer_of_the_headline(evidence: Comparison, drawings: dict[str, Drawing]):
    table = drawings["definitions"].table
    assert table["layer"].unique().tolist() == [6] and table["label"].tolist() == ["spans"] * 3 + ["keyness"] * 3
    wanted = evidence.tests.query("family == 'profile' and layer == 5 and model == 'full'")
    np.testing.assert_allclose(table.loc[table["model"] == "full", "estimate"], 100 * wanted["estimate"])
    np.testing.assert_allclose(table.loc[table["model"] == "full", "low"], 100 * wanted["low"])
    assert table["kind"].tolist() == ["tuned", "tuned", "null"] * 2
    ax = drawn(drawings["definitions"]).axes[0]
    spans = np.concatenate([[part[:, 0] for part in lines.get_segments()] for lines in ax.collections[::2]])
    assert sorted(map(tuple, spans)) == sorted(zip(table["low"], table["high"], strict=True))
    rows = [text.get_text() for text in ax.texts]
    assert len(rows) == 6 and rows[0].startswith(plots.signed(table["estimate"][0]))
    two = table[table["model"] == "full"].assign(filled=[True, False])
    told = findings.definitions_finding(two)
    assert told == "In layer 6 attention moved towards the marked words under 1 of 2 definitions (spans)"
    away = findings.definitions_finding(two.assign(estimate=[-3.0, 1.0]))
    assert away.startswith("In layer 6 attention moved away from the marked words under 1 of 2")
    assert "none of 2 definitions" in findings.definitions_finding(two.assign(filled=False))
    assert "definitions" not in {d.name for d in figure_set(make_comparison(salience=("spans",)))}


def test_controls_are_changes_of_document_means(evidence: Comparison, drawings: dict[str, Drawing]):
    table = drawings["controls"].table.set_index(["model", "words", "layer"]).sort_index()
    shares = {"marked words": "share_matched", "random words": "share_random", "marks of another text": "share_swapped"}
    for words, name in shares.items():
        values = evidence.data[name].sel(salience="spans").isel(layer=4).mean("head").values
        row = table.loc[("LoRA", words, 5)]
        assert row["estimate"] == pytest.approx(100 * over_documents(evidence, values[2] - values[0]))
        assert row["base"] == pytest.approx(100 * over_documents(evidence, values[0]))
        assert row["low"] <= row["estimate"] <= row["high"]
    figure = drawn(drawings["controls"])
    line = next(line for line in figure.axes[1].lines if line.get_label() == "random words")
    np.testing.assert_allclose(line.get_ydata(), table.loc[("LoRA", "random words")]["estimate"])
    assert to_hex(line.get_color()) == plots.NULL_HUE, "a placebo is drawn as a null"
    assert [ax.get_title(loc="left") for ax in figure.axes] == [*MODELS, NULL]
    facts = evidence.provenance | {"salience": {"spans": {"control": "regression"}}}
    fitted = {d.name: d for d in figure_set(dataclasses.replace(evidence, provenance=facts))}["controls"]
    assert "what position, length and frequency explain by" in fitted.title and "a regression" in fitted.caption


def test_agreement_shows_every_model_and_tests_the_change(evidence: Comparison, drawings: dict[str, Drawing]):
    table = drawings["agreement"].table.set_index(["measure", "model", "layer"])
    values = evidence.data["received_auroc"].sel(salience="spans").isel(layer=5).mean("head").values
    row = table.loc[("AUROC", "full", 6)]
    assert row["estimate"] == pytest.approx(over_documents(evidence, values[1]))
    assert row["change"] == pytest.approx(over_documents(evidence, values[1] - values[0]))
    base = table.loc[("AUROC", "all-MiniLM-L6-v2", 6)]
    assert base["estimate"] == pytest.approx(over_documents(evidence, values[0])) and not base["filled"]
    figure = drawn(drawings["agreement"])
    assert [ax.get_ylabel() for ax in figure.axes] == [
        f"{name} (0 to 1)" for name in ("AUROC", "average precision", "precision at k")
    ]
    assert figure.axes[0].lines[0].get_ydata()[0] == 0.5, "chance"
    assert "picks out the marked words better than before, most in layer 6 (AUROC ." in drawings["agreement"].title


def test_reliance_is_in_the_unit_of_its_outcome(drawings: dict[str, Drawing]):
    drawing = drawings["reliance"]
    assert drawing.table["estimate"].tolist() == [0.08, 0.01, 0.0, 0.05, 0.02, -0.01]
    assert drawing.table["filled"].tolist() == [True, False, False, True, False, False]
    ax = drawn(drawing).axes[0]
    assert (
        ax.get_xlabel() == "change of the label loss (nats)" and ax.texts[0].get_text() == "+0.080  (+0.050 … +0.110)"
    )
    assert drawing.title == "full: the outputs rely on the marked words, and more than before tuning"
    assert "n = 33 documents" in drawing.caption
    first = drawing.table[drawing.table["model"] == "full"]
    assert findings.reliance_finding(first.assign(filled=[True, False])).endswith("more than before was not shown")
    assert findings.reliance_finding(first.assign(filled=False)).endswith("was not shown")


def test_word_maps_are_those_of_the_most_changed_heads(evidence: Comparison, drawings: dict[str, Drawing]):
    drawing = drawings["word_maps"]
    table = drawing.table
    row = table.iloc[0]
    passage = next(each for each in evidence.passages if f"Text {each.id}" in drawing.caption)
    assert passage.maps is not None
    place = passage.heads.index((row["layer"] - 1, row["head"] - 1))
    word = [at for at, flag in enumerate(passage.is_word) if flag][row["looks_at"] - 1]
    assert row["piece"] == passage.words[word] and bool(row["marked"]) == passage.marked[word]
    wanted = passage.maps.values[0, place, row["word"] - 1, row["looks_at"] - 1]
    assert row["attention"] == pytest.approx(100 * wanted) and row["model"] == evidence.models[0]
    size = table["word"].nunique()
    grid = drawn(drawing).axes[1].collections[0].get_array()
    tuned = table[(table["model"] == "full") & (table["head"] == row["head"]) & (table["layer"] == row["layer"])]
    np.testing.assert_allclose(grid, tuned["attention"].to_numpy().reshape(size, size))
    assert " to marked words, then " in drawing.title
    unmarked = {d.name: d for d in figure_set(make_comparison(salience=()))}["word_maps"]
    assert "turned most towards or from" in unmarked.title


def test_methods_stand_against_what_they_took(drawings: dict[str, Drawing]):
    drawing = drawings["methods"]
    assert drawing.table["model"].tolist() == list(MODELS), "a null has no quality to compare"
    assert drawing.table["changed"].tolist() == pytest.approx([100.0, 100 / 41], rel=1e-4)
    figure = drawn(drawing)
    assert [ax.get_xlabel() for ax in figure.axes] == ["weights trained (% of all)", "training time (s)"]
    dots = [dot.get_offsets()[0].tolist() for dot in figure.axes[1].collections]
    assert dots == [[61.5, pytest.approx(0.813)], [62.5, pytest.approx(0.763)]]
    assert drawing.title == "Best held-out macro-F1: full (.813); fewest weights trained: LoRA (2.4 %, .763)"


@pytest.mark.parametrize("shape", [(1, 1), (32, 5)])
def test_new_figures_are_legible(shape: tuple[int, int]):
    for drawing in figure_set(make_evidence(shape=shape)):
        if drawing.name in NEW:
            for width in (WIDE, NARROW):
                assert_legible(drawing, width)


def test_one_layer_has_one_tick(drawings: dict[str, Drawing]):
    table = drawings["jsd_profile"].table.query("layer == 1")
    (ax,) = drawn(dataclasses.replace(drawings["jsd_profile"], table=table)).axes
    assert ax.get_xticks().tolist() == [1]


def test_new_figures_are_legible_at_every_venue(drawings: dict[str, Drawing]):
    for place in VENUES.values():
        for name in NEW:
            assert_legible(drawings[name], place.width, place.settings())


def test_every_figure_is_drawn_again_from_its_csv(evidence: Comparison, drawings: dict[str, Drawing], tmp_path: Path):
    number, name_of_a_part = re.compile(rb"-?\d+\.\d+"), re.compile(rb'(?:id="|href="#|url\(#)[^")]+')
    for name, drawing in drawings.items():
        assert drawing.picture is PICTURES[name]
        write_figure(drawing, tmp_path, NARROW, ("svg",))
        again = dataclasses.replace(drawing, table=figure_table(tmp_path / f"{name}.csv"))
        both = [(tmp_path / f"{name}.svg").read_bytes(), rendered(again, NARROW, ("svg",))["svg"]]
        one, other = (name_of_a_part.sub(b"", content) for content in both)  # those are sums over the content
        values = [np.array(number.findall(content), dtype=float) for content in (one, other)]
        # Nine digits of the CSV, in points of the page.
        np.testing.assert_allclose(*values, atol=2e-3, err_msg=name)


def test_one_csv_is_enough_for_the_command(drawings: dict[str, Drawing], tmp_path: Path):
    write_figure(drawings["controls"], tmp_path, WIDE, ())
    result = redraw(tmp_path / "controls.csv", RedrawOptions(venue="icml"))
    assert result.directory == tmp_path / "figures-icml" and list(result.figures) == ["controls"]
    told = (tmp_path / "figures-icml" / "controls.txt").read_text()
    assert told == (tmp_path / "controls.txt").read_text()
    with pytest.raises(AttnlensError, match="renamed in a report"):
        redraw(tmp_path / "controls.csv", RedrawOptions(names=("a", "b")))
    with pytest.raises(UnknownName, match="unknown figure 'contrls': did you mean 'controls'"):
        redraw(tmp_path / "contrls.csv")
    with pytest.raises(AttnlensError, match="is not there"):
        redraw(tmp_path / "agreement.csv")


def test_hostile_names_survive_their_csv(tmp_path: Path):
    comparison = make_comparison(tuned=("=1+1", "007"), texts=("null NA =2 'tis",) * 2)
    for drawing in figure_set(comparison):
        if drawing.name in ("weight_change", "passage"):
            write_figure(drawing, tmp_path, NARROW, ())
            table = figure_table(tmp_path / f"{drawing.name}.csv")
            wanted = drawing.table["piece" if "piece" in table else "model"]
            assert table[wanted.name].tolist() == wanted.tolist()


@pytest.mark.skipif(shutil.which("pdffonts") is None, reason="pdffonts is not installed")
def test_every_pdf_has_its_fonts_and_the_width_of_a_column(drawings: dict[str, Drawing], tmp_path: Path):
    places = itertools.cycle(VENUES.values())
    for (name, drawing), place in zip(drawings.items(), places, strict=False):
        write_figure(drawing, tmp_path, place.width, ("pdf",), place.settings())
        path = tmp_path / f"{name}.pdf"
        width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", path.read_bytes())[1])  # pyright: ignore[reportOptionalSubscript]
        assert width == pytest.approx(72 * place.width, abs=0.01), (place.name, name)
        found = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True).stdout.splitlines()
        assert len(found) > 2, f"{name} has text"
        for line in found[2:]:
            assert "TrueType" in line and "Type 3" not in line, f"{name}: {line}"
            assert line.split()[-5] == "yes", f"{name}: {line} is not embedded"
