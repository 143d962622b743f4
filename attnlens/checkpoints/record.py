"""`record`: attention statistics of any model on transformers' attention interface, without keeping a T×T map.

One attention function is registered at import, for good, with the interface and with its masks under one neutral name.
`record` points the model's configs at it and hangs a session on each module; modules without a session, and calls that
no root opened (a checkpointed block recomputed in the backward pass), run the original implementation.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attnlens.checkpoints.dense import Drawn
from attnlens.checkpoints.hide import edited
from attnlens.checkpoints.leaving import SLOT
from attnlens.checkpoints.session import Session
from attnlens.checkpoints.switch import NAME, own
from attnlens.checkpoints.tape import Site, Tape
from attnlens.core.errors import UnsupportedModel
from attnlens.core.pairs import Logits
from attnlens.core.scores import Scores


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
    attention_mask = edited(module, query, key, attention_mask, _looks_back(module, query, attention_mask, kwargs))
    sessions = [session for session in module.__dict__.get(SLOT, ()) if session.call is not None]
    if not sessions:
        return _original(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scores = _scores(module, query, key, attention_mask, scaling, kwargs)
    exact = (
        torch.is_grad_enabled()
        or bool(kwargs.get("dropout"))
        or any(session.exact for session in sessions)
        or not sessions[0].whole()  # it gives the output; the others only look
    )
    if exact:
        result = _original(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    else:
        output = sessions[0].measure(module, query, key, value, scores, True)
        assert output is not None
        result = output.transpose(1, 2).contiguous(), None
    for session in sessions if exact else sessions[1:]:
        session.measure(module, query, key, value, scores, False)
    for session in sessions:
        if session.values is not None:
            session.values.gave(result[0])
    return result


def attention_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """The mask the model would have had: eager attention expects an additive one that is never left out.

    A block recomputed in the backward pass, after recording, still gets this mask, with the model's own attention.
    """
    if own(config) == "eager":
        return eager_mask(*args, config=config, **kwargs)
    return sdpa_mask(*args, config=config, **kwargs)


AttentionInterface.register(NAME, attention)
# Under the same name, or transformers leaves the mask out without a word.
AttentionMaskInterface.register(NAME, attention_mask)


def _scores(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, kwargs: Mapping[str, Any]
) -> Scores:
    """What the module asked of its attention, as one record."""
    return Scores(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        mask=mask,
        causal=_looks_back(module, query, mask, kwargs),
        softcap=kwargs.get("softcap"),
        bias=kwargs.get("position_bias"),
        sinks=kwargs.get("s_aux"),
    )


def _looks_back(module: nn.Module, query: Tensor, mask: Tensor | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether rows look back only by being causal: the mask is None when a plain causal one may be skipped.

    A single query sees all keys.
    """
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return bool(is_causal) and mask is None and query.shape[2] > 1


def _original(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The implementation the model had before it was recorded, bit for bit."""
    name = own(getattr(module, "config", None))
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
    together: columns of groups whose shares are compared, as ((2, 3),): a row that sees one of them gives the others 0.
    columns: of a statistic about groups, the columns that it is computed for, as {"lift": (1, 4)}: the last axis of the
        tape, in this order; all columns where it is not named, and of shares that are compared.
    layers, heads: numbers of the attention sites (in the order they run) and of their heads; None: all.
    exact: keep the model's own implementation and compute the statistics beside it. Without it, and under no_grad,
        output and statistics come from one tiled pass in float32 (≤ 1e-5 relative).
    keep: leave the queries and keys of each measured site in `call.logits`, in the dtype of the model.
    against: what another model's `keep` left of this batch, with the same layers and heads. `statistics` may then name
        those of two maps (attnlens.core.pairs.PAIRS), with the other model as base and this one as tuned.
    without_virtual: leave virtual tokens out, as rows and as keys; the attention that is left among the text's own
        tokens is scaled to 1, and the tape's axes are those of the text. Otherwise virtual tokens of prompt and prefix
        tuning stand in front of the tape's axes; groups and rows are of the text alone.

    share_value reads the output projection; where it is not known, or is given something else than what the attention
    gave, it is NaN, and `call.reasons` says why.
    In an encoder–decoder groups mark the tokens of the text that is read and rows those of the text that reads; where
    the measured sites do not share it, ShapeError asks for a choice of `layers`.
    Each step of `generate` is a call of its own, with the rows that are new in it over all keys of its cache.

    Gives a `Tape`. Raises EmptyTape when the block ends without a complete forward pass. Nothing stays behind.
    Code under torch.compile runs uncompiled inside the block.
    """

    model: nn.Module
    statistics: tuple[str, ...] = ("entropy",)
    groups: Tensor | None = None
    rows: Tensor | None = None
    together: tuple[tuple[int, ...], ...] = ()
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layers: Iterable[int] | None = None
    heads: Iterable[int] | None = None
    exact: bool = False
    keep: bool = False
    against: Sequence[Logits] | None = None
    without_virtual: bool = False
    _drawn: Drawn = field(default=Drawn(), init=False, repr=False)
    _fold: Callable[[Site, dict[str, Tensor]], None] | None = field(default=None, init=False, repr=False)
    _session: Session | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Tape:
        """Switch the model's attention and open the tape."""
        self._session = Session(self)
        return self._session.tape

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Put everything back, then complain if nothing was recorded."""
        assert self._session is not None
        self._session.close()
        if error is None:
            self._session.check()
