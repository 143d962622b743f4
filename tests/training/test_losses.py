"""Class weights, losses under gradient accumulation, long texts in windows, and what is recorded beside the scores."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction

from attnlens.checkpoints.load import quiet
from attnlens.text.corpus import Corpus
from attnlens.training.losses import balanced_weights, class_loss, label_loss, positive_weights
from attnlens.training.options import TrainOptions
from attnlens.training.scores import class_table, classification_metrics
from attnlens.training.split import split
from attnlens.training.train import finetune
from attnlens.training.work import Row, Work, of_texts

Tiny = Callable[[str], Path]
FEW = TrainOptions(max_steps=2, batch_size=8, device="cpu")


def outputs(logits: list[list[float]]) -> dict[str, torch.Tensor]:
    return {"logits": torch.tensor(logits)}


def test_balanced_weights_by_hand():
    """Three of one class, one of another, none of a third: 4/(2·3), 4/(2·1), 0; positives weigh as their absence."""
    assert balanced_weights(np.array([0, 0, 2, 0]), 3) == pytest.approx([2 / 3, 0, 2])
    truth = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    assert positive_weights(truth) == pytest.approx([3, 1 / 4, 1])


def test_a_weighted_loss_by_hand():
    """Logits 0 and log 3 give probabilities 1/4 and 3/4; the class weights are 2 and 1/2."""
    logits, labels = [[0.0, math.log(3)], [0.0, math.log(3)]], torch.tensor([0, 1])
    loss = class_loss(np.array([2.0, 0.5]))
    expected = (2 * math.log(4) + 0.5 * math.log(4 / 3)) / 2
    assert float(loss(outputs(logits), labels)) == pytest.approx(expected)
    assert float(loss(outputs(logits), labels, num_items_in_batch=torch.tensor(5))) == pytest.approx(expected * 2 / 5)
    ignored = torch.tensor([[0, -100]])
    assert float(loss({"logits": torch.tensor([logits])}, ignored)) == pytest.approx(2 * math.log(4))
    both = label_loss(np.array([3.0, 1.0]))
    found = float(both(outputs(logits), torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
    assert found == pytest.approx((3 * math.log(2) + math.log(4) + math.log(2) + math.log(4 / 3)) / 4)


@pytest.mark.parametrize("kind", ["class", "label"])
def test_passes_of_unequal_size_add_up_to_one_batch(kind: str):
    """Weighted gradients of 2 and 6 rows, counted against the whole step, are those of all 8."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator)
    if kind == "class":
        loss, labels = class_loss(np.array([0.5, 1.0, 3.0])), torch.randint(3, (8,), generator=generator)
    else:
        loss, labels = label_loss(np.array([0.5, 1.0, 3.0])), torch.randint(2, (8, 3), generator=generator).float()
    whole = logits.clone().requires_grad_()
    loss({"logits": whole}, labels).backward()
    parts = logits.clone().requires_grad_()
    for rows in (slice(0, 2), slice(2, 8)):
        loss({"logits": parts[rows]}, labels[rows], num_items_in_batch=torch.tensor(labels.numel())).backward()
    assert whole.grad is not None and parts.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad)


def test_a_run_in_passes_is_the_run_of_one_batch(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """The Trainer hands the count of the whole step to a weighted loss: one step of 2 · 4 rows is one of 8."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with quiet(), torch.random.fork_rng():
        model = AutoModelForSequenceClassification.from_pretrained(tiny("bert"), num_labels=3, **off)
        model.config.id2label = {0: "cap", 1: "law", 2: "term"}
        model.save_pretrained(tmp_path / "base")
        AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(tmp_path / "base")
    skewed = corpus.select([row for row in range(len(corpus)) if row % 3 == 0 or row < 18])
    found = []
    for name, batch, passes in (("one", 8, 1), ("two", 4, 2)):
        options = replace(FEW, max_steps=1, batch_size=batch, accumulation=passes, class_weights=True)
        result = finetune(tmp_path / "base", skewed, output=tmp_path / name, options=options)
        found.append(result.record)
        assert result.record["base"]["new_parameters"] == []
    losses = [[row["loss"] for row in record["history"] if "loss" in row] for record in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    weights = found[0]["class_weights"]
    counts = found[0]["data_report"]["labels"]["train"]
    rows = sum(counts.values())
    assert weights == pytest.approx({label: rows / (3 * count) for label, count in counts.items()})


def test_one_prediction_a_text():
    """Three windows of text 0 and one of text 1; means 2 and 0, 0 and 1."""
    rows: list[Row] = [{"text": number} for number in (0, 1, 0, 0)]
    logits = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [3.0, 0.0]])
    pooled = of_texts(EvalPrediction(logits, np.array([5, 6, 5, 5])), rows)
    assert np.asarray(pooled.predictions).tolist() == [[2.0, 0.0], [0.0, 1.0]]
    assert np.asarray(pooled.label_ids).tolist() == [5, 6]
    bare = EvalPrediction(logits, np.zeros(4))
    assert of_texts(bare, [{}] * 4) is bare


def test_long_texts_are_read_in_windows(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Windows of 6 words that share one; the scores are those of means of windows, cut here by hand."""
    options = replace(FEW, max_length=8, windows=True, max_steps=3, learning_rate=1e-2)
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    data, windows = split(corpus, None, 0), 0
    logits = list[np.ndarray]()
    for example in data.heldout:
        words = example.text.split()
        pieces = [words[start : start + 6] for start in range(0, max(len(words) - 1, 1), 5)]
        windows += len(pieces)
        with torch.no_grad():
            read = [model(**tokenizer(" ".join(piece), return_tensors="pt")).logits[0].numpy() for piece in pieces]
        logits.append(np.mean(read, axis=0))
    truth = np.array([data.labels.index(str(example.label)) for example in data.heldout])
    expected = classification_metrics(EvalPrediction(np.array(logits), truth))
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected)
    reading = result.record["windows"]
    assert reading["heldout"] == windows > len(truth) and (reading["length"], reading["overlap"]) == (8, 1)
    assert result.record["truncated"] == 0
    assert sum(row["n"] for row in result.record["per_class"]["classes"]) == len(truth)


def test_class_table_by_hand():
    """Truth a a b c, predicted a b b b: b is right once of three; c is never predicted, d never true."""
    table = class_table(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), ("a", "b", "c", "d"))
    assert table["classes"] == [
        {"label": "a", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "n": 2},
        {"label": "b", "precision": pytest.approx(1 / 3), "recall": 1.0, "f1": 0.5, "n": 1},
        {"label": "c", "precision": None, "recall": 0.0, "f1": 0.0, "n": 1},
        {"label": "d", "precision": None, "recall": None, "f1": None, "n": 0},
    ]
    assert table["confusion"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    many = class_table(np.arange(41), np.arange(41), [str(number) for number in range(41)])
    assert many["confusion"] is None and len(many["classes"]) == 41


def test_the_gap_is_measured_on_no_more_texts_than_are_held_out():
    def work(train: int, heldout: int, windows: int = 1) -> Work:
        made = [[{"text": row // windows} for row in range(count * windows)] for count in (train, heldout)]
        return Work("", *made, len, lambda prediction: {}, "", True, False, {})  # pyright: ignore

    assert [row["text"] for row in work(10, 4).seen] == [0, 3, 6, 9]
    assert [row["text"] for row in work(10, 2, 3).seen] == [0, 0, 0, 5, 5, 5]
    assert [row["text"] for row in work(3, 9).seen] == [0, 1, 2]


def test_the_gap_is_that_of_the_saved_step(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Loss of the checkpoint on every fourth training row and on the held-out ones, in plain transformers."""
    options = replace(FEW, max_steps=8, learning_rate=1e-2)
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    data, gap = split(corpus, None, 0), result.record["gap"]
    parts = {"train": data.train.select(range(0, 30, 5)), "heldout": data.heldout}
    for name, part in parts.items():
        batch = tokenizer([example.text for example in part], padding=True, return_tensors="pt")
        labels = torch.tensor([data.labels.index(str(example.label)) for example in part])
        with torch.no_grad():
            assert gap[name]["loss"] == pytest.approx(float(model(**batch, labels=labels).loss), rel=1e-4)
    assert gap["rows"] == 6 and gap["heldout"]["macro_f1"] == result.metrics["macro_f1"]
