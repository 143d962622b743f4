"""Attention knockout: chosen keys are hidden from every row of chosen attentions while a block runs (METRICS 3.10).

It happens where `record` measures, in the attention function that record.py registers: so it reaches every model that
can be recorded, and what is recorded inside the block is the attention that is left.
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.checkpoints.switch import configs_of, lock, off_interface, restore, switch
from attnlens.core.errors import ShapeError, UnsupportedModel

SLOT = "_attnlens_knockouts"


@contextmanager
def without_keys(model: nn.Module, keys: Tensor, layers: Iterable[int] | None = None) -> Iterator[None]:
    """While it is open, no row of `model` sees the `keys` (B, T) bool of its texts: their logits are −∞.

    layers: numbers of the attentions, in the order they run; None: all. A token that would then see nothing still sees
    itself: only a hidden token can come to that, and only where it saw no other key than hidden ones. Virtual tokens
    before the text stay visible. Call the model itself, with the batch that `keys` describe, and without gradients'
    recomputation, which would count its attentions twice.

    Raises UnsupportedModel where attention runs past transformers' attention interface, where some of the layers mix
    tokens without attention, so that hiding keys would not take them out, and for an encoder–decoder, whose encoder
    alone it can have; ShapeError where `keys` do not fit.
    """
    root = getattr(model, "_orig_mod", model)
    if "decoder_input_ids" in inspect.signature(root.forward).parameters:
        raise UnsupportedModel(f"{type(root).__name__} reads two texts: hide keys in its encoder alone")
    check_hidable(root)
    knockout = _Knockout(root, keys, layers)
    configs = configs_of(root)
    modules = list(root.modules())
    hooks = [
        root.register_forward_pre_hook(knockout.begin),
        root.register_forward_hook(knockout.end),
    ]
    with lock:
        switch(configs)
        for module in modules:
            module.__dict__[SLOT] = (*module.__dict__.get(SLOT, ()), knockout)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with lock:
            for module in modules:
                left = tuple(other for other in module.__dict__.pop(SLOT) if other is not knockout)
                if left:
                    module.__dict__[SLOT] = left
            restore(configs)


def check_hidable(root: nn.Module) -> None:
    """Raise UnsupportedModel where keys cannot be hidden because attention runs past the interface."""
    if (bypassed := off_interface(root)) is not None:
        raise UnsupportedModel(
            f"{bypassed} computes attention outside transformers' attention interface: keys cannot be hidden from it"
        )


def edited(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """The mask of this attention with the hidden keys taken out; as it came where no block is open.

    causal: what a mask of None means here: rows look back only (True), or see every key.
    """
    for knockout in module.__dict__.get(SLOT, ()):
        if knockout.next():
            mask = knockout.hide(query, key, mask, causal)
    return mask


class _Knockout:
    """One open block: the hidden keys, and how many attentions the running call has come to."""

    def __init__(self, root: Any, keys: Tensor, layers: Iterable[int] | None):
        if keys.ndim != 2 or keys.dtype != torch.bool:
            raise ShapeError(f"keys to hide must be (B, T) bool; got {tuple(keys.shape)} {keys.dtype}")
        self.keys = keys
        self.layers = None if layers is None else frozenset(layers)
        self.expected = getattr(root.config, "num_hidden_layers", None) if hasattr(root, "config") else None
        self.seen = 0

    def begin(self, root: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook of the root: a call starts."""
        self.seen = 0

    def end(self, root: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Post-hook of the root: were the keys really out of every layer that was meant?"""
        if self.layers is not None and not self.layers <= set(range(self.seen)):
            raise ShapeError(f"layers must lie in 0 … {self.seen - 1}; got {sorted(self.layers)}")
        if self.seen == 0 or (isinstance(self.expected, int) and self.seen < self.expected):
            raise UnsupportedModel(
                f"{type(root).__name__} ran {self.seen} attentions through transformers' attention interface in "
                f"{self.expected} layers: tokens reach others past it, so hiding keys does not take them out"
            )

    def next(self) -> bool:
        """Count one attention; whether it is one of the chosen."""
        number, self.seen = self.seen, self.seen + 1
        return self.layers is None or number in self.layers

    def hide(self, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """The mask (B, 1 or H, Q, K) without the hidden keys, boolean or float as it came."""
        texts, rows, columns = query.shape[0], query.shape[2], key.shape[2]
        in_front = columns - self.keys.shape[1]
        if self.keys.shape[0] != texts or in_front < 0:
            raise ShapeError(f"keys to hide must be ({texts}, {columns}) for this batch; got {tuple(self.keys.shape)}")
        # Virtual tokens stand before the text.
        hidden = nn.functional.pad(self.keys.to(query.device), (in_front, 0))[:, None, None]
        # Row i stands at key i + K − Q.
        own = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        before, own = own.tril(columns - rows), own.tril(columns - rows).triu(columns - rows)
        if mask is None:
            visible = (before if causal else torch.ones_like(before))[None, None]
        else:
            visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        left = visible & ~hidden
        left = left | (own & visible & ~left.any(-1, keepdim=True))
        if mask is None or mask.dtype == torch.bool:
            return left
        return torch.where(visible & ~left, torch.finfo(mask.dtype).min, mask)
