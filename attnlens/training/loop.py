"""The Trainer, set up so that it prints nothing, stops early and repeats bit for bit."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
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
from attnlens.training.job import Job
from attnlens.training.judging import evaluation, judged
from attnlens.training.options import Progress

EVALUATIONS = 10  # per run at most, the last one after the last step
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Outcome:
    """What training gave: `metrics` of the step that the model now holds, the Trainer's `logs`, `settings` as used.

    judgement: what the saved step predicts (`judged`).
    """

    metrics: dict[str, float]
    logs: list[dict[str, Any]]
    settings: dict[str, Any]
    device: str
    seconds: float
    judgement: dict[str, Any]


def train_model(job: Job, folder: Path, callbacks: Sequence[TrainerCallback] = ()) -> Outcome:
    """Train the model of `job` in place and leave it at the step that is best on the held-out rows.

    `folder` takes the intermediate checkpoints, one at a time. `callbacks` run after the loop's own.
    """
    work, options, model = job.work, job.options, job.base.model
    steps = options.max_steps or math.ceil(options.epochs * math.ceil(len(work.train) / options.batch_size))
    # Reading a row costs a third of training on it: between two evaluations training takes at least as long as one.
    pause = max(math.ceil(steps / EVALUATIONS), math.ceil(len(work.heldout) / (3 * options.batch_size)))
    arguments = _arguments(job, steps, pause, folder)
    keeps_cache = getattr(model.config, "use_cache", None)
    trainer = Trainer(
        model=job.model,
        args=arguments,
        train_dataset=work.train,  # pyright: ignore[reportArgumentType]  a list is a map-style dataset
        eval_dataset=work.heldout,  # pyright: ignore[reportArgumentType]
        data_collator=work.collate,
        compute_metrics=work.measure_of(work.heldout),
        compute_loss_func=work.loss,
        preprocess_logits_for_metrics=work.reduce,
        callbacks=[_Watch(options.progress), EarlyStoppingCallback(options.patience), *callbacks],
    )
    # It prints its logs to stdout, where the command line promises results alone.
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    judgement = judged(trainer, work)
    if keeps_cache is not None:
        # The Trainer turns it off for training; the checkpoint's config is to differ from the base's by its head only.
        model.config.use_cache = keeps_cache
    job.model.cpu()
    settings = {
        **options.record(),
        "max_steps": steps,
        "warmup_steps": arguments.warmup_steps,
        "eval_steps": arguments.eval_steps,
        "weight_decay": arguments.weight_decay,
        "max_grad_norm": arguments.max_grad_norm,
        "optimizer": OptimizerNames(arguments.optim).value,
        "schedule": SchedulerType(arguments.lr_scheduler_type).value,
    }
    return Outcome(
        _metrics(trainer.state), trainer.state.log_history, settings, arguments.device.type, seconds, judgement
    )


class _Watch(TrainerCallback):
    """Stops at a loss that is not a number, has the last step evaluated, and reports progress."""

    def __init__(self, progress: Progress | None):
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        logs: dict[str, float] = kwargs["logs"]
        for name in ("loss", "eval_loss", "eval_perplexity"):
            if not math.isfinite(logs.get(name, 0.0)):
                rows = "training" if name == "loss" else "held-out"
                measure, step = name.removeprefix("eval_"), state.global_step
                raise TrainingError(
                    f"the {measure} on {rows} rows is {logs[name]} at step {step}, so nothing was saved: "
                    "lower --learning-rate, or check the base's weights."
                )
        if self.progress is not None and ("loss" in logs or "eval_loss" in logs):
            self.progress(state.global_step, state.max_steps, dict(logs))


def _arguments(job: Job, steps: int, pause: int, folder: Path) -> TrainingArguments:
    options, work = job.options, job.work
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
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        # Whole steps: a share is rounded up, and warm-up would make the only step of a short run a null step.
        warmup_steps=steps // 10,
        eval_strategy="steps",
        eval_steps=pause,
        save_strategy="best",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model=work.best,
        greater_is_better=work.higher,
        eval_on_start=work.start,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
        use_cpu=options.device == "cpu",
        seed=job.seed,
    )
    # Several visible GPUs would be wrapped in DataParallel, which multiplies the batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _metrics(state: TrainerState) -> dict[str, float]:
    evaluations = {entry["step"]: evaluation(entry) for entry in state.log_history if "eval_loss" in entry}
    base = {f"base_{name}": value for name, value in evaluations.get(0, {}).items()}
    steps = {"epoch": state.epoch or 0.0, "steps": state.global_step, "best_step": state.best_global_step or 0}
    return {**evaluations[state.best_global_step or 0], **base, **steps}
