"""The Trainer, set up so that it prints nothing, stops early, goes on after a kill and repeats bit for bit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from attnlens.core.errors import Diverged, TrainingError
from attnlens.training.intermediate import Intermediate, QuietTrainer, last_kept, steps_kept
from attnlens.training.job import Job
from attnlens.training.judging import evaluation, judged
from attnlens.training.observers import Observer
from attnlens.training.output import RUN
from attnlens.training.processes import agreed, first, processes
from attnlens.training.switching import LayerSwitching
from attnlens.training.watch import Watch
from attnlens.training.work import TEXT

EVALUATIONS = 10  # per run at most, the last one after the last step
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Outcome:
    """What training gave: `metrics` of the step that the model now holds, the Trainer's `logs`, `settings` as used.

    seconds: of the whole run, the time before an interruption included. resumed: the step that this process went on
    from. fault: why training broke off before its end, the model holding the best step until then.
    judgement: what the saved step predicts (`judged`).
    """

    metrics: dict[str, float]
    logs: list[dict[str, Any]]
    settings: dict[str, Any]
    device: str
    seconds: float
    judgement: dict[str, Any]
    resumed: int | None = None
    fault: str | None = None


def train_model(job: Job, folder: Path, callbacks: Sequence[TrainerCallback] = ()) -> Outcome:
    """Train the model of `job` in place and leave it at the step that is best on the held-out rows.

    `folder` takes the intermediate checkpoints, the best and the last; where there are some, training goes on from the
    last. `callbacks` run after the loop's own.
    """
    model = job.base.model
    keeps_cache = getattr(model.config, "use_cache", None)
    arguments = training_arguments(job, folder)
    trainer, saving = _trainer(job, arguments, callbacks)
    kept = agreed(last_kept(Path(str(arguments.output_dir))) if first() else None)
    if kept is not None:
        for name, part in saving.parts.items():
            part.restore(kept.parts[name])
        saving.seconds = kept.seconds
        trainer.finished = kept.finished
        arguments.eval_on_start = False  # it is in the log that comes with the checkpoint
    fault = None
    try:
        trainer.train(resume_from_checkpoint=str(kept.folder) if kept is not None else None)
    except Diverged as error:
        fault = str(error)
        best = _after_fault(trainer, job, fault)
        for callback in callbacks:
            callback.on_train_end(arguments, best, trainer.control)
    if keeps_cache is not None:
        # The Trainer turns it off for training; the checkpoint's config is to differ from the base's by its head only.
        model.config.use_cache = keeps_cache
    judgement = judged(trainer, job.work)
    _unwrap(trainer, job)
    metrics = _metrics(trainer.state, job.stop_at)
    logs = [entry for entry in trainer.state.log_history if all(map(_finite, entry.values()))]
    step = kept.step if kept is not None else None
    device, settings = arguments.device.type, _settings(job, arguments)
    return Outcome(metrics, logs, settings, device, saving.seconds, judgement, step, fault)


def _trainer(
    job: Job, arguments: TrainingArguments, callbacks: Sequence[TrainerCallback]
) -> tuple[QuietTrainer, Intermediate]:
    """The Trainer, and the callback that completes its checkpoints."""
    work = job.work
    switching = next((callback for callback in callbacks if isinstance(callback, LayerSwitching)), None)
    observers = {callback.key: callback for callback in callbacks if isinstance(callback, Observer)}
    saving = Intermediate({**observers, **({"switching": switching} if switching is not None else {})})
    try:
        trainer = QuietTrainer(
            model=job.model,
            args=arguments,
            train_dataset=work.train,  # pyright: ignore[reportArgumentType]  a list is a map-style dataset
            eval_dataset=work.heldout,  # pyright: ignore[reportArgumentType]
            data_collator=work.collate,
            compute_metrics=work.measure_of(work.heldout),
            compute_loss_func=work.loss,
            preprocess_logits_for_metrics=work.reduce,
            callbacks=[Watch(job, switching), *callbacks, saving],
        )
    except ValueError as error:
        raise TrainingError(f"{type(job.base.model).__name__} cannot be trained so: {error}") from error
    # It prints its logs to stdout, where the command line promises results alone.
    trainer.remove_callback(PrinterCallback)
    trainer.names = job.selection.parameters
    if switching is not None:
        trainer.before_clipping = lambda: switching.controller.gradients()
    if work.loss is None and not _counts_items(job):
        # The Trainer takes every model with open keywords for one that divides its loss by the items of a whole step;
        # classifiers do not, and their gradients would grow with the number of batches and processes.
        trainer.model_accepts_loss_kwargs = False
    return trainer, saving


def _counts_items(job: Job) -> bool:
    """Whether the model's loss is a sum divided by the number of items that it is told."""
    model: Any = job.model
    device = next(model.parameters()).device
    row = {name: value for name, value in job.work.train[0].items() if name != TEXT}
    batch = {name: value.to(device) for name, value in job.work.collate([row]).items()}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            one, two = (model(**batch, num_items_in_batch=torch.tensor(n, device=device)).loss for n in (1, 2))
    except TypeError:
        return False
    finally:
        model.train(training)
    return not torch.equal(one, two)


def training_arguments(job: Job, folder: Path) -> TrainingArguments:
    """What the Trainer is told: steps, evaluations and all that the user may set."""
    options, work = job.options, job.work
    _check_device(job)
    rows = options.batch_size * processes()  # of one pass
    updates = math.ceil(math.ceil(len(work.train) / rows) / options.accumulation)
    steps = options.max_steps or math.ceil(options.epochs * updates)
    # Reading a row costs a third of training on it: between two evaluations training takes at least as long as one.
    pause = max(math.ceil(steps / EVALUATIONS), math.ceil(len(work.heldout) / (3 * rows * options.accumulation)))
    assert options.learning_rate is not None
    arguments = TrainingArguments(
        output_dir=str(folder / RUN),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        activation_checkpointing=options.checkpointing,
        # Reentrant checkpoints give no gradient behind frozen embeddings.
        activation_checkpointing_kwargs={"use_reentrant": False} if options.checkpointing else None,
        bf16=options.dtype == "bfloat16",
        learning_rate=options.learning_rate,
        # Whole steps: a share is rounded up, and warm-up would make the only step of a short run a null step.
        warmup_steps=steps // 10,
        eval_strategy="steps",
        eval_steps=pause,
        save_strategy="steps",
        save_steps=pause,
        load_best_model_at_end=job.stop_at is None,
        metric_for_best_model=work.best,
        greater_is_better=work.higher,
        eval_on_start=work.start,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        log_level_replica="passive",  # as quiet as the first process is
        dataloader_pin_memory=False,
        # Frozen blocks and a head's unread parts get no gradient, and processes would wait for it for ever.
        ddp_find_unused_parameters=True,
        # Said outright: left to itself on a machine without an accelerator, torchrun's processes are no group.
        use_cpu=options.device == "cpu" or (options.device is None and not torch.accelerator.is_available()),
        seed=job.seed,
    )
    # Several visible GPUs would be wrapped in DataParallel, which multiplies the batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _check_device(job: Job) -> None:
    """Refuse a device that is not there, and what the device or the model cannot do."""
    device, model = job.options.device, job.base.model
    if device not in {None, *DEVICES}:
        raise TrainingError(f"unknown device {device!r}: needed one of {', '.join(DEVICES)}.")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device is not None and not present[device]:
        raise TrainingError(f"device {device!r} is not on this machine: leave it out, or use 'cpu'.")
    if job.options.dtype == "bfloat16" and device != "cpu" and present["cuda"] and not torch.cuda.is_bf16_supported():
        raise TrainingError("this GPU does not compute in bfloat16: leave --dtype out.")
    if job.options.checkpointing and not model.supports_gradient_checkpointing:
        raise TrainingError(
            f"{type(model).__name__} cannot compute its activations again in the backward pass: leave --checkpointing "
            "out."
        )


def _after_fault(trainer: QuietTrainer, job: Job, fault: str) -> TrainerState:
    """Put the best step back into the model; where there is none, or another step was asked for, there is nothing."""
    if not agreed(steps_kept(Path(str(trainer.args.output_dir)))) or job.stop_at is not None:
        raise Diverged(f"{fault}, so nothing was saved: lower --learning-rate, or check the base's weights.")
    trainer.load_best()
    return trainer.state


def _unwrap(trainer: QuietTrainer, job: Job) -> None:
    """Take back what was put around the model for training: autocast, checkpointing, the device."""
    trainer.accelerator.unwrap_model(job.model, keep_fp32_wrapper=False)
    if job.options.checkpointing:
        job.base.model.activation_checkpointing_disable()
    job.model.cpu()


def _settings(job: Job, arguments: TrainingArguments) -> dict[str, Any]:
    return {
        **job.options.record(),
        "max_steps": arguments.max_steps,
        "processes": processes(),
        "effective_batch_size": job.options.batch_size * job.options.accumulation * processes(),
        "warmup_steps": arguments.warmup_steps,
        "eval_steps": arguments.eval_steps,
        "weight_decay": arguments.weight_decay,
        "max_grad_norm": arguments.max_grad_norm,
        "optimizer": OptimizerNames(arguments.optim).value,
        "schedule": SchedulerType(arguments.lr_scheduler_type).value,
    }


def _metrics(state: TrainerState, stop_at: int | None) -> dict[str, float]:
    """The evaluation at the step that was kept, the base's, and how long training went on."""
    evaluations = {entry["step"]: evaluation(entry) for entry in state.log_history if "eval_loss" in entry}
    base = {f"base_{name}": value for name, value in evaluations.get(0, {}).items()}
    best = stop_at or state.best_global_step or 0
    return {**evaluations[best], **base, "epoch": state.epoch or 0.0, "steps": state.global_step, "best_step": best}


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
