"""What the rows are to teach, and which of them are held out: no document on both sides, every label in training."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus

HELD_OUT = 0.2  # share of the documents
CLASSIFICATION, LANGUAGE = "sequence-classification", "causal-lm"


def task_of(corpus: Corpus) -> str:
    """The task that the rows pose: labels are to be told apart, all other text is to be continued.

    Completions and conversations win over labels: whoever gives both trains the answer, and uses the labels to measure.
    """
    answers = any(example.completion is not None or example.messages for example in corpus)
    return CLASSIFICATION if corpus.labels and not answers else LANGUAGE


def language_reason(corpus: Corpus) -> str:
    """Why the rows train a language model, as the beginning of a message: whoever forgot the labels is to see it."""
    return f"{corpus.name} has {'completions' if corpus.labels else 'no labels'}, so it trains a causal language model"


def training_labels(corpus: Corpus) -> tuple[str, ...]:
    """The labels to learn, sorted; every row must have one, and there must be two."""
    bare = [example.id for example in corpus if example.label is None]
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
    if not validation.labels:
        raise TrainingError(
            f"{validation.name} has no labels, which a classifier's held-out rows need: add them, or name their column "
            "with --label-column."
        )
    unseen = sorted({str(example.label) for example in validation if example.label not in labels})
    if unseen:
        count = sum(example.label not in labels for example in validation)
        shown = ", ".join(map(repr, unseen[:3])) + (", …" if len(unseen) > 3 else "")
        raise TrainingError(
            f"{count} of {len(validation)} rows of {validation.name} have a label unseen in training ({shown}): "
            f"needed one of the {len(labels)} training labels."
        )


def hold_out(corpus: Corpus, seed: int, task: str = CLASSIFICATION) -> tuple[list[int], list[int]]:
    """Row numbers for training and for validation: a fifth of the documents, drawn by `seed`, is held out.

    Documents are visited in random order; of a classification's, one whose removal would leave a label without a
    training row stays. At least one is held out. Rows without a document column are documents of their own.
    """
    rows: dict[str, list[int]] = {}
    for number, example in enumerate(corpus):
        rows.setdefault(example.document, []).append(number)
    documents = sorted(rows)
    if len(documents) < 2:
        known = corpus.name if task == CLASSIFICATION else f"{language_reason(corpus)}; it"
        raise TrainingError(
            f"{known} is one document, so none can be held out: "
            "pass --validation FILE, or say which document each row is from."
        )
    labels = [example.label if task == CLASSIFICATION else None for example in corpus]
    left = Counter(labels)
    wanted = max(1, round(HELD_OUT * len(documents)))
    held: list[int] = []
    chosen = 0
    for position in np.random.default_rng(seed).permutation(len(documents)):
        members = rows[documents[position]]
        taken = Counter(labels[number] for number in members)
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
    """The rows of a run. `rows`: their numbers in the file, None where the held-out rows are a file of their own.

    `labels` are the classes to learn, none for a language model.
    """

    task: str
    corpus: Corpus
    train: Corpus
    heldout: Corpus
    labels: tuple[str, ...]
    train_rows: list[int]
    heldout_rows: list[int] | None


def split(corpus: Corpus, validation: Corpus | None, seed: int) -> Split:
    """Find the task, check the labels, set rows apart: `validation` where given, else a fifth of the documents."""
    task = task_of(corpus)
    labels = training_labels(corpus) if task == CLASSIFICATION else ()
    if validation is not None:
        if not len(validation):
            raise TrainingError(f"{validation.name} is empty: needed held-out rows.")
        if task == CLASSIFICATION:
            check_validation(validation, labels)
        return Split(task, corpus, corpus, validation, labels, list(range(len(corpus))), None)
    train, held = hold_out(corpus, seed, task)
    return Split(task, corpus, corpus.select(train), corpus.select(held), labels, train, held)
