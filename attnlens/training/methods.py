"""The fine-tuning methods: one registry, one frozen record each.

A model's parameters fall into three groups. *Head*: all that lies outside the backbone, and the backbone's pooler,
which a sequence classifier uses as the first layer of its head whether or not the base had trained one. *Blocks*: the
transformer blocks. *Rest*: embeddings and the norms beside the blocks, trained by `full` alone. A language model whose
head is the table of embeddings (tied weights) has no head of its own: the table belongs to the rest.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from attnlens.checkpoints.bottleneck import Bottleneck, insert, save_bottleneck
from attnlens.core.errors import TrainingError, UnknownName, UnsupportedModel
from attnlens.training.alf import Plan, capacity
from attnlens.training.options import TrainOptions


@dataclass(frozen=True)
class Selection:
    """What one run trains: names of parameters, and the settings that decided it (for the record).

    plan: of a method that chooses blocks while it trains, what its controller does in a run of so many steps; the
    parameters are then all that it may choose, for the optimizer to hold. Of a method that adds parameters: model, what
    is trained in place of the base's model, and save, which writes what a checkpoint needs into a folder.
    """

    parameters: frozenset[str]
    settings: dict[str, Any]
    plan: Callable[[int], Plan] | None = None
    model: nn.Module | None = None
    save: Callable[[Path], Any] | None = None


class Select(Protocol):
    """Which parameters of a model a method trains under given options; what is drawn, is drawn by the seed."""

    def __call__(self, model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
        """Read the model; change nothing, but put in what the method adds."""
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
            raise TrainingError(
                f"{option}={getattr(options, option)} means nothing to {name!r}: it belongs to {takers}."
            )
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
    inside = {id(part) for block in blocks for part in block.modules()}
    outside = (part for part in model.modules() if id(part) not in inside)
    if not {id(parameter) for part in outside for parameter in part.parameters(recurse=False)}.isdisjoint(owners):
        raise UnsupportedModel(
            f"{kind}: a block shares a parameter with what lies outside the blocks, so it cannot be frozen alone. Use "
            "method 'full'."
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


def _full(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    return Selection(frozenset(name for name, _ in model.named_parameters()), {})


def _head(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and output.weight is table.weight:
        raise TrainingError(
            f"{type(model).__name__} predicts with its table of input embeddings (tied weights), so training the head "
            "would change what every layer reads: use method 'last_k' or 'full'."
        )
    return Selection(head_parameters(model), {})


def _last_k(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    blocks, k = _share(model, options)
    return Selection(_with_head(model, blocks[-k:]), {"k": k})


def _first_k(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    blocks, k = _share(model, options)
    return Selection(_with_head(model, blocks[:k]), {"k": k})


def _random_k(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    blocks, k = _share(model, options)
    drawn = sorted(np.random.default_rng(seed).choice(len(blocks), k, replace=False).tolist())
    return Selection(_with_head(model, [blocks[number] for number in drawn]), {"k": k, "blocks": drawn})


def _lisa(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    blocks, k = _share(model, options)
    plan = Plan("random", k=k, run=LISA_STEPS, seed=seed)
    return Selection(_with_head(model, blocks), {"k": k}, lambda steps: replace(plan, until=steps - 1))


def _alf(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    blocks = transformer_blocks(model)
    settings = {
        "budget": 0.25 if options.budget is None else options.budget,
        "denominator": options.denominator or "total",
        "score": options.score or "weight_change",
        "commit": bool(options.commit),
    }
    head = head_parameters(model)
    room = capacity(
        settings["budget"],
        settings["denominator"],
        sizes=[sum(parameter.numel() for parameter in block.parameters()) for block in blocks],
        head=sum(parameter.numel() for name, parameter in model.named_parameters() if name in head),
        total=sum(parameter.numel() for parameter in model.parameters()),
    )
    plan = Plan(settings["score"], capacity=room, commit=settings["commit"], seed=seed)
    return Selection(_with_head(model, blocks), settings, plan.over)


def _adapter(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    kind = Bottleneck(options.variant or "pfeiffer", options.bottleneck or 64)
    parameters = insert(model, kind, seed=seed) | head_parameters(model)

    def save(folder: Path) -> None:
        save_bottleneck(model, kind, parameters, folder)

    return Selection(parameters, {"variant": kind.variant, "bottleneck": kind.width}, save=save)


def _share(model: PreTrainedModel, options: TrainOptions) -> tuple[tuple[nn.Module, ...], int]:
    """All blocks, and how many of them are to be trained: a quarter, rounded up, unless told."""
    blocks = transformer_blocks(model)
    k = options.k if options.k is not None else math.ceil(len(blocks) / 4)
    if k > len(blocks):
        raise TrainingError(f"k={k} asks for more blocks than {type(model).__name__} has: at most {len(blocks)}.")
    return blocks, k


def _with_head(model: PreTrainedModel, blocks: Iterable[nn.Module]) -> frozenset[str]:
    chosen = {id(parameter) for block in blocks for parameter in block.parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    return head_parameters(model) | names


LISA_STEPS = 20  # between two draws, the default of LMFlow; quality is flat from 1 to 50 (FINETUNING.md 2.1)

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
# The others train about as many blocks at a time as `last_k` and take over its rates: not measured for them yet.
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
        Method(
            name="first_k",
            title="First k blocks",
            trains="the first k transformer blocks (k = a quarter of them, rounded up) and the head",
            reference="the other end of last_k, as a control",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=_first_k,
            options=frozenset({"k"}),
        ),
        Method(
            name="random_k",
            title="Random k blocks",
            trains="k transformer blocks drawn once by the seed (k = a quarter of them, rounded up) and the head",
            reference="static random selection, as a control",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=_random_k,
            options=frozenset({"k"}),
        ),
        Method(
            name="lisa",
            title="LISA, embeddings frozen",
            trains="the head and k transformer blocks (a quarter, rounded up), drawn anew every 20 steps",
            reference="Pan et al. 2024, LISA, arXiv:2403.17919",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=_lisa,
            options=frozenset({"k"}),
        ),
        Method(
            name="alf",
            title="Adaptive layer-wise fine-tuning",
            trains="the head and the blocks of the highest weight change rate within the budget, measured repeatedly",
            reference="Lee 2025, A Study on LLM Fine-tuning Strategies, IJASC 14(4):105-113",
            learning_rate=4e-4,
            language_rate=1e-3,
            select=_alf,
            options=frozenset({"budget", "denominator", "score", "commit"}),
        ),
        Method(
            name="adapter",
            title="Bottleneck adapters",
            trains="new bottlenecks of 64 units behind the feed-forward of each block, and the head",
            reference="Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, AdapterFusion, arXiv:2005.00247",
            learning_rate=1e-3,
            language_rate=1e-3,
            select=_adapter,
            options=frozenset({"bottleneck", "variant"}),
        ),
    )
}
