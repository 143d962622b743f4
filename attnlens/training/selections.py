"""What a method trains of a model, and the methods that choose among the parameters it has."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from attnlens.checkpoints.blocks import head_parameters, transformer_blocks
from attnlens.core.errors import TrainingError
from attnlens.training.alf import Plan, capacity
from attnlens.training.options import TrainOptions

LISA_STEPS = 20  # between two draws, the default of LMFlow; quality is flat from 1 to 50 (FINETUNING.md 2.1)


@dataclass(frozen=True)
class Selection:
    """What one run trains: names of parameters, and the settings that decided it (for the record).

    plan: of a method that chooses blocks while it trains, what its controller does in a run of so many steps; the
    parameters are then all that it may choose, for the optimizer to hold. Of a method that adds parameters: model, what
    is trained in place of the base's model (the names are then names in it), and save, which writes what a checkpoint
    needs into a folder, once the run is over. virtual: tokens that the method puts before every text.
    """

    parameters: frozenset[str]
    settings: dict[str, Any]
    plan: Callable[[int], Plan] | None = None
    model: nn.Module | None = None
    save: Callable[[Path], Any] | None = None
    virtual: int = 0


def full(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """All parameters."""
    return Selection(frozenset(name for name, _ in model.named_parameters()), {})


def head(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """The head alone; refused where it is the table of input embeddings."""
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and output.weight is table.weight:
        raise TrainingError(
            f"{type(model).__name__} predicts with its table of input embeddings (tied weights), so training the head "
            "would change what every layer reads: use method 'last_k' or 'full'."
        )
    return Selection(head_parameters(model), {})


def last_k(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """The last k blocks and the head."""
    blocks, k = _share(model, options)
    return Selection(_with_head(model, blocks[-k:]), {"k": k})


def first_k(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """The first k blocks and the head."""
    blocks, k = _share(model, options)
    return Selection(_with_head(model, blocks[:k]), {"k": k})


def layers(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """The named blocks and the head."""
    blocks = transformer_blocks(model)
    if not options.layers:
        raise TrainingError(
            f"method 'layers' trains the blocks that it is told: add --layers with numbers from 0 to {len(blocks) - 1}."
        )
    for number in options.layers:
        if number not in range(len(blocks)):
            raise TrainingError(
                f"layers names block {number!r}, which {type(model).__name__} does not have: "
                f"needed numbers from 0 to {len(blocks) - 1}."
            )
    chosen = sorted(set(options.layers))
    return Selection(_with_head(model, [blocks[number] for number in chosen]), {"k": len(chosen), "blocks": chosen})


def random_k(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """k blocks drawn once by the seed, and the head."""
    blocks, k = _share(model, options)
    drawn = sorted(np.random.default_rng(seed).choice(len(blocks), k, replace=False).tolist())
    return Selection(_with_head(model, [blocks[number] for number in drawn]), {"k": k, "blocks": drawn})


def lisa(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """The head, and k blocks drawn anew by the seed every 20 steps."""
    blocks, k = _share(model, options)
    plan = Plan("random", k=k, run=LISA_STEPS, seed=seed)
    return Selection(_with_head(model, blocks), {"k": k}, lambda steps: replace(plan, until=steps - 1))


def alf(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """The head, and the blocks that a controller chooses within the budget."""
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
