"""Claims about a training procedure: seeds × documents, where both are draws (METRICS 6.2, levels B and C).

Axes: S seed, D document, C column (a layer), N example. A value is the document mean of one seed's model (level B), or
the difference of two procedures trained on the same seed (level C); that seeds are paired is for the caller to check.
NaN is no data. A seed without any data is left out, then every document that some seed lacks: an incomplete table
would mix what a seed adds with what a document adds. What was left out is counted.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from attnlens.core.bands import simultaneous_band
from attnlens.core.errors import ShapeError
from attnlens.core.multiplicity import holm
from attnlens.core.resampling import RESAMPLES

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Crossed:
    """Mean over seeds and documents, with limits that hold for other seeds and other documents.

    estimate, low, high: unit of the data; p: two-sided, of a mean of 0; df: degrees of freedom of t. seed, document,
    residual: variance components in squared units, at least 0; n_seeds, n_documents: used; incomplete: documents left
    out because some seed lacks them; level: of the interval.
    """

    estimate: float
    low: float
    high: float
    p: float
    df: float
    seed: float
    document: float
    residual: float
    n_seeds: int
    n_documents: int
    incomplete: int
    level: float


@dataclass(frozen=True, eq=False)
class CrossedBand:
    """`Crossed` for many columns, low and high for all columns together: every field (C,), counts as int64.

    p: of each column by itself; p_adjusted: for all columns tested (Holm), at least p.
    """

    estimate: Array
    low: Array
    high: Array
    p: Array
    p_adjusted: Array
    n_seeds: NDArray[np.int64]
    n_documents: NDArray[np.int64]
    level: float


@dataclass(frozen=True)
class Reliability:
    """How alike the examples of one document are.

    icc: intraclass correlation ICC(1), at most 1, below 0 where examples of a document differ more than documents do;
    NaN where no document has two examples, or only one has any. design_effect: the factor by which the variance of the
    mean of all examples exceeds that of independent ones; 1 where every document has one example. n_examples,
    n_documents: with data.
    """

    icc: float
    design_effect: float
    n_examples: int
    n_documents: int


@dataclass(frozen=True)
class _Table:
    """Mean of a complete table, squared standard errors by margin, and what was left of it."""

    mean: float
    by_seed: float
    by_document: float
    by_residual: float
    n_seeds: int
    n_documents: int
    incomplete: int

    @property
    def squared_error(self) -> float:
        """V = s²_seed/S + s²_doc/D − s²_res/(SD), never below the larger of the first two."""
        unbiased = self.by_seed + self.by_document - self.by_residual
        return max(unbiased, self.by_seed, self.by_document)

    @property
    def df(self) -> float:
        """Satterthwaite's degrees of freedom; those of the one margin where V is that margin's alone."""
        floor = max(self.by_seed, self.by_document)
        if self.by_document <= self.by_residual or self.by_seed <= self.by_residual:
            return float((self.n_seeds if self.by_seed == floor else self.n_documents) - 1)
        v = self.squared_error
        return _satterthwaite(self.by_seed / v, self.by_document / v, self.by_residual / v, self)


def crossed_t(values: ArrayLike, *, level: float = 0.95) -> Crossed:
    """Mean of values (S, D) with Student's t over seeds and documents at once.

    With seed, document and residual effects of variance σ²_a, σ²_b, σ²_e the mean has variance
    σ²_a/S + σ²_b/D + σ²_e/(SD). s²_seed, the variance of the S seed means, is σ²_a + σ²_e/D on average, and s²_doc is
    σ²_b + σ²_e/S, so that V = s²_seed/S + s²_doc/D − s²_res/(SD) counts the residual once. It is floored at the larger
    of the first two; Satterthwaite's df. Interval, p, df and components are NaN below two seeds or two documents,
    unless the data are 0: then [0, 0], p = 1. Constant data give a point, p = 0.
    Hand example: seeds (1, 4) and (3, 10) → mean 4.5; s²_seed 8, s²_doc 12.5, s²_res 4, so V = 4 + 6.25 − 1 = 9.25,
    df = 9.25² / (4² + 6.25² + 1²) = 1.5262, t = 1.4796; components: seed 6, document 10.5, residual 4.
    Simulated rejection of true nulls at .05 (figures/calibration.csv): 4.8 to 5.4 % of six to eight seeds, up to 6.0 of
    five, and 2 to 3 % where seeds and documents add nothing of their own. A t over the seed means alone rejects 10 to
    60 % where documents matter, a t over documents of one run 14 to 86 % where seeds do.
    Reference: METRICS 6.2; Satterthwaite 1946.
    """
    table = _complete(_checked(values, ndim=2))
    varied = table.n_seeds > 1 and table.n_documents > 1
    zero = table.mean == 0 and table.n_seeds > 0 and _spread(table) == 0
    low, high, p, df = (0.0, 0.0, 1.0, math.nan) if zero else (math.nan,) * 4
    if varied and not zero:
        df = table.df if table.squared_error > 0 else math.nan
        low, high, p = _student(table, df, 1 - level)
    size = table.n_seeds * table.n_documents
    residual = table.by_residual * size if varied else math.nan
    return Crossed(
        estimate=table.mean,
        low=low,
        high=high,
        p=p,
        df=df,
        seed=max(table.by_seed * table.n_seeds - residual / table.n_documents, 0.0) if varied else math.nan,
        document=max(table.by_document * table.n_documents - residual / table.n_seeds, 0.0) if varied else math.nan,
        residual=residual,
        n_seeds=table.n_seeds,
        n_documents=table.n_documents,
        incomplete=table.incomplete,
        level=level,
    )


def crossed_band(
    values: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, rng: np.random.Generator
) -> CrossedBand:
    """Band that contains every column's true mean at once, over seeds and documents.

    values (S, D, C) → CrossedBand. Bonferroni over the columns, each t with the smaller of its own df and the df of
    the columns' mean shares of variance (a column whose few seeds happen to agree has too narrow a limit and too many
    df at once), and never narrower than the simultaneous band over documents of the mean over seeds, which follows
    skewed data where t does not. p_adjusted is Holm's, from the same df; it knows of no skew. NaN below two seeds or
    four documents, save for columns of zeros.
    Why this one: simulated coverage at nominal .95, 12 columns correlated .6^|i−j|, 400 data sets (standard error
    .011); "seeds" has standard deviations of seed, document, residual 1, .5, .5, "mixed" .3, 1, 1, "documents"
    .1, 1, .5; skewed: exponential documents and residuals. In brackets: half width in standard errors.

    | 6 seeds                 | this        | Bonferroni, own df | without the band over documents |
    |-------------------------|-------------|--------------------|---------------------------------|
    | 20 documents, seeds     | .967 (4.58) | .942 (4.48)        | .967 (4.58)                     |
    | 20, mixed               | .960 (3.38) | .955 (3.31)        | .957 (3.32)                     |
    | 20, mixed, skewed       | .970 (3.98) | .920 (3.36)        | .922 (3.38)                     |
    | 20, documents, skewed   | .990 (4.39) | .815 (3.24)        | .815 (3.25)                     |
    | 60, mixed               | .952 (3.37) | .945 (3.31)        | .952 (3.37)                     |
    | 60, documents, skewed   | .977 (3.38) | .892 (2.99)        | .892 (3.00)                     |

    Eight seeds: .952 to .970 in all these. One critical value from the estimated correlations of the columns is
    narrower (3.95 for 4.48) but covers .907 to .925 where seeds decide: six seeds do not tell twelve correlations.
    """
    values = _checked(values, ndim=3)
    tables = [_complete(column) for column in np.moveaxis(values, 2, 0)]
    tested = [c for c, table in enumerate(tables) if table.n_seeds > 1 and table.n_documents > 1]
    varied = [c for c in tested if tables[c].squared_error > 0]
    single = [crossed_t(column, level=level) for column in np.moveaxis(values, 2, 0)]
    low, high = (np.array([getattr(result, side) for result in single]) for side in ("low", "high"))
    p = np.array([result.p for result in single])
    strict = p.copy()
    if varied:
        df = np.minimum([tables[c].df for c in varied], _pooled_df([tables[c] for c in varied]))
        for c, freedom in zip(varied, df, strict=True):
            low[c], high[c], strict[c] = _student(tables[c], float(freedom), (1 - level) / len(varied))
        complete = ~np.isnan(values[:, :, varied])
        seeds = complete.any(1, keepdims=True)
        known = (complete | ~seeds).all(0)
        mean = np.where(known, np.where(complete, values[:, :, varied], 0.0).sum(0) / seeds.sum(0), np.nan)
        documents = simultaneous_band(mean, level=level, resamples=resamples, rng=rng)
        low[varied] = np.minimum(low[varied], documents.low)
        high[varied] = np.maximum(high[varied], documents.high)
    return CrossedBand(
        estimate=np.array([table.mean for table in tables]),
        low=low,
        high=high,
        p=p,
        p_adjusted=holm(strict),
        n_seeds=np.array([table.n_seeds for table in tables], np.int64),
        n_documents=np.array([table.n_documents for table in tables], np.int64),
        level=level,
    )


def reliability(values: ArrayLike, documents: ArrayLike) -> Reliability:
    """Intraclass correlation of examples within documents, and the design effect of pooling them.

    values (N,) with NaN for no data, documents (N,) names. ICC = (MSB − MSW) / (MSB + (n₀ − 1) MSW) of the one-way
    analysis of variance, n₀ = (N − Σn²/N) / (D − 1); design effect 1 + (Σn²/N − 1) · ICC. Constant data: ICC NaN.
    Hand example: 1, 3 of document a and 5, 7 of document b → MSB 16, MSW 2, ICC 14/18 = .7778, design effect 1.7778.
    Reference: Donner 1986; Kish 1965.
    """
    everything, documents = np.asarray(values, np.float64), np.asarray(documents)
    if everything.ndim != 1 or documents.shape != everything.shape:
        raise ShapeError(
            f"one value and one document name per example are needed; got {everything.shape} and {documents.shape}. "
            "Pass values (N,) and documents (N,)."
        )
    known = ~np.isnan(everything)
    data = everything[known]
    names, position, sizes = np.unique(documents[known], return_inverse=True, return_counts=True)
    n, groups = len(data), len(names)
    weight = float((sizes**2).sum()) / n if n else math.nan
    if n == groups:  # nothing is known of likeness, and nothing is pooled
        return Reliability(math.nan, 1.0 if n else math.nan, n, groups)
    if groups < 2:
        return Reliability(math.nan, math.nan, n, groups)
    data = data - data[0]
    means = np.bincount(position, data) / sizes
    between = float((sizes * (means - data.mean()) ** 2).sum()) / (groups - 1)
    within = float(((data - means[position]) ** 2).sum()) / (n - groups)
    total = between + ((n - weight) / (groups - 1) - 1) * within
    icc = (between - within) / total if total > 0 else math.nan
    return Reliability(icc, 1 + (weight - 1) * icc, n, groups)


def _checked(values: ArrayLike, *, ndim: int) -> Array:
    values = np.asarray(values, np.float64)
    if values.ndim != ndim:
        axes = "(seeds, documents)" if ndim == 2 else "(seeds, documents, columns)"
        raise ShapeError(f"values {axes} are needed; got shape {values.shape}. Put the seeds first.")
    return values


def _complete(values: Array) -> _Table:
    """The margins of the documents that every seed with data knows; NaN margins where there is no second line."""
    values = values[~np.isnan(values).all(1)]
    known = ~np.isnan(values)
    incomplete = int((known.any(0) & ~known.all(0)).sum())
    table = values[:, known.all(0)] if len(values) else values[:, :0]
    seeds, documents = table.shape
    if not table.size:
        return _Table(math.nan, math.nan, math.nan, math.nan, seeds, documents, incomplete)
    first = table[0, 0]
    table = table - first  # constant data have no spread at all, not even a rounding error
    mean, of_seed, of_document = table.mean(), table.mean(1), table.mean(0)
    rest = table - of_seed[:, None] - of_document + mean
    squares = ((of_seed - mean) ** 2).sum(), ((of_document - mean) ** 2).sum(), (rest**2).sum()
    freedom = seeds - 1, documents - 1, (seeds - 1) * (documents - 1)
    size = seeds, documents, seeds * documents
    parts = [float(s) / f / n if f else math.nan for s, f, n in zip(squares, freedom, size, strict=True)]
    if not table.any():
        parts = [0.0, 0.0, 0.0]
    return _Table(float(first + mean), *parts, n_seeds=seeds, n_documents=documents, incomplete=incomplete)


def _spread(table: _Table) -> float:
    return table.by_seed + table.by_document + table.by_residual


def _student(table: _Table, df: float, alpha: float) -> tuple[float, float, float]:
    """Limits at 1 − alpha and p; a point where there is no spread."""
    error = math.sqrt(table.squared_error)
    if error == 0:
        return table.mean, table.mean, 0.0
    half = float(special.stdtrit(df, 1 - alpha / 2)) * error
    p = 2 * float(special.stdtr(df, -abs(table.mean) / error))
    return table.mean - half, table.mean + half, p


def _satterthwaite(by_seed: float, by_document: float, by_residual: float, table: _Table) -> float:
    """df of a difference of mean squares, from its terms as shares of V."""
    seeds, documents = table.n_seeds - 1, table.n_documents - 1
    return 1 / (by_seed**2 / seeds + by_document**2 / documents + by_residual**2 / (seeds * documents))


def _pooled_df(tables: list[_Table]) -> float:
    """df from the columns' mean shares of V, with the fewest seeds and documents of any column."""
    shares = [
        np.mean([getattr(table, name) / table.squared_error for table in tables])
        for name in ("by_seed", "by_document", "by_residual")
    ]
    fewest = min(tables, key=lambda table: (table.n_seeds, table.n_documents))
    return _satterthwaite(*map(float, shares), table=fewest)
