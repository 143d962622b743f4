"""The tasks a model can be fine-tuned for: one registry, one frozen record each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attnlens.core.errors import TrainingError
from attnlens.training.base import Base, load_classifier, load_language_model, load_masked_model, load_tagger
from attnlens.training.classification import classification
from attnlens.training.language import language_modelling
from attnlens.training.masked import masked_modelling
from attnlens.training.options import TrainOptions
from attnlens.training.split import CLASSIFICATION, LANGUAGE, MASKED, MULTI_LABEL, TOKENS, Split, language_reason
from attnlens.training.tokens import token_classification
from attnlens.training.work import Work


@dataclass(frozen=True)
class Task:
    """One kind of lesson.

    load: the base with the head of the task. work: the rows made ready; its options name the length, its number is the
    seed. peft: what PEFT calls the task. language: whether the model predicts tokens, for which methods have rates of
    their own. options: fields of `TrainOptions` that only some tasks understand.
    """

    name: str
    title: str
    load: Callable[[str | Path, Split], Base]
    work: Callable[[Base, Split, TrainOptions, int], Work]
    peft: str
    language: bool
    options: frozenset[str] = frozenset()


def task_for(data: Split, options: TrainOptions) -> Task:
    """The task of the rows, after checking that it understands every option that was set."""
    for option in sorted(frozenset[str]().union(*(task.options for task in TASKS.values()))):
        if getattr(options, option) and option not in TASKS[data.task].options:
            takers = ", ".join(task.name for task in TASKS.values() if option in task.options)
            raise TrainingError(f"{option} means nothing to {data.task!r}: it belongs to {takers}.")
    return TASKS[data.task]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name=CLASSIFICATION,
            title="one label a text",
            load=lambda base, data: load_classifier(base, data.labels),
            work=lambda base, data, options, seed: classification(base, data, options),
            peft="SEQ_CLS",
            language=False,
            options=frozenset({"class_weights", "windows"}),
        ),
        Task(
            name=MULTI_LABEL,
            title="any number of labels a text",
            load=lambda base, data: load_classifier(base, data.labels, "multi_label_classification"),
            work=lambda base, data, options, seed: classification(base, data, options),
            peft="SEQ_CLS",
            language=False,
            options=frozenset({"class_weights", "windows"}),
        ),
        Task(
            name=TOKENS,
            title="the class of each token",
            load=lambda base, data: load_tagger(base, data.labels),
            work=lambda base, data, options, seed: token_classification(base, data, options),
            peft="TOKEN_CLS",
            language=False,
            options=frozenset({"class_weights"}),
        ),
        Task(
            name=LANGUAGE,
            title="the next token",
            load=lambda base, data: load_language_model(base, language_reason(data.corpus)),
            work=lambda base, data, options, seed: language_modelling(base, data, options),
            peft="CAUSAL_LM",
            language=True,
        ),
        Task(
            name=MASKED,
            title="tokens behind a mask",
            load=lambda base, data: load_masked_model(base),
            work=masked_modelling,
            peft="FEATURE_EXTRACTION",
            language=True,
        ),
    )
}
