"""BH, BY and Holm: published and worked examples, slow references from the definitions, and laws."""

import numpy as np
import pytest

from attnlens.core.multiplicity import benjamini_hochberg, benjamini_yekutieli, holm

# Benjamini & Hochberg 1995, section 3.2: fifteen tests of the thrombolysis trial.
TRIAL = [
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
]
ADJUSTED = [
    *(0.0015, 0.0030, 0.0095, 0.0356, 0.0603, 0.0639, 0.0639, 0.0645),
    *(0.0765, 0.4860, 0.5812, 0.7149, 0.7532, 0.8132, 1.0),
]


def slow_adjusted(p: list[float], penalty: float) -> list[float]:
    """min over every j with p_j ≥ p_i of m · penalty · p_j / rank_j, straight from the definition."""
    m = len(p)
    return [
        min([1.0, *(m * penalty * other / sum(q <= other for q in p) for other in p if other >= value)]) for value in p
    ]


def slow_holm(p: list[float]) -> list[float]:
    """The largest of p_j · (number of tests not before j) over every j not behind i, from the definition."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    return [
        min(1.0, max((len(p) - place) * p[j] for place, j in enumerate(order[: order.index(i) + 1])))
        for i in range(len(p))
    ]


def test_published_example():
    adjusted = benjamini_hochberg(TRIAL)
    np.testing.assert_allclose(adjusted, ADJUSTED, atol=5e-5)
    assert (adjusted <= 0.05).sum() == 4


def test_hand_numbers():
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.02, 0.03, 0.5]), [0.04, 0.04, 0.04, 0.5], rtol=1e-15)
    np.testing.assert_allclose(benjamini_yekutieli([0.01, 0.02, 0.03, 0.5]), [1 / 12, 1 / 12, 1 / 12, 1], rtol=1e-15)

    np.testing.assert_allclose(holm([0.01, 0.02, 0.03, 0.5]), [0.04, 0.06, 0.06, 0.5], rtol=1e-15)
    np.testing.assert_allclose(holm([0.5, 0.01, np.nan, 0.03, 0.02]), [0.5, 0.04, np.nan, 0.06, 0.06], rtol=1e-15)
    np.testing.assert_allclose(holm([0.6, 0.6]), [1, 1])


def test_equals_the_definition():
    rng = np.random.default_rng(1)
    for m in (1, 2, 7, 40):
        p = rng.random(m).round(2)
        harmonic = sum(1 / i for i in range(1, m + 1))
        np.testing.assert_allclose(benjamini_hochberg(p), slow_adjusted(p.tolist(), 1.0), rtol=1e-12)
        np.testing.assert_allclose(benjamini_yekutieli(p), slow_adjusted(p.tolist(), harmonic), rtol=1e-12)
        np.testing.assert_allclose(holm(p), slow_holm(p.tolist()), rtol=1e-12)


def test_holm_lies_between_no_correction_and_bonferroni():
    p = np.random.default_rng(4).random(20) ** 2
    assert (holm(p) >= benjamini_hochberg(p)).all() and (holm(p) <= np.minimum(20 * p, 1)).all()
    assert holm(p).min() == pytest.approx(20 * p.min())


@pytest.mark.parametrize("adjust", [benjamini_hochberg, benjamini_yekutieli, holm])
def test_laws(adjust):
    p = np.random.default_rng(2).random((6, 5)) ** 3
    before = p.copy()
    adjusted = adjust(p)
    assert adjusted.shape == p.shape and (p == before).all()
    assert (adjusted >= p).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted.ravel()[np.argsort(p.ravel())]) >= 0).all(), "monotone in p"
    shuffle = np.random.default_rng(3).permutation(p.size)
    np.testing.assert_allclose(adjust(p.ravel()[shuffle]), adjusted.ravel()[shuffle])


@pytest.mark.parametrize("adjust", [benjamini_hochberg, benjamini_yekutieli, holm])
def test_nan_is_no_test(adjust):
    with_gaps = np.array([[np.nan, 0.01, 0.2], [0.03, np.nan, np.nan]])
    adjusted = adjust(with_gaps)
    np.testing.assert_array_equal(np.isnan(adjusted), np.isnan(with_gaps))
    np.testing.assert_array_equal(adjusted[~np.isnan(adjusted)], adjust([0.01, 0.2, 0.03]))
    assert np.isnan(adjust([np.nan, np.nan])).all()
    assert adjust([]).shape == (0,)
