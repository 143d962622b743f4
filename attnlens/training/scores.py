"""How good predictions are: one score for all, and a table by class. Logits and labels in, plain numbers out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from transformers import EvalPrediction

SMALL = 40  # classes of the largest confusion matrix that is recorded


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur among the true labels (0..1).

    A class that is absent from the truth has no F1; predicting it lowers the recall of another. Hand example: truth
    [0, 0, 1, 2], predicted [0, 1, 1, 1] → accuracy 1/2, macro-F1 (2/3 + 1/2 + 0)/3 = 0.3889.
    """
    truth, guess = np.asarray(prediction.label_ids), _logits(prediction).argmax(-1)
    return {"accuracy": float(accuracy_score(truth, guess)), "macro_f1": macro_f1(truth, guess, np.unique(truth))}


def multi_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """F1 averaged over the labels that some row has, F1 of all pairs of row and label, share of rows without a fault.

    A label is predicted where its probability exceeds 1/2. Hand example: truth [[1, 0], [1, 1]], predicted
    [[1, 0], [0, 1]] → F1 2/3 and 1, macro 5/6; 2 hits, none false, one missed: micro 4/5; exact match 1/2.
    """
    truth, guess = np.asarray(prediction.label_ids).astype(int), (_logits(prediction) > 0).astype(int)
    return {
        "exact_match": float(accuracy_score(truth, guess)),
        "macro_f1": macro_f1(truth, guess, np.flatnonzero(truth.any(0))),
        "micro_f1": float(f1_score(truth, guess, average="micro", zero_division=0)),  # pyright: ignore
    }


def macro_f1(truth: np.ndarray, guess: np.ndarray, classes: np.ndarray) -> float:
    """Mean F1 of `classes`; 0 where there is none."""
    if not len(classes):
        return 0.0
    return float(f1_score(truth, guess, labels=classes, average="macro", zero_division=0))  # pyright: ignore


def class_table(truth: np.ndarray, guess: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Precision, recall and F1 (0..1) of each class and how often it is true (`n`), for the record; any of the metrics.

    Scores are None where nothing defines them: precision of a class that is never predicted, recall of one that is
    never true. confusion: [true class][predicted class] counts, None of many classes and where texts may have several.
    """
    numbers = np.arange(len(labels))
    parts = [
        precision_recall_fscore_support(truth, guess, labels=numbers, zero_division=np.nan)  # pyright: ignore
    ]
    precision, recall, f1, n = (np.asarray(part, dtype=np.float64) for part in parts[0])
    rows = [
        {
            "label": label,
            "precision": _number(precision[place]),
            "recall": _number(recall[place]),
            "f1": _number(f1[place]),
            "n": int(n[place]),
        }
        for place, label in enumerate(labels)
    ]
    small = truth.ndim == 1 and len(labels) <= SMALL
    return {"classes": rows, "confusion": confusion_matrix(truth, guess, labels=numbers).tolist() if small else None}


def classification_table(prediction: EvalPrediction, labels: Sequence[str]) -> dict[str, Any]:
    """`class_table` of one label a row."""
    return class_table(np.asarray(prediction.label_ids), _logits(prediction).argmax(-1), labels)


def multi_label_table(prediction: EvalPrediction, labels: Sequence[str]) -> dict[str, Any]:
    """`class_table` of any number of labels a row."""
    truth, guess = np.asarray(prediction.label_ids).astype(int), (_logits(prediction) > 0).astype(int)
    return class_table(truth, guess, labels)


def _logits(prediction: EvalPrediction) -> np.ndarray:
    given = prediction.predictions
    return np.asarray(given[0] if isinstance(given, tuple) else given)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
