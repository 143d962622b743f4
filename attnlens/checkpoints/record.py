"""`record`: attention statistics of any model on transformers' attention interface, without keeping a T×T map.

One attention function is registered at import, for good, with the interface and with its masks under one neutral name.
`record` points the model's configs at it and hangs a session on each module; modules without a session, and calls that
no root opened (a checkpointed block recomputed in the backward pass), run the original implementation.
"""

import inspect
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attnlens.checkpoints.tape import Call, Site, Tape
from attnlens.core.errors import AttnlensError, EmptyTape, ShapeError, UnsupportedModel
from attnlens.core.rows import STATISTICS, Groups, dense_map, known
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted, attend

# Names that contain sdpa, flash or flex are parsed by transformers; this one is not.
NAME = "attnlens"
SLOT = "_attnlens_sessions"
MAP = "map"

_lock = threading.Lock()
# Config objects under recording: id → (config, implementation to restore, number of sessions).
_switched: dict[int, tuple[Any, str | None, int]] = {}


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The registered function: the original attention, or output and statistics together under a session."""
    sessions = [session for session in module.__dict__.get(SLOT, ()) if session.call is not None]
    if not sessions:
        return _original(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scores = _scores(module, query, key, attention_mask, scaling, kwargs)
    exact = (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or bool(kwargs.get("dropout"))
        or any(session.exact or not session.whole() for session in sessions)
    )
    if exact:
        result = _original(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    else:
        output = sessions[0].measure(module, query, key, value, scores)
        assert output is not None
        result = output.transpose(1, 2).contiguous(), None
    for session in sessions if exact else sessions[1:]:
        session.measure(module, query, key, None, scores)
    return result


def attention_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """The mask the model would have had: eager attention expects an additive one that is never left out.

    A block recomputed in the backward pass, after recording, still gets this mask, with the model's own attention.
    """
    if _switched.get(id(config), (None, None, 0))[1] == "eager":
        return eager_mask(*args, config=config, **kwargs)
    return sdpa_mask(*args, config=config, **kwargs)


AttentionInterface.register(NAME, attention)
# Under the same name, or transformers leaves the mask out without a word.
AttentionMaskInterface.register(NAME, attention_mask)


def _scores(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, kwargs: Mapping[str, Any]
) -> Scores:
    """What the module asked of its attention, as one record."""
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return Scores(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        mask=mask,
        # The mask is None when a plain causal one may be skipped; a single query sees all keys.
        causal=bool(is_causal) and mask is None and query.shape[2] > 1,
        softcap=kwargs.get("softcap"),
        bias=kwargs.get("position_bias"),
        sinks=kwargs.get("s_aux"),
    )


def _original(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The implementation the model had before it was recorded, bit for bit."""
    _, name, _ = _switched.get(id(getattr(module, "config", None)), (None, "sdpa", 0))
    if name == "eager":
        forward = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if forward is None:
            raise UnsupportedModel(f"{type(module).__name__} has no eager attention of its own; load it with sdpa")
        return forward(module, query, key, value, mask, **kwargs)
    if name not in (None, "sdpa"):
        raise UnsupportedModel(
            f"exact recording cannot keep {name!r} attention, whose masks differ; load the model with "
            'attn_implementation="sdpa", or record under torch.no_grad() without exact=True'
        )
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)


@dataclass
class record:  # a verb in lower case, like torch.no_grad
    """Record attention statistics of every forward pass made inside the `with` block.

    model: a transformers or PEFT model on the attention interface; others raise UnsupportedModel.
    statistics: names of the registry (attnlens.core.rows.STATISTICS).
    groups: (B, K) integers 0 other content, 1 salient, 2 sink, 3 virtual, −1 padding; or (B, K, G) float weights with
        the content in column 0.
    rows: (B, Q) weights, or (B, Q, G) with rows of its own for each group column (column 0 serves the statistics
        without groups); the tape then holds row means, (B, L, H[, G]), and their counts instead of rows.
    layers, heads: numbers of the attention sites (in the order they run) and of their heads; None: all.
    exact: keep the model's own implementation and compute the statistics beside it. Without it, and under no_grad,
        output and statistics come from one tiled pass in float32 (≤ 1e-5 relative).

    Gives a `Tape`. Raises EmptyTape when the block ends without a complete forward pass. Nothing stays behind.
    """

    model: nn.Module
    statistics: tuple[str, ...] = ("entropy",)
    groups: Tensor | None = None
    rows: Tensor | None = None
    layers: Iterable[int] | None = None
    heads: Iterable[int] | None = None
    exact: bool = False
    _session: "_Session | None" = field(default=None, init=False, repr=False)

    def __enter__(self) -> Tape:
        """Switch the model's attention and open the tape."""
        self._session = _Session(self)
        return self._session.tape

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Put everything back, then complain if nothing was recorded."""
        assert self._session is not None
        self._session.close()
        if error is None:
            self._session.check()


def attention_maps(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> Tensor:
    """Dense attention weights (B, L, H, Q, K) of chosen layers and heads: the only place that keeps a T×T map.

    Float32 softmax rows without dropout; 0 where a key is hidden, NaN on padding rows.
    """
    recorder = record(model, statistics=(MAP,), layers=layers, heads=heads, exact=True)
    with torch.no_grad(), recorder as tape:
        model(**batch)
    return tape[MAP]


class _Session:
    """One `record` block: hooks, switched configs, and the call now open."""

    def __init__(self, order: record):
        self.names = order.statistics if order.statistics == (MAP,) else known(tuple(order.statistics))
        self.groups = None if order.groups is None else Groups.of(order.groups)
        self.padding = None if order.groups is None or order.groups.ndim == 3 else order.groups < 0
        self.rows = order.rows
        self.layers = None if order.layers is None else set(order.layers)
        self.heads = None if order.heads is None else list(order.heads)
        self.exact = order.exact
        self.tape, self.call, self.arguments = Tape(), None, {}
        self.thread = threading.get_ident()
        self.root = getattr(order.model, "_orig_mod", getattr(order.model, "module", order.model))
        self.configs = _configs(self.root)
        self.modules = dict(self.root.named_modules(remove_duplicate=True))
        self.sites = {id(module): name for name, module in self.modules.items()}
        self.hooks: list[Any] = []
        if "received" in self.names and self.rows is not None and not bool(((self.rows == 0) | (self.rows == 1)).all()):
            raise ShapeError("received needs rows of 0 and 1: which rows to add up, not how much they weigh")
        self.open()

    def open(self) -> None:
        """Switch configs, hang this session on the modules, hook the root."""
        with _lock:
            others = [other for module in self.modules.values() for other in module.__dict__.get(SLOT, ())]
            if any(other.thread != self.thread for other in others):
                raise AttnlensError("another thread is recording this model: give each thread its own copy")
            for config in self.configs:
                _, name, count = _switched.get(id(config), (config, config._attn_implementation_internal, 0))
                _switched[id(config)] = (config, name, count + 1)
                config._attn_implementation_internal = NAME
            for module in self.modules.values():
                module.__dict__[SLOT] = (*module.__dict__.get(SLOT, ()), self)
        self.hooks = [
            self.root.register_forward_pre_hook(self.begin, with_kwargs=True),
            self.root.register_forward_hook(self.end, always_call=True),
        ]
        # The root may be a wrapper that builds the mask itself; an encoder–decoder's inner models share one name.
        if not getattr(self.configs[0], "is_encoder_decoder", False):
            inner = [m for m in self.modules.values() if isinstance(m, PreTrainedModel) and m is not self.root]
            self.hooks += [model.register_forward_pre_hook(self.note, with_kwargs=True) for model in inner]

    def close(self) -> None:
        """Undo `open`, whatever happened in between."""
        for hook in self.hooks:
            hook.remove()
        with _lock:
            for module in self.modules.values():
                left = tuple(other for other in module.__dict__[SLOT] if other is not self)
                if left:
                    module.__dict__[SLOT] = left
                else:
                    del module.__dict__[SLOT]
            for config in self.configs:
                config, name, count = _switched.pop(id(config))
                if count > 1:
                    _switched[id(config)] = (config, name, count - 1)
                else:
                    config._attn_implementation_internal = name

    def check(self) -> None:
        """After the block: was there a complete call, and did any attention run through the interface?"""
        if not self.tape.calls:
            raise EmptyTape("the block ended before one forward pass was complete: call the model inside it")
        if not any(call.seen for call in self.tape.calls):
            raise UnsupportedModel(
                f"{type(self.root).__name__} ran no attention through transformers' attention interface"
            )
        most = max(call.seen for call in self.tape.calls)
        if self.layers is not None and not self.layers <= set(range(most)):
            raise ShapeError(f"layers must lie in 0 … {most - 1}; got {sorted(self.layers)}")

    def begin(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the root: a call opens; its padding masks are noted."""
        if threading.get_ident() != self.thread:
            raise AttnlensError("this model is being recorded by another thread: give each thread its own copy")
        self.arguments, self.call = {}, Call()
        self.note(root, args, kwargs)

    def note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of each inner model: what it was called with, by name."""
        try:
            bound = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        except TypeError:
            bound = kwargs
        known = {**bound, **bound.get("kwargs", {})}
        self.arguments |= {name: value for name, value in known.items() if value is not None}

    def end(self, root: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Post-hook of the root, also after an exception: only a complete call is kept."""
        if output is not None and self.call is not None:
            self.tape.calls.append(self.call)
        self.call = None

    def whole(self) -> bool:
        """Whether one pass can serve output and statistics: all heads are measured, and nobody asked for the map."""
        assert self.call is not None
        selected = self.layers is None or self.call.seen in self.layers
        asked = self.names == (MAP,) or bool(self.arguments.get("output_attentions"))
        return self.heads is None and selected and not asked

    def measure(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor | None, scores: Scores
    ) -> Tensor | None:
        """Statistics of one attention onto the tape; its output too if v is given."""
        call = self.call
        assert call is not None
        call.seen += 1
        if self.layers is not None and call.seen - 1 not in self.layers:
            return None
        site = self._site(module, call)
        self._check(query, key)
        queries = self._queries(site, query)
        if self.heads is not None:
            query, key, scores = _only(self.heads, query, key, scores)
        if self.names == (MAP,):
            weights = dense_map(query.detach(), key.detach(), scores).weights[..., : key.shape[2]]
            results = {MAP: weights if queries is None else weights.masked_fill(~queries[:, None, :, None], torch.nan)}
            output = None
        else:
            wanted = Wanted(self.names, self.groups, queries)
            value = None if value is None else value.detach()
            output, results = attend(query.detach(), key.detach(), value, scores, wanted)
        call.sites.append(site)
        for name, result in results.items():
            if self.rows is not None and name != MAP and STATISTICS[name].axes != "key":
                result, count = _row_mean(result, self.rows.to(result))
                call.counts.setdefault(name, []).append(count)
            call.values.setdefault(name, []).append(result)
        return output

    def _check(self, query: Tensor, key: Tensor) -> None:
        for name, tensor, length in (("groups", self.groups, key.shape[2]), ("rows", self.rows, query.shape[2])):
            shape = None if tensor is None else (tensor.content if isinstance(tensor, Groups) else tensor).shape[:2]
            if shape is not None and tuple(shape) != (query.shape[0], length):
                raise ShapeError(f"{name} must be ({query.shape[0]}, {length}) for this batch; got {tuple(shape)}")

    def _site(self, module: nn.Module, call: Call) -> Site:
        """Where this attention stands in the model."""
        name = self.sites.get(id(module), type(module).__name__)
        kind = "cross" if re.search(r"cross|encoder_attn|EncDec", name) else "self"
        if getattr(self.configs[0], "is_encoder_decoder", False):
            stack = "decoder" if re.search(r"(^|\.)decoder\.", name) else "encoder"
        else:
            stack = "decoder" if getattr(module, "is_causal", False) else "encoder"
        return Site(name, stack, kind, sum((site.stack, site.kind) == (stack, kind) for site in call.sites))

    def _queries(self, site: Site, query: Tensor) -> Tensor | None:
        """Rows that carry data, (B, Q): no padding, and wanted by `rows`."""
        decoder = getattr(self.configs[0], "is_encoder_decoder", False) and site.stack == "decoder"
        mask = self.arguments.get("decoder_attention_mask" if decoder else "attention_mask")
        length = query.shape[2]
        valid = [] if self.rows is None else [(self.rows if self.rows.ndim == 2 else self.rows.amax(2)) > 0]
        if mask is not None and mask.ndim == 2 and mask.shape[1] >= length:
            valid.append(mask[:, -length:] != 0)
        if self.padding is not None and self.padding.shape[1] == length and not decoder:
            valid.append(~self.padding)
        result = None
        for part in valid:
            part = part.to(query.device)
            result = part if result is None else result & part
        return result


def _configs(root: nn.Module) -> list[Any]:
    """Every config object the model's modules read their implementation from; refuses models off the interface."""
    models = [module for module in root.modules() if isinstance(module, PreTrainedModel)]
    if not models:
        raise UnsupportedModel(f"{type(root).__name__} holds no transformers model")
    for model in models:
        if not model._can_set_attn_implementation():
            raise UnsupportedModel(
                f"{type(model).__name__} computes attention outside transformers' attention interface; "
                "attnlens cannot measure it yet"
            )
    found: dict[int, Any] = {id(model.config): model.config for model in models}
    for module in root.modules():
        config = module.__dict__.get("config")
        if hasattr(config, "_attn_implementation_internal"):
            found.setdefault(id(config), config)
    return list(found.values())


def _only(heads: list[int], query: Tensor, key: Tensor, scores: Scores) -> tuple[Tensor, Tensor, Scores]:
    """q, k and scores of some query heads; each gets its own key head."""
    if any(not 0 <= head < query.shape[1] for head in heads):
        raise ShapeError(f"heads must lie in 0 … {query.shape[1] - 1}; got {heads}")
    repeats = query.shape[1] // key.shape[1]

    def cut(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, heads]

    sinks = None if scores.sinks is None else scores.sinks[heads]
    chosen = Scores(
        scores.scale, cut(scores.mask), scores.causal, scores.window, scores.softcap, cut(scores.bias), sinks
    )
    return query[:, heads], key[:, [head // repeats for head in heads]], chosen


def _row_mean(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean over the row axis of (B, H, Q[, G]) and how many rows it stands on; NaN where there is none."""
    shared = rows if rows.ndim == 2 else rows[..., 0]
    weights = shared[:, None] if values.ndim == 3 else (shared[..., None] if rows.ndim == 2 else rows)[:, None]
    weights = weights * ~values.isnan()
    total = weights.sum(2)
    mean = (values.nan_to_num() * weights).sum(2) / torch.where(total > 0, total, torch.nan)
    return mean, (weights > 0).sum(2)
