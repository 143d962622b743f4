"""What definitions of salience may look at besides the texts themselves."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
