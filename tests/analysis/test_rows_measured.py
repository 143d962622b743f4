"""Which rows are data: those that can see the words they are asked about, in windows too; none is said in words."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.prepare import row_selector
from attnlens.checkpoints.load import Checkpoint, load
from attnlens.checkpoints.record import record
from attnlens.core.errors import CorpusError
from attnlens.text.align import encode, pieces, words
from attnlens.text.corpus import Corpus, Example, Span

TEXT = "The small dog ran away and then the old cat sat on a big red mat all day and slept for a while."
OPTIONS = CompareOptions(passages=2)


def corpus(spot: str = "red") -> Corpus:
    start = TEXT.index(spot)
    return Corpus((Example(TEXT, "a", "a", "x", (Span(start, start + len(spot), "x"),)),), "one", "", True)


def uniform(tokenizer, window: int | None) -> Checkpoint:
    """A decoder of one layer whose rows are uniform over what they see."""
    config = tf.MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=window,
    )
    model = tf.MistralForCausalLM(config).eval()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()
    return Checkpoint(model, tokenizer, "uniform", {})


@pytest.mark.parametrize("window", [None, 6])
def test_rows_that_cannot_see_a_marked_word_are_no_data(shared: Path, window: int | None):
    """Uniform rows: the share is the number of marked over that of content tokens in sight, over the rows that see one.

    Without this the share of a word falls with how late it stands, and in a window with how long the text is.
    """
    tokenizer = load(shared / "models" / "stories260K").tokenizer
    base = uniform(tokenizer, window)
    got = compare(base, copy.deepcopy(base), corpus=corpus(), salience=("spans",), options=OPTIONS)
    encoded = encode(tokenizer, TEXT, 512)
    length = len(encoded.ids)
    content = ~encoded.special & (np.arange(length) > 0)
    word = next(i for i, (start, _) in enumerate(words(TEXT)) if TEXT[start:].startswith("red"))
    shares = []
    for row in np.flatnonzero(~encoded.special):
        seen = np.arange(length) <= row
        if window is not None:
            seen &= np.arange(length) > row - window
        marked = (encoded.word_of == word) & seen
        if marked.any():
            shares.append(marked.sum() / (content & seen).sum())
    assert 0 < len(shares) < content.sum()
    np.testing.assert_allclose(got.data["share"].isel(model=0), np.mean(shares), rtol=1e-5)
    matched, control = got.data["share_matched"], got.data["share_control"]
    assert (matched.isnull() == control.isnull()).all()
    assert not np.isnan(got.passages[0].received).any()


def test_a_word_that_no_row_can_see_is_no_data(shared: Path):
    """Only the last token looks, through a window of two: the marked word is out of its sight in every text."""
    tokenizer = load(shared / "models" / "stories260K").tokenizer
    base = uniform(tokenizer, 2)
    options = CompareOptions(rows="last", passages=0)
    got = compare(base, copy.deepcopy(base), corpus=corpus(), salience=("spans",), options=options)
    assert got.data["share"].isnull().all() and got.data["received"].isnull().all()
    assert got.data["entropy"].notnull().all()
    assert got.answer.verdict == "identical"
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.model.model.layers[0].self_attn.q_proj.weight.add_(1.0)
    got = compare(base, other, corpus=corpus(), salience=("spans",), options=options)
    assert got.answer.sentence.startswith(
        "Unclear: there is no focus answer. No measured row sees a marked word that has"
    )
    assert "nan" not in str(got.answer)


def test_completions_beyond_the_cut_are_an_error_or_counted(shared: Path):
    model = load(shared / "models" / "stories260K")
    late = Example(TEXT + " It was good.", "late", "late", completion=len(TEXT))
    early = Example("A dog ran away. It was good.", "early", "early", completion=15)
    other = copy.deepcopy(model)
    short = CompareOptions(max_length=24, passages=0)
    tokens = pieces(encode(model.tokenizer, TEXT, 512), len(words(TEXT))).sum()
    assert tokens > 24
    with pytest.raises(CorpusError, match=r"no text has a row to measure \(the tokens of the completion"):
        compare(model, other, corpus=Corpus((late,), "x", "", True), salience=(), options=short)
    got = compare(model, other, corpus=Corpus((late, early), "x", "", True), salience=(), options=short)
    assert "1 of 2 texts have no row to measure within 24 tokens." in got.provenance["warnings"]
    assert got.data["entropy"].isnull().all(["layer", "head"]).values.tolist() == [[True, False]] * 2


def test_tuned_models_that_read_other_rows_are_named(base: Checkpoint, tuned: Checkpoint):
    classifier = Checkpoint(tf.BertForSequenceClassification(base.model.config).eval(), base.tokenizer, "judge", {})
    text = Corpus((Example("The fee is due.", "1", "1"), Example("It ends in May.", "2", "2")), "x", "", True)
    got = compare(base, [classifier, tuned], corpus=text, salience=(), options=CompareOptions(passages=0))
    assert got.provenance["rows"] == "cls"
    assert "as in judge; tuned would read others" in got.provenance["warnings"][0]


def test_an_encoder_decoder_classifier_reads_the_decoder(base: Checkpoint):
    config = tf.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = Checkpoint(tf.T5ForSequenceClassification(config).eval(), base.tokenizer, "t5", {})
    assert row_selector(model, Corpus((Example("a", "1", "1"),), "x", "", True)) == "content"


def test_columns_compared_together_share_their_rows(shared: Path):
    """Keys 5 and 9 in a window of six are seen by six rows each; ten rows see one of them at least."""
    model = uniform(load(shared / "models" / "stories260K").tokenizer, 6).backbone
    groups = torch.zeros(1, 20, 3)
    groups[..., 0] = 1
    groups[0, 5, 1] = groups[0, 9, 2] = 1
    ids, rows = torch.arange(20)[None] + 10, torch.ones(1, 20)
    for together, count in (((), [20, 6, 6]), (((1, 2),), [20, 10, 10])):
        with torch.no_grad(), record(model, ("share",), groups=groups, rows=rows, together=together) as tape:
            model(input_ids=ids)
        assert tape.count("share")[0, 0].tolist() == [count] * 2
        # Rows from 5 on see six keys; of ten rows four see the other key alone and give this one 0.
        torch.testing.assert_close(tape["share"][0, 0, 0, 1:], torch.full((2,), 1 / count[1]))
