"""Claims about all layers at once: hand numbers, slow references from the definitions, laws, calibration."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from attnlens.core import resampling
from attnlens.core.bands import equivalence, max_t, simultaneous_band
from attnlens.core.errors import AttnlensError, ShapeError
from attnlens.core.resampling import bootstrap_t, column_tests, sign_flip


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def layers(documents: int, columns: int = 12, *, seed: int = 0, sets: int = 1) -> np.ndarray:
    """Correlated layers (.6 to the power of their distance): (sets, documents, columns), normal, mean 0."""
    distance = np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))
    return rng(seed).standard_normal((sets, documents, columns)) @ np.linalg.cholesky(0.6**distance).T


def slow_step_down(values: np.ndarray) -> np.ndarray:
    """Westfall & Young's algorithm over every pattern of signs, with Student's t as the statistic."""

    def t(data: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.abs(data.mean(0) / (data.std(0, ddof=1) / math.sqrt(len(data))))

    flips = np.array([t(np.array(s)[:, None] * values) for s in itertools.product((1, -1), repeat=len(values))])
    observed = t(values)
    adjusted, so_far = np.empty(len(observed)), 0.0
    remaining = sorted(range(len(observed)), key=lambda c: -observed[c])
    for rank, c in enumerate(remaining):
        strongest = flips[:, remaining[rank:]].max(1)
        so_far = max(so_far, np.mean(strongest >= observed[c] * (1 - 1e-12)))
        adjusted[c] = so_far
    return adjusted


# --- max-T -------------------------------------------------------------------------------------------------------


def test_max_t_by_hand():
    result = max_t(np.array([[1, 1], [2, 1], [3, -1.0]]), rng=rng())
    assert result.p.tolist() == [2 / 8, 1]
    assert result.p_adjusted.tolist() == [4 / 8, 1]


@pytest.mark.parametrize("documents", [2, 5, 9])
def test_max_t_equals_the_algorithm(documents: int):
    for seed in range(5):
        values = layers(documents, 6, seed=seed)[0] + np.linspace(0, 1.5, 6)
        np.testing.assert_array_equal(max_t(values, rng=rng()).p_adjusted, slow_step_down(values))


def test_the_raw_p_is_that_of_each_column_alone():
    for documents in (9, 30):
        values = layers(documents)[0] + 0.3
        result = max_t(values, rng=rng(1))
        np.testing.assert_array_equal(result.p, column_tests(values, rng=rng(1)).p)
    np.testing.assert_array_equal(result.p[4], sign_flip(values[:, 4], rng=rng(1)))


def test_max_t_laws():
    values = layers(40, seed=1)[0] + np.linspace(0, 0.6, 12)
    result = max_t(values, rng=rng(1))
    assert (result.p_adjusted >= result.p).all() and (result.p_adjusted <= 1).all() and (result.p > 0).all()
    strength = np.argsort(-np.abs(values.mean(0) / values.std(0)))
    assert (np.diff(result.p_adjusted[strength]) >= 0).all(), "a weaker layer never has the smaller p"
    np.testing.assert_array_equal(max_t(-values, rng=rng(1)).p_adjusted, result.p_adjusted)
    np.testing.assert_array_equal(max_t(values * np.arange(1, 13), rng=rng(1)).p_adjusted, result.p_adjusted)
    shuffle = rng(2).permutation(12)
    np.testing.assert_array_equal(max_t(values[:, shuffle], rng=rng(1)).p_adjusted, result.p_adjusted[shuffle])
    alone = max_t(values[:, :1], rng=rng(1))
    np.testing.assert_array_equal(alone.p_adjusted, alone.p)


def test_copies_of_a_layer_cost_nothing_and_noise_does():
    values = layers(40, 1, seed=2)[0] + 0.35
    p = sign_flip(values[:, 0], rng=rng(1))
    np.testing.assert_array_equal(max_t(np.repeat(values, 8, axis=1), rng=rng(1)).p_adjusted, p)
    beside_noise = np.hstack([values, layers(40, 30, seed=3)[0]])
    assert max_t(beside_noise, rng=rng(1)).p_adjusted[0] > 3 * p


def test_max_t_of_zeros_constants_and_gaps():
    values = np.zeros((20, 4))
    values[:, 1] = 0.1
    values[:, 2] = np.nan
    values[:, 3] = rng().standard_normal(20)
    values[:12, 3] = np.nan
    result = max_t(values, rng=rng(1))
    assert result.p[0] == result.p_adjusted[0] == 1
    assert result.p[1] == result.p_adjusted[1] == 1 / 10_000
    assert np.isnan(result.p[2]) and np.isnan(result.p_adjusted[2])
    assert 0 < result.p[3] <= result.p_adjusted[3]
    with_empty_documents = np.vstack([layers(9)[0], np.full((20, 12), np.nan)])
    np.testing.assert_array_equal(
        max_t(with_empty_documents, rng=rng()).p, max_t(layers(9)[0], rng=rng()).p, "documents without data: exact"
    )
    one = max_t(np.ones((1, 3)), rng=rng())
    assert one.p.tolist() == one.p_adjusted.tolist() == [1, 1, 1]
    assert np.isnan(max_t(np.full((3, 2), np.nan), rng=rng()).p_adjusted).all()


@pytest.mark.parametrize("documents", [12, 40])
def test_max_t_rejects_any_true_null_five_times_in_a_hundred(documents: int):
    families = layers(documents, seed=4, sets=600)
    any_rejected = [
        max_t(values, resamples=399, rng=rng(i)).p_adjusted.min() <= 0.05 for i, values in enumerate(families)
    ]
    assert np.mean(any_rejected) == pytest.approx(0.05, abs=0.02)


def test_step_down_finds_more_than_one_maximum_for_all():
    values = layers(9, 6, seed=5)[0] * 0.2
    values[:, :5] += 3.0
    values[:, 5] += 0.13
    assert max_t(values, rng=rng()).p_adjusted[5] == max_t(values, rng=rng()).p[5]


# --- the band ----------------------------------------------------------------------------------------------------


def test_band_from_its_definition():
    values = rng(6).exponential(size=(20, 5))
    band = simultaneous_band(values, resamples=999, rng=rng(1))
    draws = bootstrap_t(values, resamples=999, rng=rng(1))
    error = values.std(0, ddof=1) / math.sqrt(20)
    rise, fall = np.sort(draws.max(1))[974], np.sort((-draws).max(1))[974]  # the 975th of 999, and (999 + 1) .975 = 975
    np.testing.assert_allclose(band.estimate, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(band.low, values.mean(0) - rise * error, rtol=1e-12)
    np.testing.assert_allclose(band.high, values.mean(0) + fall * error, rtol=1e-12)
    assert band.n.tolist() == [20] * 5 and band.level == 0.95


def test_band_laws():
    values = rng(7).exponential(size=(25, 6))
    band = simultaneous_band(values, rng=rng(1))
    mirrored = simultaneous_band(-values, rng=rng(1))
    np.testing.assert_array_equal(mirrored.low, -band.high)
    np.testing.assert_array_equal(mirrored.high, -band.low)
    scaled = simultaneous_band(values * 8, rng=rng(1))
    np.testing.assert_array_equal(scaled.low, band.low * 8)
    narrow = simultaneous_band(values, level=0.5, rng=rng(1))
    assert (narrow.low > band.low).all() and (narrow.high < band.high).all()
    alone = simultaneous_band(values[:, :1], rng=rng(1))
    assert alone.low[0] > band.low[0] and alone.high[0] < band.high[0], "a claim about one layer is narrower"
    copies = simultaneous_band(np.repeat(values[:, :1], 9, axis=1), rng=rng(1))
    np.testing.assert_allclose(copies.low, alone.low[0], rtol=1e-12)


def test_layers_that_say_nothing_leave_the_others_alone():
    """Zeros, constants, no data, one document, one document in thirty that moved: no effect on the first layers."""
    values = layers(30, 3, seed=8)[0]
    silent = np.zeros((30, 5))
    silent[:, 1] = 0.1
    silent[:, 2] = np.nan
    silent[1:, 3] = np.nan
    silent[0, 3:] = 7.0
    expected = simultaneous_band(values, rng=rng(1))
    band = simultaneous_band(np.hstack([values, silent]), rng=rng(1))
    np.testing.assert_allclose(band.low[:3], expected.low, rtol=1e-12)
    np.testing.assert_allclose(band.high[:3], expected.high, rtol=1e-12)
    np.testing.assert_array_equal(band.low[3:], [0, 0.1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(band.high[3:], [0, 0.1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(band.n, [30, 30, 30, 30, 30, 0, 1, 30])


def test_missing_documents_count_in_their_layer_only():
    values = layers(30, 2, seed=9)[0]
    values[:10, 1] = np.nan
    band = simultaneous_band(values, rng=rng(1))
    assert band.n.tolist() == [30, 20]
    assert band.estimate[1] == pytest.approx(values[10:, 1].mean(), rel=1e-12)
    units = (band.high - band.low) / (np.nanstd(values, axis=0, ddof=1) / np.sqrt([30, 20]))
    assert units[0] == pytest.approx(units[1], rel=1e-12), "one critical value in standard errors"
    with_empty_documents = np.vstack([values, np.full((9, 2), np.nan)])
    np.testing.assert_array_equal(simultaneous_band(with_empty_documents, rng=rng(1)).low, band.low)


def test_a_layer_known_in_few_documents_has_no_band():
    """2.9 % of the resamples have fewer than two of its five documents: nothing bounds its t* at 2.5 %."""
    values = layers(30, 2, seed=17)[0]
    values[5:, 1] = np.nan
    band, alone = simultaneous_band(values, rng=rng(1)), simultaneous_band(values[:, :1], rng=rng(1))
    assert np.isnan(band.low[1]) and np.isnan(band.high[1]) and band.n[1] == 5
    np.testing.assert_allclose((band.low[0], band.high[0]), (alone.low[0], alone.high[0]), rtol=1e-12)


def test_a_band_is_never_infinite():
    """Two layers that moved in four documents of thirty each: alone bounded, together not (.987^2 < .975)."""
    values = np.zeros((30, 2))
    values[:4, 0], values[4:8, 1] = (1, 2, 3, 4), (1, 2, 3, 4)
    for c in range(2):
        assert np.isfinite(simultaneous_band(values[:, [c]], rng=rng(1)).high).all()
    band = simultaneous_band(values, rng=rng(1))
    assert np.isnan(band.low).all() and np.isnan(band.high).all()


@pytest.mark.parametrize("documents", [1, 2, 3])
def test_no_band_from_too_few_documents_except_of_zeros(documents: int):
    values = np.hstack([layers(documents, 3, seed=10)[0], np.zeros((documents, 1))])
    band = simultaneous_band(values, rng=rng())
    assert np.isnan(band.low[:3]).all() and np.isnan(band.high[:3]).all()
    assert (band.low[3], band.high[3]) == (0, 0)
    assert band.n.tolist() == [documents] * 4


def test_a_band_from_four_documents_is_finite_and_wide():
    values = layers(4, 3, seed=11)[0]
    band = simultaneous_band(values, rng=rng())
    assert np.isfinite(band.low).all() and np.isfinite(band.high).all()
    alone = column_tests(values, rng=rng())
    assert ((band.high - band.low) > (alone.high - alone.low)).all()


@pytest.mark.parametrize(("documents", "skewed"), [(6, False), (20, False), (20, True), (60, True)])
def test_coverage_of_twelve_layers_together(documents: int, skewed: bool):
    sets = layers(documents, seed=12, sets=300)
    if skewed:
        sets = stats.expon.ppf(stats.norm.cdf(sets)) - 1
    bands = [simultaneous_band(values, resamples=399, rng=rng(i)) for i, values in enumerate(sets)]
    covered = np.mean([(band.low <= 0).all() and (band.high >= 0).all() for band in bands])
    assert covered >= 0.93
    alone = np.mean([band.low[0] <= 0 <= band.high[0] for band in bands])
    assert alone > covered


def test_the_band_is_not_wider_than_it_must_be():
    """At 60 normal documents the critical value is near that of the exact max-T law (2.90 by simulation)."""
    values = layers(60, seed=13)[0]
    band = simultaneous_band(values, rng=rng())
    units = (band.high - band.low) / 2 / (values.std(0, ddof=1) / math.sqrt(60))
    assert units == pytest.approx(2.9, abs=0.15)


# --- equivalence -------------------------------------------------------------------------------------------------


def test_equivalence_by_hand():
    p = equivalence(np.array([[-1.0], [0.0], [1.0]]), 1.0)
    assert p[0] == pytest.approx(0.5 - math.sqrt(3) / (2 * math.sqrt(5)), rel=1e-12)  # Student's law at 2 d.f.


def test_equivalence_equals_two_one_sided_tests():
    values = layers(15, 5, seed=14)[0] * 0.1 + np.linspace(-0.3, 0.3, 5)
    values[:4, 2] = np.nan
    p = equivalence(values, 0.2)
    for c in range(5):
        known = values[~np.isnan(values[:, c]), c]
        above = stats.ttest_1samp(known, -0.2, alternative="greater").pvalue
        below = stats.ttest_1samp(known, 0.2, alternative="less").pvalue
        assert p[c] == pytest.approx(max(above, below), rel=1e-9)


def test_equivalence_laws():
    values = layers(25, 6, seed=15)[0] * 0.1
    np.testing.assert_array_equal(equivalence(-values, 0.05), equivalence(values, 0.05))
    assert (equivalence(values, 0.10) < equivalence(values, 0.05)).all()
    interval = column_tests(values, level=0.9, rng=rng())
    inside = (interval.low > -0.05) & (interval.high < 0.05)
    np.testing.assert_array_equal(equivalence(values, 0.05) < 0.05, inside, "TOST is the 90 % interval")
    assert 0 < inside.sum() < 6


def test_equivalence_of_constants_and_too_few():
    values = np.full((6, 5), np.nan)
    values[:, 0], values[:, 1], values[:, 2] = 0.0, 0.02, -0.1
    values[0, 3] = 0.0
    np.testing.assert_array_equal(equivalence(values, 0.02), [0, 1, 1, np.nan, np.nan])


def test_wrong_input_is_refused():
    with pytest.raises(AttnlensError, match="margin must be above 0; got 0"):
        equivalence(np.ones((3, 2)), 0)
    with pytest.raises(AttnlensError, match="margin must be above 0; got nan"):
        equivalence(np.ones((3, 2)), math.nan)
    for function in (max_t, simultaneous_band):
        with pytest.raises(ShapeError, match=r"\(documents, columns\) are needed; got shape \(3,\)"):
            function(np.ones(3), rng=rng())


def test_no_step_grows_with_the_number_of_resamples(monkeypatch):
    """Batches of any size give the same p."""
    values = layers(15, 4, seed=16)[0]
    expected = max_t(values, rng=rng())
    monkeypatch.setattr(resampling, "BATCH", 7)
    np.testing.assert_array_equal(max_t(values, rng=rng()).p_adjusted, expected.p_adjusted)
