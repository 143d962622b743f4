"""Base against tuned: exact zeros for equal models, signs that turn with them, numbers from dense maps, resuming."""

import copy
import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf

from attnlens.analysis import measure
from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.inference import BESIDE
from attnlens.analysis.prepare import RANDOM, SWAPPED, Reading, choose_salience, plan, prepare, row_selector
from attnlens.analysis.results import open_comparison
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.maps import attention_maps
from attnlens.core.errors import AttnlensError, CheckpointError, CorpusError, IncompatibleCheckpoints
from attnlens.salience import Aids
from attnlens.salience.controls import matched_controls
from attnlens.salience.placebos import random_words, swapped_words
from attnlens.text.align import encode, pieces, words
from attnlens.text.corpus import Corpus, Example, read_corpus
from attnlens.text.embedded import embedded

OPTIONS = CompareOptions(batch_size=7, passages=2)


@pytest.fixture(scope="module")
def comparison(base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    return compare(base, tuned, corpus=corpus, salience=("spans", "textrank"), options=OPTIONS)


def test_a_model_compared_with_itself_is_identical(base: Checkpoint, corpus: Corpus):
    """I-4: every shift exactly 0, every p exactly 1, every interval [0, 0], whatever the test."""
    same = compare(
        base, Checkpoint(copy.deepcopy(base.model), base.tokenizer, "copy", {}), corpus=corpus, options=OPTIONS
    )
    assert same.answer.verdict == "identical"
    shift = same.data.isel(model=1) - same.data.isel(model=0)
    assert all((shift[name].fillna(0) == 0).all() for name in shift)
    assert (same.data["jsd"].isel(model=1) == 0).all()
    tests = same.tests.dropna(subset="estimate")
    assert (tests[["estimate", "low", "high"]] == 0).all(axis=None)
    tests = tests[~tests["family"].isin(("jsd layer", *BESIDE))]  # bands without a test
    assert (tests["effect_size"] == 0).all()
    assert (tests[["p", "p_adjusted"]] == 1).all(axis=None)
    assert (same.weights["relative"] == 0).all()
    assert {rung.status for rung in same.answer.rungs} == {"not applicable"}


def test_swapped_models_negate_every_signed_shift(comparison, base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    """I-5, for shifts, intervals, p and effect sizes; symmetric divergences stay, the others change places."""
    swapped = compare(tuned, base, corpus=corpus, salience=("spans", "textrank"), options=OPTIONS)
    one, other = comparison.data.isel(model=1), swapped.data.isel(model=1)
    np.testing.assert_allclose(one["jsd"], other["jsd"], atol=1e-7)
    np.testing.assert_allclose(one["tv"], other["tv"], atol=1e-7)
    np.testing.assert_array_equal(one["kl_forward"], other["kl_backward"])
    there, back = (each.tests[each.tests["family"] != "jsd layer"] for each in (comparison, swapped))
    np.testing.assert_array_equal(there["estimate"], -back["estimate"])
    np.testing.assert_array_equal(there["p"], back["p"])
    np.testing.assert_array_equal(there["p_adjusted"], back["p_adjusted"])
    np.testing.assert_allclose(there["low"], -back["high"], atol=1e-12)
    np.testing.assert_allclose(there["high"], -back["low"], atol=1e-12)


def test_numbers_equal_dense_maps_reduced_by_hand(comparison, base: Checkpoint, corpus: Corpus):
    """Share, focus, log-odds, entropies of one text, from its eager maps, rows of content tokens, in plain numpy."""
    counts = [pieces(encode(base.tokenizer, e.text, 512), len(words(e.text))) for e in corpus]
    marks = [
        np.array([any(s < span.end and e > span.start for span in x.spans or ()) for s, e in words(x.text)])
        for x in corpus
    ]
    assert comparison.provenance["salience"]["spans"]["control"] == "matched"
    controls = matched_controls(corpus, marks, counts)
    number = next(i for i, control in enumerate(controls) if control.matched.any())
    example, control = corpus.examples[number], controls[number]
    encoded = encode(base.tokenizer, example.text, 512)
    ids = torch.tensor(encoded.ids)[None]
    maps = attention_maps(base.model, {"input_ids": ids}).numpy().astype(np.float64)[0]  # (L, H, Q, K)
    content = ~encoded.special
    inside = maps[..., content] / maps[..., content].sum(-1, keepdims=True)
    inside = inside[:, :, content]  # rows: every token that is not special
    random = random_words(corpus, marks, counts, np.random.default_rng((0, RANDOM)))[number]
    swapped = swapped_words(corpus, marks, counts, np.random.default_rng((0, SWAPPED)))[number]

    def widen(weights: np.ndarray) -> np.ndarray:
        return np.array([weights[word] if word >= 0 else 0.0 for word in encoded.word_of])[content]

    marked, matched, drawn = (widen(w.astype(float)) for w in (marks[number], control.matched, control.weights))
    others = {"share_random": widen(random), "share_swapped": widen(swapped)}
    got = comparison.data.isel(model=0, example=number).sel(salience="spans")
    share = (inside * marked).sum(-1)
    odds = np.log(share / marked.sum()) - np.log((1 - share) / (len(marked) - marked.sum()))
    p = maps[:, :, content]
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    within = -(inside * np.log(np.where(inside > 0, inside, 1))).sum(-1) / np.log(content.sum())
    expected = {
        "share": share.mean(-1),
        "share_matched": (inside * matched).sum(-1).mean(-1),
        "share_control": (inside * drawn).sum(-1).mean(-1),
        "focus": (inside * (matched - drawn)).sum(-1).mean(-1),
        **{name: (inside * weights).sum(-1).mean(-1) for name, weights in others.items()},
        "log_odds": odds.mean(-1),
        "entropy": entropy.mean(-1),
        "entropy_content": within.mean(-1),
        "content_mass": p[..., content].sum(-1).mean(-1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(got[name].values, value, atol=1e-5, err_msg=name)


def test_the_profile_is_the_mean_over_documents_of_the_mean_over_heads(comparison):
    focus = comparison.data["focus"].sel(salience="spans")
    shift = (focus.isel(model=1) - focus.isel(model=0)).mean("head")
    by_hand = shift.groupby("document").mean().mean("document").values
    rows = comparison.tests.query("family == 'profile' and salience == 'spans'")
    np.testing.assert_allclose(rows["estimate"], by_hand, atol=1e-15)
    total = comparison.tests.query("family == 'total' and salience == 'spans'")["estimate"].item()
    assert total == pytest.approx(by_hand.sum(), abs=1e-15)
    assert (rows["p_adjusted"] >= rows["p"]).all()
    assert (rows["n"] == len(shift.groupby("document").mean().dropna("document"))).all()


def test_layers_below_the_change_do_not_move(comparison):
    """Only the last layer's queries were touched: layer 0 is exactly still, by tests and by weights."""
    first = comparison.tests.query("layer == 0 and family != 'jsd layer'")
    assert (first["estimate"] == 0).all() and (first["p"].dropna() == 1).all()
    assert set(first.loc[first["p"].isna(), "family"]) <= set(BESIDE)
    layers = comparison.layers().set_index("layer")["relative"]
    assert layers[0] == 0 and layers[1] > 0
    moved = comparison.weights.query("relative > 0")
    assert moved["matrix"].tolist() == ["encoder.layer.1.attention.self.query.weight"]


def test_a_head_on_top_is_ignored_and_its_rows_are_read(base: Checkpoint, corpus: Corpus):
    """A BertModel base against a BertForSequenceClassification: same backbone, rows of the first token."""
    torch.manual_seed(0)
    tuned = tf.BertForSequenceClassification(base.model.config)
    tuned.bert.load_state_dict(base.model.state_dict(), strict=False)
    got = compare(base, Checkpoint(tuned.eval(), base.tokenizer, "classifier", {}), corpus=corpus, options=OPTIONS)
    assert got.provenance["rows"] == "cls"
    assert (got.data["entropy"].isel(model=0) == got.data["entropy"].isel(model=1)).all()
    assert set(got.weights.query("kind == 'head'")["matrix"]) == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (lambda: tf.BertModel(tf.BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)), "content"),
        (
            lambda: tf.BertForSequenceClassification(
                tf.BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
            ),
            "cls",
        ),
        (lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(n_embd=8, n_head=2, n_layer=1)), "last"),
        (lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=8, n_head=2, n_layer=1)), "content"),
    ],
)
def test_rows_follow_the_head(model, rows: str):
    text = Corpus((Example("a b", "1", "1"),), "x", "", True)
    assert row_selector(Checkpoint(model(), None, "x", {}), text) == rows  # pyright: ignore[reportArgumentType]


def test_several_tuned_models_share_one_base(base: Checkpoint, tuned: Checkpoint, corpus: Corpus, comparison):
    both = compare(base, [tuned, tuned], corpus=corpus, salience=("spans", "textrank"), options=OPTIONS)
    assert both.models == ["base", "tuned", "tuned (2)"]
    for name in ("tuned", "tuned (2)"):
        rows = both.tests[both.tests["model"] == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, comparison.tests.drop(columns="model"))


def test_real_decoders_compare(shared: Path):
    """stories260K against a copy with noise: grouped queries, position 0 is a sink, rows of all content."""
    from attnlens.checkpoints.load import load

    base = load(shared / "models" / "stories260K")
    noisy = copy.deepcopy(base.model)
    with torch.no_grad():
        noisy.model.layers[3].self_attn.q_proj.weight.mul_(1.5)
    corpus = read_corpus(embedded("probe")).sample(30, 0)
    got = compare(
        base, Checkpoint(noisy, base.tokenizer, "noisy", {}), corpus=corpus, salience=("textrank",), options=OPTIONS
    )
    estimates = got.tests.query("family == 'entropy layer'")["estimate"].to_numpy()
    assert (estimates[:3] == 0).all() and estimates[3] != 0
    assert set(got.data["stack"].values) == {"decoder"}


def test_missing_parts_are_measured_again_and_the_rest_is_kept(
    base: Checkpoint, tuned: Checkpoint, corpus: Corpus, comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = CompareOptions(batch_size=7, passages=2, parts=tmp_path / "parts")
    compare(base, tuned, corpus=corpus, salience=("spans", "textrank"), options=options)
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == [f"{i:06d}.npz" for i in range(6)]
    parts[1].unlink()
    parts[4].unlink()
    calls = []
    recorded = measure._recorded
    monkeypatch.setattr(measure, "_recorded", lambda *args: calls.append(args[0].checkpoint.name) or recorded(*args))
    resumed = compare(base, tuned, corpus=corpus, salience=("spans", "textrank"), options=options)
    assert calls == ["base", "tuned"] * 2
    pd.testing.assert_frame_equal(resumed.tests, comparison.tests)
    assert resumed.data.identical(comparison.data)


def test_saved_and_opened_again_it_is_the_same(comparison, tmp_path: Path):
    comparison.save(tmp_path / "cmp")
    comparison.save(tmp_path / "cmp")  # over itself
    opened = open_comparison(tmp_path / "cmp")
    pd.testing.assert_frame_equal(opened.tests, comparison.tests)
    pd.testing.assert_frame_equal(opened.weights, comparison.weights)
    pd.testing.assert_frame_equal(opened.heads, comparison.heads)
    assert opened.data.identical(comparison.data)
    assert opened.answers == comparison.answers
    assert opened.provenance == json.loads(json.dumps(comparison.provenance))
    for one, other in zip(opened.passages, comparison.passages, strict=True):
        np.testing.assert_array_equal(one.received, other.received)
        assert vars(one) | {"received": 0, "maps": 0} == vars(other) | {"received": 0, "maps": 0}
    assert not [path for path in (tmp_path / "cmp").iterdir() if path.name.startswith(".")]
    with pytest.raises(AttnlensError, match="holds no comparison"):
        open_comparison(tmp_path)


def test_a_notebook_shows_the_answer(base: Checkpoint, tuned: Checkpoint, corpus: Corpus, comparison):
    assert repr(comparison) == f"Comparison with base on 40 texts\ntuned: {comparison.answer}"
    page = comparison._repr_html_()
    assert html.escape(comparison.answer.sentence) in page and page.count("<tr") == 6
    assert all(html.escape(rung.detail, quote=False) in page for rung in comparison.answer.rungs), "none is cut"
    named = Checkpoint(tuned.model, tuned.tokenizer, "<img src=x>", {})
    hostile = compare(base, named, corpus=corpus, salience=(), options=OPTIONS)._repr_html_()
    assert "<img" not in hostile and "&lt;img src=x&gt;" in hostile


def test_passages_keep_the_text_and_its_attention(comparison, corpus: Corpus):
    texts = {example.id: example for example in corpus}
    for passage in comparison.passages:
        example = texts[passage.id]
        assert "".join(passage.words) == example.text
        assert passage.received.shape == (2, len(passage.heads), len(passage.words))
        totals = passage.received.sum(-1)
        assert (totals <= 100 + 1e-6).all() and (totals > 50).all()  # the rest went to punctuation
        marked = "".join(word for word, mark in zip(passage.words, passage.marked, strict=True) if mark)
        assert all(example.text[span.start : span.end].split()[0] in marked for span in example.spans or ())


def test_rounding_to_the_narrower_dtype_is_measured(base: Checkpoint, corpus: Corpus):
    """A bfloat16 copy shows the floor: its own shifts are those of the rounded base."""
    rounded = copy.deepcopy(base.model).to(torch.bfloat16)
    got = compare(base, Checkpoint(rounded, base.tokenizer, "bf16", {}), corpus=corpus, options=OPTIONS)
    floor = got.provenance["rounding"]
    assert floor["model"] == "rounding to bfloat16"
    assert 0 < floor["entropy"] < 0.1
    assert got.models == ["base", "bf16"]


def test_default_salience_follows_the_data(corpus: Corpus):
    assert choose_salience(corpus, Aids()) == ("spans",)
    whole = read_corpus(embedded("contracts_eval"))
    bare = Corpus(tuple(Example(e.text, e.id, e.document, e.label) for e in whole), "x", "", True)
    assert choose_salience(bare, Aids()) == ("keyness",)
    few = bare.sample(10, 0)  # too few documents for any word to be a keyword
    assert choose_salience(few, Aids()) == ("textrank",)
    assert choose_salience(few, Aids(bare)) == ("keyness",)
    unlabelled = [Example(e.text, e.id, e.document) for e in corpus]
    assert choose_salience(Corpus(tuple(unlabelled), "x", "", True), Aids()) == ("textrank",)


def test_long_spans_give_way_to_the_key_words_inside_them(shared: Path):
    corpus = read_corpus(shared / "data" / "cuad" / "test.jsonl").sample(60, 0)
    assert choose_salience(corpus, Aids()) == ("spans_keyness", "spans")


def test_the_probe_asks_no_focus_question(base: Checkpoint, tuned: Checkpoint):
    probe = read_corpus(embedded("probe")).sample(30, 0)
    got = compare(base, tuned, corpus=probe, options=CompareOptions(probe=True, passages=0))
    assert got.answer.verdict == "not asked"
    assert got.answer.sentence.startswith("Measured on 30 general English sentences written for this tool")
    assert set(got.tests["family"]) == {"entropy layer", "entropy head", "jsd layer"}
    assert "focus" not in got.data


def test_warnings_say_what_page_one_must_say(base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    alone = Corpus(tuple(Example(e.text, e.id, e.id, e.label, e.spans) for e in corpus)[:6], "x", "", False)
    got = compare(base, tuned, corpus=alone, options=CompareOptions(max_length=20, passages=0))
    said = " ".join(got.provenance["warnings"])
    assert "no `document` column" in said
    assert "Only 6 documents" in said
    assert "6 of 6 texts were cut at 20 tokens" in said
    assert "lie beyond the cut" in said


def test_batches_hold_every_text_once(base: Checkpoint, corpus: Corpus):
    prepared = prepare(corpus, [base], Reading("content", max_length=64))
    for most in (np.inf, 300, 1):
        batches = plan(prepared, 7, most)
        assert sorted(np.concatenate(batches).tolist()) == list(range(40))
        for batch in batches:
            longest = max(len(prepared.encodings[i].ids) for i in batch)
            assert len(batch) == 1 or len(batch) * longest <= most


def other_shape(base: Checkpoint) -> Checkpoint:
    config = copy.deepcopy(base.model.config)
    config.num_hidden_layers = 3
    return Checkpoint(tf.BertModel(config).eval(), base.tokenizer, "deeper", {})


def other_tokens(base: Checkpoint) -> Checkpoint:
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_tokens(["shal", "wil", "mus"])
    return Checkpoint(base.model, tokenizer, "retokenised", {})


def not_finite(base: Checkpoint) -> Checkpoint:
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight[0, 0] = torch.nan
    return Checkpoint(model, base.tokenizer, "broken", {})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (other_shape, IncompatibleCheckpoints, "num_hidden_layers is 2 in base and 3 in deeper"),
        (other_tokens, IncompatibleCheckpoints, "must give the same token ids"),
        (not_finite, CheckpointError, "broken gives NaN attention"),
    ],
)
def test_models_that_cannot_be_compared(make, error, message: str, base: Checkpoint, corpus: Corpus):
    with pytest.raises(error, match=message):
        compare(base, make(base), corpus=corpus, options=OPTIONS)


def test_paths_are_loaded(base: Checkpoint, corpus: Corpus, tmp_path: Path):
    for name in ("one", "two"):
        base.model.save_pretrained(tmp_path / name)
        base.tokenizer.save_pretrained(tmp_path / name)
    got = compare(tmp_path / "one", str(tmp_path / "two"), corpus=corpus, options=OPTIONS)
    assert got.models == ["one", "two"] and got.answer.verdict == "identical"


def test_texts_that_do_not_fit(base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    unmarked = Corpus(tuple(Example(e.text, e.id, e.document, e.label, ()) for e in corpus), "bare", "", True)
    with pytest.raises(CorpusError, match="no text has a salient word by 'spans' within 512 tokens"):
        compare(base, tuned, corpus=unmarked, salience=("spans",), options=OPTIONS)
    foreign = Corpus(
        tuple(Example("\u2603 \u2602 \u2600 \u2604", str(i), str(i)) for i in range(12)), "signs", "", True
    )
    with pytest.raises(CorpusError, match="unknown to the tokenizer"):
        compare(base, tuned, corpus=foreign, salience=(), options=OPTIONS)
    with pytest.raises(IncompatibleCheckpoints, match="at least one tuned"):
        compare(base, [], corpus=corpus)


def test_parts_of_another_model_are_not_taken(base: Checkpoint, tuned: Checkpoint, corpus: Corpus, tmp_path: Path):
    """The same folder of part files asked about another model measures again."""
    options = CompareOptions(batch_size=7, passages=0, parts=tmp_path)
    other = copy.deepcopy(base.model)
    with torch.no_grad():
        other.encoder.layer[0].attention.self.query.weight.mul_(1.5)
    second = Checkpoint(other, base.tokenizer, "tuned", {})
    compare(base, tuned, corpus=corpus, options=options)
    mixed = compare(base, second, corpus=corpus, options=options)
    fresh = compare(base, second, corpus=corpus, options=CompareOptions(batch_size=7, passages=0))
    pd.testing.assert_frame_equal(mixed.tests, fresh.tests)


def test_the_same_weights_in_two_dtypes_are_identical(base: Checkpoint, corpus: Corpus):
    """bfloat16 weights stored as float32 are the same numbers; only a real rounding shows as a change."""
    low = copy.deepcopy(base.model).to(torch.bfloat16)
    high = copy.deepcopy(low).to(torch.float32)
    got = compare(
        Checkpoint(low, base.tokenizer, "low", {}),
        Checkpoint(high, base.tokenizer, "high", {}),
        corpus=corpus,
        options=OPTIONS,
    )
    assert got.answer.verdict == "identical"


def test_a_text_without_content_is_counted_out(base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    odd = Corpus((*corpus.examples, Example("[SEP] [CLS]", "odd", "odd", "Insurance", ())), "odd", "", True)
    got = compare(base, tuned, corpus=odd, salience=(), options=OPTIONS)
    assert got.data["entropy"].isel(example=-1).isnull().all()
    assert (got.tests.query("family == 'entropy layer'")["n"] == 20).all()


def test_saving_never_replaces_what_is_not_ours(comparison, tmp_path: Path):
    (tmp_path / "weights.csv").write_text("mine")
    with pytest.raises(AttnlensError, match=r"holds a weights.csv that is no part of a comparison"):
        comparison.save(tmp_path)
    assert (tmp_path / "weights.csv").read_text() == "mine"
