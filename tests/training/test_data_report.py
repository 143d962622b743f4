"""What is the matter with the data: counted by hand, and said where it matters."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from attnlens.text.corpus import Corpus, Example
from attnlens.training.data_report import data_report
from attnlens.training.options import TrainOptions
from attnlens.training.split import Split
from attnlens.training.train import finetune
from tests.training.conftest import encoder_tokenizer


def corpus_of(*examples: tuple[str, str, str], has_documents: bool = True) -> Corpus:
    rows = tuple(Example(text, str(n), document, label) for n, (text, document, label) in enumerate(examples))
    return Corpus(rows, "rows.jsonl", "0" * 64, has_documents)


def report_on(train: Corpus, heldout: Corpus, length: int = 40):
    labels = train.labels
    return data_report(
        Split("sequence-classification", train, train, heldout, labels, [], None), encoder_tokenizer(), length
    )


def test_a_report_by_hand():
    """Blanks and case aside, rows 1 and 2 repeat row 0, row 2 with another label; a held-out row is trained on too."""
    train = corpus_of(
        ("The party", "d", "a"),
        ("the  PARTY ", "d", "a"),
        ("the party", "e", "b"),
        ("of this deed", "f", "b"),
        ("contract of this deed", "f", "b"),
    )
    heldout = corpus_of(("OF this deed", "f", "a"), ("of that", "g", "b"))
    report = report_on(train, heldout, length=5)
    assert (report["duplicates"], report["contradictory"], report["leaked"], report["empty"]) == (2, 1, 1, 0)
    assert report["leaked_documents"] == 1 and report["labels"] == {
        "train": {"b": 3, "a": 2},
        "heldout": {"a": 1, "b": 1},
    }
    # Words and the two special tokens: 4, 4, 4, 5, 6.
    lengths = report["lengths"]
    assert lengths["texts"] == 5 and lengths["quantiles"]["0.5"] == 4 and lengths["quantiles"]["1.0"] == 6
    assert report["truncated"] == pytest.approx(1 / 5)
    assert report["warnings"] == [
        "1 of 2 held-out texts are trained on too: the scores flatter.",
        "1 documents stand on both sides of the split: the scores flatter.",
        "2 of 5 training texts repeat an earlier one.",
        "1 training texts stand there twice with different labels.",
    ]


def test_good_data_need_no_warning():
    train = corpus_of(("the party", "d", "a"), ("of this deed", "e", "b"))
    assert report_on(train, corpus_of(("the contract", "f", "a")))["warnings"] == []
    # Without a column of documents every row is its own, whatever number it has.
    lonely = corpus_of(("the contract", "d", "a"), has_documents=False)
    assert report_on(train, lonely)["leaked_documents"] == 0


def test_rare_labels_are_named():
    many = [(f"{'the ' * n}party", f"d{n}", "often") for n in range(1, 22)]
    report = report_on(corpus_of(*many, ("deed", "e", "rare")), corpus_of(("contract", "f", "rare")))
    assert report["warnings"] == ["label 'often' has 21 training rows, 'rare' 1: consider --class-weights."]
    assert not report_on(corpus_of(*many[1:], ("deed", "e", "rare")), corpus_of(("contract", "f", "rare")))["warnings"]


def test_the_card_warns_of_leakage(tiny: Callable[[str], Path], corpus: Corpus, tmp_path: Path):
    held = replace(corpus.select(range(3)), name="other.jsonl", checksum="1" * 64)
    options = TrainOptions(max_steps=1, batch_size=4, device="cpu", validation=held)
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)
    assert result.record["data_report"]["leaked"] == 3
    assert "\nwarning: 3 of 3 held-out texts are trained on too: the scores flatter." in str(result)
