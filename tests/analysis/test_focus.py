"""What a comparison holds of marked words: numbers from dense maps in plain numpy, and splits that must be exact."""

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.results import Comparison
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.maps import attention_maps
from attnlens.core.resampling import document_means
from attnlens.show.word_tables import refocusing_table
from attnlens.text.align import encode, words
from attnlens.text.corpus import Corpus, Example

OPTIONS = CompareOptions(batch_size=7, passages=0)


@pytest.fixture(scope="module")
def whole(base: Checkpoint, tuned: Checkpoint, corpus: Corpus) -> Comparison:
    return compare(base, tuned, corpus=corpus, salience=("spans", "textrank"), options=OPTIONS)


def dense(checkpoint: Checkpoint, text: str) -> np.ndarray:
    """(L, H, Q, K) in float64."""
    ids = torch.tensor(encode(checkpoint.tokenizer, text, 512).ids)[None]
    return attention_maps(checkpoint.backbone, {"input_ids": ids}).numpy().astype(np.float64)[0]


def lengths(checkpoint: Checkpoint, text: str) -> np.ndarray:
    """‖W_O v_j‖ (L, H, K) from the hidden states and the weights of a BertModel."""
    model, found = checkpoint.model, []
    ids = torch.tensor(encode(checkpoint.tokenizer, text, 512).ids)[None]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        for layer, state in zip(model.encoder.layer, states, strict=False):
            value = layer.attention.self.value(state)[0].double()
            heads = model.config.num_attention_heads
            slices = layer.attention.output.dense.weight.T.double().unflatten(0, (heads, -1))
            found.append((value.unflatten(-1, (heads, -1)).transpose(0, 1) @ slices).norm(dim=-1).numpy())
    return np.stack(found)


def marks(checkpoint: Checkpoint, example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Content and marked tokens (T,) bool, by spans."""
    encoded = encode(checkpoint.tokenizer, example.text, 512)
    inside = [any(s < x.end and e > x.start for x in example.spans or ()) for s, e in words(example.text)]
    marked = np.array([word >= 0 and inside[word] for word in encoded.word_of])
    return ~encoded.special, marked


@pytest.mark.parametrize("number", [0, 11])
def test_numbers_equal_dense_maps_reduced_by_hand(whole: Comparison, base: Checkpoint, corpus: Corpus, number: int):
    example = corpus.examples[number]
    content, marked = marks(base, example)
    maps, norms = dense(base, example.text), lengths(base, example.text)
    p = maps[:, :, content]  # rows: every token that is not special

    def entr(x: np.ndarray) -> np.ndarray:
        return -x * np.log(np.where(x > 0, x, 1))

    masses = [p[..., part].sum(-1) for part in (marked, content & ~marked, ~content)]
    carried = p * norms[:, :, None]
    entropy = entr(p).sum(-1)
    expected = {
        "lift": (p[..., marked].mean(-1) / p.mean(-1)).mean(-1),
        "entropy_between": sum(entr(mass) for mass in masses).mean(-1),
        "share_value": (carried[..., marked].sum(-1) / carried[..., content].sum(-1)).mean(-1),
        "effective_keys": np.exp(entropy).mean(-1),
        "entropy_normalized": (entropy / np.log(len(content))).mean(-1),
        "sink_census": (p.mean(-2)[..., ~content].max(-1) > 0.3).astype(float),
    }
    got = whole.data.isel(model=0, example=number).sel(salience="spans")
    for name, value in expected.items():
        np.testing.assert_allclose(got[name].values, value, atol=2e-5, rtol=2e-5, err_msg=name)
    received, labels = p.sum(-2)[..., content], marked[content]
    for layer, head in np.ndindex(received.shape[:2]):
        scores = received[layer, head]
        found = [got[f"received_{name}"].values[layer, head] for name in ("auroc", "ap", "precision")]
        assert found[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert found[1] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        assert found[2] == pytest.approx(labels[np.argsort(-scores)[: labels.sum()]].mean(), abs=1e-12)


def test_refocusing_and_sink_release_sum_to_the_change_of_mass(whole: Comparison):
    """METRICS 3.2 on the level of texts, heads and documents, and in the table that is shown: to 1e-12."""
    for salience in whole.salience:
        data = whole.data.sel(salience=salience).transpose("model", "example", "layer", "head", ...)
        content, mass = data["content_mass"].values, data["mass"].where(data["share"].notnull()).values
        share = mass / content
        refocusing = content.mean(0) * (share[1] - share[0])
        release = share.mean(0) * (content[1] - content[0])
        np.testing.assert_allclose(refocusing + release, mass[1] - mass[0], atol=1e-12, rtol=0)
        if salience == whole.salience[0]:
            table = refocusing_table(whole)
            change = 100 * np.nanmean(document_means(mass[1] - mass[0], data["document"].values), 0)
            both = (table["refocusing"] + table["sink_release"]).to_numpy()
            np.testing.assert_allclose(both, change.ravel(), atol=1e-12, rtol=0)


def test_entropy_is_between_and_within_in_every_text(whole: Comparison, base: Checkpoint, corpus: Corpus):
    """H = H(m_K, m_S, m_O) + Σ m·H within, as means over the rows of a text."""
    content, marked = marks(base, corpus.examples[3])
    p = dense(base, corpus.examples[3].text)[:, :, content]
    within = np.zeros(p.shape[:3])
    for part in (marked, content & ~marked, ~content):
        mass = p[..., part].sum(-1, keepdims=True)
        q = p[..., part] / mass
        within -= mass[..., 0] * (q * np.log(q)).sum(-1)
    got = whole.data.isel(model=0, example=3).sel(salience="spans")
    np.testing.assert_allclose(got["entropy"] - got["entropy_between"], within.mean(-1), atol=1e-5)


def test_texts_without_a_marked_word_have_no_data_about_it(base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    bare = Example(corpus.examples[0].text, "bare", "bare", corpus.examples[0].label, ())
    got = compare(
        base, tuned, corpus=Corpus((*corpus.examples[:3], bare), "x", "", True), salience=("spans",), options=OPTIONS
    ).data.isel(example=3)
    names = ("lift", "entropy_between", "share_value", "received_auroc", "received_ap", "received_precision")
    for name in names:
        assert got[name].isnull().all(), name
    for name in ("effective_keys", "entropy_normalized", "sink_census"):
        assert got[name].notnull().all(), name


def test_entropy_of_content_does_not_need_a_focus_question(
    whole: Comparison, base: Checkpoint, tuned: Checkpoint, corpus: Corpus
):
    """What else is asked for must not change a number."""
    alone = compare(base, tuned, corpus=corpus, salience=(), options=OPTIONS).data
    for name in ("entropy", "entropy_content", "entropy_normalized", "effective_keys", "content_mass", "sink_census"):
        np.testing.assert_allclose(alone[name], whole.data[name], atol=1e-6, rtol=1e-6, err_msg=name)
    assert "lift" not in alone and "received_auroc" not in alone


def test_uniform_heads_are_without_order_or_preference(base: Checkpoint, corpus: Corpus):
    """I-1 through a model: AUROC ½, lift 1, λ 0; P@k the base rate."""
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.self.query.weight.zero_()
            layer.attention.self.query.bias.zero_()
    flat = Checkpoint(model, base.tokenizer, "flat", {})
    got = compare(flat, copy.deepcopy(flat), corpus=corpus, salience=("spans",), options=OPTIONS).data.isel(model=0)
    assert (got["received_auroc"] == 0.5).all()
    np.testing.assert_allclose(got["lift"], 1, rtol=1e-5)
    assert (got["sink_census"] == 0).all()
    rates = [marks(base, example) for example in corpus]
    expected = np.array([marked.sum() / content.sum() for content, marked in rates])
    precision = got["received_precision"].squeeze("salience").transpose("example", ...)
    np.testing.assert_allclose(precision, np.broadcast_to(expected[:, None, None], precision.shape), atol=1e-12)


class Wrapped(nn.Module):
    """A projection under a name of its own."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states)


def test_an_unknown_output_projection_is_said(base: Checkpoint, corpus: Corpus):
    model = copy.deepcopy(base.model)
    model.encoder.layer[1].attention.output.dense = Wrapped(model.encoder.layer[1].attention.output.dense)
    odd = Checkpoint(model, base.tokenizer, "odd", {})
    few = Corpus(corpus.examples[:6], "few", "", True)
    said = "share_value has no data in some layers of {}: the output projection of encoder.layer.1.attention.self"
    got = compare(base, odd, corpus=few, salience=("spans",), options=OPTIONS)
    values = got.data["share_value"]
    assert values.isel(model=0).notnull().any("example").all()
    assert values.isel(model=1, layer=1).isnull().all() and values.isel(model=1, layer=0).notnull().any()
    assert f"{said.format('odd')} is not known." in got.provenance["warnings"]
    both = compare(odd, copy.deepcopy(odd), corpus=few, salience=("spans",), options=OPTIONS)
    assert f"{said.format(', '.join(both.models))} is not known." in both.provenance["warnings"]
