"""How far each block's weights have moved while a model trains, and the gradients that moved them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from attnlens.checkpoints.blocks import transformer_blocks
from attnlens.core.errors import UnsupportedModel
from attnlens.training.job import Job
from attnlens.training.memory import available_bytes
from attnlens.training.observer import Observer

POINTS = 50  # of a run at most: each reads every weight twice
PARTS = ("attention", "mlp", "norms")
Change = Callable[[], Tensor]  # squared length of what became of some weights


class Movement(Observer):
    """‖W − W₀‖ / ‖W₀‖ of each block's attention, feed-forward part and norms, and each block's gradient norm.

    Every n-th step, at most 50 times. W₀ is what the run began with, whatever it was resumed from: a copy of those
    block weights that may train, held in the machine's memory (4 bytes a parameter; left out, with the reason, where
    that is more than half of what is free). A low-rank adapter's change is its product, computed from the factors. A
    gradient is that of the whole block after clipping, as the optimizer sees it; None where there is none.
    """

    key = "movement"

    def __init__(self, job: Job):
        self._every = 1
        self._seen: dict[str, list[Any]] = {"steps": [], "change": [], "gradient": []}
        self._gradient: list[Tensor | None] = []
        self._blocks, self._names, self._reason = (), [], None
        try:
            self._blocks = transformer_blocks(job.base.model)
        except UnsupportedModel as error:
            self._reason = str(error)
            return
        names = {id(module): name for name, module in job.base.model.named_modules()}
        self._names = [names[id(block)] for block in self._blocks]
        self._reason = _unfit(self._blocks, adds=job.selection.save is not None)
        if self._reason is None:
            self._changes = [_changes(block) for block in self._blocks]
            self._lengths = [_lengths(block) for block in self._blocks]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Settle how often to look."""
        self._every = math.ceil(state.max_steps / POINTS)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ):
        """Measure the gradients, which are gone at the end of the step."""
        if self._due(state.global_step + 1):
            self._gradient = [_gradient(block) for block in self._blocks]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure the weights."""
        if not self._due(state.global_step):
            return
        with torch.no_grad():  # all at once, so that a device is waited for once
            found = iter(
                torch.stack([change() for block in self._changes for part in block for change in part]).tolist()
            )
        squares = [[sum(next(found) for _ in part) for part in block] for block in self._changes]
        self._seen["steps"].append(state.global_step)
        self._seen["change"].append(
            [
                [_relative(square, length) for square, length in zip(*block, strict=True)]
                for block in zip(squares, self._lengths, strict=True)
            ]
        )
        norms = [math.nan if norm is None else norm.item() for norm in self._gradient]
        self._seen["gradient"].append([norm if math.isfinite(norm) else None for norm in norms])

    def facts(self) -> dict[str, Any]:
        """steps, blocks, parts; change: [step][block][part]; gradient: [step][block]; reason: why they are None."""
        if self._reason is not None:
            return {"steps": None, "blocks": self._names or None, "parts": None, "change": None, "gradient": None} | {
                "reason": self._reason
            }
        return {**self._seen, "blocks": self._names, "parts": list(PARTS), "reason": None}

    def state(self) -> dict[str, Any]:
        """All points so far; the weights that the run began with are the base's, which a resumed run loads first."""
        return dict(self._seen)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after the last point."""
        self._seen = {name: list(state[name]) for name in self._seen}

    def _due(self, step: int) -> bool:
        return self._reason is None and step % self._every == 0


def _unfit(blocks: tuple[nn.Module, ...], *, adds: bool) -> str | None:
    """Why nothing can be measured, if so; adds: whether the method adds parameters to the base's."""
    parameters = [parameter for block in blocks for parameter in block.parameters() if parameter.requires_grad]
    adapted = any(isinstance(module, LoraLayer | IA3Layer) for block in blocks for module in block.modules())
    if adds and not adapted:
        return "the method adds parameters of its own and leaves the weights of the blocks as they are"
    if not parameters:
        return "no weight of a block is trained"
    size, free = sum(parameter.numel() * parameter.element_size() for parameter in parameters), available_bytes()
    if free is not None and size > free / 2:
        return f"a copy of the weights takes {size:,} bytes of memory, more than half of the {free:,} that are free"
    return None


def _changes(block: nn.Module) -> list[list[Change]]:
    """For each part, ways to the squared length of the change of all that may change; the start is copied here."""
    found: list[list[Change]] = [[] for _ in PARTS]
    for place, module in _modules(block):
        if isinstance(module, LoraLayer):
            found[place].append(lambda module=module: _low_rank(module))
        elif isinstance(module, IA3Layer):
            found[place].append(lambda module=module: _rescaled(module))
        elif not isinstance(module, nn.ParameterDict):
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    start = parameter.detach().to("cpu", copy=True)
                    found[place].append(lambda now=parameter, start=start: (now - start.to(now.device)).square().sum())
    return found


def _lengths(block: nn.Module) -> list[float]:
    """For each part the length of the base's weights, trained or not, as one vector."""
    squares = [0.0 for _ in PARTS]
    for place, module in _modules(block):
        own = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        for parameter in own.parameters(recurse=False):
            squares[place] += parameter.detach().double().square().sum().item()
    return [math.sqrt(square) for square in squares]


def _modules(block: nn.Module, path: str = "", place: int = 1) -> Iterator[tuple[int, nn.Module]]:
    """The modules of a block with the place of their part; of an adapted layer only the layer itself.

    A norm is one by its class, wherever it stands; attention is what lies in a module of that name.
    """
    kind = type(block).__name__.lower()
    if "norm" in kind:
        place = PARTS.index("norms")
    elif path and any(word in f"{path} {kind}" for word in ("attention", "attn")):
        place = PARTS.index("attention")
    yield place, block
    if not isinstance(block, BaseTunerLayer):
        for name, child in block.named_children():
            yield from _modules(child, name.lower(), place)


def _low_rank(layer: Any) -> Tensor:
    """‖s·BA‖² = s²·Σ (BᵀB ∘ AAᵀ), over r × r numbers."""
    squares = []
    for name in layer.active_adapters:
        down, up = layer.lora_A[name].weight.float(), layer.lora_B[name].weight.float()
        squares.append(layer.scaling[name] ** 2 * ((up.T @ up) * (down @ down.T)).sum())
    return torch.stack(squares).sum()


def _rescaled(layer: Any) -> Tensor:
    """‖W ∘ l − W‖² with the rows of W, or in a feed-forward layer its columns, scaled by l; a bias is scaled too."""
    scale = torch.stack([layer.ia3_l[name].float().flatten() for name in layer.active_adapters]).prod(0) - 1
    base = layer.get_base_layer()
    weight = base.weight.float().T if getattr(layer, "fan_in_fan_out", False) else base.weight.float()  # (out, in)
    square = (weight * (scale if layer.is_feedforward else scale[:, None])).square().sum()
    if base.bias is not None and not layer.is_feedforward:
        square = square + (base.bias.float() * scale).square().sum()
    return square


def _relative(square: float, length: float) -> float | None:
    """Not negative, whatever rounding makes of a product of factors; None where there is no such number."""
    return math.sqrt(max(square, 0.0)) / length if length and math.isfinite(square) else None


def _gradient(block: nn.Module) -> Tensor | None:
    """Length of the gradient of all of a block's parameters that have one."""
    gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
    if not gradients:
        return None
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each.float()) for each in gradients]))
