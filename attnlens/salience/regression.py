"""C1 where too few words find a match: per text, salience beside position, pieces and frequency in one regression."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from attnlens.core.errors import ShapeError
from attnlens.salience.controls import Control
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import forms, is_content

KNOTS = 3  # inside, at the quartiles of the positions
COLUMNS = 1 + (3 + KNOTS) + 2 + 1  # intercept, cubic spline, pieces and log-frequency, salience
WORDS_PER_COLUMN = 2
# Share of the variance of salience that the other columns leave; below it the estimate rests on next to nothing.
LEFT = 0.05


def regression_controls(corpus: Corpus, marks: Sequence[np.ndarray], pieces: Sequence[np.ndarray]) -> list[Control]:
    """Signed weights of the words whose sum with their attention is the net attention on the salient ones.

    marks (W,) bool and pieces (W,) int (0 for words out of sight) for each example. Per text, ordinary least squares of
    the attention y_w that a content word receives on [1, position spline, pieces, log-frequency, salience]: with r what
    the other columns leave of the salience s, its coefficient is Σ r_w y_w / Σ r_w² (Frisch & Waugh 1933), a fixed
    linear functional of y. Times the number of salient words n it is Σ g_w y_w with g = n·r/Σr². `matched` is the
    positive part of g, `weights` the negative one: their difference is the net attention on the n salient words.

    Both parts sum to the same, over words as over tokens, because intercept and pieces are among the columns; and g
    gives exactly 0 to whatever is a function of these columns. The spline is cubic with knots at the quartiles of the
    positions of the text's content words. y is the mean over rows. Rows that look back see part of the words, and give
    the others 0: a row's own sum is then no estimate, the mean over rows is, and what a decoder gives to a position,
    summed over rows, must be as smooth as the spline to cancel in one model (in a change it cancels unless it changed).
    No data, all 0, where a text has fewer than 20 content words, none or only salient ones, or where position, pieces
    and frequency leave less than 5 % of the variance of salience.
    Hand example: without any column but the intercept, r is s minus its mean, g = n·r/Σr² weighs two salient words of
    six with 1 each and the four others with −½ each: their sum less as many ordinary words.
    """
    counts = Counter(word for example in corpus for word in forms(example.text) if is_content(word))
    controls = []
    for example, marked, length in zip(corpus, marks, pieces, strict=True):
        frequency = np.array([counts.get(word, 0) for word in forms(example.text)], dtype=np.float64)
        if not len(frequency) == len(marked) == len(length):
            raise ShapeError(
                f"marks and pieces need one value for each of the {len(frequency)} words of example {example.id!r}; "
                f"got {len(marked)} and {len(length)}. Make them from words(text)."
            )
        inside = np.flatnonzero((frequency > 0) & (length > 0))
        signed = np.zeros(len(frequency))
        if len(inside) >= WORDS_PER_COLUMN * COLUMNS:
            covariates = np.column_stack([_spline(inside), length[inside], np.log(frequency[inside])])
            signed[inside] = signed_weights(marked[inside].astype(np.float64), covariates)
        eligible = np.zeros(len(frequency), dtype=bool)
        eligible[inside] = marked[inside]
        controls.append(Control(np.maximum(signed, 0.0), np.maximum(-signed, 0.0), eligible))
    return controls


def signed_weights(salience: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """g = n·r/Σr² of n salient words, r their residual on an intercept and the covariates; 0 where too little is left.

    salience (W,) of 0 and 1, covariates (W, P) float64, of any rank -> (W,) float64. It sums to 0, gives the salient
    words n in all, and is orthogonal to every covariate.
    """
    centred = salience - salience.mean()
    total = centred @ centred
    if total == 0:
        return np.zeros_like(centred)
    columns = covariates - covariates.mean(0)
    spread = np.sqrt((columns**2).sum(0))
    columns = columns[:, spread > 1e-9] / spread[spread > 1e-9]
    # An orthonormal basis of what the columns span, whether or not they depend on each other.
    basis, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    basis = basis[:, sizes > 1e-9]
    residual = centred - basis @ (basis.T @ centred)
    residual -= basis @ (basis.T @ residual)  # again: what rounding left
    left = residual @ residual
    return salience.sum() * residual / left if left > LEFT * total else np.zeros_like(centred)


def _spline(places: np.ndarray) -> np.ndarray:
    """Cubic spline basis of positions, without its constant: (W,) int -> (W, 3 + knots) float64."""
    along = (places - places[0]) / (places[-1] - places[0])
    knots = np.quantile(along, np.arange(1, KNOTS + 1) / (KNOTS + 1))
    return np.column_stack([along, along**2, along**3, np.maximum(along[:, None] - knots, 0.0) ** 3])
