"""The registry, and what holds for every definition in it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from attnlens.core.errors import AttnlensError, CorpusError, UnknownName
from attnlens.salience import DEFINITIONS, Aids, mark_words
from attnlens.text.align import words
from attnlens.text.corpus import Corpus, Span
from attnlens.text.lexis import is_content
from tests.salience.build import corpus_of
from tests.salience.models import encoder

FEE, TERM = "the customer shall pay the fee {}", "the agreement shall terminate after the term {}"


@pytest.fixture(scope="module")
def contracts() -> Corpus:
    texts = [form.format(place) for place in range(30) for form in (FEE, TERM)]
    spans = [(Span(0, 19, None),), (Span(20, 29, "term"), Span(0, 3, "other"))] * 30
    return corpus_of([*texts, "…"], [*["fee", "term"] * 30, "fee"], spans=[*spans, ()])


@pytest.fixture(scope="module")
def aids(contracts: Corpus, minilm: Path) -> Aids:
    # One text more, so that not all words of a text are as frequent as each other in training.
    background = corpus_of([*(each.text for each in contracts), "a fee"], [*(each.label for each in contracts), "fee"])
    return Aids(background, ("the fee", "term"), encoder(minilm, labels=("fee", "term")))


def test_names():
    assert list(DEFINITIONS) == [
        *("spans", "keyness", "textrank", "spans_keyness", "lexicon", "tfidf", "content_words", "leave_one_out"),
        *("attribution", "input_x_gradient"),
    ]
    assert all(name == definition.name and name.isascii() for name, definition in DEFINITIONS.items())
    assert all(definition.title and definition.reference for definition in DEFINITIONS.values())
    with pytest.raises(UnknownName, match="did you mean 'keyness'"):
        mark_words("keynes", corpus_of(["text"]), Aids())


def test_the_registry_is_cheap():
    heavy = {"torch", "captum", "sklearn", "transformers"}
    code = f"import attnlens.salience, sys; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", DEFINITIONS)
def test_one_flag_for_each_word(name: str, contracts: Corpus, aids: Aids):
    marks = mark_words(name, contracts, aids)
    assert [(len(marked), marked.dtype) for marked in marks] == [
        (len(words(example.text)), np.dtype(bool)) for example in contracts
    ]
    assert any(marked.any() for marked in marks) and not all(marked.all() for marked in marks)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_an_example_is_marked_alike_in_any_company(name: str, contracts: Corpus, aids: Aids):
    """Given the training data, what is salient in a text does not depend on the other texts measured."""
    whole = mark_words(name, contracts, aids)
    part = mark_words(name, contracts.select([3, 0]), aids)
    assert (part[0] == whole[3]).all() and (part[1] == whole[0]).all()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_what_is_needed_is_asked_for_in_one_line(name: str, aids: Aids):
    bare = corpus_of(["the customer shall pay"])
    needs = DEFINITIONS[name].needs
    if not needs:
        assert len(mark_words(name, bare, aids)) == 1
        return
    with pytest.raises(
        CorpusError, match=rf"salience '.*' needs a {needs[0]} field; made.jsonl has none\. Add"
    ) as caught:
        mark_words(name, bare, Aids(encoder=aids.encoder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, definition in DEFINITIONS.items() if definition.asks])
def test_aids_are_asked_for_in_one_line(name: str, contracts: Corpus):
    with pytest.raises(AttnlensError, match=rf"^salience '{name}' [^\n]*\.$"):
        mark_words(name, contracts, Aids())


def test_the_combination_is_the_intersection(contracts: Corpus):
    spans, keyness, both = (mark_words(name, contracts, Aids()) for name in ("spans", "keyness", "spans_keyness"))
    for inside, key, marked in zip(spans, keyness, both, strict=True):
        assert (marked == (inside & key)).all()
    # "customer" is key and in the span, "pay" and "fee" are key and outside it.
    assert [place for place, marked in enumerate(both[0]) if marked] == [1]


def test_content_words(contracts: Corpus):
    for example, marked in zip(contracts, mark_words("content_words", contracts, Aids()), strict=True):
        assert marked.tolist() == [is_content(example.text[start:end].lower()) for start, end in words(example.text)]
    [marked] = mark_words("content_words", corpus_of(["pay the fee"]), Aids())
    assert marked.tolist() == [True, False, True]
