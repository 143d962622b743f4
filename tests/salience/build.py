"""Small corpora for the tests of this floor."""

from collections.abc import Sequence

from attnlens.text.corpus import Corpus, Example, Span


def corpus_of(
    texts: Sequence[str],
    labels: Sequence[str | None] | None = None,
    documents: Sequence[str] | None = None,
    spans: Sequence[tuple[Span, ...] | None] | None = None,
) -> Corpus:
    count = len(texts)
    examples = (
        Example(text, str(place), document or str(place), label, span)
        for place, (text, label, document, span) in enumerate(
            zip(texts, labels or [None] * count, documents or [None] * count, spans or [None] * count, strict=True)
        )
    )
    return Corpus(tuple(examples), "made.jsonl", "0", documents is not None)
