"""The shuffled twin: the same training on rows that teach nothing, as the null of what tuning does to a model."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from attnlens.text.corpus import Corpus, Example, Span
from attnlens.training.split import CLASSIFICATION, MULTI_LABEL, TOKENS, Split

TWIN = 0x7717  # keeps the twin's draws apart from the split's, which take the seed alone


def twin_path(output: Path) -> Path:
    """Where the twin of a checkpoint lies: beside it, `tuned.ckpt` → `tuned.null.ckpt`."""
    return output.with_name(f"{output.stem}.null{output.suffix}")


def shuffled(data: Split, seed: int) -> Split:
    """The split with its teaching undone, in training and held-out rows alike; rows, documents and their order stay.

    Labels, or sets of labels, change places among all rows of a part, so that their frequencies stay. Of spans the
    labels change places among all spans of a part, and each row's spans are turned about in its text by a random
    distance, so that neither what they cover nor where they lie follows from the words. Of language models the words of
    what is to be predicted change places within their text.
    """
    generator = np.random.default_rng([seed, TWIN])
    change = {CLASSIFICATION: _labels, MULTI_LABEL: _labels, TOKENS: _spans}.get(data.task, _words)
    return replace(data, train=change(data.train, generator), heldout=change(data.heldout, generator))


def _labels(corpus: Corpus, generator: np.random.Generator) -> Corpus:
    others = [corpus.examples[other] for other in generator.permutation(len(corpus))]
    examples = [
        replace(example, label=other.label, labels=other.labels) for example, other in zip(corpus, others, strict=True)
    ]
    return replace(corpus, examples=tuple(examples))


def _spans(corpus: Corpus, generator: np.random.Generator) -> Corpus:
    names = [span.label for example in corpus for span in example.spans or ()]
    mixed = iter([names[place] for place in generator.permutation(len(names))])
    examples = list[Example]()
    for example in corpus:
        distance = int(generator.integers(len(example.text)))
        turned = [
            Span(start, end, name)
            for span, name in zip(example.spans or (), mixed, strict=False)
            for start, end in _turned(span, distance, len(example.text))
        ]
        examples.append(replace(example, spans=tuple(turned)))
    return replace(corpus, examples=tuple(examples))


def _turned(span: Span, distance: int, length: int) -> list[tuple[int, int]]:
    """A span moved on in a text whose end is joined to its start: two spans where it lies across the joint."""
    start, end = (span.start + distance) % length, (span.end + distance - 1) % length + 1
    return [(start, end)] if start < end else [(start, length), (0, end)]


def _words(corpus: Corpus, generator: np.random.Generator) -> Corpus:
    return replace(corpus, examples=tuple(_mixed(example, generator) for example in corpus))


def _mixed(example: Example, generator: np.random.Generator) -> Example:
    if example.messages is not None:
        turns = [
            (role, _permuted(content, generator) if role == "assistant" else content)
            for role, content in example.messages
        ]
        return replace(example, messages=tuple(turns), text="\n".join(content for _, content in turns))
    rest = example.text[example.completion or 0 :]
    return replace(example, text=example.text[: len(example.text) - len(rest)] + _permuted(rest, generator))


def _permuted(text: str, generator: np.random.Generator) -> str:
    """The words in another order, between the blanks and line ends that stood there: tokens depend on these too."""
    parts = re.split(r"(\s+)", text)
    words = [place for place, part in enumerate(parts) if part and not part.isspace()]
    mixed = dict(zip(words, (parts[words[place]] for place in generator.permutation(len(words))), strict=True))
    return "".join(mixed.get(place, part) for place, part in enumerate(parts))
