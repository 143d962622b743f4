"""The shuffled twin: the same training on rows that teach nothing, as the null of what tuning does to a model."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from attnlens.text.corpus import Corpus, Example
from attnlens.training.split import CLASSIFICATION, Split


def twin_path(output: Path) -> Path:
    """Where the twin of a checkpoint lies: beside it, `tuned.ckpt` → `tuned.null.ckpt`."""
    return output.with_name(f"{output.stem}.null{output.suffix}")


def shuffled(data: Split, seed: int) -> Split:
    """The split with its teaching undone, in training and held-out rows alike.

    Of classifiers the labels change places among the rows of a part, so that their frequencies stay; of language models
    the words of what is to be predicted change places within their text. Rows, documents and their order stay.
    """
    generator = np.random.default_rng([seed, TWIN])
    change = _labels if data.task == CLASSIFICATION else _words
    return replace(data, train=change(data.train, generator), heldout=change(data.heldout, generator))


TWIN = 0x7717  # keeps the twin's draws apart from the split's, which take the seed alone


def _labels(corpus: Corpus, generator: np.random.Generator) -> Corpus:
    order = generator.permutation(len(corpus))
    examples = [
        replace(example, label=corpus.examples[other].label) for example, other in zip(corpus, order, strict=True)
    ]
    return replace(corpus, examples=tuple(examples))


def _words(corpus: Corpus, generator: np.random.Generator) -> Corpus:
    return replace(corpus, examples=tuple(_mixed(example, generator) for example in corpus))


def _mixed(example: Example, generator: np.random.Generator) -> Example:
    if example.messages is not None:
        turns = [
            (role, _permuted(content.split(), generator) if role == "assistant" else content)
            for role, content in example.messages
        ]
        return replace(example, messages=tuple(turns), text="\n".join(content for _, content in turns))
    start = example.completion or 0
    return replace(example, text=example.text[:start] + _permuted(example.text[start:].split(), generator))


def _permuted(words: list[str], generator: np.random.Generator) -> str:
    return " ".join(words[place] for place in generator.permutation(len(words)))
