"""Are the keys that receive most attention the marked ones? AUROC, average precision, precision at k; ties honest.

A sort breaks ties by where a key stands, and that would be scored; here each number is its expectation over all ways
to break them. Scores that differ by rounding only are ties: a uniform causal head gives every key the same received
attention, up to the last digits, and their order says nothing (METRICS 3.5).
"""

from typing import NamedTuple

import numpy as np

from attnlens.core.errors import ShapeError

# Scores nearer than this, relative to the larger one, are ties; for scores computed in float64.
TIE = 1e-9


class Agreement(NamedTuple):
    """How well scores pick out the marked keys, each (…), in 0 … 1; NaN where no key, or every key, is marked.

    auroc: chance that a marked key scores above an unmarked one, ties ½ (Mann–Whitney); ½ for scores without order.
    average_precision: mean over the marked keys of the precision at their rank, not the trapezoid under the curve.
    precision: at k, the number of marked keys (relevance rank accuracy, Arras et al. 2022).
    """

    auroc: np.ndarray
    average_precision: np.ndarray
    precision: np.ndarray


def agreement(scores: np.ndarray, marked: np.ndarray, keys: np.ndarray | None = None, *, tie: float = TIE) -> Agreement:
    """Agreement of scores (…, K) with marks (…, K), both of which broadcast, over the keys (…, K) bool (None: all).

    A key whose score is NaN has no data and is left out. tie: relative difference up to which two neighbours in the
    order are ties; give more for scores that come from float32. Raises ShapeError for marks other than 0 and 1.
    Hand example: scores [3, 2, 2, 1] with keys 0 and 1 marked → AUROC 7/8, AP (1 + 5/6)/2 = 11/12, P@2 3/4.
    """
    if not ((marked == 0) | (marked == 1)).all():
        raise ShapeError("marks must be 0 or 1: agreement of ranks is not defined for soft weights")
    used = ~np.isnan(scores) if keys is None else ~np.isnan(scores) & keys
    values = np.where(used, scores, -np.inf)
    order = np.argsort(-values, axis=-1, kind="stable")  # keys that are not used last
    values, used = np.take_along_axis(values, order, -1), np.take_along_axis(used, order, -1)
    first, last = _blocks(values, used, tie)
    marked, order = np.broadcast_arrays(marked > 0, order)
    hits = np.take_along_axis(marked, order, -1) & used
    shape, width = hits.shape[:-1], hits.shape[-1]
    before = np.zeros((*shape, width + 1), dtype=np.int64)  # hits before each place
    np.cumsum(hits, -1, out=before[..., 1:])
    positives, total = before[..., -1], np.broadcast_to(used.sum(-1), shape)
    negatives = total - positives
    found = np.nonzero(hits)  # only marked keys count: a few places of each row
    row = np.ravel_multi_index(found[:-1], shape) if shape else np.zeros(len(found[0]), dtype=np.int64)
    first, last = (np.broadcast_to(edge, hits.shape)[found] for edge in (first, last))
    size, above = last - first, before[(*found[:-1], first)]
    inside = before[(*found[:-1], last)] - above
    unmarked, most = negatives.ravel()[row], positives.ravel()[row]
    # Of this key at place j of its tie, the marked keys before it are above + (j − first)·slope on average.
    slope = (inside - 1) / np.maximum(size - 1, 1)
    harmonic = np.cumsum(np.concatenate([[0.0], 1 / np.arange(1, width + 1)]))  # Σ 1/(j + 1) before each place
    precise = (above + 1 - slope * (first + 1)) * (harmonic[last] - harmonic[first]) / size + slope
    defined = (positives > 0) & (negatives > 0)

    def mean(terms: np.ndarray, count: np.ndarray) -> np.ndarray:
        sums = np.bincount(row, terms, minlength=defined.size).reshape(shape)
        return np.divide(sums, count, out=np.full(shape, np.nan), where=defined)

    return Agreement(
        mean(unmarked - (first - above) - (size - inside) / 2, positives * negatives),  # unmarked keys below, ties ½
        mean(precise, positives),
        mean(np.clip(most - first, 0, size) / size, positives),  # chance to stand among the first `most`
    )


def _blocks(values: np.ndarray, used: np.ndarray, tie: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each place in the order (…, K): where its tie begins, and the place behind its end."""
    higher, lower = values[..., :-1], values[..., 1:]
    with np.errstate(invalid="ignore"):  # −inf − −inf among keys that are not used
        apart = ~(higher - lower <= tie * np.maximum(abs(higher), abs(lower)))
    edge = np.ones((*values.shape[:-1], 1), dtype=bool)
    begins = np.concatenate([edge, apart | (used[..., :-1] != used[..., 1:])], -1)
    place = np.arange(values.shape[-1])
    first = np.maximum.accumulate(np.where(begins, place, 0), -1)
    ends = np.concatenate([begins[..., 1:], edge], -1)
    behind = np.where(ends, place + 1, values.shape[-1])
    return first, np.minimum.accumulate(behind[..., ::-1], -1)[..., ::-1]
