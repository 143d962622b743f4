"""What is told of the marked words and their control, and salience that covers nothing, everything, one document."""

import numpy as np
import pytest
import torch

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.prepare import (
    CONTROL,
    MARKED,
    MATCHED,
    PER_DEFINITION,
    RANDOM,
    SWAPPED,
    Prepared,
    Reading,
    prepare,
    salience_warnings,
)
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.maps import attention_maps
from attnlens.core.errors import AttnlensError, CorpusError
from attnlens.salience import Aids
from attnlens.text.align import encode
from attnlens.text.corpus import Corpus, Example

RARE = "alpha bravo delta gamma kilo lima oscar tango victor whiskey".split()
COMMON = "fee term notice party year contract service payment product company agreement".split()


def made(documents: int = 4) -> Corpus:
    """Four texts of ten rare words, nine twice as frequent and two six times: frequency alone does not tell them."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(RARE + 2 * COMMON[:-2] + 6 * COMMON[-2:])) for _ in range(4)]
    return Corpus(
        tuple(Example(text, str(i), str(i % documents), "x") for i, text in enumerate(texts)), "made", "", True
    )


def prepared(base: Checkpoint, corpus: Corpus, *terms: str, length: int = 512) -> Prepared:
    return prepare(corpus, [base], Reading("content", ("lexicon",), Aids(lexicon=terms), length))


def test_too_few_matches_and_a_regression_takes_over(base: Checkpoint):
    """Rare words have no ordinary word as rare beside them."""
    got = prepared(base, made(), *RARE)
    facts = got.facts["lexicon"]
    assert facts["match_rate"] < 0.5 and facts["control"] == "regression" and facts["texts_without_control"] == 0
    assert facts["token_share"] == pytest.approx(
        np.concatenate([columns[:, 1 + MARKED] for columns in got.columns]).sum()
        / sum(int((encoded.word_of >= 0).sum()) for encoded in got.encodings)
    )
    for columns in got.columns:
        assert columns.shape[1] == 1 + PER_DEFINITION
        matched, control = columns[:, 1 + MATCHED], columns[:, 1 + CONTROL]
        assert matched.sum() == pytest.approx(control.sum(), rel=1e-5) and control.sum() > 0
        assert not (matched * control).any() and len(np.unique(matched)) > 2
    [warning] = salience_warnings(got)
    assert warning.startswith(f"Only {facts['match_rate']:.0%} of the words marked by lexicon have a matched")
    assert "what a regression on position, pieces and frequency leaves to them" in warning


def test_enough_matches_and_the_words_stay(base: Checkpoint):
    got = prepared(base, made(), "fee", "term")
    assert got.facts["lexicon"]["match_rate"] > 0.5 and got.facts["lexicon"]["control"] == "matched"
    assert all(set(np.unique(columns[:, 1 + MATCHED])) <= {0, 1} for columns in got.columns)
    assert salience_warnings(got) == []


def test_texts_too_short_for_the_regression_have_no_control(base: Checkpoint):
    short = Example(" ".join(COMMON + RARE[:1]), "short", "short", "x")
    got = prepared(base, Corpus((*made().examples, short), "made", "", True), *RARE)
    assert got.facts["lexicon"]["texts_without_control"] == 1
    assert not got.columns[-1][:, [1 + MATCHED, 1 + CONTROL]].any() and got.columns[-1][:, 1 + MARKED].any()
    assert "1 of 5 texts have words marked by lexicon but no control for them: no net change there." in " ".join(
        salience_warnings(got)
    )


def test_a_regression_s_net_share_is_its_coefficient(base: Checkpoint, tuned: Checkpoint):
    """Through the models: focus is n times the coefficient of salience in least squares on the words' mean share."""
    corpus = made()
    options = CompareOptions(passages=0, lexicon=tuple(RARE))
    got = compare(base, tuned, corpus=corpus, salience=("lexicon",), options=options)
    example = corpus.examples[0]
    encoded = encode(base.tokenizer, example.text, 512)
    maps = attention_maps(base.model, {"input_ids": torch.tensor(encoded.ids)[None]}).numpy().astype(np.float64)[0]
    inside = maps[..., ~encoded.special][:, :, ~encoded.special]
    of_tokens = (inside / inside.sum(-1, keepdims=True)).mean(2)  # (L, H, K)
    words, sizes = np.unique(encoded.word_of[~encoded.special], return_counts=True)
    shares = np.stack([of_tokens[..., encoded.word_of[~encoded.special] == word].sum(-1) for word in words])
    text = example.text.split()
    along = words / words[-1]
    curves = [np.maximum(along - knot, 0) ** 3 for knot in np.quantile(along, [0.25, 0.5, 0.75])]
    frequency = np.log([sum(each.text.split().count(word) for each in corpus) for word in text])
    salient = np.array([word in RARE for word in text])
    design = np.stack([along**0, along, along**2, along**3, *curves, sizes, frequency, salient], -1)
    coefficients = np.linalg.lstsq(design, shares.reshape(len(words), -1), rcond=None)[0][-1]
    focus = got.data["focus"].isel(model=0, example=0, salience=0)
    np.testing.assert_allclose(focus, 10 * coefficients.reshape(focus.shape), atol=1e-5)
    assert got.data["focus"].notnull().all()
    assert got.provenance["salience"]["lexicon"]["control"] == "regression"
    assert got.provenance["aids"] == {"background": None, "lexicon": RARE, "encoder": None}
    assert any("what a regression" in warning for warning in got.provenance["warnings"])


def test_salience_that_covers_nothing_is_an_error(base: Checkpoint):
    with pytest.raises(CorpusError, match=r"no text has a salient word by 'lexicon' within 512 tokens"):
        prepared(base, made(), "unheard")


def test_salience_that_covers_everything_has_a_share_and_no_net_change(base: Checkpoint, tuned: Checkpoint):
    options = CompareOptions(passages=0, lexicon=tuple(COMMON + RARE))
    got = compare(base, tuned, corpus=made(), salience=("lexicon",), options=options)
    np.testing.assert_allclose(got.data["share"], 1, rtol=1e-5)
    for name in ("focus", "share_matched", "share_control", "log_odds"):
        assert got.data[name].isnull().all(), name
    facts = got.provenance["salience"]["lexicon"]
    assert facts["match_rate"] == 0 and facts["texts_without_control"] == 4 and facts["token_share"] == 1
    assert got.answer.verdict == "unclear" and "nan" not in str(got.answer)
    assert any("no control for them" in warning for warning in got.provenance["warnings"])


def test_one_document_has_no_swapped_salience(base: Checkpoint, tuned: Checkpoint):
    options = CompareOptions(passages=0, lexicon=("fee", "term"))
    got = compare(base, tuned, corpus=made(documents=1), salience=("lexicon",), options=options)
    assert got.data["share_swapped"].isnull().all() and got.data["share_random"].notnull().all()
    several = compare(base, tuned, corpus=made(), salience=("lexicon",), options=options)
    assert several.data["share_swapped"].notnull().all()
    alone = prepared(base, made(documents=1), "fee")
    assert not any(each[:, 1 + SWAPPED].any() for each in alone.columns)
    for each, encoded in zip(alone.columns, alone.encodings, strict=True):
        _, first = np.unique(encoded.word_of, return_index=True)  # one token of each word, and a special one
        assert each[first, 1 + RANDOM].sum() == pytest.approx(each[first, 1 + MARKED].sum(), rel=1e-6)


def test_attribution_from_a_model_under_test_is_told(base: Checkpoint):
    import copy

    import transformers as tf

    config = copy.deepcopy(base.model.config)
    config.id2label, config.label2id = {0: "x", 1: "y"}, {"x": 0, "y": 1}
    judge = Checkpoint(tf.BertForSequenceClassification(config).eval(), base.tokenizer, "judge", {})
    options = CompareOptions(passages=0, encoder=judge)
    got = compare(base, judge, corpus=made(), salience=("input_x_gradient",), options=options)
    assert got.provenance["salience"]["input_x_gradient"]["circular"] is True
    assert any("come from a model under test" in warning for warning in got.provenance["warnings"])
    with pytest.raises(AttnlensError, match="judge is one of those under test"):
        compare(base, judge, corpus=made(), salience=("leave_one_out",), options=options)


@pytest.mark.parametrize("aid", ["lexicon", "encoder"])
def test_an_aid_that_nothing_reads_is_a_fault(base: Checkpoint, tuned: Checkpoint, aid: str):
    options = CompareOptions(passages=0, **{aid: ("fee",) if aid == "lexicon" else base})
    with pytest.raises(AttnlensError, match=rf"--{aid} was given, but no salience that reads it: add --salience"):
        compare(base, tuned, corpus=made(), salience=("textrank",), options=options)
