"""The fine-tuning methods: one registry, one frozen record each.

A model's parameters fall into three groups. *Head*: all that lies outside the backbone, and the backbone's pooler,
which a sequence classifier uses as the first layer of its head whether or not the base had trained one. *Blocks*: the
transformer blocks. *Rest*: embeddings and the norms beside the blocks, trained by `full` alone. A language model whose
head is the table of embeddings (tied weights) has no head of its own: the table belongs to the rest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from attnlens.core.errors import TrainingError, UnknownName, UnsupportedModel
from attnlens.training.options import TrainOptions


@dataclass(frozen=True)
class Selection:
    """What one run trains: names of parameters, and the settings that decided it (for the record)."""

    parameters: frozenset[str]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    trains: what it updates, in words. learning_rate, language_rate: tested defaults for a classifier and for a
    language model. select: which parameters of a model it trains under given options. options: the fields of
    `TrainOptions` that only some methods understand.
    """

    name: str
    title: str
    trains: str
    reference: str
    learning_rate: float
    language_rate: float
    select: Callable[[PreTrainedModel, TrainOptions], Selection]
    options: frozenset[str] = frozenset()


def method_named(name: str, options: TrainOptions) -> Method:
    """The method called `name`, after checking that it understands every option that was set."""
    if name not in METHODS:
        raise UnknownName.among("fine-tuning method", name, METHODS)
    for option in sorted(frozenset[str]().union(*(method.options for method in METHODS.values()))):
        if getattr(options, option) is not None and option not in METHODS[name].options:
            takers = ", ".join(sorted(method.name for method in METHODS.values() if option in method.options))
            raise TrainingError(
                f"{option}={getattr(options, option)} means nothing to {name!r}: it belongs to {takers}."
            )
    return METHODS[name]


def freeze(model: PreTrainedModel, selection: Selection) -> None:
    """Train the selected parameters and no other.

    A frozen parameter keeps neither gradient nor place in the optimizer, which takes only what requires a gradient:
    AdamW moves a parameter whose gradient is a tensor of zeros by momentum and decay. Dropout of frozen blocks stays
    in training mode.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in selection.parameters
        parameter.grad = None


def transformer_blocks(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """All transformer blocks in the order of computation, an encoder's before its decoder's.

    Blocks are the members of the outermost module lists of the backbone that contain attention; no architecture is
    named. Refused: models whose lists do not hold as many blocks as the config says, and shared blocks.
    """
    kind = type(model).__name__
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.base_model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and any(map(_attends, module)):
            lists[name] = module
    lengths = [len(found) for found in lists.values()]
    declared = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if not lists or (declared is not None and declared not in lengths):
        found = " and ".join(f"{length} in {name}" for name, length in zip(lists, lengths, strict=True)) or "none"
        raise UnsupportedModel(
            f"{kind}: needed the transformer blocks of its {declared} layers, found {found}; it shares blocks between "
            "layers or keeps them in an unknown place. Use method 'full' or 'head'."
        )
    blocks = tuple(block for found in lists.values() for block in found)
    owners = [id(parameter) for block in blocks for parameter in block.parameters()]
    if len(set(owners)) < len(owners):
        raise UnsupportedModel(
            f"{kind}: a parameter belongs to two blocks, so one cannot be frozen alone. Use method 'full' or 'head'."
        )
    return blocks


def head_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Names of the parameters outside the backbone, and of its pooler."""
    backbone = model.base_model
    if backbone is model:
        raise UnsupportedModel(f"{type(model).__name__} has no head apart from its backbone. Use method 'full'.")
    pooler = getattr(backbone, "pooler", None)
    pooled = {id(parameter) for parameter in pooler.parameters()} if isinstance(pooler, nn.Module) else set[int]()
    body = {id(parameter) for parameter in backbone.parameters()} - pooled
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) not in body)


def _attends(module: nn.Module) -> bool:
    names = [type(part).__name__.lower() for part in module.modules()]
    return any("attention" in name or "attn" in name for name in names)


def _full(model: PreTrainedModel, options: TrainOptions) -> Selection:
    return Selection(frozenset(name for name, _ in model.named_parameters()), {})


def _head(model: PreTrainedModel, options: TrainOptions) -> Selection:
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and output.weight is table.weight:
        raise TrainingError(
            f"{type(model).__name__} predicts with its table of input embeddings (tied weights), so training the head "
            "would change what every layer reads: use method 'last_k' or 'full'."
        )
    return Selection(head_parameters(model), {})


def _last_k(model: PreTrainedModel, options: TrainOptions) -> Selection:
    blocks = transformer_blocks(model)
    k = options.k if options.k is not None else math.ceil(len(blocks) / 4)
    if k > len(blocks):
        raise TrainingError(f"k={k} asks for more blocks than {type(model).__name__} has: at most {len(blocks)}.")
    chosen = {id(parameter) for block in blocks[-k:] for parameter in block.parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    return Selection(head_parameters(model) | names, {"k": k})


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
            select=_full,
        ),
        Method(
            name="head",
            title="Feature extraction",
            trains="the head of the task and the pooler; the backbone is frozen",
            reference="Devlin et al. 2019, BERT, section 5.3",
            learning_rate=5e-3,
            language_rate=3e-3,
            select=_head,
        ),
        Method(
            name="last_k",
            title="Last k blocks",
            trains="the last k transformer blocks (k = a quarter of them, rounded up) and the head",
            reference="Lee, Tang and Lin 2019, What Would Elsa Do?, arXiv:1911.03090",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=_last_k,
            options=frozenset({"k"}),
        ),
    )
}
