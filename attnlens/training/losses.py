"""Losses that mean the same under gradient accumulation, and in which rare classes may count as much as frequent ones.

A sum over the items of one pass is divided by the items of the whole optimizer step, so that passes of unequal size add
up to the loss of one large batch. Class weights are those of the training rows, also on held-out rows: both losses are
then one quantity.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

IGNORED = -100  # label of a token that is not to be predicted
Loss = Callable[..., Tensor]  # (outputs, labels, num_items_in_batch), the last by name


def balanced_weights(classes: np.ndarray, count: int) -> np.ndarray:
    """Weight of each class, n / (classes that occur · n of the class) as scikit-learn's: (n,) int -> (count,) float.

    Their mean over the items is 1. A class that does not occur gets 0. Hand example: 0, 0, 0, 1 → 4/(2·3), 4/(2·1).
    """
    weights, present = np.zeros(count), np.unique(classes)
    weights[present] = compute_class_weight("balanced", classes=present, y=classes)
    return weights


def positive_weights(truth: np.ndarray) -> np.ndarray:
    """Rows without a label for one with it, the weight of its positives: (n, C) 0 or 1 -> (C,) float.

    A label that every row has keeps 1 / n: there is nothing to weigh it against.
    """
    positive = truth.sum(0)
    return np.maximum(len(truth) - positive, 1) / np.maximum(positive, 1)


def class_loss(weights: np.ndarray | None = None) -> Loss:
    """Cross-entropy of each item's class, times the weight of that class; (..., C) logits, (...) labels."""
    kept = None if weights is None else torch.tensor(weights, dtype=torch.float32)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        logits = outputs["logits"].flatten(0, -2).float()
        weight = None if kept is None else kept.to(logits.device)
        total = cross_entropy(logits, labels.flatten().to(logits.device), weight, ignore_index=IGNORED, reduction="sum")
        return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)

    return loss


def label_loss(weights: np.ndarray | None = None) -> Loss:
    """Binary cross-entropy of each label of each row, its positives times their weight; (B, C) logits and labels."""
    kept = None if weights is None else torch.tensor(weights, dtype=torch.float32)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        logits = outputs["logits"].float()
        weight = None if kept is None else kept.to(logits.device)
        total = binary_cross_entropy_with_logits(logits, labels.to(logits), pos_weight=weight, reduction="sum")
        return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    return loss
