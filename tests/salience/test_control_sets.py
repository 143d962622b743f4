"""C1 in whole words: distinct, like their salient word, level in position, drawn at random."""

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
    """Either, by chance: on average over texts the candidate stands no earlier than the words it stands for."""
    corpus = corpus_of(["tenant fences paints"] * 40)
    pieces = [np.array([2, 2, 2])] * 40
    found = control_sets(corpus, marked(corpus, "tenant", "paints"), pieces, 5, 0)
    for one in found:
        assert one.salient.sum() == 1 and not one.salient[1]
        assert one.controls.tolist() == [[False, True, False]] * 5
    assert 10 < sum(one.salient[0] for one in found) < 30


def test_one_word_gets_its_candidates_as_often_as_level_position_asks():
    corpus = corpus_of([TEXT])
    (found,) = control_sets(corpus, marked(corpus, "farmer"), ones(corpus), 4000, 0)
    names = np.array(forms(TEXT))
    assert (found.controls.sum(1) == 1).all() and names[found.salient].tolist() == ["farmer"]
    # "while" has no content: two words back and one word on, so a third and two thirds.
    counts = dict(zip(names.tolist(), found.controls.sum(0).tolist(), strict=True))
    assert counts["bricks"] + counts["paints"] == 4000
    assert abs(counts["bricks"] - 4000 / 3) < 4 * np.sqrt(4000 * 2 / 9)


@pytest.mark.parametrize("seed", range(6))
def test_controls_are_like_their_words_and_level_on_average(seed: int):
    """Against the pairs found word by word; as many words as any assignment of the level pairs has."""
    rng = np.random.default_rng(seed)
    forms_of = np.array(["tenant", "lends", "bricks", "farmer", "paints", "fences", "the", "of"])
    texts = [" ".join(rng.choice(forms_of, size=60, p=[0.3, 0.2, 0.1, 0.05, 0.05, 0.1, 0.1, 0.1])) for _ in range(20)]
    corpus = corpus_of(texts)
    tercile = frequency_terciles(corpus)
    marks, pieces = [rng.random(60) < 0.1 for _ in texts], [rng.integers(0, 3, 60) for _ in texts]
    shifts = []
    for text, mark, size, found in zip(texts, marks, pieces, control_sets(corpus, marks, pieces, 8, seed), strict=True):
        names = forms(text)
        kind = [(size[i], tercile.get(names[i])) if is_content(names[i]) and size[i] else None for i in range(60)]
        assert not (found.salient & ~mark).any() and not (found.controls & mark).any()
        for controls in found.controls:
            both = [sorted(kind[i] for i in np.flatnonzero(chosen)) for chosen in (found.salient, controls)]  # pyright: ignore
            assert both[0] == both[1]
            for place in np.flatnonzero(found.salient):
                assert any(kind[i] == kind[place] and abs(i - place) <= REACH for i in np.flatnonzero(controls))
        if found.salient.any():
            shifts.append((found.controls @ np.arange(60) - np.arange(60) @ found.salient).mean() / found.salient.sum())
    assert len(shifts) > 10 and abs(np.mean(shifts)) < 3 * np.std(shifts, ddof=1) / np.sqrt(len(shifts)) + 1e-9


def test_salience_at_the_end_of_a_text_has_no_controls_on_one_side():
    corpus = corpus_of([TEXT])
    (found,) = control_sets(corpus, marked(corpus, "fences"), ones(corpus), 4, 0)
    assert not found.salient.any() and not found.controls.any()


def test_draws_of_a_text_do_not_depend_on_the_others():
    both, one = corpus_of([TEXT, TEXT]), corpus_of([TEXT])
    args = ("bricks",)
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


def test_a_word_between_two_salient_ones_does_not_serve_both():
    """Alone each would take its neighbours; so that both are served, the outer words serve too."""
    corpus = corpus_of(["fences tenant bricks paints lends"])
    (found,) = control_sets(corpus, marked(corpus, "tenant", "paints"), ones(corpus), 50, 0)
    assert found.salient.sum() == 2 and (found.controls.sum(1) == 2).all()
    assert found.controls.any(0).sum() == 3
