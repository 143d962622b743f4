"""Salience by a list of terms of the field, given by whoever knows it."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from attnlens.checkpoints.identity import home_free
from attnlens.core.errors import CorpusError
from attnlens.salience.aids import Aids
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import forms


def read_lexicon(path: str | Path) -> tuple[str, ...]:
    """The terms of a text file, one a line; blank lines are left out. Raises CorpusError where it holds none."""
    shown = home_free(path)
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise CorpusError(f"the lexicon {shown} does not exist: give a text file with one term a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"the lexicon {shown} cannot be read as UTF-8 text: give one term a line") from error
    terms = tuple(line.strip() for line in lines if line.strip())
    if not terms:
        raise CorpusError(f"the lexicon {shown} holds no term: give one a line")
    return terms


def mark_terms(corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    """Words of the terms of `aids.lexicon` wherever all words of a term follow one another: (W,) bool arrays.

    Compared by their counted forms, as keyness does: without case, possessive 's and punctuation; no other ending is
    cut, so singular and plural are two terms. Hand example: the term "late fee" marks words 1 and 2 of "The Late
    Fee's due; a fee is late".
    """
    terms: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for term in aids.lexicon:
        counted = tuple(forms(term))
        if not counted:
            raise CorpusError(f"the term {term!r} of the lexicon holds no word: remove it")
        terms[counted[0]].add(counted)
    marks = []
    for example in corpus:
        text = forms(example.text)
        marked = np.zeros(len(text), dtype=bool)
        for place, word in enumerate(text):
            for term in terms.get(word, ()):
                if tuple(text[place : place + len(term)]) == term:
                    marked[place : place + len(term)] = True
        marks.append(marked)
    return marks
