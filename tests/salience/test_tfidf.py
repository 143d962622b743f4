"""tf-idf: idf of the background alone, by hand and against the formula written out."""

import math

import numpy as np
import pytest

from attnlens.core.errors import AttnlensError, CorpusError
from attnlens.salience import Aids, mark_words
from attnlens.salience.tfidf import mark_frequent_here
from attnlens.text.lexis import is_content
from tests.salience.build import corpus_of

BACKGROUND = corpus_of(["the fee audit", "a fee notice", "fee and venue notice"])


def marked(text: str) -> list[str]:
    [flags] = mark_frequent_here(corpus_of([text]), Aids(BACKGROUND))
    return [word for word, flag in zip(text.split(), flags, strict=True) if flag]


def test_by_hand():
    assert marked("fee fee audit") == ["fee", "fee"]  # 2·1 against 1·(log 2 + 1) = 1.69
    assert marked("fee audit") == ["audit"]
    assert marked("fee the audit Audit’s notice") == ["audit", "Audit’s"]
    assert marked("royalty fee fee") == ["fee", "fee"]  # a word the background never saw has no idf
    assert marked("royalty patent") == marked("the of") == marked("") == marked("audit audit") == []


def test_against_the_slow_reference():
    rng = np.random.default_rng(0)
    vocabulary = [f"word{letter}" for letter in "abcdefghij"] + ["the", "of"]
    texts = [" ".join(rng.choice(vocabulary, size=20)) for _ in range(12)]
    background, corpus = texts[:6], [*texts[6:], "wordz " + texts[0]]
    flags = mark_frequent_here(corpus_of(corpus), Aids(corpus_of(background)))
    for text, flag in zip(corpus, flags, strict=True):
        words = text.split()
        scores = []
        for word in words:
            found = sum(word in other.split() for other in background)
            idf = math.log(7 / (1 + found)) + 1 if found else 0.0
            scores.append(words.count(word) * idf if is_content(word) else -1.0)
        pool = [score for score in scores if score >= 0]
        above = [sum(other > score + 1e-9 for other in pool) for score in scores]
        expected = [score > 0 and beaten < 0.15 * len(pool) for score, beaten in zip(scores, above, strict=True)]
        assert flag.tolist() == expected


def test_a_background_is_needed():
    with pytest.raises(AttnlensError, match=r"'tfidf' is counted on the training texts.*or choose textrank"):
        mark_words("tfidf", corpus_of(["fee"]), Aids())
    with pytest.raises(CorpusError, match=r"needs training texts with content words; made\.jsonl has none"):
        mark_words("tfidf", corpus_of(["fee"]), Aids(corpus_of(["the of"])))
