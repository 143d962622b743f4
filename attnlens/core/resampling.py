"""Intervals and tests over documents: cluster bootstrap (BCa, bootstrap-t) and sign flips.

Axes: N example, D document, C column (a layer, a head, or one total).
The document is the unit. `document_means` is the door; everything else takes one row per document, all of equal
weight. NaN is no data: such documents are left out column by column, and every result carries its n.
Data that are zero in every document (a model against itself) give the interval [0, 0] and p = 1, exactly.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from attnlens.core.errors import ShapeError
from attnlens.core.moments import Moments

Array = NDArray[np.float64]

RESAMPLES = 9_999
# Up to this many documents sign flips are exact: all 2^15 patterns are visited.
EXACT_DOCUMENTS = 15
# With fewer documents BCa covers 70-89 % at nominal 95 % (simulated).
BCA_DOCUMENTS = 10
# Resamples held at a time, so that memory does not grow with their number.
BATCH = 512


@dataclass(frozen=True)
class Estimate:
    """Mean over documents with its interval and test.

    estimate, low, high: unit of the data; p: two-sided sign-flip test of a mean of 0; effect_size: d_z = mean / sd,
    0 for identical data and NaN where the spread is unknown or 0; n: documents with data; level: of the interval.
    """

    estimate: float
    low: float
    high: float
    p: float
    effect_size: float
    n: int
    level: float

    @property
    def identical(self) -> bool:
        """True when every document is exactly 0: the two models are the same as far as this measure sees."""
        return self.estimate == self.low == self.high == 0


@dataclass(frozen=True, eq=False)
class ColumnTests:
    """`Estimate` for many columns at once: every field has the trailing shape (*) of the values, n is int64.

    The interval is Student's t for each column by itself; p is not adjusted for the number of columns.
    """

    estimate: Array
    low: Array
    high: Array
    p: Array
    effect_size: Array
    n: NDArray[np.int64]
    level: float


def document_means(values: ArrayLike, documents: ArrayLike) -> Array:
    """Mean of each document's examples, so that a long document counts as much as a short one.

    values (N, *) with NaN for no data; documents (N,) names → (D, *) float64 in sorted order of the names;
    a document without any data is NaN.
    Hand example: values 1, 3, 5 of documents a, a, b → 2, 5.
    """
    values, documents = np.asarray(values, np.float64), np.asarray(documents)
    if values.ndim == 0 or documents.shape != values.shape[:1]:
        raise ShapeError(
            f"one document name per example is needed; got values {values.shape} and documents {documents.shape}. "
            "Pass values (N, *) and documents (N,)."
        )
    names, position = np.unique(documents, return_inverse=True)
    known = ~np.isnan(values)
    sums, counts = np.zeros((2, len(names), *values.shape[1:]))
    np.add.at(sums, position, np.where(known, values, 0.0))
    np.add.at(counts, position, known)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def estimate_mean(
    values: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, rng: np.random.Generator
) -> Estimate:
    """Mean of document means (D,) with its bootstrap interval, sign-flip p and effect size.

    The interval is bootstrap-t, NaN below 4 documents; that of constant data is a point. Where it has no limits, as
    with nearly equal documents, it is BCa from 10 documents on.
    Why: simulated coverage at nominal .95 (figures/calibration.csv; 4,000 data sets, standard error .004), with BCa in
    brackets, of normal, t₃, exponential and lognormal documents of ten texts each:

    | documents | normal      | t₃          | exponential | lognormal   |
    |-----------|-------------|-------------|-------------|-------------|
    | 12        | .950 (.909) | .933 (.884) | .945 (.900) | .915 (.858) |
    | 20        | .948 (.923) | .932 (.899) | .940 (.907) | .921 (.887) |
    | 60        | .948 (.938) | .933 (.915) | .946 (.932) | .936 (.919) |

    With 5 and 9 documents .95 on normal and .93 to .94 on exponential data.
    """
    values = _known(values)
    sides = bootstrap_t_interval(values[:, None], level=level, resamples=resamples, rng=rng)
    interval = sides[0].item(), sides[1].item()
    if math.isnan(interval[0]) and len(values) >= BCA_DOCUMENTS:
        interval = bca(values, level=level, resamples=resamples, rng=rng)
    moments = Moments.of(values)
    return Estimate(
        estimate=moments.mean.item(),
        low=interval[0],
        high=interval[1],
        p=sign_flip(values, resamples=resamples, rng=rng),
        effect_size=effect_size(moments).item(),
        n=len(values),
        level=level,
    )


def bca(
    values: ArrayLike,
    statistic: Callable[..., Array] = np.mean,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of a statistic of the documents.

    values (D,) document means; statistic takes an array and `axis` → (low, high) in the statistic's unit; both NaN
    below two documents. Constant data give a point. −values with the same seed gives the mirrored interval, up to
    rounding. Reference: Efron & Tibshirani 1993, chapter 14.
    """
    values = _known(values)
    if len(values) and (values == values[0]).all() and (len(values) > 1 or values[0] == 0):
        point = float(statistic(values, axis=0))
        return point, point
    if len(values) < 2:
        return math.nan, math.nan
    interval = stats.bootstrap(
        (values,),
        statistic,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2**22 // len(values)),
        confidence_level=level,
        rng=rng,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def sign_flip(values: ArrayLike, *, resamples: int = RESAMPLES, rng: np.random.Generator) -> float:
    """Two-sided p of a mean of 0: how often flipping whole documents' signs moves the mean as far.

    values (D,) document means → p in (0, 1]; NaN without data. Exact up to 15 documents, p = k / 2^D; else
    (b + 1) / (resamples + 1). Flips are drawn without looking at the data, so −values gives the same p.
    Valid for any distribution symmetric about 0 under the null.
    Hand example: 1, 2, 3 → 2/8, the patterns +++ and −−−. Darwin's maize (Fisher 1935) → 1726 / 32768.
    """
    return column_tests(_known(values)[:, None], resamples=resamples, rng=rng).p.item()


def column_tests(
    values: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, rng: np.random.Generator
) -> ColumnTests:
    """Mean, t interval, sign-flip p and effect size of many columns, in bounded memory.

    values (D, *) document means, e.g. (D, L, H) → fields of shape (*). All columns share the flips. The interval is
    NaN below two documents, unless the data are 0: then [0, 0].
    """
    values = np.asarray(values, np.float64)
    moments = Moments.of(values)
    half = stats.t.ppf((1 + level) / 2, np.maximum(moments.n - 1, 1)) * standard_error(moments)
    scaled = root_mean_square_scaled(values.reshape(len(values), math.prod(values.shape[1:])))
    observed, total = np.abs(scaled.sum(0)), 0
    count = np.zeros(observed.shape, np.int64)
    for flipped in flip_batches(scaled, resamples=resamples, rng=rng):
        count += (flipped >= observed - tie_tolerance(scaled)).sum(0)
        total += len(flipped)
    return ColumnTests(
        estimate=moments.mean,
        low=moments.mean - half,
        high=moments.mean + half,
        p=np.where(moments.n > 0, (count / total).reshape(moments.n.shape), np.nan),
        effect_size=effect_size(moments),
        n=moments.n,
        level=level,
    )


def standard_error(moments: Moments) -> Array:
    """sd / √n of each column; NaN below two documents, but 0 for a single document that is exactly 0."""
    error = moments.standard_deviation / np.sqrt(np.maximum(moments.n, 1))
    return np.where((moments.n == 1) & (moments.mean == 0), 0.0, error)


def effect_size(moments: Moments) -> Array:
    """Cohen's d_z = mean / sd over documents; 0 for identical data, NaN where the sd is unknown or 0 otherwise."""
    spread = moments.standard_deviation
    size = moments.mean / np.where(spread > 0, spread, np.nan)
    return np.where((moments.mean == 0) & (moments.m2 == 0), 0.0, size)


def root_mean_square_scaled(values: Array) -> Array:
    """Columns divided by √Σx², NaN and all-zero columns as 0: (D, C) → (D, C).

    Under sign flips Σx² does not change, so |Σ| of these is |t| on another scale (the same order, but finite for a
    constant column) and columns of different spread can be compared by their maximum.
    """
    known = np.where(np.isnan(values), 0.0, values)
    largest = np.abs(known).max(0, initial=0.0)
    unit = known / np.where(largest > 0, largest, 1.0)  # squares of 1e-200 would vanish
    size = np.sqrt((unit**2).sum(0))
    return unit / np.where(size > 0, size, 1.0)


def tie_tolerance(scaled: Array) -> float:
    """Rounding of a signed sum of `scaled`: sums nearer than this are equal, whatever order they were added in."""
    return 1e-13 * len(scaled)


def flip_batches(scaled: Array, *, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """|Σ| of each column under joint sign flips of whole documents: batches (b, C), the unflipped data among them.

    scaled (D, C) of `root_mean_square_scaled`. Up to EXACT_DOCUMENTS all patterns are visited (half of them: the
    rest are mirror images), else `resamples` random ones beside the data themselves. So p = count / total is never 0.
    A matrix product in place of scipy.stats.permutation_test, which gathers index arrays: equal p, 25 times faster.
    """
    documents = len(scaled)
    if documents <= EXACT_DOCUMENTS:
        patterns = np.arange(2 ** max(documents - 1, 0))
        for start in range(0, len(patterns), BATCH):
            bits = patterns[start : start + BATCH, None] >> np.arange(documents) & 1
            yield np.abs((1.0 - 2.0 * bits) @ scaled)
        return
    yield np.abs(scaled.sum(0, keepdims=True))
    for start in range(0, resamples, BATCH):
        bits = rng.integers(0, 2, (min(BATCH, resamples - start), documents), np.int8)
        yield np.abs((1.0 - 2.0 * bits) @ scaled)


def bootstrap_t(values: Array, *, resamples: int, rng: np.random.Generator) -> Array:
    """Studentised bootstrap draws t* = (mean* − mean) / se*, columns resampled jointly: (D, C) → (resamples, C).

    Draws without spread are ±inf (0 at the mean itself), draws with fewer than two known documents NaN. Counts
    are drawn without looking at the data, so −values gives −t* exactly.
    """
    known = ~np.isnan(values)
    deviations = np.where(known, values - Moments.of(values).mean, 0.0)
    documents, columns = values.shape
    draws = np.empty((resamples, columns))
    for start in range(0, resamples, BATCH):
        size = min(BATCH, resamples - start)
        weights = rng.multinomial(documents, np.full(documents, 1 / documents), size).astype(np.float64)
        n = weights @ known
        mean = weights @ deviations / np.maximum(n, 1)
        square = weights @ deviations**2 / np.maximum(n, 1)
        variance = square - mean**2
        spread = np.sqrt(np.where(variance > 1e-12 * square, variance, 0.0) / np.maximum(n - 1, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(mean == 0, 0.0, mean / spread)
        draws[start : start + size] = np.where(n < 2, np.nan, t)
    return draws


def bootstrap_t_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Intervals that hold for all column means at once, from the extremes of the studentised bootstrap.

    values (D, C) document means → low (C,), high (C,). The upper and the lower tail have their own critical value
    (max t* and max −t* over columns), so skewed data get a skewed interval. A column whose own t* has no finite
    limit (fewer than 4 documents, or nearly all of them equal) is NaN and takes no part in the maximum; should the
    rest still have none together, all are NaN. A constant column is a point; one document is NaN unless it is 0.
    Reference: Efron & Tibshirani 1993, chapter 12.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values).all(1)]
    moments, tail = Moments.of(values), (1 + level) / 2
    error = standard_error(moments)
    low, high = np.where(error == 0, moments.mean, np.nan), np.where(error == 0, moments.mean, np.nan)
    varied = np.flatnonzero(error > 0)
    if not len(varied):
        return low, high
    draws = bootstrap_t(values[:, varied], resamples=resamples, rng=rng)
    rises, falls = np.where(np.isnan(draws), np.inf, [draws, -draws])
    bounded = np.isfinite(_quantile(rises, tail)) & np.isfinite(_quantile(falls, tail))
    if not bounded.any():
        return low, high
    chosen = varied[bounded]
    rise, fall = _quantile(rises[:, bounded].max(1), tail), _quantile(falls[:, bounded].max(1), tail)
    if np.isfinite([rise, fall]).all():
        low[chosen] = moments.mean[chosen] - rise * error[chosen]
        high[chosen] = moments.mean[chosen] + fall * error[chosen]
    return low, high


def _quantile(draws: Array, tail: float) -> Array:
    # An order statistic: interpolating towards an infinite draw would give NaN.
    return np.quantile(draws, tail, axis=0, method="higher")


def _known(values: ArrayLike) -> Array:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ShapeError(f"one value per document (D,) is needed; got shape {values.shape}. Use column_tests for more.")
    return values[~np.isnan(values)]
