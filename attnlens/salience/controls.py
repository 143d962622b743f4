"""C1, matched controls: ordinary words that stand where the salient words stand and are as long and as common."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from attnlens.core.errors import ShapeError
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import forms, is_content

REACH = 20  # words; within 5 and 10 too few salient words find a match
DRAWS = 20


@dataclass(frozen=True, eq=False)
class Control:
    """What is compared in one text: the matched salient words, and the weight of each ordinary word as their control.

    Over the tokens of the text, `weights` sums to as much as `matched`; a control word that stands for several
    salient words weighs more than 1. Of a regression both are soft (salience/regression.py).
    """

    matched: np.ndarray  # (W,) bool, S′: salient content words that have a match; or float64 weights
    weights: np.ndarray  # (W,) float64, the mean of 20 drawn control indicators, 0 on every salient word
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


def matched_controls(
    corpus: Corpus, marks: Sequence[np.ndarray], pieces: Sequence[np.ndarray], rng: np.random.Generator
) -> list[Control]:
    """Control C1 for each example; marks (W,) bool and pieces (W,) int for each example.

    For every salient content word the candidates are the non-salient content words of the same text, at most 20
    words away, with as many pieces and the same log-frequency tercile of the corpus. A salient word with candidates
    is matched: one candidate is drawn for it, 20 times over, each equally likely and free to be drawn for several
    words. Words without pieces (cut by truncation) take no part.
    """
    tercile_of = frequency_terciles(corpus)
    controls = []
    for example, marked, length in zip(corpus, marks, pieces, strict=True):
        terciles = np.array([tercile_of.get(word, -1) for word in forms(example.text)], dtype=np.int64)
        if not len(terciles) == len(marked) == len(length):
            raise ShapeError(
                f"marks and pieces need one value for each of the {len(terciles)} words of example {example.id!r}; "
                f"got {len(marked)} and {len(length)}. Make them from words(text)."
            )
        # One number for each kind of word, −1 for those that take no part: no content, or cut off.
        kind = np.where((terciles >= 0) & (length > 0), 3 * length + terciles, -1)
        controls.append(_control(kind, np.asarray(marked, dtype=bool), rng))
    return controls


def _control(kind: np.ndarray, marked: np.ndarray, rng: np.random.Generator) -> Control:
    """Match within each kind: kind (W,) int, −1 outside; marked (W,) bool."""
    eligible = marked & (kind >= 0)
    matched, drawn = np.zeros_like(eligible), np.zeros(len(kind), dtype=np.int64)
    for each in np.unique(kind[eligible]):
        salient = np.flatnonzero(marked & (kind == each))
        ordinary = np.flatnonzero(~marked & (kind == each))
        first = np.searchsorted(ordinary, salient - REACH, side="left")
        after = np.searchsorted(ordinary, salient + REACH, side="right")
        near = first < after
        matched[salient[near]] = True
        choice = rng.integers(first[near, None], after[near, None], size=(int(near.sum()), DRAWS))
        drawn += np.bincount(ordinary[choice].ravel(), minlength=len(kind))
    return Control(matched, drawn / DRAWS, eligible)


def match_rate(controls: Iterable[Control]) -> float:
    """Share of the salient content words that found a match, 0 to 1; NaN where there is none to match."""
    controls = list(controls)
    eligible = sum(int(control.eligible.sum()) for control in controls)
    return sum(int(control.matched.sum()) for control in controls) / eligible if eligible else float("nan")
