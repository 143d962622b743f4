"""The tasks a model can be fine-tuned for: one registry, one frozen record each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attnlens.training.base import Base, load_classifier, load_language_model
from attnlens.training.classification import classification
from attnlens.training.language import language_modelling
from attnlens.training.options import TrainOptions
from attnlens.training.split import CLASSIFICATION, LANGUAGE, Split, language_reason
from attnlens.training.work import Work


@dataclass(frozen=True)
class Task:
    """One kind of lesson.

    load: the base with the head of the task. work: the rows made ready; its options name the length. peft: what PEFT
    calls the task. language: whether the model predicts tokens, for which methods have rates of their own.
    """

    name: str
    title: str
    load: Callable[[str | Path, Split], Base]
    work: Callable[[Base, Split, TrainOptions], Work]
    peft: str
    language: bool


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name=CLASSIFICATION,
            title="one label a text",
            load=lambda base, data: load_classifier(base, data.labels),
            work=classification,
            peft="SEQ_CLS",
            language=False,
        ),
        Task(
            name=LANGUAGE,
            title="the next token",
            load=lambda base, data: load_language_model(base, language_reason(data.corpus)),
            work=language_modelling,
            peft="CAUSAL_LM",
            language=True,
        ),
    )
}
