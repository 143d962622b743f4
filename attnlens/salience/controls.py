"""C1, matched controls: ordinary words that stand where the salient words stand and are as long and as common."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

from attnlens.core.errors import ShapeError
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import forms, is_content

REACH = 20  # words; within 5 and 10 too few salient words find a match
TIE = 1e-4  # far below what one word of distance counts, 1/21²
BLOCK = 64  # texts matched at once: the solver's start costs several times what one text does


@dataclass(frozen=True, eq=False)
class Control:
    """What is compared in one text: how far each salient word is matched, and the weight of each ordinary word.

    Over the tokens of the text, `weights` sums to as much as `matched`; a control word that stands for several
    salient words weighs more than 1. Of a regression both are parts of one residual (salience/regression.py).
    """

    matched: np.ndarray  # (W,) float64, S′: salient content words that have a match, 0 to 1
    weights: np.ndarray  # (W,) float64, the expected control indicators, 0 on every salient word
    eligible: np.ndarray  # (W,) bool, the salient content words that truncation left: what could have a match


def frequency_terciles(corpus: Corpus) -> dict[str, int]:
    """Tercile 0, 1 or 2 of each content form's frequency in the corpus, from rare to common.

    Running content words are ordered by the frequency of their form (its logarithm gives the same order); forms as
    frequent as each other share the tercile of the middle of their places. Hand example: six "fee", four "term",
    one "notice" and one "venue" take the places 7–12, 3–6 and 1–2 of 12, so 2, 1, 0 and 0.
    """
    counts = Counter(word for example in corpus for word in forms(example.text) if is_content(word))
    if not counts:
        return {}
    frequencies = np.array(list(counts.values()))
    _, level = np.unique(frequencies, return_inverse=True)
    running = np.bincount(level, weights=frequencies).astype(np.int64)
    after = np.cumsum(running)
    terciles = 3 * (2 * after - running) // (2 * after[-1])
    return dict(zip(counts, terciles[level].tolist(), strict=True))


def word_kinds(
    corpus: Corpus, marks: Sequence[np.ndarray], pieces: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Text by text, what a word must share with its control as one number (W,) int, and the marks (W,) bool.

    marks (W,) bool and pieces (W,) int for each example. Content words with as many pieces and the same log-frequency
    tercile of the corpus are of one kind; −1 for words that take no part: no content, or cut off by truncation (no
    piece).
    """
    tercile_of = frequency_terciles(corpus)
    for example, marked, length in zip(corpus, marks, pieces, strict=True):
        terciles = np.array([tercile_of.get(word, -1) for word in forms(example.text)], dtype=np.int64)
        if not len(terciles) == len(marked) == len(length):
            raise ShapeError(
                f"marks and pieces need one value for each of the {len(terciles)} words of example {example.id!r}; "
                f"got {len(marked)} and {len(length)}. Make them from words(text)."
            )
        yield np.where((terciles >= 0) & (length > 0), 3 * length + terciles, -1), np.asarray(marked, dtype=bool)


def candidates(kind: np.ndarray, marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a salient word and an ordinary word of its kind at most 20 words away: their places, (P,) int each."""
    salient, ordinary = (np.flatnonzero(side & (kind >= 0)) for side in (marked, ~marked))
    near = np.abs(salient[:, None] - ordinary) <= REACH
    rows, columns = np.nonzero(near & (kind[salient][:, None] == kind[ordinary]))
    return salient[rows], ordinary[columns]


def matched_controls(corpus: Corpus, marks: Sequence[np.ndarray], pieces: Sequence[np.ndarray]) -> list[Control]:
    """Control C1 for each example; marks (W,) bool and pieces (W,) int for each example.

    For every salient content word the candidates are the non-salient content words of the same text, at most 20
    words away, with as many pieces and the same log-frequency tercile of the corpus. Drawn freely from them, controls
    of words near an end of the text would all lie on one side, and a model that came to look near, and at nothing
    else, would look keen on such words or averse to them. So in every text the matched words and the controls of as
    many pieces have the same mean position: what attention gives to a position as such cancels where it changes evenly,
    and leaves its bend over the few words between where it does not. A word with candidates on one side only stays
    unmatched, unless another word makes up for it.

    Within that, as many words as possible are matched and as near as possible: the weights f of the pairs maximise
    Σ f·(1 − (d/21)²) over their distances d, a linear program. They are what METRICS 2's draws have as their mean, so
    nothing is drawn. Words without pieces (cut by truncation) take no part. Hand example: candidates two words before
    a salient word and one word after it weigh 1/3 and 2/3.
    """
    texts, controls = list(word_kinds(corpus, marks, pieces)), []
    for start in range(0, len(texts), BLOCK):
        controls += _controls(texts[start : start + BLOCK])
    return controls


def _controls(texts: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Control]:
    """Match within each text and kind, all in one linear program: kind (W,) int, −1 outside; marked (W,) bool."""
    starts = np.cumsum([0, *(len(kind) for kind, _ in texts)])
    ends = np.cumsum([0, *(kind.max(initial=-1) // 3 * 3 + 3 for kind, _ in texts)])  # no two texts share a kind
    kinds = np.concatenate([np.where(kind >= 0, kind + end, -1) for (kind, _), end in zip(texts, ends, strict=False)])
    pairs = [candidates(*text) for text in texts]
    salient, ordinary = (
        np.concatenate([side + start for side, start in zip(sides, starts, strict=False)])
        for sides in zip(*pairs, strict=True)
    )
    weight = pair_weights(kinds, salient, ordinary, np.concatenate([preference(*pair) for pair in pairs]))
    matched, weights = (
        np.split(np.bincount(side, weight, minlength=starts[-1]), starts[1:-1]) for side in (salient, ordinary)
    )
    eligible = (marked & (kind >= 0) for kind, marked in texts)
    return [Control(*parts) for parts in zip(matched, weights, eligible, strict=True)]


def preference(salient: np.ndarray, ordinary: np.ndarray) -> np.ndarray:
    """A small cost of each pair by its places in its text, (P,): of equally good controls the same are always taken.

    Without it the choice would fall to the solver, and with it to the texts that happen to be matched together. No
    meaning but that no two choices add up to the same.
    """
    return TIE * np.sin((1.0 + salient) * (2.0 + ordinary) ** 2) ** 2


def pair_weights(
    kind: np.ndarray, salient: np.ndarray, ordinary: np.ndarray, costs: np.ndarray, *, once: bool = False
) -> np.ndarray:
    """Weights (P,) float64 of the pairs of `candidates`: at most 1 in all for a salient word, level in position.

    costs: of `preference`. once: at most 1 in all for an ordinary word too.
    """
    if not len(salient):
        return np.zeros(0)
    apart = ordinary - salient
    at_most: Any = vstack([_indicators(side) for side in ((salient, ordinary) if once else (salient,))])
    level = _indicators(kind[salient] // 3)  # by pieces: a word of two holds twice the tokens
    solved = linprog(
        (apart / (REACH + 1)) ** 2 - 1 + costs,
        A_ub=at_most,
        b_ub=np.ones(at_most.shape[0]),
        A_eq=level.multiply(apart),
        b_eq=np.zeros(level.shape[0]),
    )
    assert solved.success, solved.message  # nothing matched is always allowed
    return np.where(solved.x > 1e-9, solved.x, 0.0)  # what the solver's tolerance leaves of 0 is none


def _indicators(values: np.ndarray) -> Any:
    """A row for each value that occurs, 1 where it does: (P,) -> (V, P)."""
    found, which = np.unique(values, return_inverse=True)
    return csr_array((np.ones(len(values)), (which, np.arange(len(values)))), shape=(len(found), len(values)))


def match_rate(controls: Iterable[Control]) -> float:
    """Share of the salient content words that is matched, 0 to 1; NaN where there is none to match."""
    controls = list(controls)
    eligible = sum(int(control.eligible.sum()) for control in controls)
    return sum(float(control.matched.sum()) for control in controls) / eligible if eligible else float("nan")
