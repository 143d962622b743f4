"""C1: every rule of the match against brute force, and why it exists."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from transformers import AutoTokenizer

from attnlens.core.errors import ShapeError
from attnlens.salience.controls import Control, frequency_terciles, match_rate, matched_controls
from attnlens.text.align import encode, pieces, token_weights, words
from tests.salience.build import corpus_of


def one_control(text: str, marked: list[int], sizes: list[int]) -> Control:
    flags = np.zeros(len(words(text)), dtype=bool)
    flags[marked] = True
    [control] = matched_controls(corpus_of([text]), [flags], [np.array(sizes)])
    return control


def test_terciles_by_hand():
    # Places of the 12 running content words: notice and venue 1–2, term 3–6, fee 7–12.
    text = "fee " * 6 + "term " * 4 + "notice venue the the the the"
    assert frequency_terciles(corpus_of([text])) == {"fee": 2, "term": 1, "notice": 0, "venue": 0}
    # 3 rare, 6 middling and 18 common running words: the middles of their places are 1/18, 4/18 and 12/18.
    spread = " ".join(f"rare{i} " + f"some{i} " * 2 + f"often{i} " * 6 for i in "abc")
    found = frequency_terciles(corpus_of([spread, "the of"]))
    assert {word: tercile for word, tercile in found.items() if word.endswith("a")} == {
        "rarea": 0,
        "somea": 0,
        "oftena": 2,
    }
    assert frequency_terciles(corpus_of(["fee term", "notice"])) == {"fee": 1, "term": 1, "notice": 1}
    assert frequency_terciles(corpus_of(["the of", "12"])) == {}


@given(st.lists(st.sampled_from("fee term notice venue audit patent royalty the".split()), max_size=60))
def test_terciles_against_the_slow_reference(text: list[str]):
    running = [word for word in text if word != "the"]
    expected = {}
    for word in running:
        rarer = sum(running.count(other) < running.count(word) for other in running)
        level = sum(running.count(other) == running.count(word) for other in running)
        expected[word] = math.floor(Fraction(3 * (2 * rarer + level), 2 * len(running)))
    assert frequency_terciles(corpus_of([" ".join(text)])) == expected


def test_by_hand():
    # Two words before and one word after: levers of 2 and 1. "indemnify" has 2 pieces, "the" no content.
    control = one_control("fee the term notice indemnify", [2], [1, 1, 1, 1, 2])
    assert control.matched.tolist() == [0, 0, 1, 0, 0]
    np.testing.assert_allclose(control.weights, [1 / 3, 0, 0, 2 / 3, 0], rtol=1e-12)
    # The nearest of each side, whatever stands farther out.
    control = one_control("fee term notice venue audit", [2], [1] * 5)
    np.testing.assert_allclose(control.weights, [0, 0.5, 0, 0.5, 0], rtol=1e-12)
    # Two salient words around the only candidate make up for each other: it stands for both.
    control = one_control("fee notice term", [0, 2], [1, 1, 1])
    np.testing.assert_allclose(control.matched, [1, 0, 1])
    np.testing.assert_allclose(control.weights, [0, 2, 0])
    # One word from it and two words from it: half of the farther word is matched.
    control = one_control("fee notice the term", [0, 3], [1, 1, 1, 1])
    np.testing.assert_allclose(control.matched, [1, 0, 0, 0.5])
    np.testing.assert_allclose(control.weights, [0, 1.5, 0, 0])


def test_a_word_at_the_edge_of_its_kind_has_no_match():
    for marked in (0, 4):
        control = one_control("fee term notice venue audit", [marked], [1] * 5)
        assert not control.matched.any() and not control.weights.any() and control.eligible.sum() == 1


def test_what_takes_no_part():
    # A salient function word is not matched, nor is it a control.
    control = one_control("term the fee notice", [1, 2], [1, 1, 1, 1])
    assert control.matched.tolist() == [0, 0, 1, 0] and control.eligible.tolist() == [False, False, True, False]
    # A word that truncation cut is neither.
    control = one_control("fee term notice", [1], [1, 1, 0])
    assert not control.matched.any() and not control.weights.any()
    control = one_control("fee term notice", [1], [1, 0, 1])
    assert not control.matched.any() and not control.eligible.any()


@pytest.mark.parametrize(("between", "found"), [(19, True), (20, False)])
def test_the_reach_is_twenty_words_both_ways(between: int, found: bool):
    gap = " the" * between + " "
    text, sizes = "fee" + gap + "term notice", [1] * (between + 3)
    assert one_control(text, [between + 1], sizes).matched.any() == found
    text = "fee term" + gap + "notice"
    assert one_control(text, [1], sizes).matched.any() == found


def test_frequency_is_matched():
    text = "notice" + " fee" * 4 + " venue" + " fee" * 8 + " audit"
    terciles = frequency_terciles(corpus_of([text]))
    assert terciles == {"notice": 0, "venue": 0, "audit": 0, "fee": 1}
    control = one_control(text, [5], [1] * 15)
    np.testing.assert_allclose(control.weights[[0, 14]], [9 / 14, 5 / 14], err_msg="the nearer words are too common")
    assert control.weights.sum() == pytest.approx(1)


VOCABULARY = ["fee", "term", "notice", "venue", "audit", "patent", "the", "of", "shall"]


@st.composite
def cases(draw: st.DrawFn):
    count = draw(st.integers(1, 3))
    texts = [draw(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=60)) for _ in range(count)]
    marks = [np.array(draw(st.lists(st.booleans(), min_size=len(t), max_size=len(t)))) for t in texts]
    sizes = [np.array(draw(st.lists(st.integers(0, 2), min_size=len(t), max_size=len(t)))) for t in texts]
    return texts, marks, sizes


@given(cases())
@settings(max_examples=150, deadline=None)
def test_every_rule_against_brute_force(case):
    texts, marks, sizes = case
    corpus = corpus_of([" ".join(text) for text in texts])
    terciles = frequency_terciles(corpus)
    controls = matched_controls(corpus, marks, sizes)
    eligible_count = matched_count = 0
    for text, marked, size, control in zip(texts, marks, sizes, controls, strict=True):
        usable = [word in terciles and size[place] > 0 for place, word in enumerate(text)]
        pairs = [
            (place, other)
            for place in range(len(text))
            for other in range(len(text))
            if marked[place]
            and usable[place]
            and not marked[other]
            and usable[other]
            and abs(other - place) <= 20
            and size[other] == size[place]
            and terciles[text[other]] == terciles[text[place]]
        ]
        assert control.eligible.tolist() == [bool(one and other) for one, other in zip(marked, usable, strict=True)]
        assert set(np.flatnonzero(control.matched)) <= {place for place, _ in pairs}
        assert set(np.flatnonzero(control.weights)) <= {other for _, other in pairs}
        assert not control.weights[marked].any(), "no salient word is ever a control"
        assert (control.matched >= 0).all() and (control.matched < 1 + 1e-9).all()
        kinds, places = [(size[place], terciles.get(word)) for place, word in enumerate(text)], np.arange(len(text))
        for kind in set(kinds):  # as many words, so as many tokens, of each kind
            here = np.array([other == kind for other in kinds])
            np.testing.assert_allclose(control.weights[here].sum(), control.matched[here].sum(), atol=1e-9)
        for pieces_of in set(size):  # and tokens as far along the text
            here = size == pieces_of
            np.testing.assert_allclose((control.weights * places)[here].sum(), (control.matched * places)[here].sum())
        assert_best(pairs, kinds, control)
        eligible_count += int(control.eligible.sum())
        matched_count += float(control.matched.sum())
    rate = match_rate(controls)
    assert np.isnan(rate) if eligible_count == 0 else rate == pytest.approx(matched_count / eligible_count)


def assert_best(pairs: list[tuple[int, int]], kinds: list, control: Control) -> None:
    """Nothing that keeps the rules is worth more than the control is, by another solver and a dense program."""
    if not pairs:
        assert not control.matched.any()
        return
    places, sizes = sorted({place for place, _ in pairs}), sorted({kinds[place][0] for place, _ in pairs})
    worth = np.array([1 - ((other - place) / 21) ** 2 for place, other in pairs])
    once = np.array([[float(place == each) for place, _ in pairs] for each in places])
    level = np.array([[float(o - p) * (kinds[p][0] == size) for p, o in pairs] for size in sizes])
    best = linprog(-worth, once, np.ones(len(places)), level, np.zeros(len(sizes)), method="highs-ipm")
    # The cheapest way to bring the weights of the control from its words: no better than the best, and no worse.
    reached = np.array([[float(o == each) for _, o in pairs] for each in sorted({o for _, o in pairs})])
    wanted = [*control.matched[places], *control.weights[sorted({o for _, o in pairs})]]
    got = linprog(-worth, A_eq=np.vstack([once, reached]), b_eq=wanted, method="highs-ds")
    assert got.success and got.fun == pytest.approx(best.fun, abs=1e-6)


def test_lengths_must_fit():
    corpus = corpus_of(["fee term"])
    with pytest.raises(ShapeError, match="each of the 2 words of example '0'; got 1 and 2"):
        matched_controls(corpus, [np.array([True])], [np.array([1, 1])])


def test_tokens_of_matched_and_control_agree(minilm: Path):
    """Through a real tokenizer: the control holds as many tokens as the matched words."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    text = (
        "The licensor shall indemnify the licensee against infringement, and the distributor shall reimburse the "
        "manufacturer for reasonable expenses, fees and taxes; the sublicensee pays royalties and audit costs."
    )
    encoded = encode(tokenizer, text, 64)
    intervals = words(text)
    marked = np.array([text[start:end] in {"licensor", "indemnify", "fees", "royalties"} for start, end in intervals])
    sizes = pieces(encoded, len(intervals))
    [control] = matched_controls(corpus_of([text]), [marked], [sizes])
    assert 2 <= control.matched.sum() <= 4
    tokens = token_weights(encoded, control.weights)
    np.testing.assert_allclose(tokens.sum(), token_weights(encoded, control.matched).sum())
    assert not (tokens * token_weights(encoded, marked)).any()


def recency(length: int, decay: float = 0.15) -> np.ndarray:
    """A causal head that looks at how far away a word is and at nothing else: (Q, K), rows sum to 1."""
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    weights = np.where(distance >= 0, np.exp(-decay * np.maximum(distance, 0)), 0.0)
    return weights / weights.sum(1, keepdims=True)


EDGES = {"start": np.arange(8), "early": np.arange(21), "late": np.arange(42, 63), "end": np.arange(55, 63)}


@pytest.mark.parametrize("where", EDGES)
def test_controls_cancel_what_position_feigns(where: str):
    """Salience late (early) in the texts makes a head that is blind to content look keen on it (averse to it)."""
    length, texts = 63, 30
    rng = np.random.default_rng(0)
    corpus = corpus_of([" ".join(f"word{place:02d}x" for place in range(length))] * texts)
    marks = []
    for _ in range(texts):
        marked = np.zeros(length, dtype=bool)
        marked[rng.choice(EDGES[where], size=5, replace=False)] = True
        marks.append(marked)
    controls = matched_controls(corpus, marks, [np.ones(length, dtype=int)] * texts)
    assert match_rate(controls) > 0.85
    seen = np.tril(np.ones((length, length)))
    moved = recency(length) - seen / seen.sum(1, keepdims=True)
    raw = np.mean([moved @ marked for marked in marks])
    assert raw > 0.03 if where in ("late", "end") else raw < -0.05
    gap = [moved @ (control.matched - control.weights) for control in controls]
    assert abs(np.mean(gap)) < 0.002
    assert abs(np.mean(gap, axis=0)[-1]) < 0.005 < 0.05 < abs(np.mean([moved[-1] @ marked for marked in marks]))


def test_a_text_has_the_same_controls_in_any_company():
    """Many texts are matched in one program; equally good controls are chosen by the text alone."""
    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.permutation(12 * ["fee"] + 12 * ["term"] + 12 * ["notice"] + 4 * ["the"])) for _ in range(150)
    ]
    corpus = corpus_of(texts)
    marks = [np.isin(np.arange(40), rng.choice(40, 6, replace=False)) for _ in texts]
    pieces = [np.ones(40, dtype=np.int64)] * len(texts)
    whole = matched_controls(corpus, marks, pieces)
    backwards = matched_controls(corpus.select(range(149, -1, -1)), marks[::-1], pieces)[::-1]
    for one, other in zip(whole, backwards, strict=True):
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-9)
        np.testing.assert_allclose(one.matched, other.matched, atol=1e-9)
    assert sum(control.weights.sum() for control in whole) > 500
