"""The noise band: a change of the same spectrum in random directions, and what it does to focus."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.noise import perturbed, turned
from attnlens.checkpoints.load import Checkpoint, load
from attnlens.core.errors import UnsupportedModel
from attnlens.text.corpus import Corpus, Example, Span


def test_a_turned_matrix_keeps_its_singular_values_and_loses_its_directions():
    rng = np.random.default_rng(0)
    change = rng.normal(size=(40, 24)) @ np.diag(np.linspace(0, 3, 24))
    noise = turned(change, rng)
    found, expected = (np.linalg.svd(each, compute_uv=False) for each in (noise, change))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    cosine = (noise * change).sum() / (change**2).sum()
    assert abs(cosine) < 0.2


def test_by_hand():
    assert abs(turned(np.array([[2.0]]), np.random.default_rng(0))) == pytest.approx(2)


def test_vectors_and_tables_change_places_alone():
    rng = np.random.default_rng(0)
    vector, table = np.arange(9.0), np.arange(30.0).reshape(10, 3)
    assert sorted(turned(vector, rng)) == list(vector) and not np.array_equal(turned(vector, rng), vector)
    noise = turned(table, rng, table=True)
    assert {tuple(row) for row in noise} == {tuple(row) for row in table} and not np.array_equal(noise, table)


def test_zero_stays_zero():
    for shape in ((4, 6), (5,), (2, 4, 6)):
        assert not turned(np.zeros(shape), np.random.default_rng(0)).any()


@pytest.fixture(scope="module")
def base(minilm: Path) -> Checkpoint:
    return load(minilm)


@pytest.fixture(scope="module")
def tuned(base: Checkpoint) -> Checkpoint:
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        weight = model.get_parameter("encoder.layer.2.attention.self.query.weight")
        weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return replace(base, model=model, name="tuned")


def test_a_perturbed_base_moves_as_far_as_the_tuned_model_and_only_there(base: Checkpoint, tuned: Checkpoint):
    noisy = perturbed(base, tuned, 0).model.state_dict()
    for name, weight in base.model.state_dict().items():
        change, noise = tuned.model.state_dict()[name] - weight, noisy[name] - weight
        assert change.norm() == pytest.approx(noise.norm().item(), rel=1e-5)
        assert torch.equal(change, noise) != change.any()
    again = perturbed(base, tuned, 0).model.state_dict()
    assert all(torch.equal(again[name], noisy[name]) for name in noisy)


def test_a_base_inside_an_adapter_that_lies_nowhere_is_refused(base: Checkpoint, tuned: Checkpoint):
    shared = replace(base, adapter=object(), source=None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsupportedModel, match="give it as a folder, or merge"):
        perturbed(shared, tuned, 0)


def test_the_band_stands_among_the_tests(base: Checkpoint, tuned: Checkpoint):
    text = "The tenant shall pay the fee before the owner sends notice of the term"
    spans = (Span(text.index("fee"), text.index("fee") + 3, None),)
    corpus = Corpus(tuple(Example(text, str(i), f"d{i}", None, spans) for i in range(4)), "c", "0", True)
    seen = []
    options = CompareOptions(passages=0, noise_band=3, further=lambda *at: seen.append(at))
    found = compare(base, tuned, corpus=corpus, salience=("spans",), options=options).tests
    band = found[found["family"] == "noise band"]
    assert len(band) == 6 and set(band["n_seeds"]) == {3} and set(band["level"]) == {0.5} and set(band["n"]) == {4}
    assert (band["low"] <= band["estimate"]).all() and (band["estimate"] <= band["high"]).all()
    below, above = band["layer"].to_numpy() < 2, band["layer"].to_numpy() >= 2
    np.testing.assert_array_equal(band["high"].to_numpy()[below], 0)
    assert (band["high"] > band["low"]).to_numpy()[above].all()
    assert seen[0] == (0, 12) and seen[-1] == (12, 12) and band["p"].isna().all()
