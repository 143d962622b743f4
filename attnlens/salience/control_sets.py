"""C1 in whole words: as many ordinary words as salient ones, each standing for one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from attnlens.core.errors import ShapeError
from attnlens.salience.controls import REACH, frequency_terciles
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import forms


@dataclass(frozen=True, eq=False)
class ControlSets:
    """Salient words of one text, and k drawn sets of ordinary words, each with as many words and pieces as they have.

    salient (W,) bool; controls (k, W) bool, False on every marked word.
    """

    salient: np.ndarray
    controls: np.ndarray


def control_sets(
    corpus: Corpus, marks: Sequence[np.ndarray], pieces: Sequence[np.ndarray], draws: int, seed: int
) -> list[ControlSets]:
    """`draws` sets of controls for each example; marks (W,) bool and pieces (W,) int for each example.

    A salient content word's candidates are those of `matched_controls`: ordinary content words at most 20 words away,
    with as many pieces and in the same frequency tercile. Here no ordinary word stands for two salient ones, so
    where candidates are short some salient words stay out: as few as possible, the same in every draw. Each draw is a
    random assignment of candidates to the words that are left (a single word gets each of its candidates equally
    often). Words without pieces take no part; a text where nothing matches has no salient word.

    Hand example: two salient words that share one candidate keep one of the two, and it is that word's control in
    every draw.
    """
    tercile_of = frequency_terciles(corpus)
    found = []
    for number, (example, marked, length) in enumerate(zip(corpus, marks, pieces, strict=True)):
        terciles = np.array([tercile_of.get(word, -1) for word in forms(example.text)], dtype=np.int64)
        if not len(terciles) == len(marked) == len(length):
            raise ShapeError(
                f"marks and pieces need one value for each of the {len(terciles)} words of example {example.id!r}; "
                f"got {len(marked)} and {len(length)}. Make them from words(text)."
            )
        kind = np.where((terciles >= 0) & (length > 0), 3 * length + terciles, -1)
        # A generator of its own for each text: how many texts are asked for changes no draw.
        found.append(_draw(kind, np.asarray(marked, dtype=bool), draws, np.random.default_rng((seed, number))))
    return found


def _draw(kind: np.ndarray, marked: np.ndarray, draws: int, rng: np.random.Generator) -> ControlSets:
    """Sets of one text: kind (W,) int, −1 for words that take no part; marked (W,) bool."""
    salient = np.flatnonzero(marked & (kind >= 0))
    ordinary = np.flatnonzero(~marked & (kind >= 0))
    near = np.abs(salient[:, None] - ordinary) <= REACH
    fits = near & (kind[salient][:, None] == kind[ordinary])
    kept = fits.any(1)
    controls = np.zeros((draws, len(kind)), dtype=bool)
    for draw in range(draws):
        rows, columns = _assigned(fits[kept], rng)
        if draw == 0:
            kept = np.flatnonzero(kept)[rows]
        controls[draw, ordinary[columns]] = True
    chosen = np.zeros(len(kind), dtype=bool)
    chosen[salient[kept]] = True
    return ControlSets(chosen, controls)


def _assigned(fits: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows and columns of fits (R, C) bool, no row or column twice: as many as there can be, at random."""
    # One pair that does not fit costs more than all that do together.
    cost = np.where(fits, rng.random(fits.shape), fits.shape[0] + 1.0)
    rows, columns = linear_sum_assignment(cost)
    real = fits[rows, columns]
    return rows[real], columns[real]
