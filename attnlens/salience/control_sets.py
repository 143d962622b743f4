"""C1 in whole words: as many ordinary words as salient ones, each standing for one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from attnlens.salience.controls import candidates, pair_weights, preference, word_kinds
from attnlens.text.corpus import Corpus


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

    Candidates, and pairs that are level in position, are those of `matched_controls`, but no ordinary word stands for
    two salient ones: where candidates are short some salient words stay out, as few as the pairs allow, the same in
    every draw, chosen at random. Each draw is a random assignment by the weights of the pairs (a single word gets each
    of its candidates as often as they say), so level on average and not in each. Words without pieces take no part; a
    text where nothing matches has no salient word.

    Hand example: two salient words around one candidate keep one of the two, and it is that word's control in every
    draw.
    """
    found = []
    for number, (kind, marked) in enumerate(word_kinds(corpus, marks, pieces)):
        # A generator of its own for each text: how many texts are asked for changes no draw.
        found.append(_draw(kind, marked, draws, np.random.default_rng((seed, number))))
    return found


def _draw(kind: np.ndarray, marked: np.ndarray, draws: int, rng: np.random.Generator) -> ControlSets:
    """Sets of one text: kind (W,) int, −1 for words that take no part; marked (W,) bool."""
    places = candidates(kind, marked)
    (salient, rows), (ordinary, columns) = (np.unique(side, return_inverse=True) for side in places)
    weights = np.zeros((len(salient), len(ordinary)))
    weights[rows, columns] = pair_weights(kind, *places, preference(*places), once=True)
    kept = np.arange(len(salient))
    controls = np.zeros((draws, len(kind)), dtype=bool)
    for draw in range(draws):
        taken, given = _assigned(weights[kept], rng)
        if draw == 0:
            kept = kept[taken]
        controls[draw, ordinary[given]] = True
    chosen = np.zeros(len(kind), dtype=bool)
    chosen[salient[kept]] = True
    return ControlSets(chosen, controls)


def _assigned(weights: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows and columns of weights (R, C) above 0, no row or column twice: as many as there can be, at random.

    A row alone gets column j with probability w_j / Σ w: of exponential times with rates w the first is j's so often.
    """
    fits = weights > 0
    cost = rng.exponential(size=weights.shape) / np.where(fits, weights, 1.0)
    # One pair that does not fit costs more than all that do together.
    cost = np.where(fits, cost, cost.sum() + 1.0)
    rows, columns = linear_sum_assignment(cost)
    real = fits[rows, columns]
    return rows[real], columns[real]
