"""Training and held-out rows: no document on both sides, every label in training."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus

HELD_OUT = 0.2  # share of the documents


def training_labels(corpus: Corpus) -> tuple[str, ...]:
    """The labels to learn, sorted; every row must have one, and there must be two."""
    bare = [example.id for example in corpus if example.label is None]
    if len(bare) == len(corpus):
        raise TrainingError(f"{corpus.name} has no labels: fine-tuning a classifier needs a label on every row.")
    if bare:
        raise TrainingError(
            f"{len(bare)} of {len(corpus)} rows of {corpus.name} have no label (first: id {bare[0]!r}): "
            "label or remove them."
        )
    labels = tuple(sorted(corpus.labels))
    if len(labels) < 2:
        raise TrainingError(f"{corpus.name} has one label only ({', '.join(labels)}): needed at least two classes.")
    return labels


def check_validation(validation: Corpus, labels: tuple[str, ...]) -> None:
    """The held-out rows must be labelled, with labels that training has seen."""
    if not len(validation):
        raise TrainingError(f"{validation.name} is empty: needed held-out rows.")
    unseen = sorted({str(example.label) for example in validation if example.label not in labels})
    if unseen:
        count = sum(example.label not in labels for example in validation)
        shown = ", ".join(map(repr, unseen[:3])) + (", …" if len(unseen) > 3 else "")
        raise TrainingError(
            f"{count} of {len(validation)} rows of {validation.name} have a label unseen in training ({shown}): "
            f"needed one of the {len(labels)} training labels."
        )


def hold_out(corpus: Corpus, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers for training and for validation: a fifth of the documents, drawn by `seed`, is held out.

    Documents are visited in random order; one whose removal would leave a label without a training row stays. At
    least one is held out. Rows without a document column are documents of their own.
    """
    rows: dict[str, list[int]] = {}
    for number, example in enumerate(corpus):
        rows.setdefault(example.document, []).append(number)
    documents = sorted(rows)
    if len(documents) < 2:
        raise TrainingError(
            f"{corpus.name} is one document, so none can be held out: "
            "pass --validation FILE, or say which document each row is from."
        )
    left = Counter(example.label for example in corpus)
    wanted = max(1, round(HELD_OUT * len(documents)))
    held: list[int] = []
    chosen = 0
    for position in np.random.default_rng(seed).permutation(len(documents)):
        members = rows[documents[position]]
        taken = Counter(corpus.examples[number].label for number in members)
        if chosen < wanted and all(left[label] > count for label, count in taken.items()):
            left -= taken
            held += members
            chosen += 1
    if not held:
        raise TrainingError(
            f"every document of {corpus.name} is the only one with some label, so none can be held out: "
            "pass --validation FILE."
        )
    outside = set(held)
    return [number for number in range(len(corpus)) if number not in outside], sorted(held)


@dataclass(frozen=True)
class Split:
    """The rows of a run. `rows`: their numbers in the file, None where the held-out rows are a file of their own."""

    corpus: Corpus
    train: Corpus
    heldout: Corpus
    labels: tuple[str, ...]
    train_rows: list[int]
    heldout_rows: list[int] | None


def split(corpus: Corpus, validation: Corpus | None, seed: int) -> Split:
    """Check the labels and set rows apart: `validation` where it is given, else a fifth of the documents."""
    labels = training_labels(corpus)
    if validation is not None:
        check_validation(validation, labels)
        return Split(corpus, corpus, validation, labels, list(range(len(corpus))), None)
    train, held = hold_out(corpus, seed)
    return Split(corpus, corpus.select(train), corpus.select(held), labels, train, held)
