"""Salience by keyness: the words that set a class apart from the rest (Monroe, Colaresi & Quinn 2008)."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr
from scipy.stats import false_discovery_control

from attnlens.core.errors import CorpusError
from attnlens.salience.aids import Aids
from attnlens.salience.ranking import TOP_SHARE, top
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import forms, is_content

# Size of the prior, as a share of the corpus. Too small, and a word that the rest never uses has a huge variance
# and no z; too large (1: the counts themselves), and small corpora have no key words. A word that one class has for
# itself gets its greatest z at 0.17 when there are two classes, at 0.22 when there are eight.
PRIOR = 0.2
LEVEL = 0.05  # of the false discovery rate, over the candidate words of one class
MIN_DOCUMENTS = 5


def log_odds_z(counts: np.ndarray) -> np.ndarray:
    """Weighted log-odds z of each word in each class against the rest: (C, V) int -> (C, V) float64.

    δ = log[(y+α)/(n+α₀−y−α)] − log[(y′+α)/(n′+α₀−y′−α)], z = δ / √(1/(y+α) + 1/(y′+α)); y counts the word in the
    class, y′ in the rest, n and n′ all words there. The prior α_w = α₀·f_w has f_w = the word's share of the corpus
    and α₀ = a fifth of its size. Positive: over-used in the class. Chance gives z a standard deviation below 1
    (0.85 for two equal classes). Hand example: counts [[3, 1], [1, 3]] have α = 0.8 and give
    ±2 log(3.8/1.8) / √(1/3.8 + 1/1.8) = ±1.6516.
    """
    inside = np.asarray(counts, dtype=np.int64)
    both = inside.sum(0)
    outside = both - inside
    size_inside = inside.sum(1, keepdims=True)
    size_outside = both.sum() - size_inside
    prior, prior_size = PRIOR * both, PRIOR * both.sum()
    with_inside, with_outside = inside + prior, outside + prior
    delta = np.log(with_inside / (size_inside + prior_size - with_inside)) - np.log(
        with_outside / (size_outside + prior_size - with_outside)
    )
    return delta / np.sqrt(1 / with_inside + 1 / with_outside)


@dataclass(frozen=True, eq=False)
class Keyness:
    """Keyness of V word forms for C classes, counted on one corpus."""

    forms: dict[str, int]  # form -> column
    labels: dict[str, int]  # label -> row
    z: np.ndarray  # (C, V) float64
    key: np.ndarray  # (C, V) bool: a content word in enough documents, significantly over-used


def keyness(corpus: Corpus) -> Keyness:
    """Count the labelled examples of a corpus and test every class against the rest.

    Candidates are content words found in at least 5 documents (party names live in one contract); their one-sided
    p-values are adjusted within the class by Benjamini & Hochberg 1995 at 5 %.
    """
    if len(corpus.labels) < 2:
        raise CorpusError(
            f"salience 'keyness' needs examples of at least two labels to count on; {corpus.name} has "
            f"{len(corpus.labels)}. Add labels, or choose textrank."
        )
    by_label = {label: Counter[str]() for label in corpus.labels}
    documents: defaultdict[str, set[str]] = defaultdict(set)
    for example in corpus:
        if example.label is not None:
            found = forms(example.text)
            by_label[example.label].update(found)
            for word in set(found):
                documents[word].add(example.document)
    vocabulary = list(documents)
    if len(vocabulary) < 2:
        raise CorpusError(f"salience 'keyness' needs texts of several words; {corpus.name} has none. Add texts.")
    counts = np.array([[count[word] for word in vocabulary] for count in by_label.values()], dtype=np.int64)
    candidate = np.array([is_content(word) and len(documents[word]) >= MIN_DOCUMENTS for word in vocabulary])
    z = log_odds_z(counts)
    key = np.zeros(z.shape, dtype=bool)
    if candidate.any():
        key[:, candidate] = false_discovery_control(ndtr(-z[:, candidate]), axis=1) <= LEVEL
    columns = {word: column for column, word in enumerate(vocabulary)}
    return Keyness(columns, {label: row for row, label in enumerate(by_label)}, z, key)


def mark_keywords(corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    """Key words of each example's own label, within the text's top 15 % of words by z: (W,) bool arrays.

    Counted on the background (the training split); without one, on the corpus itself. A word the counts never saw
    has z = 0. Examples without a label, or with one the counts never saw, have no salient word.
    """
    if not corpus.labels:
        raise CorpusError(
            f"salience 'keyness' needs a label field; {corpus.name} has none. Add labels, or choose textrank."
        )
    counted = keyness(corpus if aids.background is None else aids.background)
    if not set(corpus.labels) & set(counted.labels):
        raise CorpusError(
            f"salience 'keyness' needs labels that the training data knows ({', '.join(counted.labels)}); "
            f"{corpus.name} has {', '.join(corpus.labels)}. Use one set of names."
        )
    # One more column for the words the counts never saw.
    z = np.pad(counted.z, ((0, 0), (0, 1)))
    key = np.pad(counted.key, ((0, 0), (0, 1)))
    marks = []
    for example in corpus:
        columns = np.array([counted.forms.get(word, -1) for word in forms(example.text)], dtype=np.int64)
        if example.label in counted.labels:
            row = counted.labels[example.label]
            marks.append(key[row, columns] & top(z[row, columns], np.ones(len(columns), dtype=bool), TOP_SHARE))
        else:
            marks.append(np.zeros(len(columns), dtype=bool))
    return marks
