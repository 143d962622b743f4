"""Floor 2: which words matter, by definitions that never look at the attention of the models under test."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from attnlens.core.errors import UnknownName
from attnlens.salience.aids import Aids
from attnlens.salience.keyness import mark_keywords
from attnlens.salience.spans import mark_spans
from attnlens.salience.textrank import mark_central
from attnlens.text.corpus import Corpus

__all__ = ["DEFINITIONS", "Aids", "Definition", "mark_words"]

Mark = Callable[[Corpus, Aids], list[np.ndarray]]


@dataclass(frozen=True)
class Definition:
    """One way to say which words matter: `mark(corpus, aids)` gives a (W,) bool array for each example.

    `needs` names the fields of Example it cannot do without.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    reference: str
    mark: Mark


def _mark_keywords_in_spans(corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    spans, keywords = mark_spans(corpus, aids), mark_keywords(corpus, aids)
    return [inside & keyword for inside, keyword in zip(spans, keywords, strict=True)]


DEFINITIONS: dict[str, Definition] = {
    definition.name: definition
    for definition in (
        Definition("spans", "marked spans", ("spans",), "DeYoung et al. 2020", mark_spans),
        Definition("keyness", "keywords of the class", ("label",), "Monroe, Colaresi & Quinn 2008", mark_keywords),
        Definition("textrank", "central words", (), "Mihalcea & Tarau 2004", mark_central),
        Definition(
            "spans_keyness",
            "keywords of the class in marked spans",
            ("spans", "label"),
            "DeYoung et al. 2020; Monroe, Colaresi & Quinn 2008",
            _mark_keywords_in_spans,
        ),
    )
}


def mark_words(name: str, corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    """Salient words of every example under the definition `name`: a list of (W,) bool arrays."""
    if name not in DEFINITIONS:
        raise UnknownName.among("salience definition", name, DEFINITIONS)
    return DEFINITIONS[name].mark(corpus, aids)
