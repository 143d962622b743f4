"""One run, settled to the last default: what `finetune` trains and `estimate` looks at."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from attnlens.training.base import Base, reading_length
from attnlens.training.methods import Method, freeze
from attnlens.training.options import TrainOptions
from attnlens.training.selections import Selection
from attnlens.training.split import Split
from attnlens.training.tasks import Task, task_for
from attnlens.training.work import Work


@dataclass(frozen=True)
class Job:
    """A model whose parameters are frozen as the method wants it, the rows, and options that name rate and length.

    stop_at: step after which training ends and that is kept, whatever the held-out rows say (None: the best one).
    """

    base: Base
    method: Method
    selection: Selection
    task: Task
    data: Split
    work: Work
    options: TrainOptions
    seed: int
    stop_at: int | None = None

    @property
    def model(self) -> nn.Module:
        """What is trained and saved: the base's model, or what the method wrapped around it."""
        return self.base.model if self.selection.model is None else self.selection.model

    def save(self, folder: Path) -> None:
        """Write weights and config: a plain Hugging Face directory, or what the method leaves instead."""
        (self.selection.save or self.base.model.save_pretrained)(folder)


def prepare(base: str | Path, data: Split, method: Method, options: TrainOptions, seed: int) -> Job:
    """Load the base, insert what the method adds, freeze the rest and make the rows ready."""
    task = task_for(data, options)
    started = task.load(base, data)
    data = replace(data, labels=started.labels or data.labels)
    rate = method.language_rate if task.language else method.learning_rate
    options = replace(options, learning_rate=options.learning_rate or rate, task=data.task)
    selection = method.select(started.model, options, seed)
    options = replace(options, max_length=reading_length(started, options.max_length, selection.virtual))
    work = task.work(started, data, options, seed)
    job = Job(started, method, selection, task, data, work, options, seed)
    freeze(job.model, selection)
    return job
