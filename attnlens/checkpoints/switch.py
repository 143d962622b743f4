"""Which attention a model's configs name: switched to attnlens' own while it is recorded, and put back after it.

Models built from one config object switch together, and `record` nests; so each object is counted. While anything is
recorded, code under torch.compile runs uncompiled: hooks and a tape do not belong in a graph.
"""

import threading
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from attnlens.core.errors import UnsupportedModel

# Names that contain sdpa, flash or flex are parsed by transformers; this one is not.
NAME = "attnlens"

lock = threading.Lock()
# Config objects under recording: id → (config, the implementations before each switch, the model's own first).
_switched: dict[int, tuple[Any, list[str | None]]] = {}
# The compiler's stance that the first session set, and the last one takes back.
_uncompiled: list[Any] = []


def off_interface(root: nn.Module) -> str | None:
    """The class of the first model inside `root` that computes attention past transformers' interface, if one does."""
    models = [module for module in root.modules() if isinstance(module, PreTrainedModel)]
    return next((type(model).__name__ for model in models if not model._can_set_attn_implementation()), None)


def configs_of(root: nn.Module) -> list[Any]:
    """Every config object the model's modules read their implementation from."""
    models = [module for module in root.modules() if isinstance(module, PreTrainedModel)]
    if not models:
        raise UnsupportedModel(f"{type(root).__name__} holds no transformers model")
    found: dict[int, Any] = {id(model.config): model.config for model in models}
    for module in root.modules():
        config = module.__dict__.get("config")
        if hasattr(config, "_attn_implementation_internal"):
            found.setdefault(id(config), config)
    return list(found.values())


def switch(configs: list[Any], to: str = NAME) -> None:
    """Point the configs at an attention, attnlens' own. The caller holds `lock`."""
    if not _switched:
        _uncompiled.append(torch.compiler.set_stance("force_eager"))
    for config in configs:
        _, before = _switched.setdefault(id(config), (config, []))
        before.append(config._attn_implementation_internal)
        config._attn_implementation_internal = to


def restore(configs: list[Any]) -> None:
    """Undo the last `switch` of each; the first one's undoing puts the model's own back. The caller holds `lock`."""
    for config in configs:
        _, before = _switched[id(config)]
        config._attn_implementation_internal = before.pop()
        if not before:
            del _switched[id(config)]
    if not _switched:
        _uncompiled.pop().__exit__(None, None, None)


def own(config: Any) -> str | None:
    """The implementation the model has when it is not recorded."""
    return _switched[id(config)][1][0] if id(config) in _switched else "sdpa"
