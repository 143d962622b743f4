"""Salience by tf-idf: words frequent in this text and rare in the training texts (Spärck Jones 1972)."""

import numpy as np

from attnlens.core.errors import CorpusError
from attnlens.salience.aids import Aids
from attnlens.salience.ranking import mark_top
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import content_flags, forms, is_content


def mark_frequent_here(corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    """Top 15 % of each text's content words by tf·idf: a (W,) bool array for each example.

    scikit-learn's TfidfVectorizer, idf = log((1 + n)/(1 + d)) + 1 with n texts in the background and d that hold the
    word; never counted on the corpus itself, whose lengths would leak. A word the background never saw has no idf and
    scores 0. Hand example: where n = 3, "fee" in all three and "audit" in one, "fee fee audit" scores 2·1 and
    1·(log 2 + 1) = 1.69: "fee" is marked.
    """
    # A second's work to import: only where it is asked for.
    from sklearn.feature_extraction.text import TfidfVectorizer

    assert aids.background is not None
    vectorizer = TfidfVectorizer(analyzer=_content_forms, norm=None)  # pyright: ignore[reportArgumentType]
    try:
        vectorizer.fit(example.text for example in aids.background)
    except ValueError as error:  # an empty vocabulary
        raise CorpusError(
            f"salience 'tfidf' needs training texts with content words; {aids.background.name} has none. "
            "Choose textrank."
        ) from error
    columns: dict[str, int] = vectorizer.vocabulary_
    weights = vectorizer.transform(example.text for example in corpus)  # (N, V), sparse
    marks = []
    for number, example in enumerate(corpus):
        scores = np.append(weights[number].toarray().ravel(), 0.0)  # last, for words the background never saw
        places = np.array([columns.get(word, -1) for word in forms(example.text)], dtype=np.int64)
        marks.append(mark_top(np.where(content_flags(example.text), scores[places], np.nan)))
    return marks


def _content_forms(text: str) -> list[str]:
    return [word for word in forms(text) if is_content(word)]
