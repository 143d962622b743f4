"""Bootstrap and sign flips: published numbers, slow references from the definitions, laws, and calibration."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from attnlens.core import resampling
from attnlens.core.errors import ShapeError
from attnlens.core.resampling import (
    BATCH,
    Estimate,
    bca,
    bootstrap_t,
    bootstrap_t_interval,
    column_tests,
    document_means,
    estimate_mean,
    sign_flip,
)

# Darwin's maize: crossed minus self-fertilised, eighths of an inch (Fisher 1935, The Design of Experiments, 17).
MAIZE = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48.0])
# Efron & Tibshirani 1993, table 14.1: spatial test, A.
SPATIAL = np.array(
    [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41.0]
)

# Efron & Tibshirani 1993, table 3.1: mean LSAT and GPA of 15 law schools.
LAW = np.array(
    [
        [576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594],
        [3.39, 3.30, 2.81, 3.03, 3.44, 3.07, 3.00, 3.43, 3.36, 3.13, 3.12, 2.74, 2.76, 2.88, 2.96],
    ]
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def slow_sign_flip(values: list[int]) -> Fraction:
    """Exact two-sided p over every pattern of signs, in whole numbers."""
    flips = [
        abs(sum(s * x for s, x in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    return Fraction(sum(flip >= abs(sum(values)) for flip in flips), len(flips))


def t_of(values: np.ndarray, centre: float) -> float:
    """One-sample t against `centre`, from its definition."""
    known = values[~np.isnan(values)]
    return (known.mean() - centre) / (known.std(ddof=1) / math.sqrt(len(known)))


# --- documents ---------------------------------------------------------------------------------------------------


def test_document_means_by_hand():
    assert document_means([1, 3, 5], ["a", "a", "b"]).tolist() == [2, 5]


def test_document_means_equal_a_loop_and_skip_nan():
    values = rng().standard_normal((40, 3, 2))
    values[rng(1).random(values.shape) < 0.3] = np.nan
    documents = rng(2).choice(list("qwerty"), 40)
    values[documents == "t", 1] = np.nan
    means = document_means(values, documents)
    for d, name in enumerate(sorted(set(documents))):
        for c in np.ndindex(3, 2):
            column = [v for v, document in zip(values[(slice(None), *c)], documents, strict=True) if document == name]
            known = [v for v in column if not math.isnan(v)]
            expected = sum(known) / len(known) if known else math.nan
            np.testing.assert_allclose(means[(d, *c)], expected, rtol=1e-13)
    assert np.isnan(means[sorted(set(documents)).index("t"), 1]).all()


def test_document_means_do_not_depend_on_the_length_of_documents():
    once = document_means([1.0, 5.0], [0, 1])
    repeated = document_means([1.0, 5.0, 5.0, 5.0, 5.0], [0, 1, 1, 1, 1])
    np.testing.assert_array_equal(once, repeated)
    assert document_means(np.empty((0, 4)), np.empty(0, str)).shape == (0, 4)


def test_document_means_need_one_name_per_example():
    with pytest.raises(ShapeError, match=r"values \(3, 2\) and documents \(2,\)"):
        document_means(np.ones((3, 2)), ["a", "b"])


# --- sign flips --------------------------------------------------------------------------------------------------


def test_maize_as_published():
    assert sign_flip(MAIZE, rng=rng()) == 1726 / 32768
    tests = column_tests(MAIZE, rng=rng())
    t = tests.effect_size * math.sqrt(15)
    assert t == pytest.approx(2.148, abs=5e-4)
    assert 2 * stats.t.sf(t, 14) == pytest.approx(0.0497, abs=5e-5)
    # The t interval just excludes 0, as its p of .0497 says; the sign flips do not.
    assert tests.low == pytest.approx(0.0312, abs=5e-3) and tests.low > 0
    assert (tests.low, tests.high) == pytest.approx(tuple(stats.ttest_1samp(MAIZE, 0).confidence_interval(0.95)))


def test_wilcoxon_of_the_maize_as_published():
    """Flipping the signs of ranks is Wilcoxon's signed-rank test: W = 24, p = .04126."""
    ranks = stats.rankdata(np.abs(MAIZE)) * np.sign(MAIZE)
    assert -ranks[ranks < 0].sum() == 24
    p = sign_flip(ranks, rng=rng())
    assert p == pytest.approx(0.04126, abs=5e-6)
    assert p == stats.wilcoxon(MAIZE, method="exact").pvalue


def test_sign_flip_by_hand():
    assert sign_flip([1, 2, 3], rng=rng()) == 2 / 8
    assert sign_flip([1, -1], rng=rng()) == 1
    assert sign_flip([5], rng=rng()) == 1
    assert sign_flip(np.ones(8), rng=rng()) == 2 / 256, "a constant has the smallest p there is"


@pytest.mark.parametrize("n", range(1, 12))
def test_sign_flip_equals_the_enumeration(n: int):
    for seed in range(4):
        values = rng(seed).integers(-4, 9, n)  # many ties
        assert sign_flip(values / 7, rng=rng()) == slow_sign_flip(values.tolist())


def test_exact_and_random_meet_at_the_limit(monkeypatch):
    exact = sign_flip(MAIZE, rng=rng())
    monkeypatch.setattr(resampling, "EXACT_DOCUMENTS", 14)
    drawn = sign_flip(MAIZE, rng=rng())
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 9999))
    assert (drawn * 10_000) == pytest.approx(round(drawn * 10_000), abs=1e-9), "p = (b + 1) / (resamples + 1)"


def test_random_flips_agree_with_scipy():
    values = rng(5).standard_normal(30) + 0.3
    peer = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999, rng=rng(1)
    )
    assert sign_flip(values, rng=rng()) == pytest.approx(peer.pvalue, abs=0.012)


def test_the_smallest_random_p_counts_the_data_themselves():
    for resamples in (1, 99, BATCH, BATCH + 1):
        assert sign_flip(np.ones(60), resamples=resamples, rng=rng()) == 1 / (resamples + 1)


@pytest.mark.parametrize("n", [7, 40])
def test_negated_data_have_the_same_p(n: int):
    values = rng(3).standard_normal((n, 9)) + 0.2
    there, back = column_tests(values, rng=rng()), column_tests(-values, rng=rng())
    np.testing.assert_array_equal(there.p, back.p)
    np.testing.assert_array_equal(there.estimate, -back.estimate)
    np.testing.assert_array_equal(there.low, -back.high)
    np.testing.assert_array_equal(there.effect_size, -back.effect_size)


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1e150])
def test_the_unit_of_the_data_does_not_matter(scale: float):
    values = rng(4).standard_normal((30, 4)) + 0.3
    np.testing.assert_array_equal(column_tests(values * scale, rng=rng()).p, column_tests(values, rng=rng()).p)


# --- many columns ------------------------------------------------------------------------------------------------


def test_column_tests_equal_scipy_column_by_column():
    values = rng(6).standard_normal((14, 3, 4)) + 0.4
    values[:5, 1, 2] = np.nan
    tests = column_tests(values, level=0.9, rng=rng())
    assert tests.level == 0.9 and tests.n[1, 2] == 9 and tests.n[0, 0] == 14
    for c in np.ndindex(3, 4):
        known = values[(slice(None), *c)]
        known = known[~np.isnan(known)]
        peer = stats.ttest_1samp(known, 0)
        interval = peer.confidence_interval(0.9)
        assert tests.estimate[c] == pytest.approx(known.mean(), rel=1e-12)
        assert (tests.low[c], tests.high[c]) == pytest.approx((interval.low, interval.high), rel=1e-11)
        assert tests.effect_size[c] * math.sqrt(len(known)) == pytest.approx(peer.statistic, rel=1e-12)
        assert tests.p[c] == sign_flip(known, rng=rng()), "exact, so missing documents change nothing"


def test_a_column_does_not_depend_on_the_others():
    values = rng(7).standard_normal((40, 5))
    together, alone = column_tests(values, rng=rng()), column_tests(values[:, 3], rng=rng())
    assert alone.p.shape == () and alone.p == together.p[3]
    assert (alone.low, alone.high) == pytest.approx((together.low[3], together.high[3]), rel=1e-12)


def test_columns_without_data_spread_or_difference():
    values = np.zeros((20, 5))
    values[:, 1] = 0.1
    values[:, 2] = np.nan
    values[1:, 3] = np.nan
    values[0, 3] = 7.0
    values[1:, 4] = np.nan
    tests = column_tests(values, rng=rng())
    np.testing.assert_array_equal(tests.n, [20, 20, 0, 1, 1])
    np.testing.assert_array_equal(tests.estimate, [0, 0.1, np.nan, 7, 0])
    np.testing.assert_array_equal(tests.low, [0, 0.1, np.nan, np.nan, 0])
    np.testing.assert_array_equal(tests.high, [0, 0.1, np.nan, np.nan, 0])
    np.testing.assert_array_equal(tests.p, [1, 1 / 10_000, np.nan, 1, 1])
    np.testing.assert_array_equal(tests.effect_size, [0, np.nan, np.nan, np.nan, 0])
    empty = column_tests(np.empty((0, 2)), rng=rng())
    assert np.isnan(empty.p).all() and np.isnan(empty.low).all()


def test_input_is_untouched():
    values = rng(8).standard_normal((12, 3))
    values[0, 0] = np.nan
    before = values.copy()
    column_tests(values, rng=rng())
    bootstrap_t_interval(values, resamples=99, rng=rng())
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("documents", [12, 25])
def test_nulls_reject_five_in_a_hundred(documents: int):
    for draw in (rng(9).standard_normal, rng(10).standard_cauchy):
        p = column_tests(draw((documents, 4000)), rng=rng(11)).p
        assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.014)
        assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.05)


def test_a_real_shift_is_found():
    p = column_tests(rng(12).standard_normal((25, 400)) + 0.8, rng=rng()).p
    assert np.mean(p <= 0.05) > 0.93  # the t test has power .97


# --- bootstrap intervals -----------------------------------------------------------------------------------------


def test_bca_of_the_variance_as_published():
    assert np.var(SPATIAL) == pytest.approx(171.5, abs=0.05)
    assert bca(SPATIAL, np.var, level=0.9, rng=rng()) == pytest.approx((115.8, 259.6), abs=4)


def test_bca_of_the_law_schools_as_published():
    """A correlation: what is drawn are the numbers of the schools. r = .776, 95 % (.308, .943), standard error .135."""
    assert np.corrcoef(LAW)[0, 1] == pytest.approx(0.7764, abs=5e-5)

    def correlation(schools: np.ndarray, axis: int) -> np.ndarray:
        drawn = LAW[:, schools.astype(int)]
        centred = drawn - drawn.mean(axis, keepdims=True)
        x, y = centred / np.sqrt((centred**2).sum(axis, keepdims=True))
        return (x * y).sum(axis)

    low, high = bca(np.arange(15.0), correlation, rng=rng())
    assert low == pytest.approx(0.308, abs=0.02) and high == pytest.approx(0.943, abs=0.005)


def test_bca_mirrors_with_the_data():
    values = rng(13).exponential(size=30)
    low, high = bca(values, rng=rng(1))
    mirrored = bca(-values, rng=rng(1))
    assert mirrored == pytest.approx((-high, -low), rel=1e-12)
    shifted = bca(values + 5, rng=rng(1))
    assert shifted == pytest.approx((low + 5, high + 5), rel=1e-12)
    assert bca(values, level=0.8, rng=rng(1))[0] > low, "a lower level is narrower"


def test_bca_leans_with_the_skew():
    values = rng(14).exponential(size=40)
    low, high = bca(values, rng=rng())
    assert high - values.mean() > values.mean() - low


def test_bca_of_constants_gaps_and_too_few():
    assert bca(np.zeros(20), rng=rng()) == (0, 0)
    assert bca([0.0], rng=rng()) == (0, 0)
    assert bca(np.full(20, 0.1), rng=rng()) == (pytest.approx(0.1), pytest.approx(0.1))
    assert np.isnan(bca([3.0], rng=rng())).all()
    assert np.isnan(bca([np.nan, np.nan], rng=rng())).all()
    values = rng(15).standard_normal(20)
    assert bca([*values, np.nan], rng=rng()) == bca(values, rng=rng())
    with pytest.raises(ShapeError, match=r"one value per document.*got shape \(4, 2\)"):
        bca(np.ones((4, 2)), rng=rng())


def test_bootstrap_t_draws_equal_resampling_by_hand():
    values = rng(16).exponential(size=(6, 3))
    values[:3, 1] = np.nan
    draws = bootstrap_t(values, resamples=200, rng=rng(1))
    counts = rng(1).multinomial(6, np.full(6, 1 / 6), 200)
    for b, c in itertools.product(range(200), range(3)):
        resample = np.repeat(values[:, c], counts[b])
        known = resample[~np.isnan(resample)]
        mean = np.nanmean(values[:, c])
        if len(known) < 2:
            assert np.isnan(draws[b, c]), "no spread is known"
        elif np.ptp(known) == 0:
            assert draws[b, c] == np.sign(known[0] - mean) * np.inf
        else:
            assert draws[b, c] == pytest.approx(t_of(known, mean), rel=1e-9, abs=1e-12)


def test_bootstrap_t_interval_uses_the_opposite_tails():
    """One column, from the definition: mean − t*(.975) se, mean − t*(.025) se."""
    values = rng(17).exponential(size=(25, 1))
    low, high = bootstrap_t_interval(values, resamples=9999, rng=rng(1))
    draws = np.sort(bootstrap_t(values, resamples=9999, rng=rng(1))[:, 0])
    error = values.std(ddof=1) / 5
    assert low[0] == pytest.approx(values.mean() - draws[9749] * error, rel=1e-12)
    assert high[0] == pytest.approx(values.mean() - draws[249] * error, rel=1e-12)
    assert high[0] - values.mean() > values.mean() - low[0], "the long tail of the data lengthens the upper side"


def test_batches_do_not_change_the_draws(monkeypatch):
    values = rng(18).standard_normal((9, 2))
    expected = bootstrap_t(values, resamples=700, rng=rng(1))
    monkeypatch.setattr(resampling, "BATCH", 700)
    np.testing.assert_allclose(bootstrap_t(values, resamples=700, rng=rng(1)), expected, rtol=1e-12)


# --- one estimate ------------------------------------------------------------------------------------------------


def test_estimate_brings_its_parts_together():
    values = np.array([*MAIZE, np.nan])
    estimate = estimate_mean(values, level=0.9, resamples=999, rng=rng(1))
    assert estimate.n == 15 and estimate.level == 0.9 and not estimate.identical
    assert estimate.estimate == pytest.approx(314 / 15, rel=1e-14)
    assert estimate.p == 1726 / 32768
    low, high = bootstrap_t_interval(MAIZE[:, None], level=0.9, resamples=999, rng=rng(1))
    assert (estimate.low, estimate.high) == (low[0], high[0])
    assert estimate.effect_size == pytest.approx(2.148 / math.sqrt(15), abs=2e-4)


def test_without_limits_of_bootstrap_t_there_is_bca_from_ten_documents_on():
    """Nearly equal documents: most resamples have no spread."""
    values = np.array([1.0, 2.0, *np.zeros(12)])
    assert np.isnan(bootstrap_t_interval(values[:, None], resamples=999, rng=rng(1))).all()
    estimate = estimate_mean(values, resamples=999, rng=rng(1))
    assert np.isfinite([estimate.low, estimate.high]).all() and estimate.low < estimate.estimate < estimate.high
    assert math.isnan(estimate_mean(values[:9], resamples=999, rng=rng(1)).low)


def test_bca_of_few_documents_is_narrower():
    values = MAIZE[:9]
    estimate = estimate_mean(values, rng=rng(1))
    assert estimate.high - estimate.low > np.diff(bca(values, rng=rng(1)))[0]


@pytest.mark.parametrize("documents", [1, 2, 5, 20])
def test_identical_models_are_exactly_identical(documents: int):
    estimate = estimate_mean(np.zeros(documents), rng=rng())
    assert estimate == Estimate(estimate=0, low=0, high=0, p=1, effect_size=0, n=documents, level=0.95)
    assert estimate.identical


@pytest.mark.parametrize("values", [[], [np.nan], [3.0], [3.0, 4.0], [3.0, 4.0, 6.0]])
def test_too_few_documents_have_no_interval(values: list[float]):
    estimate = estimate_mean(values, rng=rng())
    assert math.isnan(estimate.low) and math.isnan(estimate.high) and not estimate.identical
    assert estimate.n == np.sum(~np.isnan(values))
    assert math.isnan(estimate.estimate) == (estimate.n == 0) == math.isnan(estimate.p)


def test_swapped_models_mirror_the_estimate():
    for documents in (8, 30):
        values = rng(19).exponential(size=documents) - 0.5
        there, back = estimate_mean(values, rng=rng(1)), estimate_mean(-values, rng=rng(1))
        assert (back.estimate, back.p, back.effect_size) == (-there.estimate, there.p, -there.effect_size)
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low), rel=1e-12)


@pytest.mark.parametrize(("documents", "least"), [(6, 0.91), (20, 0.88), (60, 0.91)])
def test_coverage_of_skewed_data(documents: int, least: float):
    draw = rng(20)
    covered = []
    for _ in range(300):
        estimate = estimate_mean(draw.exponential(size=documents) - 1, resamples=499, rng=draw)
        covered.append(estimate.low <= 0 <= estimate.high)
    assert least <= np.mean(covered) < 0.985
