"""Agreement of scores and marks: hand numbers, scikit-learn, every order of the ties, laws."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from attnlens.core.agreement import agreement
from attnlens.core.errors import ShapeError


def test_hand_numbers():
    got = agreement(np.array([3.0, 2.0, 2.0, 1.0]), np.array([1, 1, 0, 0]))
    assert [float(value) for value in got] == pytest.approx([7 / 8, 11 / 12, 3 / 4], abs=1e-15)


def test_equals_scikit_learn_without_ties():
    rng = np.random.default_rng(0)
    scores, marked = rng.normal(size=(5, 4, 40)), rng.random((5, 4, 40)) < 0.3
    got = agreement(scores, marked)
    for at in np.ndindex(5, 4):
        assert got.auroc[at] == pytest.approx(roc_auc_score(marked[at], scores[at]), abs=1e-12)
        assert got.average_precision[at] == pytest.approx(average_precision_score(marked[at], scores[at]), abs=1e-12)
        top = np.argsort(-scores[at])[: marked[at].sum()]
        assert got.precision[at] == pytest.approx(marked[at][top].mean(), abs=1e-12)


def test_auroc_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(1)
    scores, marked = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    assert float(agreement(scores, marked).auroc) == pytest.approx(roc_auc_score(marked, scores), abs=1e-12)


def orders(scores: np.ndarray) -> list[list[int]]:
    """Every order of the keys, best first, that the scores allow."""
    levels = [[i for i, s in enumerate(scores) if s == level] for level in sorted(set(scores), reverse=True)]
    products = itertools.product(*map(itertools.permutations, levels))
    return [list(itertools.chain.from_iterable(ties)) for ties in products]


@pytest.mark.parametrize("seed", range(12))
def test_ties_give_the_mean_over_every_order(seed: int):
    rng = np.random.default_rng(seed)
    scores, marked = rng.integers(0, 3, 7).astype(float), np.zeros(7, dtype=int)
    marked[rng.choice(7, rng.integers(1, 7), replace=False)] = 1
    found = []
    for order in orders(scores):
        ranked = marked[order]
        k = ranked.sum()
        pairs = [ranked[i] > ranked[j] for i in range(7) for j in range(i + 1, 7) if ranked[i] != ranked[j]]
        places = np.flatnonzero(ranked) + 1
        found.append((np.mean(pairs), np.mean(np.arange(1, k + 1) / places), ranked[:k].mean()))
    np.testing.assert_allclose(list(map(float, agreement(scores, marked))), np.mean(found, 0), atol=1e-12)


def test_scores_that_differ_by_rounding_are_ties():
    """A uniform head: the order of the last digits is no order; AUROC ½, P@k the base rate."""
    rng = np.random.default_rng(2)
    scores, marked = 1 + 1e-11 * rng.normal(size=100), np.arange(100) < 20
    got = agreement(scores, marked)
    assert float(got.auroc) == 0.5
    assert float(got.precision) == pytest.approx(0.2, abs=1e-12)
    apart = agreement(np.array([1.0, 1.0 + 1e-7]), np.array([0, 1]))
    assert float(apart.auroc) == 1.0
    assert float(agreement(np.array([1.0, 1.0 + 1e-7]), np.array([0, 1]), tie=1e-6).auroc) == 0.5
    assert float(agreement(np.array([100.0, 100.0 + 1e-8]), np.array([0, 1])).auroc) == 0.5  # relative, not absolute


def test_keys_left_out_change_nothing():
    """Masked and NaN keys at any place, whatever they hold; several definitions share one order."""
    rng = np.random.default_rng(3)
    scores, marked = rng.integers(0, 4, (3, 2, 1, 9)).astype(float), rng.random((3, 1, 4, 9)) < 0.5
    wide_scores, wide_marks = np.full((3, 2, 1, 13), 99.0), np.ones((3, 1, 4, 13), dtype=bool)
    places = [0, 2, 3, 5, 6, 7, 9, 10, 12]
    wide_scores[..., places], wide_marks[..., places] = scores, marked
    keys = np.zeros((3, 1, 1, 13), dtype=bool)
    keys[..., places] = True
    wide_scores[..., 4] = np.nan
    keys[..., 4] = True
    for plain, wide in zip(agreement(scores, marked), agreement(wide_scores, wide_marks, keys), strict=True):
        assert plain.shape == (3, 2, 4)
        np.testing.assert_array_equal(plain, wide)
    single = agreement(scores[1, 1, 0], marked[1, 0, 2])
    for values, value in zip(agreement(scores, marked), single, strict=True):
        np.testing.assert_array_equal(values[1, 1, 2], value)


def test_turned_scores_turn_the_auroc():
    """I-24: AUROC(−R) = 1 − AUROC(R), ties or not."""
    rng = np.random.default_rng(4)
    scores, marked = rng.integers(0, 6, (20, 30)).astype(float), rng.random((20, 30)) < 0.3
    np.testing.assert_allclose(agreement(-scores, marked).auroc, 1 - agreement(scores, marked).auroc, atol=1e-12)


def test_one_class_alone_is_no_data():
    scores = np.arange(4.0)
    for marked in (np.zeros(4), np.ones(4)):
        assert all(np.isnan(value) for value in agreement(scores, marked))
    assert all(np.isnan(value) for value in agreement(scores, np.array([1, 0, 0, 0]), np.zeros(4, dtype=bool)))


def test_soft_marks_are_refused():
    with pytest.raises(ShapeError, match="0 or 1"):
        agreement(np.arange(3.0), np.array([0.5, 0, 1]))
