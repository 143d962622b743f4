"""The task of rows with labels: one class a text, judged by accuracy and macro-F1."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from transformers import DataCollatorWithPadding, EvalPrediction

from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus
from attnlens.training.base import Base
from attnlens.training.loop import Row, Work
from attnlens.training.split import Split


def classification(base: Base, data: Split, max_length: int) -> Work:
    """Every text cut at `max_length` with the number of its label; the best step is that of the best macro-F1."""
    train, truncated = _rows(base, data.train, data.labels, max_length)
    return Work(
        task=data.task,
        train=train,
        heldout=_rows(base, data.heldout, data.labels, max_length)[0],
        collate=DataCollatorWithPadding(base.tokenizer),
        measure=classification_metrics,
        best="macro_f1",
        higher=True,
        start=False,
        counts={"truncated": truncated},
    )


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur among the true labels (0..1).

    A class that is absent from the truth has no F1; predicting it lowers the recall of another. Hand example: truth
    [0, 0, 1, 2], predicted [0, 1, 1, 1] → accuracy 1/2, macro-F1 (2/3 + 1/2 + 0)/3 = 0.3889.
    """
    truth = np.asarray(prediction.label_ids)
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    guess = np.asarray(logits).argmax(-1)
    macro = f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]
    return {"accuracy": float(accuracy_score(truth, guess)), "macro_f1": float(macro)}


def _rows(base: Base, corpus: Corpus, labels: tuple[str, ...], max_length: int) -> tuple[list[Row], int]:
    """One row of model inputs for each example, and how many texts were cut at `max_length`."""
    number = {label: position for position, label in enumerate(labels)}
    encoded = base.tokenizer([example.text for example in corpus], truncation=True, max_length=max_length)
    rows = [
        {**{name: values[row] for name, values in encoded.items()}, "labels": number[str(example.label)]}
        for row, example in enumerate(corpus)
    ]
    for example, row in zip(corpus, rows, strict=True):
        if not row["input_ids"]:
            raise TrainingError(f"the text of row {example.id!r} has no token for {base.name}: remove the row.")
    return rows, sum(bool(encoding.overflowing) for encoding in encoded.encodings or [])
