"""What is the matter with the data: duplicates, leakage, rare labels, long texts. It changes nothing and says so."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from attnlens.text.corpus import Corpus, Example
from attnlens.training.split import Split, taught

MEASURED = 1000  # texts of which the length is taken, evenly spread
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MANY, UNEVEN = 0.05, 20  # share of duplicates, ratio of label counts, above which a warning is given


def data_report(data: Split, tokenizer: PreTrainedTokenizerBase, length: int) -> dict[str, Any]:
    """Facts about training and held-out rows for the record, and `warnings` in words about those that matter.

    Two texts are the same where they differ in case and blanks alone. duplicates: training rows whose text stands in an
    earlier one; contradictory: those of them that teach other labels than the earlier row. leaked: held-out rows whose
    text is also trained on; leaked_documents: documents on both sides, which only other held-out data can have. empty:
    0, for such rows are refused when data are read. labels: training rows, and held-out ones, that teach each label.
    lengths: quantiles of the training texts in tokens, of at most 1,000 `texts`; truncated: share of these that is
    longer than what is read at once.
    """
    first: dict[str, Example] = {}
    duplicates = contradictory = 0
    for example in data.train:
        earlier = first.setdefault(_folded(example), example)
        duplicates += earlier is not example
        contradictory += earlier is not example and set(taught(earlier, data.task)) != set(taught(example, data.task))
    documents = {example.document for example in data.train} & {example.document for example in data.heldout}
    named = data.train.has_documents and data.heldout.has_documents
    tokens = _lengths(data.train, tokenizer)
    report = {
        "duplicates": duplicates,
        "contradictory": contradictory,
        "empty": 0,
        "leaked": sum(_folded(example) in first for example in data.heldout),
        "leaked_documents": len(documents) if named else 0,
        "labels": {"train": _counts(data.train, data.task), "heldout": _counts(data.heldout, data.task)},
        "lengths": {
            "texts": len(tokens),
            "quantiles": {str(share): float(np.quantile(tokens, share)) for share in QUANTILES},
        },
        "truncated": float(np.mean(np.array(tokens) > length)),
    }
    return {**report, "warnings": _warnings(report, data)}


def _folded(example: Example) -> str:
    return " ".join(example.text.casefold().split())


def _counts(corpus: Corpus, task: str) -> dict[str, int]:
    found = Counter(label for example in corpus for label in taught(example, task))
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def _lengths(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    texts = [example.text for example in corpus][:: -(-len(corpus) // MEASURED)]
    return [len(ids) for ids in tokenizer(texts, truncation=False)["input_ids"]]


def _warnings(report: dict[str, Any], data: Split) -> list[str]:
    """A sentence on each fact that makes the results say something else than they seem to."""
    held, trained, labels = len(data.heldout), len(data.train), report["labels"]["train"]
    found = list[str]()
    if report["leaked"]:
        found.append(f"{report['leaked']} of {held} held-out texts are trained on too: the scores flatter.")
    if report["leaked_documents"]:
        found.append(f"{report['leaked_documents']} documents stand on both sides of the split: the scores flatter.")
    if report["duplicates"] > MANY * trained:
        found.append(f"{report['duplicates']} of {trained} training texts repeat an earlier one.")
    if report["contradictory"]:
        found.append(f"{report['contradictory']} training texts stand there twice with different labels.")
    if labels:
        (most, many), (least, few) = next(iter(labels.items())), list(labels.items())[-1]
        if many > UNEVEN * few:
            found.append(f"label {most!r} has {many} training rows, {least!r} {few}: consider --class-weights.")
    return found
