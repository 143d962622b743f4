"""How much of a model a run trained: at a time, on average, at most and in all."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from attnlens.checkpoints.blocks import transformer_blocks
from attnlens.core.errors import UnsupportedModel
from attnlens.training.alf import LayerController
from attnlens.training.importance import SCORES


def parameters_in_use(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a model computes with: those of the base and what a method has added.

    PEFT keeps the head as it was beside the copy that it trains; that one is left out.
    """
    return [parameter for name, parameter in model.named_parameters() if ".original_module." not in name]


def trained_parameters(
    model: PreTrainedModel,
    controller: LayerController | None,
    steps: int,
    whole: nn.Module | None = None,
    *,
    kept: int | None = None,
) -> dict[str, Any]:
    """What `steps` steps trained, from the model as they left it; `controller` where it chose blocks meanwhile.

    Each of `instantaneous` (in the end), `mean` (over steps), `peak` and `cumulative` holds `parameters`, their share
    `of_total` parameters of the model, and `of_blocks`, the share of the blocks' parameters among those of all blocks
    (head and embeddings on neither side; None where the model has no separate blocks). Cumulative are the parameters
    whose change may be in the weights of step `kept` (None: the last): probes count where their updates are not undone.
    `whole` is what a method wrapped
    around the model: what a method adds counts on both sides, in its block if it lies in one. Shared tensors count
    once.
    """
    parameters = parameters_in_use(model if whole is None else whole)
    total = sum(parameter.numel() for parameter in parameters)
    try:
        blocks = transformer_blocks(model)
    except UnsupportedModel:
        blocks = ()
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    own = {id(parameter) for block in blocks for parameter in block.parameters()}
    always = sum(p.numel() for p in parameters if p.requires_grad and id(p) not in own)
    if controller is None:
        trained = sum(p.numel() for p in parameters if p.requires_grad and id(p) in own)
        lengths, parts, moved = [steps], [trained], trained
    else:
        # What was chosen after the last step has trained nothing.
        phases = [phase for phase in controller.phases if phase.first <= steps]
        ends = [*(phase.first for phase in phases[1:]), steps + 1]
        lengths = [end - phase.first for phase, end in zip(phases, ends, strict=True)]
        parts = [sum(sizes[number] for number in phase.active) for phase in phases]
        undone = controller.plan.rollback
        # A block that a training probe chose has what the probe did to it, before its first step of a run.
        until = steps if kept is None else kept + SCORES[controller.plan.score].updates
        past = [phase for phase in phases if phase.first <= until]
        stayed = {number for phase in past if phase.kind == "run" or not undone for number in phase.active}
        moved = sum(sizes[number] for number in stayed)

    def share(trained: float) -> dict[str, float | None]:
        """`trained` of the blocks, and what always trains."""
        parameters = always + trained
        return {
            "parameters": round(parameters),
            "of_total": parameters / total,
            "of_blocks": trained / sum(sizes) if sizes else None,
        }

    return {
        "total": total,
        "blocks": sum(sizes) if sizes else None,
        "instantaneous": share(parts[-1]),
        "mean": share(sum(part * length for part, length in zip(parts, lengths, strict=True)) / steps),
        "peak": share(max(parts)),
        "cumulative": share(moved),
    }


def switching_history(model: PreTrainedModel, controller: LayerController) -> dict[str, Any]:
    """Names of the blocks, every selection with its scores, and who trained from which step on: for reports to draw."""
    names = {id(module): name for name, module in model.named_modules()}
    return {
        "blocks": [names[id(block)] for block in transformer_blocks(model)],
        "plan": dict(vars(controller.plan)),
        "choices": [
            {
                "step": choice.step,
                "scores": list(choice.scores),
                "smoothed": list(choice.smoothed),
                "active": list(choice.active),
            }
            for choice in controller.choices
        ],
        "phases": [
            {"first": phase.first, "kind": phase.kind, "active": list(phase.active)} for phase in controller.phases
        ],
    }
