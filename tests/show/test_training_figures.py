"""Figures and tables of training against records written out by hand; strange ones are passed over."""

import math
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from attnlens.analysis.results import Comparison
from attnlens.show.drawing import NARROW, WIDE, Drawing, style
from attnlens.show.page_tables import class_rows, cost_rows, forgetting_rows, page_tables, training_rows
from attnlens.show.report import SENTENCES
from attnlens.show.tables import all_tables
from attnlens.show.training_figures import drawings as training_drawings
from attnlens.show.training_plots import STATES
from attnlens.show.training_records import number, switching, whole
from attnlens.show.training_tables import cost_table, movement_table, overlap_table, selection_table, training_table
from attnlens.show.training_words import (
    blocks_named,
    forgetting_sentences,
    place,
    selection_finding,
    selection_sentences,
)
from tests.show.synthetic import make_comparison
from tests.show.test_figures import assert_legible
from tests.show.trained import record, with_records

NAMES = ["training", "selection", "weight_movement", "gradient_norms", "attention_while_training"]


@pytest.fixture(scope="module")
def told(comparison: Comparison) -> Comparison:
    return with_records(comparison, [record()])


@pytest.fixture(scope="module")
def drawings(told: Comparison) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in training_drawings(told)}


def drawn(drawing: Drawing, width: float = WIDE):
    with matplotlib.rc_context(style()):
        return drawing.draw(width)


def test_each_kind_of_record_has_its_figure(drawings: dict[str, Drawing]):
    assert list(drawings) == NAMES
    assert drawings["selection"].title == "Blocks 4–6, the last ones, chosen last (2 different sets in 3 choices)"
    assert drawings["weight_movement"].title == ("The mlp of block 4 moved farthest (8.0 %); blocks 1–3 did not move")
    assert drawings["gradient_norms"].title == "The gradient was largest in block 6 (median 5.5 over steps)"
    assert drawings["attention_while_training"].title == ("Attention entropy fell most in layer 6 (2.80 → 2.20)")


def test_the_map_is_dark_where_a_block_trained(drawings: dict[str, Drawing]):
    active, scores = drawn(drawings["selection"]).axes
    mesh = active.collections[0]
    states = np.asarray(mesh.get_array())
    assert states.shape == (6, 6), "blocks × stretches"
    assert (states[:, ::2] == 1).all(), "probes measure all blocks"
    assert (states[:, 1] == [0, 0, 2, 0, 2, 2]).all() and (states[:, 5] == [0, 0, 0, 2, 2, 2]).all()
    steps = mesh.get_coordinates()[0, :, 0]
    assert steps.tolist() == [0, 10, 42, 50, 82, 90, 160]
    values = np.asarray(scores.collections[0].get_array())
    np.testing.assert_allclose(values[:, 2], [25, 31.25, 37.5, 50, 50, 100])
    marks = {(round(x), round(y)) for x, y in np.asarray(scores.collections[1].get_offsets())}
    assert marks == {(0, 3), (0, 5), (0, 6), (1, 4), (1, 5), (1, 6), (2, 4), (2, 5), (2, 6)}
    assert [tick.get_text() for tick in scores.get_xticklabels()] == ["10", "50", "90"]


def test_states_are_told_apart_in_grey():
    light = sorted(sum(to_rgb(colour)) / 3 for colour in STATES.values())
    assert light[1] - light[0] > 0.15 and light[2] - light[1] > 0.15


def test_lines_are_the_recorded_changes(drawings: dict[str, Drawing]):
    attention, mlp, *_ = drawn(drawings["weight_movement"]).axes
    assert [ax.get_title(loc="left") for ax in (attention, mlp)] == ["attention", "mlp"]
    lines = mlp.collections[0].get_segments()
    np.testing.assert_allclose(lines[5], [[40, 2], [80, 4], [120, 6], [160, 8]])
    np.testing.assert_allclose(lines[0][:, 1], 0)
    gradient = drawn(drawings["gradient_norms"]).axes[0]
    assert gradient.get_yscale() == "log" and len(gradient.collections[0].get_segments()) == 3
    assert gradient.collections[0].get_array().tolist() == [4, 5, 6], "frozen blocks have no line"
    labels = [tick.get_text() for tick in (*gradient.get_yticklabels(), *gradient.get_yticklabels(minor=True))]
    assert "5" in labels and "$" not in "".join(labels)
    for drawing, top in ((drawings["weight_movement"], 8), (drawings["attention_while_training"], 2.96)):
        assert all(ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > top for ax in drawn(drawing).axes[:-1]), (
            "nothing is cut"
        )


def test_a_line_is_broken_where_a_block_was_frozen(comparison: Comparison):
    facts = record()
    facts["movement"]["gradient"] = [[1.0], [None], [2.0], [3.0]]
    drawing = next(d for d in training_drawings(with_records(comparison, [facts])) if d.name == "gradient_norms")
    ax = drawn(drawing).axes[0]
    assert [segment.tolist() for segment in ax.collections[0].get_segments()] == [[[120, 2], [160, 3]]]
    assert ax.collections[1].get_offsets().tolist() == [[40, 1]], "a single step is a dot"


@pytest.mark.parametrize(("blocks", "models"), [(6, 1), (24, 3)])
def test_every_text_of_training_is_legible(blocks: int, models: int):
    names = ("alf", "alf on shuffled labels", "an-organisation/a-long-name-of-a-model")[:models]
    made = with_records(make_comparison(tuned=names), [record(null=i == 1, blocks=blocks) for i in range(models)])
    for drawing in training_drawings(made):
        for width in (WIDE, NARROW):
            assert_legible(drawing, width)


def test_the_cost_names_both_denominators(told: Comparison):
    row = cost_table(told).iloc[0]
    assert (row["mean_of_total"], row["peak_of_blocks"]) == (pytest.approx(27.9), 100)
    table = page_tables(told)["cost"]
    cells = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert cells["mean (%)"][0] == "28 / 58"
    assert (cells["TFLOP"][0], cells["peak memory (MiB)"][0], cells["ms a step"][0]) == ("3.5", "900", "250")
    assert "percent of all parameters" in table["note"] and "of the whole process" in table["note"]


def test_forgetting_and_classes_are_tables(told: Comparison):
    tables = page_tables(told)
    cells = dict(zip(tables["forgetting"]["columns"], tables["forgetting"]["rows"][0], strict=True))
    assert cells["change"] == ("+0.50", 0.5) and cells["KL (nats)"][0] == "0.250"
    assert tables["classes"]["rows"] == [
        [("=licence", "=licence"), ("0.500", 0.5), ("1.000", 1.0), ("0.667", 2 / 3), ("12", 12.0)]
    ]
    assert forgetting_sentences(told) == [
        "minilm-contracts, on general sentences: loss 3.000 nats a token before training, 3.500 after (worse); "
        "KL(base‖tuned) 0.250 nats a token; hidden states moved farthest in layer 2 (by 30 % of their length)."
    ]
    assert {"training", "cost", "forgetting", "selection_overlap", "classes"} <= set(all_tables(told))
    assert all_tables(told)["selection_overlap"].iloc[0].to_dict() == {
        "model": "minilm-contracts", "blocks": "4 5 6", "last_k": 1.0, "first_k": 0.0, "rms": 0.5, "chance": 0.35,
        "stability": pytest.approx(math.nan, nan_ok=True), "real": pytest.approx(math.nan, nan_ok=True),
    }  # fmt: skip


def test_it_is_said_plainly_that_the_last_blocks_were_chosen():
    comparison = with_records(make_comparison(tuned=("alf", "null")), [record(), record(null=True)])
    real, null = selection_sentences(comparison)
    assert real == (
        "alf: the blocks chosen last are 4, 5 and 6 of 6: the last ones. Overlap (Jaccard, 1 = the same set): 1.00 "
        "with the last blocks, 0.00 with the first blocks and 0.50 with the blocks of the smallest weights; a random "
        "set of this size has 0.35 on average. Training the last blocks, without any score, would have trained the "
        "same ones."
    )
    assert null.endswith(
        "On shuffled labels the real run's blocks were chosen too: the choice does not show what was learned."
    )


def test_a_choice_of_other_blocks_is_not_called_the_last():
    facts = record()
    facts["switching"]["phases"][-1]["active"] = [0, 5]
    told = switching(facts)
    assert told is not None and selection_finding(told) == "blocks 1 and 6 chosen last (3 different sets in 3 choices)"


@pytest.mark.parametrize(
    ("blocks", "where"),
    [
        ((3, 4, 5), "the last ones"),
        ((5,), "the last one"),
        ((0, 1), "the first ones"),
        ((1, 2), ""),
        ((0, 5), ""),
        ((0, 1, 2, 3, 4, 5), "all of them"),
        ((), ""),
    ],
)
def test_where_blocks_lie(blocks: tuple[int, ...], where: str):
    assert place(blocks, 6) == where


def test_blocks_in_words():
    assert (
        blocks_named([]) == "no block"
        and blocks_named([5]) == "block 6"
        and blocks_named([0, 3, 4, 5]) == "blocks 1 and 4–6"
    )


@pytest.mark.parametrize("value", [None, True, 10**400, [[None]], {"blocks": 3}], ids=lambda v: str(v)[:9])
def test_a_strange_record_stops_nothing(comparison: Comparison, value: Any):
    """Each key that is read, and each key inside, holding what no run writes."""
    for name, facts in record().items():
        inner = [facts | {key: value} for key in facts] if isinstance(facts, dict) else []
        for broken in (value, *inner):
            strange = with_records(comparison, [record() | {name: broken}])
            for drawing in training_drawings(strange):
                assert drawing.title and len(drawing.table)
            for rows in (training_rows, cost_rows, forgetting_rows, class_rows):
                rows(strange)
            assert len(training_table(strange)) == 1 and len(overlap_table(strange)) <= 1
            for sentences in SENTENCES:
                assert all(isinstance(sentence, str) for sentence in sentences(strange))


def test_absent_facts_leave_no_table(comparison: Comparison):
    bare = with_records(comparison, [{"method": "full", "null_twin": "yes"}])
    assert training_drawings(bare) == [] and not {"cost", "forgetting", "classes"} & set(page_tables(bare))
    assert selection_table(bare).empty and movement_table(bare).empty


def test_numbers_are_numbers():
    assert number(3) == 3 and math.isnan(number(True)) and math.isnan(number(10**400)) and math.isnan(number("3"))
    assert math.isnan(number(math.inf)) and whole(2.0) == 2 and whole(2.5) is None and whole(None) is None
