"""The three groups that a model's parameters fall into.

*Head*: all that lies outside the backbone, and the backbone's pooler, which a sequence classifier uses as the first
layer of its head whether or not the base had trained one. *Blocks*: the transformer blocks. *Rest*: embeddings and the
norms beside the blocks, trained by `full` alone. A language model whose head is the table of embeddings (tied weights)
has no head of its own: the table belongs to the rest.
"""

from torch import nn
from transformers import PreTrainedModel

from attnlens.core.errors import UnsupportedModel


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
            "layers or keeps them in an unknown place. Use method 'full', 'head' or 'lora'."
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
    pooler = getattr(backbone, "pooler", None)
    pooled = {id(parameter) for parameter in pooler.parameters()} if isinstance(pooler, nn.Module) else set[int]()
    body = {id(parameter) for parameter in backbone.parameters()} - pooled
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) not in body)


def _attends(module: nn.Module) -> bool:
    names = [type(part).__name__.lower() for part in module.modules()]
    return any("attention" in name or "attn" in name for name in names)
