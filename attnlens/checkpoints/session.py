"""What happens inside one `record` block: hooks, the call now open, and what each attention leaves on the tape."""

import inspect
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnlens.checkpoints.dense import MAP, Drawn
from attnlens.checkpoints.leaving import SLOT, check_heads, leave
from attnlens.checkpoints.reduced import REASON, TRAINING, Reducer
from attnlens.checkpoints.switch import NAME, configs_of, lock, off_interface, restore, switch
from attnlens.checkpoints.tape import Call, Site, Tape
from attnlens.checkpoints.values import NAME as SHARE_VALUE
from attnlens.checkpoints.values import Values, lengths
from attnlens.checkpoints.virtual import of_text, prepended, virtual_tokens
from attnlens.core.errors import AttnlensError, EmptyTape, ShapeError, UnknownName, UnsupportedModel
from attnlens.core.kernels import attend
from attnlens.core.pairs import PAIRS, Logits
from attnlens.core.rows import STATISTICS, Groups
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted


class Order(Protocol):
    """What `record` was asked for; its docstring says what the fields mean."""

    model: nn.Module
    statistics: tuple[str, ...]
    groups: Tensor | None
    rows: Tensor | None
    together: tuple[tuple[int, ...], ...]
    columns: Mapping[str, tuple[int, ...]]
    layers: Any
    heads: Any
    exact: bool
    keep: bool
    against: Sequence[Logits] | None
    without_virtual: bool
    _drawn: Drawn
    _fold: Callable[[Site, dict[str, Tensor]], None] | None


class Session:
    """One `record` block on one model."""

    def __init__(self, order: Order):
        self.names, self.pairs = _names(order)
        self.in_front = virtual_tokens(order.model)
        self.virtual = self.in_front if order.without_virtual else 0
        alone = order.groups, order.rows
        groups, self.rows = alone if order.without_virtual else prepended(order.model, *alone)
        self.groups = None if groups is None else Groups.of(groups)
        self.padding = None if groups is None or groups.ndim == 3 else groups < 0
        self.layers = None if order.layers is None else set(order.layers)
        self.heads = None if order.heads is None else list(order.heads)
        self.exact, self.keep, self.against = order.exact, order.keep, order.against
        self.together, self.columns, self.fold = order.together, order.columns, order._fold
        self.drawn = order._drawn
        self.tape, self.call, self.arguments = Tape(), None, {}
        self.thread = threading.get_ident()
        self.root = getattr(order.model, "_orig_mod", getattr(order.model, "module", order.model))
        self.configs, self.bypassed = configs_of(self.root), off_interface(self.root)
        self.modules = dict(self.root.named_modules(remove_duplicate=True))
        self.sites = {id(module): name for name, module in self.modules.items()}
        self.hooks: list[Any] = []
        if self.drawn.weighted and self.bypassed:
            raise UnsupportedModel(f"no value-weighted maps: {REASON}")
        of_values = MAP if self.drawn.weighted else SHARE_VALUE if SHARE_VALUE in self.names else None
        self.values = None if of_values is None or self.bypassed else Values(self.modules, of_values)
        # Those that take the batch's masks: an encoder–decoder alone knows which of the two is whose.
        models = [module for module in self.modules.values() if isinstance(module, PreTrainedModel)]
        pairs = [model for model in models if "decoder_input_ids" in inspect.signature(model.forward).parameters]
        self.two_stacks, self.callers = bool(pairs), pairs or models
        if "received" in self.names and self.rows is not None and not bool(((self.rows == 0) | (self.rows == 1)).all()):
            raise ShapeError("received needs rows of 0 and 1: which rows to add up, not how much they weigh")
        self.open()

    def open(self) -> None:
        """Switch configs, hang this session on the modules, hook the root."""
        with lock:
            others = [other for module in self.modules.values() for other in module.__dict__.get(SLOT, ())]
            if any(other.thread != self.thread for other in others):
                raise AttnlensError("another thread is recording this model: give each thread its own copy")
            # What is off the interface hands its weights back only as eager attention.
            switch(self.configs, NAME if self.bypassed is None else "eager")
            for module in self.modules.values():
                module.__dict__[SLOT] = (*module.__dict__.get(SLOT, ()), self)
        self.hooks = [
            self.root.register_forward_pre_hook(self.begin, with_kwargs=True),
            self.root.register_forward_hook(self.end, always_call=True),
        ]
        # The root may be a wrapper that builds the masks itself.
        callers = [model for model in self.callers if model is not self.root]
        self.hooks += [model.register_forward_pre_hook(self.note, with_kwargs=True) for model in callers]
        self.reducer = None if self.bypassed is None else Reducer(self)

    def close(self) -> None:
        """Undo `open`, whatever happened in between."""
        for hook in self.hooks:
            hook.remove()
        for part in (self.values, self.reducer):
            if part is not None:
                part.close()
        with lock:
            for module in self.modules.values():
                left = tuple(other for other in module.__dict__[SLOT] if other is not self)
                if left:
                    module.__dict__[SLOT] = left
                else:
                    del module.__dict__[SLOT]
            restore(self.configs)

    def check(self) -> None:
        """After the block: was there a complete call, did attention run through the interface, was all of it there?"""
        if not self.tape.calls:
            raise EmptyTape("the block ended before one forward pass was complete: call the model inside it")
        if not any(call.seen for call in self.tape.calls):
            raise UnsupportedModel(
                f"{type(self.root).__name__} ran no attention through transformers' attention interface"
                + ("" if self.bypassed is None else ", and hands back no weights")
                + (TRAINING if self.bypassed and self.root.training else "")
            )
        most = max(call.seen for call in self.tape.calls)
        if self.layers is not None and not self.layers <= set(range(most)):
            raise ShapeError(f"layers must lie in 0 … {most - 1}; got {sorted(self.layers)}")
        fewest = min(len(call.sites) for call in self.tape.calls)
        if self.against is not None and fewest < len(self.against):
            raise ShapeError(f"against holds the logits of {len(self.against)} attentions; this model ran {fewest}")

    def begin(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the root: a call opens; its padding masks are noted."""
        if threading.get_ident() != self.thread:
            raise AttnlensError("this model is being recorded by another thread: give each thread its own copy")
        self.arguments, self.call = {}, Call()
        self.note(root, args, kwargs)

    def note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of each model that takes the masks: what it was called with, by name."""
        try:
            bound = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        except TypeError:
            bound = kwargs
        known = {**bound, **bound.get("kwargs", {})}
        self.arguments |= {name: value for name, value in known.items() if value is not None}
        if getattr(self.arguments.get("past_key_values"), "is_compileable", False):
            raise UnsupportedModel(
                "a static cache holds keys that do not exist yet: record with a DynamicCache or none"
            )

    def end(self, root: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Post-hook of the root, also after an exception: only a complete call is kept."""
        if output is not None and self.call is not None:
            if self.values is not None:
                self.values.settle(self.call)
            self.tape.calls.append(self.call)
        self.call = None

    def whole(self) -> bool:
        """Whether one pass can serve output and statistics: all heads are measured, and nobody asked for the map."""
        assert self.call is not None
        selected = self.layers is None or self.call.seen in self.layers
        asked = self.names == (MAP,) or bool(self.arguments.get("output_attentions"))
        return self.heads is None and selected and not asked and not self.virtual

    def measure(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores, output: bool
    ) -> Tensor | None:
        """Statistics of one attention onto the tape; its output too if it is wanted."""
        call, site = self.call, self.site(module, looks_back=getattr(module, "is_causal", False))
        if site is None:
            return None
        assert call is not None
        if self.virtual:
            query, key, scores = of_text(query, key, scores, self.virtual)
        scores = _without_padding(scores, _mask(self, _texts(site)[1]))
        queries = self.valid(site, len(query), query.shape[2], key.shape[2], query.device)
        read, projection = value.detach()[:, :, self.virtual :], None
        if self.values is not None:
            projection = self.values.output(site.name, len(call.sites), read, query.shape[1])
        if self.heads is not None:
            check_heads(self.heads, query.shape[1])
            read, projection = read[:, _key_heads(self.heads, query, key)], _cut(projection, self.heads)
            query, key, scores = _only(self.heads, query, key, scores)
        logits, attended = Logits(query.detach(), key.detach(), _detached(scores)), None
        if self.names == (MAP,):
            weights = self.drawn.weights(logits)
            if self.drawn.weighted:
                weights = self.drawn.carried(weights, read, projection)
            results = {MAP: self.without(weights, queries)}
        else:
            norms = None if self.values is None else lengths(read, projection, query.shape[1])
            against = _base(self.against, len(call.sites)).to(query.device) if self.pairs else None
            wanted = Wanted(self.names, self.groups, queries, norms, self.columns, self.pairs, against, self.keep)
            taken = value.detach() if output else None
            attended, results = attend(logits.query, logits.key, taken, logits.scores, wanted)
        if self.keep:
            call.logits.append(_copied(logits))
        leave(self, site, results)
        return attended

    def without(self, maps: Tensor, queries: Tensor | None) -> Tensor:
        """The drawn maps (B, H, Q, K) with NaN in the rows that are no data, as `valid` says it of all rows."""
        if queries is None:
            return maps
        return maps.masked_fill(~queries[:, self.drawn.rows(queries.shape[1])][:, None, :, None], torch.nan)

    def site(self, module: nn.Module, *, looks_back: bool) -> Site | None:
        """Where the attention that runs now stands in the model; None where it is not one of the chosen layers."""
        call = self.call
        assert call is not None
        call.seen += 1
        if self.layers is not None and call.seen - 1 not in self.layers:
            return None
        name = self.sites.get(id(module), type(module).__name__)
        kind = "cross" if re.search(r"cross|encoder_attn|EncDec", name) else "self"
        decoder = re.search(r"(^|\.)decoder\.", name) if self.two_stacks else looks_back
        stack = "decoder" if decoder or kind == "cross" else "encoder"
        return Site(name, stack, kind, sum((site.stack, site.kind) == (stack, kind) for site in call.sites))

    def valid(self, site: Site, texts: int, length: int, keys: int, device: torch.device) -> Tensor | None:
        """Rows of a site that carry data, (B, Q): no padding, and wanted by `rows`; None: all.

        Groups mark the tokens of one text, rows too: ShapeError unless it is the one that every measured site reads.
        """
        assert self.call is not None
        for name, tensor, tokens, role in (("groups", self.groups, keys, 1), ("rows", self.rows, length, 0)):
            if tensor is not None:
                read = {_texts(other)[role] for other in (*self.call.sites, site)}
                _fits(name, tensor, (texts, tokens), read, named=self.two_stacks)
        mask = _mask(self, site.stack)
        valid = [] if self.rows is None else [(self.rows if self.rows.ndim == 2 else self.rows.amax(2)) > 0]
        if mask is not None and mask.shape[1] >= length:
            valid.append(mask[:, -length:] != 0)
        if self.padding is not None and site.kind == "self":
            valid.append(~self.padding[:, -length:])
        result = None
        for part in valid:
            part = part.to(device)
            result = part if result is None else result & part
        return result


def _mask(session: Session, stack: str) -> Tensor | None:
    """The mask (B, T) of the tokens of a stack, 0 on padding, as the model was given it."""
    decoder = session.two_stacks and stack == "decoder"
    mask = session.arguments.get("decoder_attention_mask" if decoder else "attention_mask")
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _names(order: Order) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Statistics of one map, and of two."""
    names = tuple(order.statistics)
    if names == (MAP,):
        return names, ()
    for name in names:
        if name not in STATISTICS and name not in PAIRS:
            raise UnknownName.among("statistic", name, [*STATISTICS, *PAIRS])
    pairs = tuple(name for name in names if name in PAIRS)
    if pairs and order.against is None:
        raise ShapeError(
            f"{', '.join(pairs)} compare two models: pass against=call.logits of record(base, keep=True) on this batch"
        )
    return tuple(name for name in names if name not in PAIRS), pairs


def _fits(name: str, tensor: Any, shape: tuple[int, int], read: set[str], *, named: bool) -> None:
    """Raise ShapeError where groups or rows are not of the one text that is read."""
    if len(read) > 1:
        raise ShapeError(
            f"{name} mark the tokens of one text, but layers of both encoder and decoder tokens are measured: "
            "choose those of one with layers= (attention 0, 1, … in the order they run)"
        )
    given = tuple((tensor.content if isinstance(tensor, Groups) else tensor).shape[:2])
    if given != shape:
        of = f"the {read.pop()} tokens of " if named else ""
        raise ShapeError(f"{name} must be {shape} for {of}this batch; got {given}")


def _base(against: Sequence[Logits] | None, number: int) -> Logits:
    """The kept map that this site is held against."""
    if against is None or number >= len(against):
        raise ShapeError(f"against holds the logits of {number} attentions; this model runs more")
    return against[number]


def _texts(site: Site) -> tuple[str, str]:
    """Whose tokens are the queries of a site, and whose are its keys: the encoder's or the decoder's."""
    return site.stack, "encoder" if site.kind == "cross" else site.stack


def _without_padding(scores: Scores, mask: Tensor | None) -> Scores:
    """The same scores with padding hidden outright, where the model adds −10,000 to it, as some do: no row sees it.

    Far ALiBi biases reach as low: so nothing but padding is meant.
    """
    added = scores.mask
    if added is None or added.dtype == torch.bool or mask is None or mask.shape[1] < added.shape[3]:
        return scores
    least = torch.finfo(added.dtype).min
    padding = (mask[:, -added.shape[3] :] == 0)[:, None, None].to(added.device)
    meant = padding & (added <= -9e3) & (added > least / 2)
    return replace(scores, mask=added.masked_fill(meant, least)) if bool(meant.any()) else scores


def _detached(scores: Scores) -> Scores:
    """The same scores without a graph: a relative position bias and learned sinks are parameters."""
    parts = {name: getattr(scores, name) for name in ("mask", "bias", "sinks")}
    return replace(scores, **{name: None if part is None else part.detach() for name, part in parts.items()})


def _copied(logits: Logits) -> Logits:
    """Logits with memory of their own: q and k may be views that hold v alive, or a cache that changes."""
    sinks = None if logits.scores.sinks is None else logits.scores.sinks.clone()
    return Logits(logits.query.clone(), logits.key.clone(), replace(logits.scores, sinks=sinks))


def _key_heads(heads: list[int], query: Tensor, key: Tensor) -> list[int]:
    """The key head of each of some query heads."""
    return [head // (query.shape[1] // key.shape[1]) for head in heads]


def _cut(slices: Tensor | None, heads: list[int]) -> Tensor | None:
    """Some heads' slices of a projection (H, D_v, M)."""
    return None if slices is None else slices[heads]


def _only(heads: list[int], query: Tensor, key: Tensor, scores: Scores) -> tuple[Tensor, Tensor, Scores]:
    """q, k and scores of some query heads; each gets its own key head."""

    def cut(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, heads]

    sinks = None if scores.sinks is None else scores.sinks[heads]
    chosen = replace(scores, mask=cut(scores.mask), bias=cut(scores.bias), sinks=sinks)
    return query[:, heads], key[:, _key_heads(heads, query, key)], chosen
