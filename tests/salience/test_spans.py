"""Spans: which of them count, and which words they touch."""

from hypothesis import given
from hypothesis import strategies as st

from attnlens.salience import Aids
from attnlens.salience.spans import mark_spans, relevant_spans
from attnlens.text.align import words
from attnlens.text.corpus import Span
from tests.salience.build import corpus_of

TEXT = "pay the fee now"


def marked_words(text: str, label: str | None, *spans: Span) -> list[str]:
    [marked] = mark_spans(corpus_of([text], [label], spans=[spans]), Aids())
    return [text[start:end] for (start, end), flag in zip(words(text), marked, strict=True) if flag]


def test_by_hand():
    assert marked_words(TEXT, None, Span(5, 11)) == ["the", "fee"]
    assert marked_words(TEXT, None, Span(3, 4)) == []  # the space between two words
    assert marked_words(TEXT, None, Span(10, 13)) == ["fee", "now"]  # one character of each
    assert marked_words(TEXT, None, Span(0, 3), Span(12, 15)) == ["pay", "now"]


def test_spans_of_the_own_label_come_before_all():
    own, other, plain = Span(0, 3, "fee"), Span(4, 7, "term"), Span(12, 15, None)
    assert marked_words(TEXT, "fee", own, other, plain) == ["pay"]
    assert marked_words(TEXT, "audit", own, other, plain) == ["pay", "the", "now"]
    assert marked_words(TEXT, None, own, other, plain) == ["pay", "the", "now"]


def test_a_text_without_spans_beside_others():
    corpus = corpus_of([TEXT, TEXT], spans=[None, (Span(0, 3),)])
    assert relevant_spans(corpus.examples[0]) == ()
    assert [marked.sum() for marked in mark_spans(corpus, Aids())] == [0, 1]


@given(st.text(min_size=1, max_size=40), st.data())
def test_a_word_is_marked_where_its_characters_are(text: str, data: st.DataObject):
    edges = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(sorted).filter(lambda e: e[0] < e[1])
    spans = tuple(Span(start, end) for start, end in data.draw(st.lists(edges, max_size=3)))
    inside = {place for span in spans for place in range(span.start, span.end)}
    [marked] = mark_spans(corpus_of([text], spans=[spans]), Aids())
    assert marked.tolist() == [any(place in inside for place in range(*interval)) for interval in words(text)]
