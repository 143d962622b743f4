"""C2 and C3: random words and another document's salience, by hand, by a slow reference, and where there are none."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from attnlens.salience.placebos import DRAWS, random_words, swapped_words
from attnlens.text.lexis import is_content
from tests.salience.build import corpus_of

WORDS = ["fee", "term", "notice", "venue", "the", "of"]


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_random_words_by_hand():
    text = "fee term the notice venue"
    sizes = np.ones(5, dtype=int)
    [weights] = random_words(corpus_of([text]), [flags(1, 1, 0, 0, 0)], [sizes], generator())
    assert weights.tolist() == [0, 0, 0, 1, 1]
    # Three salient words and one other content word: all four content words are the pool.
    [weights] = random_words(corpus_of([text]), [flags(1, 1, 0, 1, 0)], [sizes], generator())
    assert weights.sum() == 3 and weights[2] == 0 and (weights[[0, 1, 3, 4]] > 0).all()
    # Everything is salient: four content words for five salient words. No data.
    [weights] = random_words(corpus_of([text]), [flags(1, 1, 1, 1, 1)], [sizes], generator())
    assert not weights.any()
    # The last word was cut off.
    [weights] = random_words(corpus_of([text]), [flags(1, 0, 0, 0, 0)], [np.array([1, 1, 1, 1, 0])], generator())
    assert weights[4] == weights[0] == 0 and weights.sum() == 1


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.booleans(), st.integers(0, 2)), max_size=12))
def test_random_words_hold_their_rules(text: list[tuple[str, bool, int]]):
    sizes = np.array([size for *_, size in text], dtype=int)
    marked = np.array([mark and size > 0 for _, mark, size in text], dtype=bool)
    content = np.array([is_content(word) for word, *_ in text], dtype=bool) & (sizes > 0)
    [weights] = random_words(corpus_of([" ".join(word for word, *_ in text)]), [marked], [sizes], generator())
    assert (weights >= 0).all() and (weights <= 1).all()
    np.testing.assert_allclose(weights * DRAWS, np.round(weights * DRAWS), atol=1e-12)
    assert not weights[~content].any()
    if marked.sum() <= (content & ~marked).sum():
        assert not weights[marked].any()
    assert np.isclose(weights.sum(), marked.sum() if marked.sum() <= content.sum() else 0)


def test_every_candidate_is_drawn_alike():
    text = " ".join(["fee"] * 41)
    [weights] = random_words(corpus_of([text]), [np.arange(41) == 0], [np.ones(41, dtype=int)], generator())
    many = np.mean(
        [
            random_words(
                corpus_of([text]), [np.arange(41) == 0], [np.ones(41, dtype=int)], np.random.default_rng(seed)
            )[0]
            for seed in range(300)
        ],
        axis=0,
    )
    assert weights.sum() == 1
    np.testing.assert_allclose(many[1:], 1 / 40, atol=5 * np.sqrt(1 / 40 / (300 * DRAWS)))


def test_swapped_words_by_hand():
    corpus = corpus_of(["fee term", "notice venue audit patent"], documents=["a", "b"])
    sizes = [np.ones(2, dtype=int), np.ones(4, dtype=int)]
    first, second = swapped_words(corpus, [flags(1, 0), flags(0, 0, 0, 1)], sizes, generator())
    assert second.tolist() == [1, 1, 0, 0]  # half of two words is half of four
    assert first.tolist() == [0, 1]  # words 0 and 1 take the marks of words 1 and 3
    # Function words take the marks of function words, words out of sight none.
    corpus = corpus_of(["the fee of", "of term the"], documents=["a", "b"])
    sizes = [np.array([1, 1, 0]), np.ones(3, dtype=int)]
    first, second = swapped_words(corpus, [flags(1, 0, 0), flags(0, 1, 0)], sizes, generator())
    assert first.tolist() == [0, 1, 0] and second.tolist() == [1, 0, 1]


def test_salience_is_never_swapped_within_a_document():
    sizes = [np.ones(2, dtype=int)] * 3
    marks = [flags(1, 0), flags(0, 1), flags(0, 0)]
    alone = swapped_words(corpus_of(["fee term"] * 3, documents=["a"] * 3), marks, sizes, generator())
    assert not np.concatenate(alone).any()
    corpus = corpus_of(["fee term"] * 3, documents=["a", "a", "b"])
    marks = [flags(1, 0), flags(0, 1), flags(1, 1)]
    for seed in range(20):
        first, second, third = swapped_words(corpus, marks, sizes, np.random.default_rng(seed))
        assert first.tolist() == second.tolist() == [1, 1]
        assert third.sum() == 1


def test_a_text_without_salience_gives_and_takes_none():
    corpus = corpus_of(["fee term"] * 3, documents=["a", "b", "c"])
    marks = [flags(1, 0), flags(0, 0), flags(0, 1)]
    first, empty, third = swapped_words(corpus, marks, [np.ones(2, dtype=int)] * 3, generator())
    assert first.tolist() == [0, 1] and third.tolist() == [1, 0] and not empty.any()
