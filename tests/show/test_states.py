"""Hidden states in the tables of a report: percent, documents, places, and comparisons without them."""

import dataclasses

import numpy as np
import pandas as pd

from attnlens.analysis.results import Comparison
from attnlens.show.page_tables import layer_rows
from attnlens.show.tables import all_tables, layers_table, states_table
from tests.show.synthetic import make_comparison


def test_a_layer_s_row_has_the_states_it_gives():
    comparison = make_comparison(tuned=("one", "two"))
    states, layers = states_table(comparison), layers_table(comparison)
    assert states["depth"].tolist() == [0, 1, 2, 3, 4, 5, 6] * 2 and (states["n"] == 40).all()
    np.testing.assert_allclose(states["hidden_change"][:7], 100 * np.linspace(0, 0.4, 7) / 2, rtol=1e-12)
    for model in ("one", "two"):
        own = states[(states["model"] == model) & (states["depth"] > 0)]
        rows = layers[(layers["model"] == model) & layers["layer"].notna()]
        np.testing.assert_array_equal(rows["hidden_change"], own["hidden_change"])
        np.testing.assert_array_equal(rows["cka"], own["cka"])
        assert (rows["hidden_n"] == 40).all()
    outside = layers["layer"].isna()
    assert outside.any() and layers.loc[outside, "cka"].isna().all(), "what enters layer 1 is in the table of states"
    pd.testing.assert_frame_equal(all_tables(comparison)["states"], states)


def test_the_page_shows_them_with_their_counts(comparison: Comparison):
    table = layer_rows(comparison)
    place = table["columns"].index("hidden states moved (%)")
    assert table["columns"][place + 1] == "CKA"
    assert [row[place][0] for row in table["rows"]] == ["3.3", "6.7", "10", "13", "17", "20"]
    assert table["rows"][5][place + 1] == ("0.960", 0.96)
    assert "mean over 40 documents" in table["note"] and "over 4,321 tokens" in table["note"]


def test_a_comparison_without_states_has_no_such_columns(comparison: Comparison):
    older = make_comparison(older=True)
    assert older.states().empty and "states" not in all_tables(older)
    table = layer_rows(older)
    assert "CKA" not in table["columns"] and table["note"] == ""


def test_states_that_fit_no_layer_keep_to_their_own_table(comparison: Comparison):
    fewer = dataclasses.replace(comparison, data=comparison.data.isel(depth=slice(0, 4)))
    assert len(states_table(fewer)) == 4 and layers_table(fewer)["cka"].isna().all()
    assert "CKA" not in layer_rows(fewer)["columns"]
