"""Floor 2: which words matter, by definitions that never look at the attention of the models under test."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from attnlens.core.errors import AttnlensError, UnknownName
from attnlens.salience.aids import Aids, Marked
from attnlens.salience.content import mark_content
from attnlens.salience.keyness import mark_keywords
from attnlens.salience.lexicon import mark_terms
from attnlens.salience.spans import mark_spans
from attnlens.salience.textrank import mark_central
from attnlens.salience.tfidf import mark_frequent_here
from attnlens.text.corpus import Corpus

__all__ = ["DEFINITIONS", "Aids", "Definition", "Marked", "find_words", "mark_words"]

Find = Callable[[Corpus, Aids], Marked]

_MISSING = {
    "background": "is counted on the training texts, never on those that are measured, and has none. Report a "
    "checkpoint whose training record names them, give CompareOptions a background, or choose textrank",
    "lexicon": "needs the terms that matter. Add --lexicon FILE, one term a line",
    "encoder": "asks a third model. Add --encoder DIR, neither base nor tuned",
}


@dataclass(frozen=True)
class Definition:
    """One way to say which words matter: `find(corpus, aids)` gives the salient words of each example.

    `needs` names the fields of Example it cannot do without, `asks` those of Aids.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    reference: str
    find: Find
    asks: tuple[str, ...] = ()


def _simple(mark: Callable[[Corpus, Aids], list[np.ndarray]]) -> Find:
    return lambda corpus, aids: Marked(mark(corpus, aids))


def _mark_keywords_in_spans(corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    spans, keywords = mark_spans(corpus, aids), mark_keywords(corpus, aids)
    return [inside & keyword for inside, keyword in zip(spans, keywords, strict=True)]


# torch and captum are imported where one of these is asked for: the registry itself stays cheap.
def _find_irreplaceable(corpus: Corpus, aids: Aids) -> Marked:
    from attnlens.salience.leave_one_out import find_irreplaceable

    return find_irreplaceable(corpus, aids)


def _find_integrated(corpus: Corpus, aids: Aids) -> Marked:
    from attnlens.salience.attribution import find_integrated

    return find_integrated(corpus, aids)


def _find_input_x_gradient(corpus: Corpus, aids: Aids) -> Marked:
    from attnlens.salience.attribution import find_input_x_gradient

    return find_input_x_gradient(corpus, aids)


_MONROE = "Monroe, Colaresi & Quinn 2008"
DEFINITIONS: dict[str, Definition] = {
    definition.name: definition
    for definition in (
        Definition("spans", "marked spans", ("spans",), "DeYoung et al. 2020", _simple(mark_spans)),
        Definition("keyness", "keywords of the class", ("label",), _MONROE, _simple(mark_keywords)),
        Definition("textrank", "central words", (), "Mihalcea & Tarau 2004", _simple(mark_central)),
        Definition(
            "spans_keyness",
            "keywords of the class in marked spans",
            ("spans", "label"),
            f"DeYoung et al. 2020; {_MONROE}",
            _simple(_mark_keywords_in_spans),
        ),
        Definition("lexicon", "terms of a list", (), "METRICS 2", _simple(mark_terms), ("lexicon",)),
        Definition(
            "tfidf",
            "words frequent here, rare in training",
            (),
            "Spärck Jones 1972",
            _simple(mark_frequent_here),
            ("background",),
        ),
        Definition("content_words", "words of the open classes", (), "Jang, Byun & Shin 2024", _simple(mark_content)),
        Definition(
            "leave_one_out",
            "words whose loss moves the meaning",
            (),
            "METRICS 2 C (a)",
            _find_irreplaceable,
            ("encoder",),
        ),
        Definition(
            "attribution",
            "words a classifier's decision rests on, by integrated gradients",
            ("label",),
            "Sundararajan, Taly & Yan 2017",
            _find_integrated,
            ("encoder",),
        ),
        Definition(
            "input_x_gradient",
            "words a classifier's decision rests on, by input × gradient",
            ("label",),
            "Shrikumar, Greenside & Kundaje 2017",
            _find_input_x_gradient,
            ("encoder",),
        ),
    )
}


def find_words(name: str, corpus: Corpus, aids: Aids) -> Marked:
    """Salient words of every example under the definition `name`, with what there is to tell about them.

    Raises UnknownName; AttnlensError where the definition asks for an aid that is not there, or may not use it;
    CorpusError where the corpus lacks a field.
    """
    if name not in DEFINITIONS:
        raise UnknownName.among("salience definition", name, DEFINITIONS)
    for aid in DEFINITIONS[name].asks:
        if not getattr(aids, aid):
            raise AttnlensError(f"salience {name!r} {_MISSING[aid]}.")
    return DEFINITIONS[name].find(corpus, aids)


def mark_words(name: str, corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    """Salient words of every example under the definition `name`: a list of (W,) bool arrays."""
    return find_words(name, corpus, aids).words
