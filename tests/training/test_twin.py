"""The shuffled twin's data: frequencies, words, rows and documents stay, what they teach does not."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from attnlens.text.corpus import Corpus, Example, Span
from attnlens.training.split import split
from attnlens.training.twin import shuffled, twin_path


def frame(corpus: Corpus) -> list[tuple[str, str]]:
    """What no twin changes of a row."""
    return [(example.id, example.document) for example in corpus]


def test_beside_the_checkpoint():
    assert twin_path(Path("a/tuned.ckpt")) == Path("a/tuned.null.ckpt") and twin_path(Path("b")) == Path("b.null")


def test_labels_change_places_among_all_rows(corpus: Corpus):
    """Not within documents: each of these holds one row of each label, and comes out with others."""
    data = split(corpus, None, 0)
    twin = shuffled(data, 0)
    for before, after in ((data.train, twin.train), (data.heldout, twin.heldout)):
        assert frame(before) == frame(after) and [row.text for row in before] == [row.text for row in after]
        assert Counter(row.label for row in before) == Counter(row.label for row in after)
    assert [row.label for row in data.train] != [row.label for row in twin.train]
    documents = {row.document: Counter[str | None]() for row in twin.train}
    for row in twin.train:
        documents[row.document][row.label] += 1
    assert any(max(counts.values()) > 1 for counts in documents.values())
    assert shuffled(data, 0) == twin != shuffled(data, 1) and twin.labels == data.labels


def test_labels_are_independent_of_the_rows(corpus: Corpus):
    """Over 300 seeds a row keeps its label as often as chance has it: one in three, within four standard errors."""
    data = split(corpus, None, 0)
    kept = [shuffled(data, seed).train.examples[7].label == data.train.examples[7].label for seed in range(300)]
    assert abs(np.mean(kept) - 1 / 3) < 4 * np.sqrt(2 / 9 / 300)


def test_sets_of_labels_stay_together(corpus: Corpus):
    sets = [("a", "b"), (), ("c",)]
    rows = tuple(replace(row, label=None, labels=sets[number % 3]) for number, row in enumerate(corpus))
    data = split(replace(corpus, examples=rows), None, 0)
    twin = shuffled(data, 0)
    assert Counter(row.labels for row in data.train) == Counter(row.labels for row in twin.train)
    assert [row.labels for row in data.train] != [row.labels for row in twin.train]
    assert all(row.label is None for row in twin.train)


def test_spans_move_and_their_labels_change_places(corpus: Corpus):
    """As many characters of a row lie in spans as before, as many spans have each label, but elsewhere."""
    rows = tuple(
        replace(row, spans=(Span(0, 4, "ab"[number % 2]), Span(10, 15, str(row.label)))[: number % 3])
        for number, row in enumerate(corpus)
    )
    data = split(replace(corpus, examples=rows), None, 0, "token-classification")
    twin = shuffled(data, 0)
    assert frame(data.train) == frame(twin.train)
    joints = 0
    for before, after in zip(data.train, twin.train, strict=True):
        spans, turned = before.spans or (), after.spans or ()
        assert before.text == after.text and sum(s.end - s.start for s in spans) == sum(s.end - s.start for s in turned)
        assert all(0 <= span.start < span.end <= len(after.text) for span in turned)
        joints += len(turned) - len(spans)
    assert joints > 0  # some span lies across the joint, and is two
    places = [[span.start for span in row.spans or ()] for row in twin.train]
    assert places != [[span.start for span in row.spans or ()] for row in data.train]
    names = Counter(span.label for row in data.train for span in row.spans or ())
    found = Counter(span.label for row in twin.train for span in row.spans or ())
    # A span across the joint counts twice, so each label is at least as frequent as before.
    assert set(names) == set(found) and all(found[label] >= count for label, count in names.items())
    assert sum(found.values()) - sum(names.values()) == joints
    assert shuffled(data, 0) == twin != shuffled(data, 1)


def test_words_change_places_within_their_text(corpus: Corpus):
    """Of plain text all words, of a completion those behind the prompt, of a conversation the assistant's."""
    plain = [replace(row, label=None) for row in corpus]
    answered = [Example("the party limits its liability", str(n), f"e{n}", completion=9) for n in range(8)]
    turns = (("user", "who limits it"), ("assistant", "the party of the deed"))
    spoken = [Example("who limits it\nthe party of the deed", f"s{n}", f"s{n}", messages=turns) for n in range(8)]
    data = split(replace(corpus, examples=(*plain, *answered, *spoken)), None, 0, "causal-lm")
    twin = shuffled(data, 0)
    moved = Counter[str]()
    for before, after in zip(data.train, twin.train, strict=True):
        assert (before.id, before.document, before.completion) == (after.id, after.document, after.completion)
        assert sorted(before.text.split()) == sorted(after.text.split())
        kind = "spoken" if before.messages else "answered" if before.completion else "plain"
        moved[kind] += before.text != after.text
        if before.completion:
            assert after.text.startswith("the party ")
        if before.messages and after.messages:
            assert after.messages[0] == before.messages[0] and after.messages[1][0] == "assistant"
            assert after.text == "\n".join(content for _, content in after.messages)
    assert min(moved[kind] for kind in ("spoken", "answered", "plain")) >= 3
    assert shuffled(data, 0) == twin != shuffled(data, 1)
    masked = replace(data, task="masked-lm")
    assert [row.text for row in shuffled(masked, 0).train] == [row.text for row in twin.train]


def test_blanks_and_line_ends_stay_where_they_are(corpus: Corpus):
    """Tokens depend on them, and on tokens the windows of a language model."""
    text = "  one two\n\nthree  four\tfive six \n"
    rows = tuple(replace(row, label=None, text=text) for row in corpus)
    twin = shuffled(split(replace(corpus, examples=rows), None, 0), 0)
    for row in twin.train:
        assert re.sub(r"\S+", "w", row.text) == re.sub(r"\S+", "w", text)
        assert sorted(row.text.split()) == sorted(text.split())
    assert any(row.text != text for row in twin.train)
