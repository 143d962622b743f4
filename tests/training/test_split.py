"""Rows set apart for validation: by document, by seed, with every label left in training."""

from dataclasses import replace

import pytest

from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus, Example
from attnlens.training.split import hold_out, split


def corpus_of(*rows: tuple[str, str | None], has_documents: bool = True) -> Corpus:
    """A corpus of (document, label) rows."""
    examples = tuple(Example(f"text {n}", str(n), document, label) for n, (document, label) in enumerate(rows))
    return Corpus(examples, "rows.jsonl", "0" * 64, has_documents)


def test_a_fifth_of_the_documents_is_held_out_whole(corpus: Corpus):
    train, held = hold_out(corpus, seed=0)
    documents = [example.document for example in corpus]
    assert len({documents[row] for row in held}) == 2  # round(0.2 · 12)
    assert not {documents[row] for row in held} & {documents[row] for row in train}
    assert sorted(train + held) == list(range(len(corpus)))
    assert train == sorted(train) and held == sorted(held)


def test_the_seed_decides_and_repeats(corpus: Corpus):
    splits = [tuple(hold_out(corpus, seed)[1]) for seed in range(8)]
    assert splits == [tuple(hold_out(corpus, seed)[1]) for seed in range(8)]
    assert len(set(splits)) > 1


def test_file_order_does_not_decide_which_documents(corpus: Corpus):
    turned = corpus.select(range(len(corpus) - 1, -1, -1))
    held = {corpus.examples[row].id for row in hold_out(corpus, 3)[1]}
    assert held == {turned.examples[row].id for row in hold_out(turned, 3)[1]}


def test_every_label_stays_in_training():
    """`rare` occurs in two documents: under no seed may both be held out, and under some seed one is."""
    rows = [(f"d{n}", label) for n in range(10) for label in ("a", "b")]
    rare = corpus_of(*rows, ("d3", "rare"), ("d7", "rare"))
    held_rare = 0
    for seed in range(60):
        train, held = hold_out(rare, seed)
        assert rare.select(train).labels == ("a", "b", "rare")
        assert len({rare.examples[row].document for row in held}) == 2
        held_rare += "rare" in rare.select(held).labels
    assert held_rare > 0


def test_a_document_with_the_only_rows_of_a_label_is_never_held_out():
    only = corpus_of(("d0", "x"), ("d0", "x"), *[(f"d{n}", label) for n in range(1, 5) for label in ("a", "b")])
    assert all(not {0, 1} & set(hold_out(only, seed)[1]) for seed in range(20))


def test_rows_without_documents_are_independent():
    lonely = corpus_of(*[(str(n), "ab"[n % 2]) for n in range(10)], has_documents=False)
    assert len(hold_out(lonely, 0)[1]) == 2


def test_at_least_one_document_is_held_out():
    assert len(hold_out(corpus_of(("d", "a"), ("d", "b"), ("e", "a"), ("e", "b")), 0)[1]) == 2


def test_one_document_cannot_be_split():
    with pytest.raises(TrainingError, match="is one document, so none can be held out: pass --validation"):
        hold_out(corpus_of(("d", "a"), ("d", "b")), 0)


def test_one_document_without_labels_says_what_it_would_train():
    with pytest.raises(
        TrainingError, match=r"rows\.jsonl has no labels, so it trains a causal language model; it is one"
    ):
        split(corpus_of(("d", None), ("d", None)), None, 0)


def test_documents_of_one_label_each_cannot_be_split():
    with pytest.raises(TrainingError, match="the only one with some label, so none can be held out"):
        hold_out(corpus_of(("d", "a"), ("e", "b")), 0)


def test_the_rows_decide_the_task(corpus: Corpus):
    """Labels make a classifier, anything to be answered a language model, with labels or without."""
    bare = corpus_of(("d", None), ("e", None))
    answered = replace(corpus, examples=(*corpus.examples[1:], replace(corpus.examples[0], completion=3)))
    spoken = replace(corpus, examples=(*corpus.examples[1:], replace(corpus.examples[0], messages=(("user", "Hi"),))))
    tasks = [split(rows, None, 0).task for rows in (corpus, bare, answered, spoken)]
    assert tasks == ["sequence-classification", "causal-lm", "causal-lm", "causal-lm"]
    assert split(answered, None, 0).labels == ()


def test_a_language_model_may_lose_a_label():
    """One document a label cannot be held out from a classifier, but from a language model."""
    rows = corpus_of(*[(f"d{n}", f"label {n}") for n in range(10)])
    with pytest.raises(TrainingError, match="the only one with some label"):
        hold_out(rows, 0)
    train, held = hold_out(rows, 0, "causal-lm")
    assert len(held) == 2 and sorted(train + held) == list(range(10))


def test_labels_are_needed():
    with pytest.raises(TrainingError, match=r"1 of 3 rows of rows\.jsonl have no label \(first: id '1'\)"):
        split(corpus_of(("d", "a"), ("e", None), ("f", "b")), None, 0)
    with pytest.raises(TrainingError, match=r"one label only \(a\): needed at least two"):
        split(corpus_of(("d", "a"), ("e", "a")), None, 0)


def test_validation_is_taken_whole(corpus: Corpus):
    validation = corpus_of(("v", "cap"), ("v", "law"))
    data = split(corpus, validation, 0)
    assert data.train is corpus and data.heldout is validation and data.heldout_rows is None
    assert data.labels == ("cap", "law", "term")


def test_validation_labels_must_be_known(corpus: Corpus):
    with pytest.raises(TrainingError, match=r"1 of 2 rows of rows\.jsonl have a label unseen in training \('tax'\)"):
        split(corpus, corpus_of(("v", "cap"), ("v", "tax")), 0)
    with pytest.raises(TrainingError, match=r"empty: needed held-out rows"):
        split(corpus, replace(corpus, examples=()), 0)
