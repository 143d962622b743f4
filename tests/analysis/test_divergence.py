"""Divergence and received attention in a comparison: numbers from dense maps, completions, memory, encoders."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.prepare import Reading, assemble, prepare, row_selector
from attnlens.checkpoints.load import Checkpoint, load
from attnlens.checkpoints.maps import attention_maps
from attnlens.core.errors import CorpusError, UnknownName
from attnlens.text.align import encode
from attnlens.text.corpus import Corpus, Example, Span

OPTIONS = CompareOptions(batch_size=7, passages=0)


def dense(checkpoint: Checkpoint, text: str) -> np.ndarray:
    """(L, H, Q, K) in float64."""
    ids = torch.tensor(encode(checkpoint.tokenizer, text, 512).ids)[None]
    return attention_maps(checkpoint.backbone, {"input_ids": ids}).numpy().astype(np.float64)[0]


def test_divergences_equal_dense_maps_reduced_by_hand(base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    got = compare(base, tuned, corpus=corpus, salience=(), options=OPTIONS).data
    for number in (0, 3):
        text = corpus.examples[number].text
        content = ~encode(base.tokenizer, text, 512).special
        p, q = (dense(model, text)[:, :, content] for model in (base, tuned))
        middle = (p + q) / 2
        forward, backward = ((a * np.log(a / b)).sum(-1).mean(-1) for a, b in ((p, q), (q, p)))
        jsd = ((p * np.log(p / middle)).sum(-1) + (q * np.log(q / middle)).sum(-1)) / 2
        expected = {
            "jsd": jsd.mean(-1),
            "kl_forward": forward,
            "kl_backward": backward,
            "tv": np.abs(p - q).sum(-1).mean(-1) / 2,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(got[name].isel(model=1, example=number), value, atol=2e-6, err_msg=name)
            assert got[name].isel(model=0).isnull().all()  # the base is not held against itself


def test_divergence_by_layer_has_a_band_and_no_test(base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    got = compare(base, tuned, corpus=corpus, salience=(), options=OPTIONS)
    rows = got.tests.query("family == 'jsd layer'")
    by_hand = got.data["jsd"].isel(model=1).mean("head").groupby("document").mean().mean("document")
    np.testing.assert_allclose(rows["estimate"], by_hand, atol=1e-15)
    assert rows["estimate"].tolist()[0] == 0 < rows["estimate"].tolist()[1]
    assert (rows["low"] >= 0).all() and rows[["p", "p_adjusted"]].isna().all(axis=None)


def test_divergence_between_seeds_is_that_of_the_runs_held_against_each_other(
    base: Checkpoint, tuned: Checkpoint, corpus: Corpus
):
    """The null of JSD: not base, but another seed of the same training; here two copies with noise of their own."""
    seeds = []
    for number in (5, 6):
        model = copy.deepcopy(base.model)
        weight = model.encoder.layer[1].attention.self.query.weight
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.15)
        seeds.append(replace(tuned, model=model, name=f"seed {number}"))
    got = compare(base, tuned, corpus=corpus, salience=(), options=replace(OPTIONS, seeds=tuple(seeds)))
    assert got.models == ["base", "tuned"] and got.data["jsd_seeds"].isel(model=0).isnull().all()
    pairs = [compare(tuned, seed, corpus=corpus, salience=(), options=OPTIONS).data["jsd"][1] for seed in seeds]
    np.testing.assert_allclose(got.data["jsd_seeds"][1], (pairs[0] + pairs[1]) / 2, atol=1e-7)
    rows = got.tests.query("family == 'jsd seeds'")
    assert (rows["n_seeds"] == 3).all() and rows[["p", "p_adjusted"]].isna().all(axis=None)
    by_hand = got.data["jsd_seeds"][1].mean("head").groupby("document").mean().mean("document")
    np.testing.assert_allclose(rows["estimate"], by_hand, atol=1e-15)
    assert rows["estimate"].tolist()[0] == 0 < rows["estimate"].tolist()[1]


def test_received_attention_of_marked_words(base: Checkpoint, tuned: Checkpoint):
    """Times uniform: column sums over content rows against what uniform rows would give, mean over marked tokens."""
    text = "The Licensee shall keep the trade secrets in strict confidence during the whole term."
    spans = (Span(text.index("trade"), text.index("trade") + 13, "x"),)
    corpus = Corpus((Example(text, "a", "a", "x", spans),), "one", "", True)
    got = compare(base, tuned, corpus=corpus, salience=("spans",), options=OPTIONS).data
    encoded = encode(base.tokenizer, text, 512)
    content = ~encoded.special
    marked = np.isin(encoded.word_of, [5, 6])  # trade, secrets
    for number, model in enumerate((base, tuned)):
        maps = dense(model, text)[:, :, content]
        received = maps.sum(2) / (content.sum() / len(content))
        value = got["received"].isel(model=number, example=0).sel(salience="spans")
        np.testing.assert_allclose(value, received[..., marked].mean(-1), rtol=1e-5)


def test_smaller_batches_give_the_same_numbers(base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    """The batch halves until what is kept of the base fits: I-9, batch composition changes nothing but CKA, which holds
    the tokens of one batch against each other.
    """
    wide = compare(base, tuned, corpus=corpus, options=OPTIONS)
    tight = compare(base, tuned, corpus=corpus, options=replace(OPTIONS, memory=1e-5))
    np.testing.assert_allclose(wide.data["cka"], tight.data["cka"], atol=0.1)
    for name in set(wide.data) - {"cka", "cka_tokens"}:
        np.testing.assert_allclose(wide.data[name], tight.data[name], atol=1e-5, err_msg=str(name))


def test_rows_of_a_completion_look_at_words_of_the_prompt(shared: Path):
    model = load(shared / "models" / "stories260K")
    prompt, completion = "The small dog saw a red ball. ", "It was happy with the ball."
    example = Example(
        prompt + completion, "a", "a", spans=(Span(20, 28, "x"), Span(52, 56, "x")), completion=len(prompt)
    )
    corpus = Corpus((example,), "one", "", True)
    assert row_selector(model, corpus) == "completion"
    prepared = prepare(corpus, [model], Reading("completion", ("spans",)))
    assert prepared.facts["spans"]["salient_words_cut"] == 0  # the second span lies in the completion
    batch = assemble(prepared, np.array([0]), model)
    late = torch.from_numpy(prepared.encodings[0].offsets[:, 1] > len(prompt))
    assert (batch.columns[0, late] == 0).all()
    assert torch.equal(batch.rows[0] > 0, late)
    with pytest.raises(CorpusError, match="row 'b' has no completion"):
        other = Corpus((*corpus.examples, Example("No end", "b", "b")), "two", "", True)
        prepare(other, [model], Reading("completion"))
    with pytest.raises(UnknownName, match="did you mean 'completion'"):
        Reading("completions")


def test_an_encoder_decoder_is_compared_by_its_encoder(base: Checkpoint, corpus: Corpus):
    config = tf.T5Config(
        vocab_size=len(base.tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, num_decoder_layers=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.T5ForConditionalGeneration(config).eval()
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.encoder.block[1].layer[0].SelfAttention.q.weight.mul_(1.5)
    first, second = (Checkpoint(each, base.tokenizer, name, {}) for each, name in ((model, "t5"), (tuned, "tuned")))
    got = compare(first, second, corpus=corpus, salience=(), options=OPTIONS)
    assert set(got.data["stack"].values) == {"encoder"} and got.data.sizes["layer"] == 2
    jsd = got.data["jsd"].isel(model=1).mean(["example", "head"]).values
    assert jsd[0] == 0 < jsd[1]
    assert "the encoder's attention alone" in got.provenance["warnings"][0]
