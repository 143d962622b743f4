"""The task of rows with labels: one class a text, judged by accuracy and macro-F1."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from transformers import DataCollatorWithPadding, EvalPrediction

from attnlens.core.errors import TrainingError, UnsupportedModel
from attnlens.text.corpus import Corpus
from attnlens.training.base import Base
from attnlens.training.options import TrainOptions
from attnlens.training.split import Split
from attnlens.training.work import Row, Work


def classification(base: Base, data: Split, options: TrainOptions) -> Work:
    """Texts cut at the options' length, with the number of their label; the best step is that of the best macro-F1."""
    train, truncated = _rows(base, data.train, data.labels, options.length)
    return Work(
        task=data.task,
        train=train,
        heldout=_rows(base, data.heldout, data.labels, options.length)[0],
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
        if base.model.config.is_encoder_decoder:
            _check_end(base, example.id, row["input_ids"])
    return rows, sum(bool(encoding.overflowing) for encoding in encoded.encodings or [])


def _check_end(base: Base, row: str, ids: list[int]) -> None:
    """An encoder–decoder classifies at the end-of-text token, of which each text must have one."""
    number = base.model.config.eos_token_id
    token = "(none)" if number is None else base.tokenizer.convert_ids_to_tokens(number)
    count = ids.count(number) if isinstance(number, int) else 0
    if count == 0:
        raise UnsupportedModel(
            f"{base.name} classifies at the end-of-text token {token!r}, which the tokenizer of {base.name} does not "
            "add: give it a tokenizer that ends texts with it."
        )
    if count > 1:
        raise TrainingError(
            f"the text of row {row!r} holds {token!r} {count} times, and {base.name} classifies at the only one: "
            "remove it from the text."
        )
