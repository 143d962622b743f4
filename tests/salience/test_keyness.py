"""Keyness: the z of Monroe, Colaresi & Quinn by hand, against loops in exact arithmetic, and its laws."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attnlens.core.errors import CorpusError
from attnlens.salience import Aids
from attnlens.salience.keyness import keyness, log_odds_z, mark_keywords
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import FUNCTION_WORDS
from tests.salience.build import corpus_of


def slow_z(counts: list[list[int]]) -> list[list[float]]:
    """The formula word by word, odds as fractions of whole numbers."""
    classes, vocabulary = range(len(counts)), range(len(counts[0]))
    whole = sum(map(sum, counts))
    result = []
    for i in classes:
        row = []
        for w in vocabulary:
            prior = Fraction(sum(counts[c][w] for c in classes), 5)
            rest = [counts[c] for c in classes if c != i]
            odds, variance = [], Fraction(0)
            for group in ([counts[i]], rest):
                y, n = sum(c[w] for c in group), sum(map(sum, group))
                odds.append((y + prior) / (n + Fraction(whole, 5) - y - prior))
                variance += 1 / (y + prior)
            row.append(math.log(odds[0] / odds[1]) / math.sqrt(variance))
        result.append(row)
    return result


def test_by_hand():
    # Word 1 in class 1: y = 3, y' = 1, α = .8, n = n' = 4, α₀ = 1.6: log(3.8/1.8) − log(1.8/3.8) over √(1/3.8 + 1/1.8).
    z = log_odds_z(np.array([[3, 1], [1, 3]]))
    np.testing.assert_allclose(z, [[1.6516167, -1.6516167], [-1.6516167, 1.6516167]], atol=1e-7)


COUNTS = arrays(np.int64, st.tuples(st.integers(2, 4), st.integers(2, 6)), elements=st.integers(0, 50))
FILLED = COUNTS.filter(lambda counts: bool((counts.sum(0) > 0).all()))


@given(FILLED)
def test_against_the_slow_reference(counts: np.ndarray):
    np.testing.assert_allclose(log_odds_z(counts), slow_z(counts.tolist()), rtol=1e-9, atol=1e-12)


@given(FILLED)
def test_laws_of_z(counts: np.ndarray):
    z = log_odds_z(counts)
    # Each class against the rest: with two classes what one over-uses the other under-uses.
    two = np.stack([counts[0], counts[1:].sum(0)])
    np.testing.assert_allclose(log_odds_z(two), [z[0], -z[0]], rtol=1e-9, atol=1e-12)
    # Twice the data: the same odds, known √2 times better.
    np.testing.assert_allclose(log_odds_z(2 * counts), math.sqrt(2) * z, rtol=1e-9, atol=1e-12)
    # Order of classes and words does not matter.
    np.testing.assert_allclose(log_odds_z(counts[::-1, ::-1]), z[::-1, ::-1], rtol=1e-9, atol=1e-12)


def test_a_word_used_alike_has_no_z():
    counts = np.outer([100, 200, 50], [4, 1, 7, 3])
    np.testing.assert_allclose(log_odds_z(counts), 0, atol=1e-12)


def test_chance_alone_stays_below_the_normal():
    """Two equal classes drawn from the same words: z has a standard deviation of 1/√1.4, as the docstring says."""
    rng = np.random.default_rng(0)
    z = [log_odds_z(rng.multinomial(20_000, np.full(200, 1 / 200), size=2))[0] for _ in range(20)]
    # 4,000 values: the standard error of their standard deviation is 1.1 % of it.
    assert np.std(z) == pytest.approx(1 / math.sqrt(1.4), rel=0.04)


def test_counts_beyond_float32_are_exact():
    """2²⁴ + 1 is no float32; the words of a large corpus are more than that."""
    size = 2**24
    first = log_odds_z(np.array([[size, size], [size, size]]))
    second = log_odds_z(np.array([[size + 1, size], [size, size]]))
    assert (first == 0).all() and second[0, 0] > 0


CONTENT = ["licensor", "royalty", "audit", "venue", "notice", "insurance", "patent", "term"]
FUNCTION = ["the", "of", "shall", "and"]


def random_corpus(seed: int, size: int, strength: int = 8) -> Corpus:
    """Two classes that draw from one vocabulary with different odds; 12 documents."""
    rng = np.random.default_rng(seed)
    own = [strength, 1 + strength // 2]
    odds = {
        "a": np.array([*own, 1, 1, 1, 1, 1, 1, 9, 9, 9, 9.0]),
        "b": np.array([1, 1, *own, 1, 1, 1, 1, 9, 9, 9, 9.0]),
    }
    labels = [str(label) for label in rng.choice(["a", "b"], size=size)]
    texts = [" ".join(rng.choice(CONTENT + FUNCTION, size=20, p=odds[label] / odds[label].sum())) for label in labels]
    return corpus_of(texts, labels, documents=[f"d{place % 12}" for place in range(size)])


def slow_key_words(background: Corpus) -> tuple[dict[str, dict[str, float]], dict[str, set[str]]]:
    """z and key words of each label from the definition: counts, z, BH step-up, document frequency."""
    labels = sorted({example.label for example in background if example.label})
    texts = [(example.label, example.document, example.text.split()) for example in background]
    vocabulary = sorted({word for _, _, text in texts for word in text})
    counts = [
        [sum(text.count(word) for own, _, text in texts if own == label) for word in vocabulary] for label in labels
    ]
    z = {label: dict(zip(vocabulary, row, strict=True)) for label, row in zip(labels, slow_z(counts), strict=True)}
    spread = {word: len({document for _, document, text in texts if word in text}) for word in vocabulary}
    family = [word for word in vocabulary if word not in FUNCTION_WORDS and len(word) > 1 and spread[word] >= 5]
    key = {}
    for label in labels:
        ranked = sorted(family, key=lambda word: -z[label][word])
        p = [math.erfc(z[label][word] / math.sqrt(2)) / 2 for word in ranked]
        passed = [rank for rank in range(len(ranked)) if p[rank] <= 0.05 * (rank + 1) / len(ranked)]
        key[label] = set(ranked[: max(passed) + 1]) if passed else set()
    return z, key


def slow_marks(corpus: Corpus, background: Corpus) -> list[list[bool]]:
    """The text's top 15 % among its own label's key words."""
    z, key = slow_key_words(background)
    marks = []
    for example in corpus:
        words, own = example.text.split(), z[example.label or ""]
        marks.append(
            [
                word in key[example.label or ""]
                and sum(own.get(other, 0) > own.get(word, 0) for other in words) < 0.15 * len(words)
                for word in words
            ]
        )
    return marks


def test_key_words_against_the_slow_reference():
    """Weak classes, so that many p-values lie near the level."""
    sizes = []
    for seed in range(60):
        train = random_corpus(seed, 60, strength=2)
        counted, (_, key) = keyness(train), slow_key_words(train)
        for label, row in counted.labels.items():
            assert {word for word, column in counted.forms.items() if counted.key[row, column]} == key[label]
            sizes.append(len(key[label]))
    assert min(sizes) == 0 and max(sizes) >= 2


@pytest.mark.parametrize("seed", [0, 1])
def test_marks_against_the_slow_reference(seed: int):
    train, held_out = random_corpus(seed, 60), random_corpus(seed + 100, 30)
    marks = mark_keywords(held_out, Aids(train))
    assert [marked.tolist() for marked in marks] == slow_marks(held_out, train)
    assert any(marked.any() for marked in marks)
    # Without training data the corpus itself is counted.
    assert [marked.tolist() for marked in mark_keywords(train, Aids())] == slow_marks(train, train)


def test_the_words_of_each_class_are_found():
    train = random_corpus(5, 200)
    counted = keyness(train)
    found = {
        label: {word for word, column in counted.forms.items() if counted.key[row, column]}
        for label, row in counted.labels.items()
    }
    assert found == {"a": {"licensor", "royalty"}, "b": {"audit", "venue"}}


def test_a_word_of_few_documents_is_no_key_word():
    """A party's name: as frequent as you like, in one contract."""
    texts = ["acme pays royalty", "term ends notice"] * 10
    labels = ["a", "b"] * 10
    one = keyness(corpus_of(texts, labels, documents=["x"] * 20))
    many = keyness(corpus_of(texts, labels))
    assert not one.key.any()
    assert many.key[many.labels["a"], many.forms["acme"]]
    np.testing.assert_array_equal(one.z, many.z)
    five = keyness(corpus_of(texts, labels, documents=[str(place // 4) for place in range(20)]))
    four = keyness(corpus_of(texts, labels, documents=[str(place // 5) for place in range(20)]))
    assert five.key.any() and not four.key.any()


def test_function_words_are_no_key_words():
    texts = ["shall herein the royalty", "term ends"] * 50
    counted = keyness(corpus_of(texts, ["a", "b"] * 50))
    row = counted.labels["a"]
    assert counted.z[row, counted.forms["shall"]] == counted.z[row, counted.forms["royalty"]] > 3
    assert [counted.key[row, counted.forms[word]] for word in ("shall", "herein", "royalty")] == [False, False, True]


def test_a_text_uses_its_own_label_and_forms():
    train = random_corpus(5, 200)
    text = "Licensor’s AUDIT of unheard words and more of the same and more of it"
    corpus = corpus_of([text, text, text, text], ["a", "b", None, "c"])
    first, second, unlabelled, unknown = mark_keywords(corpus, Aids(train))
    assert np.flatnonzero(first).tolist() == [0] and np.flatnonzero(second).tolist() == [1]
    assert not unlabelled.any() and not unknown.any() and len(unknown) == 14


def test_unlabelled_examples_are_not_counted():
    train = random_corpus(5, 60)
    texts = [*(example.text for example in train), "licensor " * 500]
    labels = [*(example.label for example in train), None]
    more = corpus_of(texts, labels, documents=[*(example.document for example in train), "z"])
    np.testing.assert_array_equal(keyness(more).z, keyness(train).z)


def test_no_candidate_at_all():
    assert not keyness(corpus_of(["the of", "and shall"], ["a", "b"])).key.any()


def test_bad_input_says_what_to_do():
    good = random_corpus(0, 20)
    with pytest.raises(
        CorpusError, match=r"needs a label field; made\.jsonl has none\. Add labels, or choose textrank"
    ):
        mark_keywords(corpus_of(["text"]), Aids(good))
    with pytest.raises(CorpusError, match=r"at least two labels to count on; made\.jsonl has 0"):
        mark_keywords(good, Aids(corpus_of(["text"])))
    with pytest.raises(CorpusError, match=r"at least two labels to count on; made\.jsonl has 1"):
        mark_keywords(corpus_of(["text"], ["a"]), Aids())
    with pytest.raises(CorpusError, match=r"labels that the training data knows \(a, b\); made.jsonl has x, y"):
        mark_keywords(corpus_of(["text", "text"], ["x", "y"]), Aids(good))
    with pytest.raises(CorpusError, match="needs texts of several words"):
        mark_keywords(corpus_of(["…", "…"], ["a", "b"]), Aids())


def test_labels_without_meaning_have_few_key_words():
    """Shuffled labels: two families of 8 words, each with a false discovery in at most 5 % of the corpora."""
    found = 0
    for seed in range(100):
        corpus = random_corpus(seed, 60)
        labels = [str(label) for label in np.random.default_rng(seed).permutation([e.label for e in corpus])]
        shuffled = corpus_of([e.text for e in corpus], labels, documents=[e.document for e in corpus])
        found += bool(keyness(shuffled).key.any())
    # 10 % of 100, and two standard errors more.
    assert found <= 16
