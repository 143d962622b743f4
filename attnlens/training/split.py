"""What the rows are to teach, and which of them are held out: no document on both sides, every label in training."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from attnlens.core.errors import TrainingError, UnknownName
from attnlens.text.corpus import Corpus, Example

HELD_OUT = 0.2  # share of the documents
CLASSIFICATION, MULTI_LABEL, TOKENS = "sequence-classification", "multi-label", "token-classification"
LANGUAGE, MASKED = "causal-lm", "masked-lm"
NAMES = (CLASSIFICATION, MULTI_LABEL, TOKENS, LANGUAGE, MASKED)
OUTSIDE = "O"  # the class of a token in no span


def task_of(corpus: Corpus, asked: str | None = None) -> str:
    """The task that was asked for, else the one the rows pose: labels are to be told apart, other text is continued.

    Completions and conversations win over labels: whoever gives both trains the answer, and uses the labels to measure.
    Spans mark what is salient and tell nothing of a task, and text alone suits a decoder as well as an encoder:
    token classification and masked language modelling are for asking.
    """
    if asked is not None:
        if asked not in NAMES:
            raise UnknownName.among("task", asked, NAMES)
        return asked
    if any(example.completion is not None or example.messages for example in corpus):
        return LANGUAGE
    if any(example.labels is not None for example in corpus):
        return MULTI_LABEL
    return CLASSIFICATION if corpus.labels else LANGUAGE


def language_reason(corpus: Corpus) -> str:
    """Why the rows train a language model, as the beginning of a message: whoever forgot the labels is to see it."""
    if task_of(corpus) != LANGUAGE:
        return f"causal-lm was asked for, so {corpus.name} trains a causal language model"
    return f"{corpus.name} has {'completions' if corpus.labels else 'no labels'}, so it trains a causal language model"


def taught(example: Example, task: str) -> tuple[str, ...]:
    """The labels that a row teaches, each once; none in a language model's rows."""
    if task == CLASSIFICATION:
        return () if example.label is None else (example.label,)
    if task == MULTI_LABEL:
        return example.labels or ()
    spans = example.spans or () if task == TOKENS else ()
    return tuple(dict.fromkeys(span.label for span in spans if span.label is not None))


def task_labels(corpus: Corpus, task: str) -> tuple[str, ...]:
    """The classes to learn, sorted, after checking that every row serves the task; of tokens, `OUTSIDE` comes first."""
    _check_rows(corpus, task)
    labels = tuple(sorted({label for example in corpus for label in taught(example, task)}))
    if task in (CLASSIFICATION, MULTI_LABEL) and len(labels) < 2:
        count = f"one label only ({labels[0]})" if labels else "no label in any row"
        raise TrainingError(f"{corpus.name} has {count}: needed at least two classes.")
    if task == TOKENS:
        if not labels or OUTSIDE in labels:
            fault = f"a span labelled {OUTSIDE!r}, the name of what lies outside" if labels else "no labelled span"
            raise TrainingError(f"{corpus.name} has {fault}: {TOKENS} needs spans with labels of their own.")
        return (OUTSIDE, *labels)
    return labels


# What a task cannot learn from in a row: how to see it, the words for it, what to do. First what is there and should
# not be, then what is missing.
Faults = dict[str, tuple[Callable[[Example], bool], str, str]]
UNFIT: Faults = {
    CLASSIFICATION: (
        lambda row: row.labels is not None,
        "a list of labels",
        "give each one label, or use --task multi-label.",
    ),
    MULTI_LABEL: (
        lambda row: row.label is not None,
        "one label that is no list",
        f"write each as a list, or use --task {CLASSIFICATION}.",
    ),
    TOKENS: (
        lambda row: any(span.label is None for span in row.spans or ()),
        "spans without labels",
        "label every span.",
    ),
    MASKED: (
        lambda row: bool(row.messages),
        "conversations",
        "masked-lm reads plain text: give it as text.",
    ),
}
BARE: Faults = {
    CLASSIFICATION: (lambda row: row.label is None, "no label", "label or remove them."),
    MULTI_LABEL: (lambda row: row.labels is None, "no label", "give a list, [] where no label fits, or remove them."),
    TOKENS: (
        lambda row: row.spans is None,
        "no spans",
        "give a list, [] where there is none, or remove them.",
    ),
}


def _check_rows(corpus: Corpus, task: str) -> None:
    """Every row must hold what the task learns from."""
    for faults in (UNFIT, BARE):
        if task in faults:
            is_fault, what, remedy = faults[task]
            rows = [example.id for example in corpus if is_fault(example)]
            if rows:
                raise TrainingError(
                    f"{len(rows)} of {len(corpus)} rows of {corpus.name} have {what} (first: id {rows[0]!r}): {remedy}"
                )


def check_validation(validation: Corpus, labels: tuple[str, ...], task: str = CLASSIFICATION) -> None:
    """The held-out rows must serve the task, with labels that training has seen."""
    if not len(validation):
        raise TrainingError(f"{validation.name} is empty: needed held-out rows.")
    if task == CLASSIFICATION and not validation.labels:
        raise TrainingError(
            f"{validation.name} has no labels, which a classifier's held-out rows need: add them, or name their column "
            "with --label-column."
        )
    _check_rows(validation, task)
    strange = [unseen for example in validation if (unseen := set(taught(example, task)) - set(labels))]
    if strange:
        unseen = sorted(set[str]().union(*strange))
        shown = ", ".join(map(repr, unseen[:3])) + (", …" if len(unseen) > 3 else "")
        raise TrainingError(
            f"{len(strange)} of {len(validation)} rows of {validation.name} have a label unseen in training ({shown}): "
            f"needed one of the {len(labels)} training labels."
        )


def hold_out(corpus: Corpus, seed: int, task: str = CLASSIFICATION) -> tuple[list[int], list[int]]:
    """Row numbers for training and for validation: a fifth of the documents, drawn by `seed`, is held out.

    Documents are visited in random order; one whose removal would leave a label without a training row stays. At least
    one is held out. Rows without a document column are documents of their own.
    """
    rows: dict[str, list[int]] = {}
    for number, example in enumerate(corpus):
        rows.setdefault(example.document, []).append(number)
    documents = sorted(rows)
    if len(documents) < 2:
        known = f"{language_reason(corpus)}; it" if task == LANGUAGE else corpus.name
        raise TrainingError(
            f"{known} is one document, so none can be held out: "
            "pass --validation FILE, or say which document each row is from."
        )
    labels = [taught(example, task) for example in corpus]
    left = Counter(label for row in labels for label in row)
    wanted = max(1, round(HELD_OUT * len(documents)))
    held: list[int] = []
    chosen = 0
    for position in np.random.default_rng(seed).permutation(len(documents)):
        members = rows[documents[position]]
        taken = Counter(label for number in members for label in labels[number])
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


def split(corpus: Corpus, validation: Corpus | None, seed: int, asked: str | None = None) -> Split:
    """Find the task, check the labels, set rows apart: `validation` where given, else a fifth of the documents."""
    task = task_of(corpus, asked)
    labels = task_labels(corpus, task)
    if validation is not None:
        check_validation(validation, labels, task)
        return Split(task, corpus, corpus, validation, labels, list(range(len(corpus))), None)
    train, held = hold_out(corpus, seed, task)
    return Split(task, corpus, corpus.select(train), corpus.select(held), labels, train, held)
