"""C1: every rule of the match against brute force, and why it exists."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from attnlens.core.errors import ShapeError
from attnlens.salience.controls import Control, frequency_terciles, match_rate, matched_controls
from attnlens.text.align import encode, pieces, token_weights, words
from tests.salience.build import corpus_of


def one_control(text: str, marked: list[int], sizes: list[int], seed: int = 0) -> Control:
    flags = np.zeros(len(words(text)), dtype=bool)
    flags[marked] = True
    [control] = matched_controls(corpus_of([text]), [flags], [np.array(sizes)], np.random.default_rng(seed))
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
    # Word 0 is salient; candidates of its kind: notice (1 piece). "indemnify" has 2 pieces, "the" no content.
    control = one_control("fee the notice indemnify", [0], [1, 1, 1, 2])
    assert control.matched.tolist() == [True, False, False, False]
    assert control.weights.tolist() == [0, 0, 1, 0]
    # Two salient words share the only candidate: it is drawn for both.
    control = one_control("fee notice term", [0, 2], [1, 1, 1])
    assert control.matched.tolist() == [True, False, True] and control.weights.tolist() == [0, 2, 0]
    # A salient function word is not matched, nor is it a control.
    control = one_control("the fee notice", [0, 1], [1, 1, 1])
    assert control.matched.tolist() == [False, True, False] and control.eligible.tolist() == [False, True, False]
    # A word that truncation cut is neither.
    control = one_control("fee notice term", [0, 1], [1, 0, 0])
    assert not control.matched.any() and not control.weights.any()
    assert control.eligible.tolist() == [True, False, False]


@pytest.mark.parametrize(("between", "found"), [(19, True), (20, False)])
def test_the_reach_is_twenty_words_both_ways(between: int, found: bool):
    gap = " the" * between + " "
    text, sizes = "fee" + gap + "term", [1] * (between + 2)
    assert one_control(text, [0], sizes).matched.any() == found
    assert one_control(text, [between + 1], sizes).matched.any() == found


def test_frequency_is_matched():
    text = "notice" + " fee" * 8 + " venue"
    terciles = frequency_terciles(corpus_of([text]))
    assert terciles == {"notice": 0, "venue": 0, "fee": 1}
    control = one_control(text, [0], [1] * 10)
    assert control.weights[9] == 1 and control.weights.sum() == 1, "the nearer words are too common"


VOCABULARY = ["fee", "term", "notice", "venue", "audit", "patent", "the", "of", "shall"]


@st.composite
def cases(draw: st.DrawFn):
    count = draw(st.integers(1, 3))
    texts = [draw(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=60)) for _ in range(count)]
    marks = [np.array(draw(st.lists(st.booleans(), min_size=len(t), max_size=len(t)))) for t in texts]
    sizes = [np.array(draw(st.lists(st.integers(0, 2), min_size=len(t), max_size=len(t)))) for t in texts]
    return texts, marks, sizes


@given(cases(), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_every_rule_against_brute_force(case, seed: int):
    texts, marks, sizes = case
    corpus = corpus_of([" ".join(text) for text in texts])
    terciles = frequency_terciles(corpus)
    controls = matched_controls(corpus, marks, sizes, np.random.default_rng(seed))
    again = matched_controls(corpus, marks, sizes, np.random.default_rng(seed))
    eligible_count = matched_count = 0
    for text, marked, size, control, same in zip(texts, marks, sizes, controls, again, strict=True):
        assert (control.weights == same.weights).all() and (control.matched == same.matched).all()
        usable = [word in terciles and size[place] > 0 for place, word in enumerate(text)]
        candidates = {
            place: [
                other
                for other in range(len(text))
                if usable[other]
                and not marked[other]
                and abs(other - place) <= 20
                and size[other] == size[place]
                and terciles[text[other]] == terciles[text[place]]
            ]
            for place in range(len(text))
            if marked[place] and usable[place]
        }
        assert np.flatnonzero(control.eligible).tolist() == list(candidates)
        assert np.flatnonzero(control.matched).tolist() == [place for place, found in candidates.items() if found]
        assert set(np.flatnonzero(control.weights)) <= {other for found in candidates.values() for other in found}
        assert not control.weights[marked].any(), "no salient word is ever a control"
        np.testing.assert_allclose(control.weights * 20, np.round(control.weights * 20))
        kinds = [(size[place], terciles.get(word)) for place, word in enumerate(text)]
        for kind in set(kinds):  # as many words, so as many tokens, of each kind
            here = np.array([other == kind for other in kinds])
            np.testing.assert_allclose(control.weights[here].sum(), control.matched[here].sum())
        eligible_count += len(candidates)
        matched_count += sum(map(bool, candidates.values()))
    rate = match_rate(controls)
    assert np.isnan(rate) if eligible_count == 0 else rate == matched_count / eligible_count


def test_candidates_are_equally_likely():
    text = "fee notice term venue"
    mean = np.mean([one_control(text, [0], [1, 1, 1, 1], seed).weights for seed in range(400)], axis=0)
    # Standard error of a share of one third in 8,000 draws: .0053.
    np.testing.assert_allclose(mean, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.02)
    first, second = (one_control(text, [0], [1, 1, 1, 1], seed).weights for seed in (0, 1))
    assert (first != second).any()


def test_lengths_must_fit():
    corpus = corpus_of(["fee term"])
    with pytest.raises(ShapeError, match="each of the 2 words of example '0'; got 1 and 2"):
        matched_controls(corpus, [np.array([True])], [np.array([1, 1])], np.random.default_rng(0))


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
    [control] = matched_controls(corpus_of([text]), [marked], [sizes], np.random.default_rng(0))
    assert 2 <= control.matched.sum() <= 4
    tokens = token_weights(encoded, control.weights)
    np.testing.assert_allclose(tokens.sum(), token_weights(encoded, control.matched).sum())
    assert not (tokens * token_weights(encoded, marked)).any()


def recency(length: int, decay: float = 0.15) -> np.ndarray:
    """A causal head that looks at how far away a word is and at nothing else: (Q, K), rows sum to 1."""
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    weights = np.where(distance >= 0, np.exp(-decay * np.maximum(distance, 0)), 0.0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("late", [True, False])
def test_controls_cancel_what_position_feigns(late: bool):
    """Salience late (early) in the texts makes a head that is blind to content look keen on it (averse to it)."""
    length, texts = 63, 30
    rng = np.random.default_rng(0)
    corpus = corpus_of([" ".join(f"word{place:02d}x" for place in range(length))] * texts)
    marks = []
    for _ in range(texts):
        marked = np.zeros(length, dtype=bool)
        third = np.arange(42, 63) if late else np.arange(21)
        marked[rng.choice(third, size=7, replace=False)] = True
        marks.append(marked)
    controls = matched_controls(corpus, marks, [np.ones(length, dtype=int)] * texts, rng)
    assert match_rate(controls) == 1
    rows, seen = recency(length), np.tril(np.ones((length, length)))
    raw = np.mean([rows @ marked - seen @ marked / seen.sum(1) for marked in marks])
    focus = np.mean([rows @ (control.matched - control.weights) for control in controls])
    assert raw > 0.05 if late else raw < -0.05
    # Not 0: at an end of the text all controls lie on one side of the outermost words.
    assert abs(focus) < abs(raw) / 3
