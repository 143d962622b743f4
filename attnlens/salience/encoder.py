"""The third model that some definitions ask: what it reads of a text, and whether it is one of those under test."""

from collections.abc import Iterator

import numpy as np

from attnlens.checkpoints.load import Checkpoint, checksum, longest_input
from attnlens.salience.aids import Aids
from attnlens.text.align import Encoded, encode, words
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import content_flags

LONGEST = 4096  # tokens of a text; some tokenizers name no limit


def weights_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Checksums by which a model is known again: of its files, and of its backbone in memory.

    The second is the same with and without a head. An adapter has the first alone: its backbone is shared.
    """
    found = [checkpoint.provenance.get("sha256")]
    if checkpoint.adapter is None:
        found.append(f"backbone {checksum(checkpoint.backbone):08x}")
    return tuple(str(each) for each in found if each is not None)


def is_tested(aids: Aids) -> bool:
    """Whether the third model is one of those under test."""
    return aids.encoder is not None and bool(set(weights_of(aids.encoder)) & set(aids.tested))


def read(corpus: Corpus, encoder: Checkpoint) -> Iterator[tuple[Encoded, np.ndarray]]:
    """Each text as the third model reads it, and which of its words it may score, (W,) bool: content words in reach."""
    limit = longest_input(encoder.model, encoder.tokenizer) - encoder.virtual
    for example in corpus:
        encoded = encode(encoder.tokenizer, example.text, min(limit, LONGEST))
        reached = np.zeros(len(words(example.text)), dtype=bool)
        reached[encoded.word_of[encoded.word_of >= 0]] = True
        yield encoded, content_flags(example.text) & reached
