"""C2 and C3: random words of the same text, and the words that another document's salience falls on."""

from collections.abc import Sequence

import numpy as np

from attnlens.text.corpus import Corpus
from attnlens.text.lexis import content_flags

DRAWS = 20


def random_words(
    corpus: Corpus, marks: Sequence[np.ndarray], pieces: Sequence[np.ndarray], rng: np.random.Generator
) -> list[np.ndarray]:
    """Control C2 for each example: as many random content words as the text has salient ones, (W,) float64.

    marks (W,) bool: the salient words that are in sight; pieces (W,) int, 0 for words out of sight. Drawn without
    replacement, 20 times over, from the content words that are not salient; where those are too few, from all content
    words; where these are too few as well, there is no data: all 0. The weights are the mean of the drawn indicators
    and sum to the number of salient words. Hand example: 2 salient words beside 2 other content words give weight 1 to
    each of these.
    """
    found = []
    for example, marked, count in zip(corpus, marks, pieces, strict=True):
        content = content_flags(example.text) & (count > 0)
        needed, weights = int(marked.sum()), np.zeros(len(marked))
        for pool in (np.flatnonzero(content & ~marked), np.flatnonzero(content)):
            if needed <= len(pool):
                # The first places of random orders: `needed` different words in each draw.
                drawn = pool[rng.random((DRAWS, len(pool))).argsort(1)[:, :needed]]
                weights = np.bincount(drawn.ravel(), minlength=len(marked)) / DRAWS
                break
        found.append(weights)
    return found


def swapped_words(
    corpus: Corpus, marks: Sequence[np.ndarray], pieces: Sequence[np.ndarray], rng: np.random.Generator
) -> list[np.ndarray]:
    """Control C3 for each example: the salience of a text of another document, put onto this one, (W,) float64 of 0, 1.

    marks (W,) bool: the salient words that are in sight; pieces (W,) int, 0 for words out of sight. The other text is
    drawn among those of other documents with a salient word. Its words are scaled to the length of this text: of n
    content words here and m there, word number i (from 0) takes the mark of word number ⌊(i + ½)·m/n⌋; the words
    without content likewise, so that function words stay function words. All 0, no data, where no other document has a
    salient word or the text itself has none. Hand example: marks 1, 0 there are 1, 1, 0, 0 on four words here.
    """
    kinds = []
    for example, count in zip(corpus, pieces, strict=True):
        content, seen = content_flags(example.text), count > 0
        kinds.append((np.flatnonzero(content & seen), np.flatnonzero(~content & seen)))
    documents = np.array([example.document for example in corpus])
    has_any = np.array([bool(mark.any()) for mark in marks])
    found = []
    for i, marked in enumerate(marks):
        weights = np.zeros(len(marked))
        donors = np.flatnonzero(has_any & (documents != documents[i]))
        if has_any[i] and len(donors):
            donor = int(rng.choice(donors))
            for here, there in zip(kinds[i], kinds[donor], strict=True):
                if len(there):
                    place = (2 * np.arange(len(here)) + 1) * len(there) // (2 * max(len(here), 1))
                    weights[here] = marks[donor][there[place]]
        found.append(weights)
    return found
