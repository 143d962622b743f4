"""What the loop sees to at every step: progress, a loss that is no number, and when to stop."""

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from attnlens.core.errors import Diverged
from attnlens.training.job import Job
from attnlens.training.processes import first
from attnlens.training.switching import LayerSwitching


class Watch(TrainerCallback):
    """Reports progress, stops at a loss that is not a number, and ends training.

    Training ends after the last step or that of `job.stop_at`, which is judged whenever it comes; or once the options'
    `patience` of evaluations brought nothing better. Where blocks are chosen, that is asked when those in training have
    had their whole phase, and at every evaluation of the last phase. What it needs to know is all in the Trainer's log.
    """

    def __init__(self, job: Job, switching: LayerSwitching | None = None):
        self.job, self.switching = job, switching

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """End after the last step, or with a phase that brought nothing better."""
        if state.global_step >= (self.job.stop_at or state.max_steps):
            control.should_evaluate = control.should_training_stop = True
        elif self.switching is not None and self._stale(state) and self.switching.phase_ended(state.global_step):
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """End where nothing better came for long."""
        if self._stale(state) and (self.switching is None or self.switching.controller.last):
            control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Refuse a loss that is not a number, and tell how far it is."""
        logs: dict[str, float] = kwargs["logs"]
        for name in ("loss", "eval_loss", "eval_perplexity"):
            if not math.isfinite(logs.get(name, 0.0)):
                rows = "training" if name == "loss" else "held-out"
                measure, step = name.removeprefix("eval_"), state.global_step
                raise Diverged(f"the {measure} on {rows} rows is {logs[name]} at step {step}")
        if self.job.options.progress is not None and first() and ("loss" in logs or "eval_loss" in logs):
            self.job.options.progress(state.global_step, self.job.stop_at or state.max_steps, dict(logs))

    def _stale(self, state: TrainerState) -> bool:
        """Whether as many evaluations as the run has patience for were no better than an earlier one."""
        if self.job.stop_at is not None:
            return False
        work, name = self.job.work, f"eval_{self.job.work.best}"
        values = [entry[name] for entry in state.log_history if name in entry and entry["step"] > 0]
        best = values.index((max if work.higher else min)(values)) if values else 0
        return len(values) - 1 - best >= self.job.options.patience
