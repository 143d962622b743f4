"""TextRank: the graph by hand, scores by hand and against a linear solve, and its laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from attnlens.salience import Aids
from attnlens.salience.textrank import centrality, mark_central, page_rank, word_graph
from attnlens.text.align import words
from tests.salience.build import corpus_of


def test_graph_by_hand():
    # licensor the fee term notice: at most three words apart, over the function word as well.
    graph = word_graph(np.array([0, -1, 1, 2, 3])).toarray()
    assert graph.tolist() == [[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]]
    # A word beside itself makes no edge, a pair twice makes one.
    assert word_graph(np.array([0, 0, 1, 0, 1])).toarray().tolist() == [[0, 1], [1, 0]]
    assert word_graph(np.array([-1, -1])).shape == (0, 0)
    assert word_graph(np.array([], dtype=np.int64)).shape == (0, 0)


def graph_of(edges: list[tuple[int, int]], size: int) -> sparse.csr_array:
    dense = np.zeros((size, size))
    for left, right in edges:
        dense[left, right] = dense[right, left] = 1
    return sparse.csr_array(dense)


def test_scores_by_hand():
    # Star: c = .15 + .85·3·l and l = .15 + .85·c/3, so c = .5325/.2775.
    star = page_rank(graph_of([(0, 1), (0, 2), (0, 3)], 4))
    np.testing.assert_allclose(star, [1.9189189, 0.6936937, 0.6936937, 0.6936937], rtol=1e-7)
    # A ring is regular: everyone is as central as everyone else.
    np.testing.assert_allclose(page_rank(graph_of([(0, 1), (1, 2), (2, 3), (3, 0)], 4)), 1, rtol=1e-12)
    np.testing.assert_allclose(page_rank(graph_of([], 2)), 0.15, rtol=1e-12)


def slow_centrality(nodes: list[int]) -> np.ndarray:
    """Edges from all pairs of words, scores from the linear system the iteration solves."""
    size = max(nodes, default=-1) + 1
    edges = {
        (nodes[i], nodes[j])
        for i in range(len(nodes))
        for j in range(len(nodes))
        if abs(i - j) < 4 and nodes[i] >= 0 and nodes[j] >= 0 and nodes[i] != nodes[j]
    }
    degree = [sum(left == node for left, _ in edges) for node in range(size)]
    system = np.eye(size)
    for left, right in edges:
        system[left, right] -= 0.85 / degree[right]
    return np.linalg.solve(system, np.full(size, 0.15))


NODES = st.lists(st.integers(-2, 8), max_size=40).map(
    # Nodes are numbered by first occurrence; everything below 0 is a function word.
    lambda raw: [
        -1 if node < 0 else list(dict.fromkeys(other for other in raw if other >= 0)).index(node) for node in raw
    ]
)


@given(NODES)
def test_against_the_slow_reference(nodes: list[int]):
    scores = page_rank(word_graph(np.array(nodes, dtype=np.int64)))
    np.testing.assert_allclose(scores, slow_centrality(nodes), rtol=1e-10)


def spelled(nodes: list[int]) -> list[str]:
    return ["the" if node < 0 else f"word{node}" for node in nodes]


@given(NODES)
def test_laws_of_centrality(nodes: list[int]):
    text = spelled(nodes)
    scores = centrality(text)
    assert (np.isnan(scores) == (np.array(nodes) < 0)).all()
    # The graph is undirected: read backwards, the text has the same centre.
    np.testing.assert_allclose(centrality(text[::-1])[::-1], scores, rtol=1e-10)
    # Edges do not count how often: said twice, with a pause of function words, nothing changes.
    np.testing.assert_allclose(centrality([*text, "the", "of", "the", *text])[: len(text)], scores, rtol=1e-10)
    # Function words at the edges do not matter.
    np.testing.assert_allclose(centrality(["the", *text, "of"])[1:-1], scores, rtol=1e-10)
    # The scores of the words that have a neighbour average 1.
    by_word = dict(zip(text, scores, strict=True))
    joined = [score for word, score in by_word.items() if word != "the" and score > 0.15 + 1e-9]
    np.testing.assert_allclose(sum(joined), len(joined), rtol=1e-9)


def marked_words(text: str) -> list[str]:
    [marked] = mark_central(corpus_of([text]), Aids())
    return [text[start:end] for (start, end), flag in zip(words(text), marked, strict=True) if flag]


def test_the_word_in_the_middle_of_the_text_is_marked():
    text = "Licence fees. The licence is royalty-bearing; a licence ends early. Renew the Licence’s annual plan."
    assert marked_words(text) == ["licence", "licence", "Licence’s"] or marked_words(text)[0] == "Licence"
    assert {word.lower().removesuffix("’s") for word in marked_words(text)} == {"licence"}


def test_the_share_of_content_words():
    """20 content words once each in a row: the ends have fewer neighbours, the rest share them."""
    text = " ".join(f"word{chr(97 + place)}" for place in range(20))
    scores = centrality(text.split())
    marked = marked_words(text)
    assert len(marked) >= 0.15 * 20
    cut = min(scores[text.split().index(word)] for word in marked)
    assert (scores > cut * (1 + 1e-9)).sum() < 0.15 * 20


@pytest.mark.parametrize(
    "text", ["", "of the", "licensor", "licensor pays", "licensor pays fees", "fee the of and it fee"]
)
def test_no_word_stands_out(text: str):
    assert marked_words(text) == []
