"""The second route of `record`, for models that compute attention past transformers' interface.

They are asked for their weights (`output_attentions`); a hook on each module reduces the weights that it hands back and
puts in their place a view of the same shape that holds one number: so one layer's map is alive at a time. Queries, keys
and logits stay unknown, and with them what two maps are compared by.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnlens.checkpoints.dense import MAP
from attnlens.checkpoints.leaving import SLOT, check_heads, leave
from attnlens.checkpoints.values import NAME as SHARE_VALUE
from attnlens.core.errors import UnsupportedModel
from attnlens.core.pairs import PAIRS
from attnlens.core.rows import STATISTICS, AttentionMap, Groups, row_statistics

if TYPE_CHECKING:
    from attnlens.checkpoints.session import Session

ASKED = "output_attentions"
REASON = "this architecture computes attention past transformers' attention interface and hands back weights alone"
TRAINING = " whose rows sum to 1, as dropout leaves none: record in model.eval(), or without dropout of attention"
UNKNOWN = ("lse", SHARE_VALUE)  # statistics of logits and of values


class _Forced(int):
    """True as attnlens says it, not the user: so that a session within another knows who asked for the weights."""


class Reducer:
    """The hooks of one session on a model off the interface; the session closes it."""

    def __init__(self, session: "Session"):
        self.session = session
        self._spent: dict[int, Tensor] = {}
        self._lengths: set[int] = set()
        self._leave = False
        root = session.root
        # In front: the library's own hooks would keep the weights first.
        inner = {id(module): module for module in session.modules.values() if module is not root}
        self._hooks = [module.register_forward_hook(self._take, prepend=True) for module in inner.values()]
        self._hooks += [
            root.register_forward_pre_hook(self._ask, with_kwargs=True),
            root.register_forward_hook(self._tidy),
        ]

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _ask(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook of the root: have it hand back its weights."""
        self._spent, given = {}, self.session.arguments
        texts = [given[name] for name in given if name.endswith(("input_ids", "inputs_embeds"))]
        self._lengths = {text.shape[1] + more for text in texts for more in (0, self.session.in_front)}
        wish = given.get(ASKED, getattr(getattr(root, "config", None), ASKED, False))
        self._leave = bool(wish) and not isinstance(wish, _Forced)
        known = inspect.signature(root.forward).parameters
        takes = ASKED in known or any(each.kind is each.VAR_KEYWORD for each in known.values())
        return (args, {**kwargs, ASKED: _Forced(True)}) if takes and ASKED not in _named(known, args) else None

    def _take(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Post-hook of every module: reduce the weights in what it hands back, for all sessions, and let go of them."""
        reducers = [session.reducer for session in module.__dict__.get(SLOT, ()) if session.call is not None]
        if self not in reducers[:1] or type(output) not in (tuple, list):
            return None
        parts = list(output)
        for place, part in enumerate(parts):
            if not isinstance(part, Tensor) or part.data_ptr() in self._spent or not _stochastic(part):
                continue
            if part.shape[2] not in self._lengths:
                raise UnsupportedModel(
                    f"{type(module).__name__} hands back attention of shape {tuple(part.shape)}, which is not (texts, "
                    "heads, tokens, tokens): sparse and pooled attention is not measured"
                )
            left = part if any(reducer._leave for reducer in reducers) else part.new_zeros(()).expand(part.shape)
            for reducer in reducers:
                _reduce(reducer.session, module, part.detach())
                reducer._spent[left.data_ptr()] = left  # alive, so that no other tensor comes to lie there
            parts[place] = left
        return type(output)(parts)

    def _tidy(self, root: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Post-hook of the root: nobody asked for weights, so the output has none."""
        if self._leave:
            return None
        if isinstance(output, dict):
            return type(output)(**{name: part for name, part in output.items() if not self._is_spent(part)})
        return tuple(part for part in output if not self._is_spent(part)) if isinstance(output, tuple) else None

    def _is_spent(self, part: Any) -> bool:
        """Whether a part of the output is a list of weights that were let go of."""
        tensors = [each for each in part if isinstance(each, Tensor)] if isinstance(part, tuple) else []
        return bool(tensors) and all(tensor.data_ptr() in self._spent for tensor in tensors)


def _named(known: Any, args: Sequence[Any]) -> list[str]:
    """Names of the parameters that were given by their place."""
    return list(known)[: len(args)]


def _stochastic(part: Tensor) -> bool:
    """Whether a tensor is attention weights (B, H, Q, K): none negative, rows that sum to 1, or 0 if all is hidden."""
    if part.ndim != 4 or not part.is_floating_point() or not part.numel():
        return False
    sums = part.detach().float().sum(-1)
    tolerance = _tolerance(part.dtype)
    ones, nothing = (sums - 1).abs() < tolerance, sums.abs() < tolerance
    # NaN is passed on, not passed over: what is measured then says so.
    return bool(ones.any() and (ones | nothing | sums.isnan()).all() and not (part < 0).any())


def _tolerance(dtype: torch.dtype) -> float:
    return max(1e-4, 8 * torch.finfo(dtype).eps)


def _reduce(session: "Session", module: nn.Module, weights: Tensor) -> None:
    """Statistics of the weights (B, H, Q, K) onto the tape.

    A row sees the keys that any head gives weight to: in float32 and bfloat16 a softmax that is not hidden is not 0 in
    all heads, unless its logit lies 87 below the largest in each. In float16 17 are enough: what is 0 there must be
    hidden for another reason, or UnsupportedModel is raised.
    """
    texts, heads, rows, keys = weights.shape
    seen = (weights > 0).any(1, keepdim=True)  # (B, 1, Q, K)
    mask = session.arguments.get("attention_mask")
    real = slice(None) if mask is None or mask.shape != (texts, rows) else mask != 0  # a row of padding may see all
    looks_back = rows > 1 and not bool(seen[:, 0].triu(keys - rows + 1)[real].any())
    site = session.site(module, looks_back=looks_back)
    if site is None:
        return
    if weights.dtype == torch.float16 and session.names != (MAP,):
        _certain(seen[:, 0], mask, real, looks_back)
    if session.virtual:
        text = keys - session.virtual
        weights, seen = weights[:, :, -text:, session.virtual :], seen[:, :, -text:, session.virtual :]
        rows, keys = min(rows, text), text
    queries = session.valid(site, texts, rows, keys, weights.device)
    if session.heads is not None:
        check_heads(session.heads, heads)
        weights = weights[:, session.heads]
    weights = weights if weights.dtype == torch.float64 else weights.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    if session.names == (MAP,):
        results = {MAP: session.without(weights[:, :, session.drawn.rows(rows)], queries)}
    else:
        results = _statistics(session, weights, seen.expand_as(weights), queries)
    leave(session, site, results)


def _certain(seen: Tensor, mask: Tensor | None, real: Tensor | slice, looks_back: bool) -> None:
    """Raise UnsupportedModel where a float16 weight of 0 is neither padding (B, K) nor later than its row.

    seen (B, Q, K); real: the rows that are no padding.
    """
    rows, keys = seen.shape[1:]
    expected = torch.ones_like(seen)
    if looks_back:
        expected = expected.tril(keys - rows)
    if mask is not None and mask.ndim == 2 and mask.shape[1] >= keys:
        expected = expected & (mask[:, None, -keys:] != 0)
    if bool((expected & ~seen)[real].any()):
        raise UnsupportedModel(
            "a float16 weight of 0 may be a hidden key or one below 6e-8: load the model in bfloat16 or float32"
        )


def _statistics(session: "Session", weights: Tensor, seen: Tensor, queries: Tensor | None) -> dict[str, Tensor]:
    """What was asked for, text by text, so that what it takes on the way is one text's."""
    assert session.call is not None
    valid = torch.ones_like(weights[:, 0, :, 0], dtype=torch.bool) if queries is None else queries
    names = tuple(name for name in session.names if name not in UNKNOWN)
    found: list[dict[str, Tensor]] = []
    for text in range(len(weights)):
        here = slice(text, text + 1)
        groups = session.groups
        if groups is not None:
            groups = Groups(groups.weights[here], groups.content[here], groups.null)
        found.append(row_statistics(AttentionMap(weights[here], seen[here], valid[here], groups=groups), names))
    results = {name: torch.cat([each[name] for each in found]) for name in names}
    for name in names:
        if (some := session.columns.get(name)) is not None:
            results[name] = results[name][..., list(some)]
    for name in (*session.names, *session.pairs):
        if name not in results:
            results[name] = weights.new_full(_shape(session, name, weights), torch.nan)
            session.call.reasons.setdefault(name, REASON)
    if session.keep:  # nothing is left for another model to be held against
        session.call.reasons |= dict.fromkeys(PAIRS, REASON)
    return results


def _shape(session: "Session", name: str, weights: Tensor) -> tuple[int, ...]:
    """Of a statistic that is not known."""
    if name not in STATISTICS or STATISTICS[name].axes == "row":
        return tuple(weights.shape[:3])
    chosen = session.columns.get(name)
    assert session.groups is not None
    return (*weights.shape[:3], session.groups.weights.shape[2] if chosen is None else len(chosen))
