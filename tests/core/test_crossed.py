"""Seeds × documents: hand numbers, the definitions in plain loops, laws, gaps, coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from attnlens.core.bands import simultaneous_band
from attnlens.core.crossed import crossed_band, crossed_t, reliability
from attnlens.core.errors import ShapeError

HAND = [[1.0, 4.0], [3.0, 10.0]]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw(seeds: int, documents: int, columns: int = 1, *, seed: int = 0, scales=(1.0, 1.0, 1.0)) -> np.ndarray:
    """Effects of seed, document and residual of the scales given, columns correlated .6^distance: (S, D, C)."""
    distance = np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))
    mix, source = np.linalg.cholesky(0.6**distance).T, rng(seed)
    shapes = (seeds, 1, columns), (1, documents, columns), (seeds, documents, columns)
    return sum(scale * source.standard_normal(shape) @ mix for scale, shape in zip(scales, shapes, strict=True))


def slow(values: np.ndarray, tail: float = 0.975) -> dict[str, float]:
    """The definition of METRICS 6.2 in loops over a complete table, with scipy's t distribution."""
    S, D = values.shape
    total = math.fsum(values[s, d] for s in range(S) for d in range(D)) / (S * D)
    of_seed = [math.fsum(values[s]) / D for s in range(S)]
    of_document = [math.fsum(values[:, d]) / S for d in range(D)]
    seed = math.fsum((m - total) ** 2 for m in of_seed) / (S - 1)
    document = math.fsum((m - total) ** 2 for m in of_document) / (D - 1)
    rest = math.fsum((values[s, d] - of_seed[s] - of_document[d] + total) ** 2 for s in range(S) for d in range(D)) / (
        (S - 1) * (D - 1)
    )
    a, b, c = seed / S, document / D, rest / (S * D)
    if a + b - c > max(a, b):
        v = a + b - c
        df = v**2 / (a**2 / (S - 1) + b**2 / (D - 1) + c**2 / ((S - 1) * (D - 1)))
    else:
        v, df = (a, S - 1) if a >= b else (b, D - 1)
    half = stats.t.ppf(tail, df) * math.sqrt(v)
    p = 2 * stats.t.sf(abs(total) / math.sqrt(v), df)
    result = {"estimate": total, "low": total - half, "high": total + half, "p": p, "df": df}
    return result | {"seed": max(seed - rest / D, 0), "document": max(document - rest / S, 0), "residual": rest}


# --- one mean ----------------------------------------------------------------------------------------------------


def test_by_hand():
    result = crossed_t(HAND)
    assert result.estimate == 4.5
    assert (result.seed, result.document, result.residual) == pytest.approx((6, 10.5, 4), rel=1e-14)
    assert result.df == pytest.approx(9.25**2 / (16 + 39.0625 + 1), rel=1e-14)
    assert result.p == pytest.approx(2 * stats.t.sf(4.5 / math.sqrt(9.25), 85.5625 / 56.0625), rel=1e-9)
    assert (result.n_seeds, result.n_documents, result.incomplete, result.level) == (2, 2, 0, 0.95)


@pytest.mark.parametrize("scales", [(1, 1, 1), (1, 0, 0.3), (0, 1, 0.3), (0, 0, 1), (0.1, 0.1, 1)])
@pytest.mark.parametrize(("seeds", "documents"), [(2, 2), (6, 20), (8, 3)])
def test_equals_the_definition(seeds: int, documents: int, scales: tuple[float, float, float]):
    for seed in range(5):
        values = draw(seeds, documents, seed=seed, scales=scales)[..., 0] + 0.3
        got, expected = crossed_t(values), slow(values)
        for name, number in expected.items():
            assert getattr(got, name) == pytest.approx(number, rel=1e-9, abs=1e-12), name


def test_the_residual_counts_once():
    """On average V is the variance of the mean: 400 tables, each component alone."""
    for scales, variance in [((1, 0, 0), 1 / 4), ((0, 1, 0), 1 / 5)]:
        values = draw(4, 5, 400, scales=scales)
        v = [(r.high - r.estimate) / stats.t.ppf(0.975, r.df) for r in map(crossed_t, np.moveaxis(values, 2, 0))]
        assert np.mean(np.square(v)) == pytest.approx(variance, rel=0.15)


def test_laws():
    values = draw(7, 15, seed=1)[..., 0] + 0.4
    result, source = crossed_t(values), rng(2)
    for moved in (values[source.permutation(7)], values[:, source.permutation(15)]):
        assert vars(crossed_t(moved)) == pytest.approx(vars(result), rel=1e-9)
    scaled = crossed_t(values * -8)
    assert (scaled.estimate, scaled.low, scaled.high) == pytest.approx(
        (-8 * result.estimate, -8 * result.high, -8 * result.low), rel=1e-12
    )
    assert (scaled.p, scaled.df, scaled.seed) == pytest.approx((result.p, result.df, 64 * result.seed), rel=1e-9)
    shifted = crossed_t(values + 5)
    assert shifted.high - shifted.low == pytest.approx(result.high - result.low, rel=1e-9)
    assert (shifted.estimate, shifted.low) == pytest.approx((result.estimate + 5, result.low + 5), rel=1e-9)
    assert (result.low > 0) == (result.p < 0.05)
    narrow = crossed_t(values, level=0.5)
    assert result.low < narrow.low < narrow.high < result.high and narrow.p == result.p
    turned = crossed_t(values.T)
    assert (turned.p, turned.seed) == pytest.approx((result.p, result.document), rel=1e-9)


def test_p_is_a_probability():
    for seed in range(50):
        result = crossed_t(draw(6, 5, seed=seed, scales=(0.2, 0.2, 1))[..., 0])
        assert 0 <= result.p <= 1 and result.df >= 1 and result.low < result.estimate < result.high


def test_seeds_that_are_one_run_leave_the_documents():
    """The same run given six times: V is that of the documents, df D − 1, as if it were one run."""
    values = np.repeat(draw(1, 20, seed=3), 6, axis=0)[..., 0]
    result, alone = crossed_t(values), stats.ttest_1samp(values[0], 0)
    assert result.df == 19 and result.p == pytest.approx(alone.pvalue, rel=1e-9) and result.seed == 0


def test_gaps_are_left_out_and_counted():
    values = draw(6, 20, seed=4)[..., 0]
    gaps = np.vstack([values, np.full(20, np.nan)])  # a seed without data
    gaps = np.hstack([gaps, np.full((7, 2), np.nan), np.ones((7, 3))])  # no document; incomplete ones
    gaps[2, 22:] = np.nan
    gaps[6] = np.nan
    result, expected = crossed_t(gaps), crossed_t(values)
    assert (result.n_seeds, result.n_documents, result.incomplete) == (6, 20, 3)
    assert vars(result) == vars(expected) | {"incomplete": 3}


@pytest.mark.parametrize("shape", [(1, 20), (6, 1), (1, 1), (0, 5), (6, 0)])
def test_too_few_seeds_or_documents_give_no_number(shape: tuple[int, int]):
    result = crossed_t(draw(*shape)[..., 0])
    assert all(
        math.isnan(value)
        for value in (result.low, result.high, result.p, result.df, result.seed, result.document, result.residual)
    )
    assert math.isnan(result.estimate) == (0 in shape)


def test_zeros_and_constants():
    for shape in ((6, 20), (1, 20), (1, 1)):
        result = crossed_t(np.zeros(shape))
        assert (result.estimate, result.low, result.high, result.p) == (0, 0, 0, 1)
    constant = crossed_t(np.full((6, 20), 0.1))
    assert (constant.estimate, constant.low, constant.high, constant.p) == (0.1, 0.1, 0.1, 0)
    empty = crossed_t(np.full((6, 20), np.nan))
    assert math.isnan(empty.estimate) and math.isnan(empty.p) and empty.n_documents == 0


def test_the_input_is_untouched_and_checked():
    values = draw(4, 6, 2)
    before = values.copy()
    crossed_t(values[..., 0]), crossed_band(values, resamples=99, rng=rng())
    np.testing.assert_array_equal(values, before)
    with pytest.raises(ShapeError, match=r"\(seeds, documents\) are needed; got shape \(4, 6, 2\)"):
        crossed_t(values)
    with pytest.raises(ShapeError, match=r"\(seeds, documents, columns\) are needed; got shape \(4, 6\)"):
        crossed_band(values[..., 0], rng=rng())


# --- all columns at once -----------------------------------------------------------------------------------------


def test_band_from_its_definition():
    values = draw(6, 20, 5, seed=5)
    band = crossed_band(values, resamples=499, rng=rng(1))
    single = [slow(values[..., c]) for c in range(5)]
    shares, v = [], []
    for c in range(5):
        S, D = 6, 20
        parts = [values[..., c].mean(1).var(ddof=1) / S, values[..., c].mean(0).var(ddof=1) / D]
        parts.append(single[c]["residual"] / (S * D))
        v.append(max(parts[0] + parts[1] - parts[2], parts[0], parts[1]))
        shares.append(np.array(parts) / v[-1])
    pooled = 1 / np.sum(np.mean(shares, 0) ** 2 / np.array([5, 19, 95]))
    df = np.minimum(pooled, [one["df"] for one in single])
    half = stats.t.ppf(1 - 0.025 / 5, df) * np.sqrt(v)
    documents = simultaneous_band(values.mean(0), resamples=499, rng=rng(1))
    mean = values.mean((0, 1))
    np.testing.assert_allclose(band.low, np.minimum(mean - half, documents.low), rtol=1e-9)
    np.testing.assert_allclose(band.high, np.maximum(mean + half, documents.high), rtol=1e-9)
    np.testing.assert_allclose(band.p, [one["p"] for one in single], rtol=1e-9)
    strict = 2 * stats.t.sf(np.abs(mean) / np.sqrt(v), df)
    order, largest = np.argsort(strict), 0.0
    for rank, c in enumerate(order):  # Holm
        largest = max(largest, min(1.0, strict[c] * (5 - rank)))
        assert band.p_adjusted[c] == pytest.approx(largest, rel=1e-9)


def test_band_laws():
    values = draw(7, 25, 6, seed=6) + np.linspace(0, 3, 6)
    band = crossed_band(values, resamples=499, rng=rng(1))
    assert (band.p_adjusted >= band.p).all() and (band.p_adjusted <= 1).all()
    single = [crossed_t(values[..., c]) for c in range(6)]
    assert (band.low < [one.low for one in single]).all() and (band.high > [one.high for one in single]).all()
    mirrored = crossed_band(-values, resamples=499, rng=rng(1))
    np.testing.assert_allclose(mirrored.low, -band.high, rtol=1e-12)
    np.testing.assert_allclose(mirrored.p_adjusted, band.p_adjusted, rtol=1e-9)
    seeds = crossed_band(values[rng(2).permutation(7)], resamples=499, rng=rng(1))
    np.testing.assert_allclose(seeds.low, band.low, rtol=1e-9)
    order = rng(3).permutation(6)
    np.testing.assert_allclose(crossed_band(values[..., order], resamples=499, rng=rng(1)).low, band.low[order])


def test_band_columns_that_say_nothing_leave_the_others_alone():
    values = draw(6, 20, 3, seed=7)
    silent = np.stack([np.zeros((6, 20)), np.full((6, 20), 0.1), np.full((6, 20), np.nan)], -1)
    expected = crossed_band(values, resamples=199, rng=rng(1))
    band = crossed_band(np.concatenate([values, silent], -1), resamples=199, rng=rng(1))
    np.testing.assert_allclose(band.low[:3], expected.low, rtol=1e-12)
    np.testing.assert_array_equal(band.low[3:], [0, 0.1, np.nan])
    np.testing.assert_array_equal(band.p[3:], [1, 0, np.nan])
    np.testing.assert_array_equal(band.n_documents, [20, 20, 20, 20, 20, 0])


def test_a_gap_counts_in_its_column_only():
    values = draw(6, 20, 2, seed=8)
    values[3, :5, 1] = np.nan
    band = crossed_band(values, resamples=199, rng=rng(1))
    assert band.n_documents.tolist() == [20, 15]
    assert band.estimate[1] == pytest.approx(values[:, 5:, 1].mean(), rel=1e-12)


def test_no_band_from_one_seed_or_three_documents():
    for shape in ((1, 20), (6, 3)):
        band = crossed_band(draw(*shape, 2), resamples=99, rng=rng())
        assert np.isnan(band.low).all() and np.isnan(band.high).all()


@pytest.mark.parametrize(("documents", "scales", "skewed"), [(20, (1, 0.5, 0.5), False), (20, (0.1, 1, 0.5), True)])
def test_coverage_of_twelve_columns_together(documents: int, scales: tuple[float, float, float], skewed: bool):
    covered = []
    for seed in range(150):
        values = draw(6, documents, 12, seed=seed, scales=(scales[0], 0, 0))
        for shape, scale, offset in (((1, documents), scales[1], 1000), ((6, documents), scales[2], 2000)):
            z = draw(*shape, 12, seed=seed + offset, scales=(0, 0, 1))
            values = values + scale * (stats.expon.ppf(stats.norm.cdf(z)) - 1 if skewed else z)
        band = crossed_band(values, resamples=199, rng=rng(seed))
        covered.append((band.low <= 0).all() and (band.high >= 0).all())
    assert np.mean(covered) >= 0.91  # nominal .95, standard error .018


# --- likeness of examples in a document --------------------------------------------------------------------------


def test_reliability_by_hand():
    result = reliability([1, 3, 5, 7, np.nan], list("aabbb"))
    assert result.icc == pytest.approx(14 / 18, rel=1e-14)
    assert result.design_effect == pytest.approx(1 + 14 / 18, rel=1e-14)
    assert (result.n_examples, result.n_documents) == (4, 2)


def test_reliability_of_unequal_documents_from_the_definition():
    values, sizes = rng(1).standard_normal(30), [1, 2, 3, 4, 5, 7, 8]
    documents = np.repeat(list("abcdefg"), sizes)
    groups = [values[documents == name] for name in "abcdefg"]
    between = sum(len(g) * (g.mean() - values.mean()) ** 2 for g in groups) / 6
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / 23
    n0 = (30 - sum(n * n for n in sizes) / 30) / 6
    icc = (between - within) / (between + (n0 - 1) * within)
    result = reliability(values, documents)
    assert result.icc == pytest.approx(icc, rel=1e-12)
    assert result.design_effect == pytest.approx(1 + (sum(n * n for n in sizes) / 30 - 1) * icc, rel=1e-12)
    assert vars(reliability(3 * values + 7, documents)) == pytest.approx(vars(result), rel=1e-9)
    order = rng(2).permutation(30)
    assert vars(reliability(values[order], documents[order])) == pytest.approx(vars(result), rel=1e-9)


def test_reliability_finds_the_planted_correlation():
    effect = np.repeat(rng(3).standard_normal(2000), 5)
    values = math.sqrt(0.3) * effect + math.sqrt(0.7) * rng(4).standard_normal(10_000)
    result = reliability(values, np.repeat(np.arange(2000), 5))
    assert result.icc == pytest.approx(0.3, abs=0.03) and result.design_effect == pytest.approx(2.2, abs=0.12)


def test_reliability_where_nothing_is_known():
    alone = reliability([1, 2, 3], ["a", "b", "c"])
    assert math.isnan(alone.icc) and alone.design_effect == 1
    for values, documents in (([1, 2, 3], ["a"] * 3), ([], []), ([2, 2, 2, 2], list("aabb"))):
        result = reliability(values, documents)
        assert math.isnan(result.icc) and math.isnan(result.design_effect)
    identical = reliability([1, 1, 2, 2], list("aabb"))
    assert identical.icc == 1 and identical.design_effect == 2
    with pytest.raises(ShapeError, match="one value and one document name per example"):
        reliability([1, 2], ["a"])
