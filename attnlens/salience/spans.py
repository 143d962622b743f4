"""Salience by spans that people marked (ERASER rationales, CUAD's clauses)."""

import numpy as np

from attnlens.core.errors import CorpusError
from attnlens.salience.aids import Aids
from attnlens.text.align import words
from attnlens.text.corpus import Corpus, Example, Span


def relevant_spans(example: Example) -> tuple[Span, ...]:
    """The spans whose label is the example's label if there are such, else all."""
    spans = example.spans or ()
    own = tuple(span for span in spans if example.label is not None and span.label == example.label)
    return own or spans


def mark_spans(corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    """Words that share at least one character with a relevant span: a (W,) bool array for each example.

    It needs no aids. Hand example: "pay the fee now" with the span [5, 11) marks "the" and "fee".
    """
    if all(example.spans is None for example in corpus):
        raise CorpusError(
            f"salience 'spans' needs a spans field; {corpus.name} has none. Add spans, or choose keyness or textrank."
        )
    marks = []
    for example in corpus:
        starts, ends = np.array(words(example.text), dtype=np.int64).reshape(-1, 2).T
        marked = np.zeros(len(starts), dtype=bool)
        for span in relevant_spans(example):
            marked |= (starts < span.end) & (ends > span.start)
        marks.append(marked)
    return marks
