"""Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2021): put into a model, switched off, saved and loaded.

An adapter reads the output of a projection that leads back to the hidden size and adds to it what a narrow network
makes of it: h + up(act(down(h))). That is the place of Houlsby et al. (arXiv:1902.00751, figure 2): directly after the
projection, before dropout, the residual and the norm behind it; in BERT the output of the `dense` of `BertSelfOutput`
and `BertOutput`. Variant `houlsby` has one behind each attention and one behind the feed-forward of each block, variant
`pfeiffer` the latter alone, the placement that the search of Pfeiffer et al. (arXiv:2005.00247, appendix A) found best.
Theirs stands behind the residual and its norm; here both variants stand in Houlsby's place, which every block has.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.pytorch_utils import Conv1D

from attnlens.checkpoints.blocks import head_parameters, transformer_blocks
from attnlens.checkpoints.identity import home_free
from attnlens.checkpoints.shelf import Shelf
from attnlens.checkpoints.source import BOTTLENECK_CONFIG, BOTTLENECK_WEIGHTS
from attnlens.checkpoints.tensors import module_of
from attnlens.core.errors import CheckpointError, TrainingError, UnknownName, UnsupportedModel

SLOT = "bottleneck"  # the name of the adapters inside the projection whose output they read
# Places of each variant, and its activation.
VARIANTS = {"pfeiffer": (("feed-forward",), "relu"), "houlsby": (("attention", "feed-forward"), "gelu")}
ACTIVATIONS = {"relu": nn.functional.relu, "gelu": nn.functional.gelu}
INPUTS = ("query", "key", "value", "query+key+value")
PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")
HEADS = "_attnlens_heads"  # the attribute of a model that holds its checkpoints' heads
START = 0.01  # deviation of `down` at the start: Houlsby et al., section 3.1


@dataclass(frozen=True)
class Bottleneck:
    """What adapters of one checkpoint look like: a name of `VARIANTS`, and the width of the narrow layer."""

    variant: str = "pfeiffer"
    width: int = 64

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise UnknownName.among("adapter variant", self.variant, VARIANTS)


class Layer(nn.Module):
    """h + up(act(down(h))), (*, D) -> (*, D); `up` starts at zero, so that the output is h bit for bit."""

    def __init__(self, size: int, kind: Bottleneck):
        super().__init__()
        self.down, self.up = nn.Linear(size, kind.width), nn.Linear(kind.width, size)
        self.activation = ACTIVATIONS[VARIANTS[kind.variant][1]]
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden states and what the adapter adds to them."""
        return hidden + self.up(self.activation(self.down(hidden)))


class Layers(nn.ModuleDict):
    """Adapters of several checkpoints at one place; `chosen` names the one that is on, None: none."""

    chosen: str | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden states as the chosen adapter leaves them."""
        return hidden if self.chosen is None or self.chosen not in self else self[self.chosen](hidden)


def insert(model: PreTrainedModel, kind: Bottleneck, *, seed: int = 0, name: str = "tuned") -> frozenset[str]:
    """Put adapters into the model in place and switch them on; names of their parameters.

    The base's parameters keep names and numbers; until training the model computes what it computed before, bit for
    bit. Raises TrainingError for a width above the hidden size, UnsupportedModel where a block has no place for one.
    """
    size = _hidden_size(model)
    if kind.width > size:
        raise TrainingError(
            f"bottleneck={kind.width} is wider than {type(model).__name__}'s hidden size: at most {size}"
        )
    generator = torch.Generator().manual_seed(seed)
    found = places(model, kind)
    for projection in found.values():
        weight: Any = projection.weight
        layer = Layer(size, kind)
        nn.init.normal_(layer.down.weight, std=START, generator=generator)
        if SLOT not in projection._modules:
            projection.add_module(SLOT, Layers())
            projection.register_forward_hook(_adapted)
        projection._modules[SLOT][name] = layer.to(weight)  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
    choose(model, name)
    return frozenset(f"{place}.{SLOT}.{name}.{part}" for place in found for part in PARTS)


def _adapted(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook; a function of the module, so that a copied model uses the copied adapters."""
    return projection.get_submodule(SLOT)(output)


def choose(model: nn.Module, name: str | None) -> None:
    """Compute with the adapters of this name alone, or as the base; the head is not touched."""
    for layers in _layers(model):
        layers.chosen = name


def _layers(model: nn.Module) -> list[Layers]:
    return [module for module in model.modules() if isinstance(module, Layers)]


def places(model: PreTrainedModel, kind: Bottleneck) -> dict[str, nn.Module]:
    """The projections behind which the adapters stand, by name, in the order of the blocks.

    No architecture is named. Attention: its last projection, unless its name is that of a query, key or value.
    Feed-forward: the last projection outside attention, which leads back to the hidden size, while all others lead
    from it to that one's input (or twice that, gated). Anything else is refused.
    """
    wanted, _ = VARIANTS[kind.variant]
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, nn.Module] = {}
    for block in transformer_blocks(model):
        name = names[id(block)]
        attentions = list(_outermost_attention(block))
        taken = {id(part) for attention in attentions for part in attention.modules()}
        groups = [("attention", _projections(attention)) for attention in attentions]
        beside = [part for part in _projections(block) if id(part) not in taken]
        for place, projections in [*groups, ("feed-forward", beside)]:
            if place not in wanted:
                continue
            fits = _leads_back(projections, _hidden_size(model), alone=place == "feed-forward")
            if not fits or module_of(names[id(projections[-1])]) in INPUTS:
                raise UnsupportedModel(
                    f"{type(model).__name__}: no place for an adapter behind the {place} of {name}: needed linear "
                    "projections of which the last leads back to the hidden size; use method 'lora' or 'full'"
                )
            found[names[id(projections[-1])]] = projections[-1]
    return found


def _outermost_attention(block: nn.Module) -> Iterator[nn.Module]:
    """The attentions inside a block, itself excluded."""
    for child in block.children():
        kind = type(child).__name__.lower()
        if "attention" in kind or "attn" in kind:
            yield child
        else:
            yield from _outermost_attention(child)


def _projections(module: nn.Module) -> list[nn.Module]:
    """Linear layers in the order in which the module lists them, without those of adapters."""
    own = {id(part) for layers in _layers(module) for part in layers.modules()}
    return [part for part in module.modules() if isinstance(part, nn.Linear | Conv1D) and id(part) not in own]


def _leads_back(projections: list[nn.Module], size: int, *, alone: bool) -> bool:
    """Whether the last projection ends at the hidden size, and, if `alone`, all others lead from there to its input."""
    if not projections:
        return False
    *others, (inner, outer) = [_sizes(projection) for projection in projections]
    return outer == size and (
        not alone or (bool(others) and all(source == size and out in (inner, 2 * inner) for source, out in others))
    )


def _sizes(projection: nn.Module) -> tuple[int, int]:
    """(in, out); Conv1D stores its weight the other way round."""
    weight: Any = projection.weight
    first, second = weight.shape
    return (first, second) if isinstance(projection, Conv1D) else (second, first)


def _hidden_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)


def save_bottleneck(model: PreTrainedModel, kind: Bottleneck, parameters: frozenset[str], folder: Path) -> None:
    """Write adapters and head (`parameters`, as they were trained), their settings and the model's config.

    No file of it is a PEFT adapter's: peft and transformers say that they find no weights, instead of loading some.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value for name, value in model.state_dict().items() if name in parameters}
    kept = {_on_disk(name): value.detach().cpu().clone().contiguous() for name, value in state.items()}
    save_file(kept, folder / BOTTLENECK_WEIGHTS, metadata={"format": "pt"})
    base = str(model.config._name_or_path or "")
    base = home_free(Path(base).expanduser().resolve()) if Path(base).expanduser().is_dir() else base
    settings = {"base_model_name_or_path": base, "variant": kind.variant, "width": kind.width}
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / BOTTLENECK_CONFIG).write_text(text + "\n", encoding="utf-8")
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model._auto_class is not None:  # its config names code of its own
        custom_object_save(model, folder)


def _on_disk(name: str) -> str:
    """The name of a parameter without that of its checkpoint: ….dense.bottleneck.down.weight."""
    place, slot, rest = name.partition(f".{SLOT}.")
    return place + slot + rest.partition(".")[2] if slot else name


def kind_of(settings: Mapping[str, Any], given: str) -> Bottleneck:
    """The settings of a saved adapter; CheckpointError for what is none."""
    variant, width = settings.get("variant"), settings.get("width")
    if variant not in VARIANTS or isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise CheckpointError(
            f"{BOTTLENECK_CONFIG} of {given} has variant {variant!r} and width {width!r}: needed one of "
            f"{', '.join(VARIANTS)} and a whole number of at least 1"
        )
    return Bottleneck(variant, width)


@dataclass
class _Heads:
    """Head weights by name, of each checkpoint in a model by its name there, None the base; current: the one in use."""

    weights: dict[str | None, dict[str, Tensor]]
    current: str | None = None


def attach_bottleneck(model: PreTrainedModel, settings: Mapping[str, Any], files: tuple[Path, ...], given: str) -> str:
    """Put saved adapters and their head into the model in place, switch them on; the name they have there.

    CheckpointError where a weight is absent, has no place or another shape.
    """
    heads: _Heads = model.__dict__.setdefault(HEADS, _Heads({None: {}}))
    name = f"tuned{len(heads.weights) - 1}"
    try:
        added = insert(model, kind_of(settings, given), name=name)
    except (TrainingError, UnsupportedModel) as error:
        raise CheckpointError(f"the adapter {given} does not fit its base: {error}") from error
    own = dict(model.named_parameters())
    targets = {_on_disk(stored): own[stored].data for stored in added}
    head = {stored: own[stored].data for stored in head_parameters(model)}
    with Shelf(files) as shelf:
        for stored in shelf.names:
            target = targets.get(stored, head.get(stored))
            if target is None or tuple(target.shape) != shelf.shape(stored):
                raise CheckpointError(
                    f"the adapter {given} holds {stored} of shape {shelf.shape(stored)}, which has no place in its "
                    "base: it was made for another model"
                )
        if absent := sorted(targets.keys() - set(shelf.names)):
            raise CheckpointError(f"the adapter {given} lacks {len(absent)} of its weights, the first is {absent[0]}")
        for stored, target in targets.items():
            target.copy_(shelf.read(stored))
        heads.weights[name] = {stored: shelf.read(stored).to(head[stored]) for stored in shelf.names if stored in head}
    _use(model, None)
    for stored in heads.weights[name]:
        heads.weights[None].setdefault(stored, head[stored].clone())
    _use(model, name)
    return name


@contextmanager
def only(model: nn.Module, name: str | None) -> Iterator[None]:
    """The model computes with the adapters and the head of this checkpoint, or as the base; afterwards as before."""
    heads = model.__dict__.get(HEADS)
    if heads is None:
        yield
        return
    before = heads.current
    try:
        _use(model, name)
        yield
    finally:
        _use(model, before)


def _use(model: nn.Module, name: str | None) -> None:
    """Adapters and head of one checkpoint; a weight of the head that it does not bring is the base's.

    Numbers are copied into the model's own memory: at another address sums may differ in the last digit.
    """
    choose(model, name)
    heads: _Heads = model.__dict__[HEADS]
    if heads.current != name:
        own = dict(model.named_parameters())
        for stored, numbers in {**heads.weights[None], **heads.weights[name]}.items():
            own[stored].data.copy_(numbers)
        heads.current = name
