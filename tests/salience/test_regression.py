"""C1's fallback: a regression as signed weights of words, by hand, against least squares, and its laws."""

from collections import Counter

import numpy as np
import pytest

from attnlens.core.errors import ShapeError
from attnlens.salience.regression import COLUMNS, LEFT, WORDS_PER_COLUMN, regression_controls, signed_weights
from attnlens.text.lexis import is_content
from tests.salience.build import corpus_of

LEAST = WORDS_PER_COLUMN * COLUMNS


def made(seed: int, length: int = 60) -> tuple[list[str], np.ndarray, np.ndarray]:
    """A text of ordinary and function words, its salient words and pieces."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"word{letter}" for letter in "abcdefghijklmnop"] + ["the", "of"])
    text = list(rng.choice(vocabulary, size=length, p=np.arange(1, 19) / 171))
    return text, rng.random(length) < 0.25, rng.integers(1, 4, size=length)


def design(text: list[str], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the content words in sight, and their columns without salience, written out on their own."""
    places = np.array([place for place, word in enumerate(text) if is_content(word) and sizes[place]])
    along = (places - places.min()) / (places.max() - places.min())
    columns = [np.ones(len(places)), along, along**2, along**3]
    columns += [np.where(along > knot, (along - knot) ** 3, 0) for knot in np.percentile(along, [25, 50, 75])]
    counts = Counter(text)
    return places, np.stack([*columns, sizes[places], [np.log(counts[text[place]]) for place in places]], 1)


def test_by_hand():
    salience = np.array([1.0, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(signed_weights(salience, np.zeros((6, 0))), [1, -0.5, 1, -0.5, -0.5, -0.5], atol=1e-15)
    # Attention 0.3 and 0.2 on the salient words, 0.1 on the others: 0.5 − 2·0.1.
    assert signed_weights(salience, np.zeros((6, 0))) @ [0.3, 0.1, 0.2, 0.1, 0.1, 0.1] == pytest.approx(0.3)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_least_squares_coefficient(seed: int):
    text, marked, sizes = made(seed)
    [control] = regression_controls(corpus_of([" ".join(text)]), [marked], [sizes])
    places, columns = design(text, sizes)
    attention = np.random.default_rng(seed + 100).exponential(size=len(text))
    full = np.column_stack([columns, marked[places]])
    beta = np.linalg.lstsq(full, attention[places], rcond=None)[0][-1]
    got = (control.matched - control.weights) @ attention
    assert got == pytest.approx(beta * marked[places].sum(), rel=1e-9)
    assert (control.matched >= 0).all() and (control.weights >= 0).all()
    assert not (control.matched * control.weights).any()
    content = np.array([is_content(word) for word in text])
    assert (control.eligible == (marked & content)).all()


@pytest.mark.parametrize("seed", range(5))
def test_what_position_length_and_frequency_give_is_exactly_nothing(seed: int):
    text, marked, sizes = made(seed)
    [control] = regression_controls(corpus_of([" ".join(text)]), [marked], [sizes])
    places, columns = design(text, sizes)
    signed = control.matched - control.weights
    assert np.abs(signed).max() > 0.1
    np.testing.assert_allclose(signed[places] @ columns, 0, atol=1e-12 * len(text))
    assert signed @ marked == pytest.approx(marked[places].sum())  # the n salient words, n times over
    # Equal sums over words (intercept) and over tokens (pieces): uniform attention gives 0 whatever the pieces.
    assert control.matched.sum() == pytest.approx(control.weights.sum(), rel=1e-12)
    assert control.matched @ sizes == pytest.approx(control.weights @ sizes, rel=1e-12)


def test_words_of_one_length_and_frequency():
    """Constant covariates say nothing and take nothing."""
    text = [f"word{chr(97 + place // 26)}{chr(97 + place % 26)}" for place in range(40)]
    marked = np.random.default_rng(0).random(40) < 0.3
    [control] = regression_controls(corpus_of([" ".join(text)]), [marked], [np.ones(40, dtype=int)])
    places, columns = design(text, np.ones(40, dtype=int))
    beta = np.linalg.lstsq(np.column_stack([columns[:, :7], marked]), np.sin(places), rcond=None)[0][-1]
    assert (control.matched - control.weights) @ np.sin(places) == pytest.approx(beta * marked.sum(), rel=1e-9)


@pytest.mark.parametrize("decay", [0.02, 0.05])
def test_a_smooth_recency_of_the_last_row_is_taken_out(decay: float):
    """Attention that falls from the end, whatever stands there: the raw excess is large, the net change is not."""
    text = [f"word{chr(97 + place // 26)}{chr(97 + place % 26)}" for place in range(60)]
    marked = (np.random.default_rng(0).random(60) < 0.4) & (np.arange(60) > 30)
    attention = np.exp(-decay * np.arange(60)[::-1])
    attention /= attention.sum()
    [control] = regression_controls(corpus_of([" ".join(text)]), [marked], [np.ones(60, dtype=int)])
    raw = attention @ marked - marked.mean()
    assert raw > 0.05
    assert abs((control.matched - control.weights) @ attention) < 1e-3 * raw


def no_data(text: list[str], marked: np.ndarray, sizes: np.ndarray) -> bool:
    [control] = regression_controls(corpus_of([" ".join(text)]), [marked], [sizes])
    return not control.matched.any() and not control.weights.any()


def test_where_there_is_no_data():
    text, marked, sizes = made(0)
    assert not no_data(text, marked, sizes)
    assert no_data(text, np.zeros(60, dtype=bool), sizes) and no_data(text, np.ones(60, dtype=bool), sizes)
    assert no_data([], np.zeros(0, dtype=bool), np.zeros(0, dtype=int))
    assert no_data(["the"] * 30, np.arange(30) < 9, np.ones(30, dtype=int))
    # Salience that is a matter of pieces, or of place.
    assert no_data(text, sizes == 1, np.where(sizes == 1, 1, 2))
    # 20 content words are enough, 19 are not; truncation takes words away.
    whole = [f"word{chr(97 + place)}" for place in range(LEAST)]
    chosen, ones = np.isin(np.arange(LEAST), [3, 10, 16]), np.ones(LEAST, dtype=int)
    assert not no_data(whole, chosen, ones)
    assert no_data(whole[:-1], chosen[:-1], ones[:-1])
    assert no_data(whole, chosen, np.where(np.arange(LEAST) < LEAST - 1, 1, 0))


def test_next_to_nothing_left_is_nothing():
    salience = (np.arange(100) >= 50).astype(float)
    noise = np.random.default_rng(0).normal(size=100)
    for size, kept in ((0.02, False), (2.0, True)):
        weights = signed_weights(salience, (salience + size * noise)[:, None])
        left = 1 - np.corrcoef(salience, salience + size * noise)[0, 1] ** 2
        assert weights.any() == kept == (left > LEFT)


def test_wrong_lengths_are_refused():
    with pytest.raises(ShapeError, match=r"one value for each of the 2 words.*got 1 and 2"):
        regression_controls(corpus_of(["fee term"]), [np.array([True])], [np.array([1, 1])])
