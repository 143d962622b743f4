"""The answer: verdict, sentence and rungs from planted profiles."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from attnlens.analysis.evidence import decide
from attnlens.analysis.inference import infer
from attnlens.analysis.ladder import Case
from attnlens.analysis.results import Answer
from attnlens.analysis.roles import Roles
from attnlens.analysis.wording import layer_names, signed

SESOI = 0.02


def planted(effects, *, spread: float = 0.01, documents: int = 40, seed: int = 0) -> xr.Dataset:
    """Base and tuned whose focus differs by `effects` (L,), with noise between documents; two heads a layer."""
    rng = np.random.default_rng(seed)
    layers = len(effects)
    before = rng.normal(0.1, 0.05, (documents, layers, 2, 1))
    after = before + np.asarray(effects)[None, :, None, None] + rng.normal(0, spread, (documents, layers, 2, 1))
    focus = np.stack([before, after])
    dims = ("model", "example", "layer", "head")
    flat = rng.random((2, documents, layers, 2))
    return xr.Dataset(
        {
            "focus": ((*dims, "salience"), focus),
            "share": ((*dims, "salience"), 0.2 + focus),
            "entropy": (dims, flat),
            "entropy_content": (dims, flat),
            "jsd": (dims, flat),
            "log_odds": ((*dims, "salience"), 5 * focus),
            "content_mass": (dims, np.full_like(flat, 0.5)),
            "mass": ((*dims, "salience"), 0.5 * (0.2 + focus)),
        },
        coords={
            "model": ["base", "tuned"],
            "salience": ["spans"],
            "document": ("example", [f"d{i:03d}" for i in range(documents)]),
        },
    )


ALONE = Roles(("tuned",))
CASE = Case("tuned", "spans", SESOI)


def answer(data: xr.Dataset, case: Case = CASE, roles: Roles = ALONE) -> Answer:
    tests = infer(data, roles=roles, sesoi=SESOI, seed=0)
    return decide(tests[tests["model"] == "tuned"], data, case)


def test_yes_names_the_layers_largest_first():
    result = answer(planted([0.0, 0.05, 0.12]))
    assert (result.verdict, result.layers) == ("yes", (2, 1))
    assert result.sentence.startswith(
        "Yes, on these texts, mainly in layer 3 and also in layer 2. In layer 3, of 100 units"
    )
    assert "30 went to the marked words before tuning, 42 after" in result.sentence
    assert result.headline["estimate"] == pytest.approx(12.0, abs=0.5)
    assert [rung.status for rung in result.rungs] == ["yes", "yes", "not tested", "not tested", "not tested"]


def test_away_when_attention_leaves_the_words():
    result = answer(planted([0.0, -0.08, 0.0]))
    assert (result.verdict, result.layers) == ("away", (1,))
    assert result.sentence.startswith("No: away from the marked words, mainly in layer 2.")


def test_yes_wins_over_away():
    assert answer(planted([-0.08, 0.08])).verdict == "yes"


def test_no_needs_equivalence_in_every_layer():
    assert answer(planted([0.001, -0.002, 0.0])).verdict == "no"


def test_significant_but_too_small_is_not_yes():
    """A difference always exists; rung 1 says so, rung 2 does not, and the verdict is no."""
    result = answer(planted([0.005, 0.0], spread=0.002))
    assert result.verdict == "no"
    assert [rung.status for rung in result.rungs[:2]] == ["yes", "no"]


def test_wide_intervals_are_unclear():
    assert answer(planted([0.01, 0.0], spread=0.3, documents=12)).verdict == "unclear"


def test_an_effect_on_the_edge_of_the_margin_is_unclear():
    assert answer(planted([0.02, 0.0])).verdict == "unclear"


def test_layers_are_named_from_one():
    assert layer_names((5,)) == "layer 6"
    assert layer_names((4, 2, 5)) == "layers 3, 5 and 6"


@pytest.mark.parametrize(("value", "text"), [(1.24, "+1.2"), (-0.4, "−0.4"), (-0.01, "0.0"), (0.0, "0.0")])
def test_numbers_carry_a_true_sign(value: float, text: str):
    assert signed(value) == text


def test_the_same_texts_twice_are_not_twice_the_evidence():
    """The document is the unit: doubling every text changes no p and no interval."""
    once = planted([0.03, 0.0])
    twice = xr.concat(
        [once, once], "example", data_vars="minimal", coords="minimal", compat="override", join="override"
    )
    for name in ("low", "high", "p", "n"):
        np.testing.assert_allclose(
            infer(once, roles=ALONE, sesoi=SESOI, seed=0)[name],
            infer(twice, roles=ALONE, sesoi=SESOI, seed=0)[name],
            atol=1e-12,
        )


def test_few_documents_are_never_a_yes_that_rung_one_denies():
    """At 5 documents the smallest exact p is 1/16: however large the effect, it is not beyond the sampling of texts."""
    for documents in (4, 5, 6, 8):
        result = answer(planted([0.3, 0.0], documents=documents))
        assert (result.verdict == "yes") == (result.rungs[0].status == "yes"), documents
        assert (result.verdict == "yes") == (documents >= 6), documents


def test_no_interval_is_said_in_words():
    result = answer(planted([0.3, 0.0], documents=3))
    assert "no interval: too few documents" in result.sentence
    assert "nan" not in str(result)
    assert answer(planted([0.0, 0.0], spread=0.0001, documents=3)).verdict == "unclear"


def test_rung_one_looks_at_every_layer():
    """A small sure change in one layer counts, though a noisy layer has the larger estimate."""
    data = planted([0.0, 0.0117], spread=0.001, documents=20)
    noise = np.random.default_rng(1).normal(0.02, 0.2, (20, 2, 1))
    data["focus"][1, :, 0] = data["focus"][1, :, 0] + noise
    result = answer(data)
    assert result.verdict == "unclear"
    assert [rung.status for rung in result.rungs[:2]] == ["yes", "no"]
    assert result.rungs[0].detail.startswith("Layer 2:")


def test_equal_attention_on_changed_weights_is_not_identical():
    data = planted([0.0, 0.0], spread=0.0)
    data["focus"][1], data["entropy"][1] = data["focus"][0], data["entropy"][0]
    data["entropy_content"][1] = data["entropy_content"][0]
    assert answer(data).verdict == "no"
    unchanged = replace(CASE, same_weights=True)
    same = answer(data, unchanged)
    assert same.verdict == "identical" and {rung.status for rung in same.rungs} == {"not applicable"}
    data["focus"][1, 0, 0, 0, 0] += 1e-9
    assert answer(data, unchanged).verdict != "identical"


def test_no_needs_the_whole_band_inside_the_margin():
    """Equivalent by the t test, yet one heavy document stretches the band beyond the margin: the two must agree."""
    data = planted([0.0, 0.0], spread=0.001, documents=5)
    data["focus"][1, 0, 1] += 0.03
    rows = infer(data, roles=ALONE, sesoi=SESOI, seed=0).query("family == 'profile'")
    assert (rows["p_equivalence"] < 0.05).all() and rows["high"].max() > SESOI
    assert answer(data).verdict == "unclear"
