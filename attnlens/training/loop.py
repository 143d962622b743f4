"""The Trainer, set up so that it prints nothing, stops early and repeats bit for bit."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus
from attnlens.training.base import Base, longest_input
from attnlens.training.options import Progress, TrainOptions
from attnlens.training.split import Split

EVALUATIONS = 10  # per run at most, the last one after the last step
LONGEST = 512  # tokens of a text that are read unless `max_length` says otherwise
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Outcome:
    """What training gave: `metrics` of the step that the model now holds, the Trainer's `logs`, `settings` as used."""

    metrics: dict[str, float]
    logs: list[dict[str, Any]]
    settings: dict[str, Any]
    truncated: int
    device: str
    seconds: float


def train_model(base: Base, data: Split, options: TrainOptions, seed: int, folder: Path) -> Outcome:
    """Train the model of `base` in place and leave it at the step with the best held-out macro-F1.

    `options` name the learning rate. `folder` takes the intermediate checkpoints, one at a time.
    """
    max_length = _max_length(base, options)
    features, truncated = _features(base, data.train, data.labels, max_length)
    held, _ = _features(base, data.heldout, data.labels, max_length)
    steps = options.max_steps or math.ceil(options.epochs * math.ceil(len(features) / options.batch_size))
    # Reading a row costs a third of training on it: between two evaluations training takes at least as long as one.
    pause = max(math.ceil(steps / EVALUATIONS), math.ceil(len(held) / (3 * options.batch_size)))
    arguments = _arguments(steps, pause, options, seed, folder)
    keeps_cache = getattr(base.model.config, "use_cache", None)
    trainer = Trainer(
        model=base.model,
        args=arguments,
        train_dataset=features,  # pyright: ignore[reportArgumentType]  a list is a map-style dataset
        eval_dataset=held,  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorWithPadding(base.tokenizer),
        compute_metrics=classification_metrics,
        callbacks=[_Watch(options.progress), EarlyStoppingCallback(options.patience)],
    )
    # It prints its logs to stdout, where the command line promises results alone.
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    if keeps_cache is not None:
        # The Trainer turns it off for training; the checkpoint's config is to differ from the base's by its head only.
        base.model.config.use_cache = keeps_cache
    base.model.cpu()
    settings = {
        **options.record(),
        "max_steps": steps,
        "max_length": max_length,
        "warmup_steps": arguments.warmup_steps,
        "eval_steps": arguments.eval_steps,
        "weight_decay": arguments.weight_decay,
        "max_grad_norm": arguments.max_grad_norm,
        "optimizer": OptimizerNames(arguments.optim).value,
        "schedule": SchedulerType(arguments.lr_scheduler_type).value,
    }
    return Outcome(
        _metrics(trainer.state), trainer.state.log_history, settings, truncated, arguments.device.type, seconds
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


class _Watch(TrainerCallback):
    """Stops at a loss that is not a number, has the last step evaluated, and reports progress."""

    def __init__(self, progress: Progress | None):
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        logs: dict[str, float] = kwargs["logs"]
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                rows = "held-out" if name == "eval_loss" else "training"
                raise TrainingError(
                    f"the loss on {rows} rows is {logs[name]} at step {state.global_step}, so nothing was saved: "
                    "lower --learning-rate, or check the base's weights."
                )
        if self.progress is not None and ("loss" in logs or "eval_loss" in logs):
            self.progress(state.global_step, state.max_steps, dict(logs))


def _arguments(steps: int, pause: int, options: TrainOptions, seed: int, folder: Path) -> TrainingArguments:
    if options.device not in {None, *DEVICES}:
        raise TrainingError(f"unknown device {options.device!r}: needed one of {', '.join(DEVICES)}.")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if options.device is not None and not present[options.device]:
        raise TrainingError(f"device {options.device!r} is not on this machine: leave it out, or use 'cpu'.")
    assert options.learning_rate is not None
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=2 * options.batch_size,
        learning_rate=options.learning_rate,
        # Whole steps: a share is rounded up, and warm-up would make the only step of a short run a null step.
        warmup_steps=steps // 10,
        eval_strategy="steps",
        eval_steps=pause,
        save_strategy="best",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        greater_is_better=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
        use_cpu=options.device == "cpu",
        seed=seed,
    )
    # Several visible GPUs would be wrapped in DataParallel, which multiplies the batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _max_length(base: Base, options: TrainOptions) -> int:
    limit = longest_input(base.model, base.tokenizer)
    if options.max_length is not None and options.max_length > limit:
        raise TrainingError(f"max_length={options.max_length} is more than {base.name} reads: at most {limit} tokens.")
    return options.max_length or min(LONGEST, limit)


def _features(base: Base, corpus: Corpus, labels: tuple[str, ...], max_length: int) -> tuple[list[dict[str, Any]], int]:
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


def _metrics(state: TrainerState) -> dict[str, float]:
    best = next(
        entry for entry in state.log_history if entry["step"] == state.best_global_step and "eval_loss" in entry
    )
    return {
        "accuracy": best["eval_accuracy"],
        "macro_f1": best["eval_macro_f1"],
        "loss": best["eval_loss"],
        "epoch": state.epoch or 0.0,
        "steps": state.global_step,
        "best_step": state.best_global_step or 0,
    }
