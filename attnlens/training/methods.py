"""The fine-tuning methods: one registry, one frozen record each."""

from dataclasses import dataclass
from typing import Protocol

from torch import nn
from transformers import PreTrainedModel

from attnlens.core.errors import TrainingError, UnknownName
from attnlens.training import additions, selections
from attnlens.training.options import TrainOptions
from attnlens.training.selections import Selection


class Select(Protocol):
    """Which parameters of a model a method trains under given options; what is drawn, is drawn by the seed.

    The options name the task. A method that adds parameters puts them into the model, whose own numbers stay as they
    are; any other only reads it.
    """

    def __call__(self, model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
        """What is trained; nothing is frozen yet."""
        ...


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    trains: what it updates, in words. learning_rate, language_rate: tested defaults for a classifier and for a
    language model. options: the fields of `TrainOptions` that only some methods understand.
    """

    name: str
    title: str
    trains: str
    reference: str
    learning_rate: float
    language_rate: float
    select: Select
    options: frozenset[str] = frozenset()


def method_named(name: str, options: TrainOptions) -> Method:
    """The method called `name`, after checking that it understands every option that was set."""
    if name not in METHODS:
        raise UnknownName.among("fine-tuning method", name, METHODS)
    for option in sorted(frozenset[str]().union(*(method.options for method in METHODS.values()))):
        if getattr(options, option) is not None and option not in METHODS[name].options:
            takers = ", ".join(method.name for method in METHODS.values() if option in method.options)
            value = getattr(options, option)
            given = option if value is True else f"{option}={value}"
            raise TrainingError(f"{given} means nothing to {name!r}: it belongs to {takers}.")
    return METHODS[name]


def freeze(model: nn.Module, selection: Selection) -> None:
    """Train the selected parameters and no other.

    A frozen parameter keeps neither gradient nor place in the optimizer, which takes only what requires a gradient:
    AdamW moves a parameter whose gradient is a tensor of zeros by momentum and decay. Dropout of frozen blocks stays
    in training mode.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in selection.parameters
        parameter.grad = None


# Learning rates of classifiers: macro-F1 (accuracy) on 160 test windows after 90 steps of 16 texts, one seed. MiniLM-L6
# (22.7 M), the 12 commonest clause types of CUAD in windows of 310 characters; one standard error is about .04.
#   full    2e-5 .19 (.32)  5e-5 .56 (.70)  1e-4 .60 (.76)  2e-4 .61 (.76)  4e-4 .72 (.81)  8e-4 .67 (.78)
#   last_k  1e-4 .52 (.70)  4e-4 .68 (.79)  1e-3 .75 (.81)  2e-3 .60 (.73)
#   head    1e-3 .43 (.61)  5e-3 .67 (.72)  1e-2 .67 (.72)  2e-2 .65 (.70)
# Short runs of a small model favour large rates. The defaults stay below the best because rates fall with size: full
# fine-tuning of BERT-base was published at 2e-5 to 5e-5 (Devlin et al. 2019, A.3). Comparing methods takes a grid each.
# Of language models: held-out perplexity (49,550 tokens; 48.2 before) after 60 steps of 8 windows of 128 tokens, one
# seed. A Llama of 260,032 parameters trained on children's stories, 250 passages of State of the Union addresses; for
# `head`, an untied copy of it. The defaults are a tenth of the best, for the same reason.
#   full    1e-4 22.5  3e-4 17.5  1e-3 13.7  3e-3 12.2  1e-2 14.4
#   last_k  3e-4 22.6  1e-3 18.3  3e-3 15.6  1e-2 14.5  3e-2 16.4
#   head    1e-3 36.9  3e-3 30.1  1e-2 22.3  3e-2 19.2  1e-1 20.7
# The others by figures/rates.py, on other test windows and passages; `last_k` at 1e-3 there: .78 (.83), and 16.5.
#   at 1e-3 macro-F1 alf .75 (.81)  lisa .78 (.84)  first_k .75 (.82): as `last_k`, whose rates they take over
#   perplexity  alf 1e-3 19.1  3e-3 16.7  1e-2 15.1   lisa 3e-3 14.1  1e-2 14.4   lora 3e-3 22.2  1e-2 20.2   adapter
#   3e-3 20.6  ia3 1e-2 24.1. `alf` trains one block of five there, `lisa` two. Prompt tuning was not measured; of the
#   classifiers that add parameters only lora, 1e-3 .69 (.78).
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="full",
            title="Full fine-tuning",
            trains="all parameters",
            reference="Devlin et al. 2019, BERT, section 3.2",
            learning_rate=1e-4,
            language_rate=3e-4,
            select=selections.full,
        ),
        Method(
            name="head",
            title="Feature extraction",
            trains="the head of the task and the pooler; the backbone is frozen",
            reference="Devlin et al. 2019, BERT, section 5.3",
            learning_rate=5e-3,
            language_rate=3e-3,
            select=selections.head,
        ),
        Method(
            name="last_k",
            title="Last k blocks",
            trains="the last k transformer blocks (k = a quarter of them, rounded up) and the head",
            reference="Lee, Tang and Lin 2019, What Would Elsa Do?, arXiv:1911.03090",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=selections.last_k,
            options=frozenset({"k"}),
        ),
        Method(
            name="first_k",
            title="First k blocks",
            trains="the first k transformer blocks (k = a quarter of them, rounded up) and the head",
            reference="the other end of last_k, as a control",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=selections.first_k,
            options=frozenset({"k"}),
        ),
        Method(
            name="random_k",
            title="Random k blocks",
            trains="k transformer blocks drawn once by the seed (k = a quarter of them, rounded up) and the head",
            reference="static random selection, as a control",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=selections.random_k,
            options=frozenset({"k"}),
        ),
        Method(
            name="layers",
            title="Chosen blocks",
            trains="the transformer blocks whose numbers are given, and the head",
            reference="Lee, Tang and Lin 2019, What Would Elsa Do?, arXiv:1911.03090",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=selections.layers,
            options=frozenset({"layers"}),
        ),
        Method(
            name="lisa",
            title="LISA, embeddings frozen",
            trains="the head and k transformer blocks (a quarter, rounded up), drawn anew every 20 steps",
            reference="Pan et al. 2024, LISA, arXiv:2403.17919",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=selections.lisa,
            options=frozenset({"k"}),
        ),
        Method(
            name="alf",
            title="Adaptive layer-wise fine-tuning",
            trains="the head and the blocks of the highest weight change rate within the budget, measured repeatedly",
            reference="Lee 2025, A Study on LLM Fine-tuning Strategies, IJASC 14(4):105-113",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=selections.alf,
            options=frozenset({"budget", "denominator", "score", "commit"}),
        ),
        Method(
            name="lora",
            title="Low-rank adaptation",
            trains="two matrices of low rank beside the query and value projections, and the head of a classifier",
            reference="Hu et al. 2022, LoRA, arXiv:2106.09685",
            learning_rate=1e-3,
            language_rate=3e-3,
            select=additions.lora,
            options=frozenset({"rank", "alpha", "merge"}),
        ),
        Method(
            name="ia3",
            title="(IA)³",
            trains="a factor for each key, value and feed-forward activation, and the head of a classifier",
            reference="Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning, arXiv:2205.05638",
            learning_rate=5e-3,
            language_rate=1e-2,
            select=additions.ia3,
            options=frozenset({"merge"}),
        ),
        Method(
            name="prompt",
            title="Prompt tuning",
            trains="virtual tokens before every text, and the head of a classifier",
            reference="Lester, Al-Rfou and Constant 2021, arXiv:2104.08691",
            learning_rate=3e-2,
            language_rate=3e-2,
            select=additions.prompt,
            options=frozenset({"virtual_tokens"}),
        ),
        Method(
            name="adapter",
            title="Bottleneck adapters",
            trains="new bottlenecks of 64 units behind the feed-forward of each block, and the head",
            reference="Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, AdapterFusion, arXiv:2005.00247",
            learning_rate=1e-3,
            language_rate=1e-3,
            select=additions.adapter,
            options=frozenset({"bottleneck", "variant"}),
        ),
    )
}
