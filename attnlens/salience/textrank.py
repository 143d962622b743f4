"""Salience by TextRank: the words most central in a text's own graph of words (Mihalcea & Tarau 2004)."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from attnlens.salience.aids import Aids
from attnlens.salience.ranking import mark_top
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import forms, is_content

DAMPING = 0.85
# Mihalcea & Tarau try 2 to 10 words. About half of running English is function words, so 4 running words hold about
# two content words: each is tied to its next content neighbours and to little else.
WINDOW = 4
_CONVERGED = 1e-12  # relative


def word_graph(nodes: np.ndarray) -> sparse.csr_array:
    """Undirected, unweighted graph of the words that occur together within 4 running words.

    nodes (W,) int: the node of each word, −1 where it carries no content -> (N, N) float64 of 0 and 1, symmetric.
    """
    size = int(nodes.max(initial=-1)) + 1
    pairs = [np.stack([nodes[:-distance], nodes[distance:]]) for distance in range(1, min(WINDOW, len(nodes)))]
    left, right = np.concatenate([np.empty((2, 0), dtype=np.int64), *pairs], axis=1)
    edge = (left >= 0) & (right >= 0) & (left != right)
    left, right = left[edge], right[edge]
    rows, columns = np.concatenate([left, right]), np.concatenate([right, left])
    # A pair that occurs often still is one edge.
    rows, columns = np.unique(np.stack([rows, columns]), axis=1)
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))


def page_rank(graph: sparse.csr_array) -> np.ndarray:
    """Scores S = (1 − d) + d·Σ S_neighbour / degree_neighbour, iterated to 1e-12 relative: (N, N) -> (N,) float64.

    A regular graph has 1 everywhere, an isolated node 1 − d. Hand example: a star with three leaves has 1.9189 in
    the middle and 0.6937 at each leaf.
    """
    degree = np.maximum(np.asarray(graph.sum(axis=0)), 1.0)
    scores = np.ones(len(degree))
    while True:
        # Each step shrinks the error by the damping factor, so this ends.
        following = (1 - DAMPING) + DAMPING * np.asarray(graph @ (scores / degree))
        if np.all(np.abs(following - scores) <= _CONVERGED * following):
            return following
        scores = following


def centrality(text_forms: Sequence[str]) -> np.ndarray:
    """PageRank of each word's form in the graph of its text, NaN where the word carries no content: (W,) float64."""
    content = {word: node for node, word in enumerate(dict.fromkeys(filter(is_content, text_forms)))}
    nodes = np.array([content.get(word, -1) for word in text_forms], dtype=np.int64)
    return np.append(page_rank(word_graph(nodes)), np.nan)[nodes]


def mark_central(corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    """Top 15 % of each text's content words by TextRank: a (W,) bool array for each example.

    It needs no aids. A text whose content words all score the same has no central word.
    """
    return [mark_top(centrality(forms(example.text))) for example in corpus]
