"""C1 in whole words: distinct, like their salient word, drawn at random, as many as there can be."""

import itertools

import numpy as np
import pytest

from attnlens.core.errors import ShapeError
from attnlens.salience.control_sets import control_sets
from attnlens.salience.controls import REACH, frequency_terciles
from attnlens.text.align import words
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import forms, is_content
from tests.salience.build import corpus_of

# All content words are as frequent as each other: one tercile.
TEXT = "tenant lends bricks while farmer paints fences"


def marked(corpus: Corpus, *chosen: str) -> list[np.ndarray]:
    return [np.isin(np.array(forms(example.text)), chosen) for example in corpus]


def ones(corpus: Corpus) -> list[np.ndarray]:
    return [np.ones(len(words(example.text)), dtype=np.int64) for example in corpus]


def test_two_words_that_share_one_candidate_keep_one():
    corpus = corpus_of(["tenant paints fences"])
    pieces = [np.array([2, 2, 2])]
    (found,) = control_sets(corpus, marked(corpus, "tenant", "paints"), pieces, 5, 0)
    assert found.salient.sum() == 1 and not found.salient[2]
    assert found.controls.tolist() == [[False, False, True]] * 5


def test_one_word_gets_each_candidate_equally_often():
    corpus = corpus_of([TEXT])
    (found,) = control_sets(corpus, marked(corpus, "bricks"), ones(corpus), 4000, 0)
    names = np.array(forms(TEXT))
    content = np.array([is_content(word) for word in names])
    counts = found.controls.sum(0)
    assert (found.controls.sum(1) == 1).all()
    assert (counts[~content] == 0).all() and counts[names == "bricks"] == 0
    drawn = counts[content & (names != "bricks")]
    expected = 4000 / len(drawn)
    assert (abs(drawn - expected) < 4 * np.sqrt(expected)).all()


@pytest.mark.parametrize("seed", range(6))
def test_as_many_as_any_assignment_has_and_like_their_words(seed: int):
    """Against a search through all assignments; pieces, terciles and distance checked word by word."""
    rng = np.random.default_rng(seed)
    forms_of = np.array(["tenant", "lends", "bricks", "farmer", "paints", "fences", "the", "of"])
    text = " ".join(rng.choice(forms_of, size=60, p=[0.3, 0.2, 0.1, 0.05, 0.05, 0.1, 0.1, 0.1]))
    corpus = corpus_of([text])
    names = forms(text)
    marks = [rng.random(60) < 0.1]
    pieces = [rng.integers(0, 3, 60)]
    tercile = frequency_terciles(corpus)
    kind = [(pieces[0][i], tercile.get(names[i])) if is_content(names[i]) and pieces[0][i] else None for i in range(60)]
    candidates = {
        i: [j for j in range(60) if not marks[0][j] and kind[j] == kind[i] and abs(i - j) <= REACH]
        for i in np.flatnonzero(marks[0])
        if kind[i] is not None
    }
    (found,) = control_sets(corpus, marks, pieces, 4, seed)
    assert not (found.salient & ~marks[0]).any() and not (found.controls & marks[0]).any()
    for controls in found.controls:
        both = [sorted(kind[i] for i in np.flatnonzero(chosen)) for chosen in (found.salient, controls)]  # pyright: ignore
        assert both[0] == both[1]
    # Hall: a set of words can be served only as far as its candidates together reach.
    short = max(
        (
            len(some) - len(set().union(*(candidates[i] for i in some)))
            for size in range(1, len(candidates) + 1)
            for some in itertools.combinations(candidates, size)
        ),
        default=0,
    )
    assert found.salient.sum() == len(candidates) - max(short, 0)


def test_draws_of_a_text_do_not_depend_on_the_others():
    both, one = corpus_of([TEXT, TEXT]), corpus_of([TEXT])
    args = ("tenant", "bricks")
    first, second = control_sets(both, marked(both, *args), ones(both), 8, 3)
    (alone,) = control_sets(one, marked(one, *args), ones(one), 8, 3)
    assert np.array_equal(first.controls, alone.controls)
    assert not np.array_equal(first.controls, second.controls)


def test_nothing_marked_or_nothing_like_it():
    corpus = corpus_of([TEXT])
    for names, pieces in (
        ((), np.ones(7, int)),
        (("bricks",), np.array([1, 1, 5, 1, 1, 1, 1])),
        (("while",), np.ones(7, int)),
    ):
        (found,) = control_sets(corpus, marked(corpus, *names), [pieces], 3, 0)
        assert not found.salient.any() and not found.controls.any() and found.controls.shape == (3, 7)
    with pytest.raises(ShapeError, match="7 words of example '0'; got 3 and 7"):
        control_sets(corpus, [np.ones(3, dtype=bool)], ones(corpus), 1, 0)
