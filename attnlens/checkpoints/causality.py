"""Whether a model's attention looks back only."""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from attnlens.checkpoints.record import record
from attnlens.checkpoints.switch import off_interface

_seen: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def is_causal(model: Any) -> bool:
    """As its modules say; of a model off transformers' attention interface, as three tokens show: those say nothing."""
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        return True
    if off_interface(model) is None:
        return False
    if model not in _seen:
        ids = torch.arange(3, device=model.device)[None]
        with torch.no_grad(), record(model, ("max_weight",)) as tape:
            model(input_ids=ids)
        _seen[model] = all(site.stack == "decoder" for site in tape.sites)
    return _seen[model]
