"""What definitions of salience may look at besides the texts themselves, and what they answer."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.text.corpus import Corpus

if TYPE_CHECKING:
    from attnlens.checkpoints.load import Checkpoint


@dataclass(frozen=True)
class Aids:
    """Each definition takes of them what it needs, and says so where it is missing.

    background: the training split, on which words are counted. lexicon: terms. encoder: a third model, that of
    definitions that ask one. tested: checksums of the weights of the models under test, which it must not be.
    """

    background: Corpus | None = None
    lexicon: tuple[str, ...] = ()
    encoder: "Checkpoint | None" = None
    tested: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Marked:
    """The salient words of every example, (W,) bool each, and what the definition has to tell about them.

    facts: `circular` where they come from a model under test; `convergence_delta` of integrated gradients;
    `words_beyond_encoder`, content words that the third model could not read.
    """

    words: list[np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)
