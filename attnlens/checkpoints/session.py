"""What happens inside one `record` block: hooks, the call now open, and what each attention leaves on the tape."""

import inspect
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnlens.checkpoints.switch import configs_of, lock, restore, switch
from attnlens.checkpoints.tape import Call, Site, Tape
from attnlens.checkpoints.values import NAME as SHARE_VALUE
from attnlens.checkpoints.values import Values
from attnlens.checkpoints.virtual import of_text, prepended, virtual_tokens
from attnlens.core.errors import AttnlensError, EmptyTape, ShapeError, UnknownName, UnsupportedModel
from attnlens.core.pairs import PAIRS, Logits
from attnlens.core.rows import STATISTICS, Groups, dense_map
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted, attend

SLOT = "_attnlens_sessions"
MAP = "map"


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


class Session:
    """One `record` block on one model."""

    def __init__(self, order: Order):
        self.names, self.pairs = _names(order)
        self.virtual = virtual_tokens(order.model) if order.without_virtual else 0
        alone = order.groups, order.rows
        groups, self.rows = alone if order.without_virtual else prepended(order.model, *alone)
        self.groups = None if groups is None else Groups.of(groups)
        self.padding = None if groups is None or groups.ndim == 3 else groups < 0
        self.layers = None if order.layers is None else set(order.layers)
        self.heads = None if order.heads is None else list(order.heads)
        self.exact, self.keep, self.against = order.exact, order.keep, order.against
        self.together, self.columns = order.together, order.columns
        self.tape, self.call, self.arguments = Tape(), None, {}
        self.thread = threading.get_ident()
        self.root = getattr(order.model, "_orig_mod", getattr(order.model, "module", order.model))
        self.configs = configs_of(self.root)
        self.modules = dict(self.root.named_modules(remove_duplicate=True))
        self.sites = {id(module): name for name, module in self.modules.items()}
        self.hooks: list[Any] = []
        self.values = Values(self.modules) if SHARE_VALUE in self.names else None
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
            switch(self.configs)
            for module in self.modules.values():
                module.__dict__[SLOT] = (*module.__dict__.get(SLOT, ()), self)
        self.hooks = [
            self.root.register_forward_pre_hook(self.begin, with_kwargs=True),
            self.root.register_forward_hook(self.end, always_call=True),
        ]
        # The root may be a wrapper that builds the masks itself.
        callers = [model for model in self.callers if model is not self.root]
        self.hooks += [model.register_forward_pre_hook(self.note, with_kwargs=True) for model in callers]

    def close(self) -> None:
        """Undo `open`, whatever happened in between."""
        for hook in self.hooks:
            hook.remove()
        if self.values is not None:
            self.values.close()
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
        call = self.call
        assert call is not None
        call.seen += 1
        if self.layers is not None and call.seen - 1 not in self.layers:
            return None
        site = self._site(module, call)
        if self.virtual:
            query, key, scores = of_text(query, key, scores, self.virtual)
        self._check(site, query, key)
        queries = self._queries(site, query)
        norms = None
        if self.values is not None:
            norms = self.values.norms(site.name, len(call.sites), value[:, :, self.virtual :], query.shape[1])
        if self.heads is not None:
            query, key, scores = _only(self.heads, query, key, scores)
            norms = None if norms is None else norms[:, self.heads]
        logits, attended = Logits(query.detach(), key.detach(), _detached(scores)), None
        if self.names == (MAP,):
            weights = dense_map(*logits).weights[..., : key.shape[2]]
            results = {MAP: weights if queries is None else weights.masked_fill(~queries[:, None, :, None], torch.nan)}
        else:
            against = _base(self.against, len(call.sites)) if self.pairs else None
            wanted = Wanted(self.names, self.groups, queries, norms, self.columns, self.pairs, against)
            taken = value.detach() if output else None
            attended, results = attend(logits.query, logits.key, taken, logits.scores, wanted)
        if "distance" in results and site.kind == "cross":
            results["distance"].fill_(torch.nan)  # positions in two texts
        call.sites.append(site)
        if self.keep:
            call.logits.append(_copied(logits))
        for name, result in results.items():
            _put(self, call, name, result)
        return attended

    def _site(self, module: nn.Module, call: Call) -> Site:
        """Where this attention stands in the model."""
        name = self.sites.get(id(module), type(module).__name__)
        kind = "cross" if re.search(r"cross|encoder_attn|EncDec", name) else "self"
        decoder = re.search(r"(^|\.)decoder\.", name) if self.two_stacks else getattr(module, "is_causal", False)
        stack = "decoder" if decoder or kind == "cross" else "encoder"
        return Site(name, stack, kind, sum((site.stack, site.kind) == (stack, kind) for site in call.sites))

    def _check(self, site: Site, query: Tensor, key: Tensor) -> None:
        """Groups mark the tokens of one text, rows too: it must be the one that every measured site reads."""
        assert self.call is not None
        for name, tensor, length, role in (
            ("groups", self.groups, key.shape[2], 1),
            ("rows", self.rows, query.shape[2], 0),
        ):
            if tensor is None:
                continue
            texts = {_texts(other)[role] for other in (*self.call.sites, site)}
            if len(texts) > 1:
                raise ShapeError(
                    f"{name} mark the tokens of one text, but layers of both encoder and decoder tokens are measured: "
                    "choose those of one with layers= (attention 0, 1, … in the order they run)"
                )
            shape = tuple((tensor.content if isinstance(tensor, Groups) else tensor).shape[:2])
            if shape != (query.shape[0], length):
                of = f"the {texts.pop()} tokens of " if self.two_stacks else ""
                raise ShapeError(f"{name} must be ({query.shape[0]}, {length}) for {of}this batch; got {shape}")

    def _queries(self, site: Site, query: Tensor) -> Tensor | None:
        """Rows that carry data, (B, Q): no padding, and wanted by `rows`."""
        decoder = self.two_stacks and site.stack == "decoder"
        mask = self.arguments.get("decoder_attention_mask" if decoder else "attention_mask")
        length = query.shape[2]
        valid = [] if self.rows is None else [(self.rows if self.rows.ndim == 2 else self.rows.amax(2)) > 0]
        if mask is not None and mask.ndim == 2 and mask.shape[1] >= length:
            valid.append(mask[:, -length:] != 0)
        if self.padding is not None and site.kind == "self":
            valid.append(~self.padding[:, -length:])
        result = None
        for part in valid:
            part = part.to(query.device)
            result = part if result is None else result & part
        return result


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


def _base(against: Sequence[Logits] | None, number: int) -> Logits:
    """The kept map that this site is held against."""
    if against is None or number >= len(against):
        raise ShapeError(f"against holds the logits of {number} attentions; this model runs more")
    return against[number]


def _texts(site: Site) -> tuple[str, str]:
    """Whose tokens are the queries of a site, and whose are its keys: the encoder's or the decoder's."""
    return site.stack, "encoder" if site.kind == "cross" else site.stack


def _detached(scores: Scores) -> Scores:
    """The same scores without a graph: a relative position bias and learned sinks are parameters."""
    parts = {name: getattr(scores, name) for name in ("mask", "bias", "sinks")}
    return replace(scores, **{name: None if part is None else part.detach() for name, part in parts.items()})


def _copied(logits: Logits) -> Logits:
    """Logits with memory of their own: q and k may be views that hold v alive, or a cache that changes."""
    sinks = None if logits.scores.sinks is None else logits.scores.sinks.clone()
    return Logits(logits.query.clone(), logits.key.clone(), replace(logits.scores, sinks=sinks))


def _only(heads: list[int], query: Tensor, key: Tensor, scores: Scores) -> tuple[Tensor, Tensor, Scores]:
    """q, k and scores of some query heads; each gets its own key head."""
    if any(not 0 <= head < query.shape[1] for head in heads):
        raise ShapeError(f"heads must lie in 0 … {query.shape[1] - 1}; got {heads}")
    repeats = query.shape[1] // key.shape[1]

    def cut(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, heads]

    sinks = None if scores.sinks is None else scores.sinks[heads]
    chosen = replace(scores, mask=cut(scores.mask), bias=cut(scores.bias), sinks=sinks)
    return query[:, heads], key[:, [head // repeats for head in heads]], chosen


def _put(session: Session, call: Call, name: str, result: Tensor) -> None:
    """One statistic of one site onto the tape: its rows, or their means."""
    rows, some = session.rows, session.columns.get(name)
    if name == "share" and some is None:
        result = _together(result, session.together)
    if rows is not None and name != MAP and not (name in STATISTICS and STATISTICS[name].axes == "key"):
        if rows.ndim == 3 and some is not None:
            rows = rows[..., list(some)]
        result, count = _row_mean(result, rows.to(result))
        call.counts.setdefault(name, []).append(count)
    call.values.setdefault(name, []).append(result)


def _together(values: Tensor, columns: tuple[tuple[int, ...], ...]) -> Tensor:
    """Shares (B, H, Q, G) that are 0 where only other columns of their set are seen, NaN where none is."""
    unseen = values.isnan()
    for some in columns:
        none = unseen[..., list(some)].all(-1)
        for column in some:
            values[..., column].masked_fill_(unseen[..., column] & ~none, 0.0)
    return values


def _row_mean(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean over the row axis of (B, H, Q[, G]) and how many rows it stands on; NaN where there is none."""
    shared = rows if rows.ndim == 2 else rows[..., 0]
    weights = shared[:, None] if values.ndim == 3 else (shared[..., None] if rows.ndim == 2 else rows)[:, None]
    weights = weights * ~values.isnan()
    total = weights.sum(2)
    # A row without weight may be infinite (KL): it must not become NaN.
    mean = torch.where(weights > 0, values, 0.0).mul(weights).sum(2) / torch.where(total > 0, total, torch.nan)
    return mean, (weights > 0).sum(2)
