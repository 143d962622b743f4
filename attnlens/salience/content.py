"""Salience by word class: every word that carries content. The weakest definition, a sanity arm."""

import numpy as np

from attnlens.salience.aids import Aids
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import content_flags


def mark_content(corpus: Corpus, aids: Aids) -> list[np.ndarray]:
    """Words of the open classes: a (W,) bool array for each example.

    It needs no aids. By the list of closed classes in text/lexis.py, where Jang, Byun & Shin 2024 use a tagger. No
    content word is left as a control, so the net change has no data: read the share. Hand example: "pay the fee"
    marks "pay" and "fee".
    """
    return [content_flags(example.text) for example in corpus]
