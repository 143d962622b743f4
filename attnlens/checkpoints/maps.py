"""Dense maps where a user asks for them, and what layers make of them together, streamed by layer."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from attnlens.checkpoints.dense import MAP, Drawn
from attnlens.checkpoints.record import record
from attnlens.checkpoints.tape import Call, Site
from attnlens.core.errors import AttnlensError, UnsupportedModel
from attnlens.core.flow import rollout_step


def attention_maps(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    queries: Iterable[int] | None = None,
    value_weighted: str | None = None,
) -> Tensor:
    """Dense attention weights (B, L, H, Q, K) of chosen layers, heads and queries: the only place that keeps T×T maps.

    Float32 softmax rows without dropout; 0 where a key is hidden, NaN on padding rows.
    layers: numbers of the attention sites in the order they run; of an encoder–decoder those of one kind.
    queries: places of the rows in the batch, padding included; −1 is the last.
    value_weighted: "heads" gives ‖α_ij f(x_j)‖ of each head instead, how long a vector token j writes into row i;
        "layer" gives ‖Σ_h α^h_ij f^h(x_j)‖, of the sum over the heads (all or the chosen ones), with H = 1 (Kobayashi
        et al. 2020). In units of the residual stream. f(x) = (x W_V + b_V) W_O; the bias of W_O belongs to no token.
        Raises UnsupportedModel where the output projection does not prove to be the only thing behind the attention.
    """
    recorder = record(model, statistics=(MAP,), layers=layers, heads=heads, exact=True)
    recorder._drawn = Drawn.of(queries, value_weighted)
    with torch.no_grad(), recorder as tape:
        model(**batch)
    call = tape.only()
    _one_kind(call)
    if MAP in call.reasons:
        raise UnsupportedModel(f"no value-weighted maps: {call.reasons[MAP]}")
    return call[MAP]


def _one_kind(call: Call) -> None:
    """Raise AttnlensError, with the layers of each kind, where maps of several kinds of attention were asked for."""
    kinds: dict[str, list[str]] = {}
    for number, site in enumerate(call.sites):
        kinds.setdefault(f"{site.stack} {site.kind}-attention", []).append(str(number))
    if len(kinds) > 1:
        listed = "; ".join(f"{', '.join(numbers)}: {kind}" for kind, numbers in kinds.items())
        raise AttnlensError(f"choose layers of one kind of attention with layers= ({listed})")


def attention_rollout(model: nn.Module, batch: Mapping[str, Tensor], *, stack: str | None = None) -> Tensor:
    """What each token of the last layer has of each input token, by attention alone (Abnar & Zuidema 2020).

    (B, T, T) in float32: rows sum to 1, NaN on padding rows. Layer by layer, R_l = ½(mean_h A_l + I) R_{l−1}: one map
    of one layer is alive at a time. stack: "encoder" or "decoder" of an encoder–decoder, its self-attention. A picture
    of what could flow, without values, norms and feed-forward layers: no attribution.
    """
    recorder, rolled = record(model, statistics=(MAP,), exact=True), dict[str, tuple[Tensor, Tensor]]()

    def fold(site: Site, results: dict[str, Tensor]) -> None:
        if site.kind == "self" and stack in (None, site.stack):
            before = rolled[site.stack][0] if site.stack in rolled else None
            padding = results[MAP].isnan().any(3).any(1)
            rolled[site.stack] = rollout_step(before, results[MAP]), padding

    recorder._fold = fold
    with torch.no_grad(), recorder:
        model(**batch)
    if len(rolled) != 1:
        raise AttnlensError(
            f"choose one stack of self-attention: stack={' or '.join(map(repr, sorted(rolled))) or 'None'}"
        )
    ((product, padding),) = rolled.values()
    return product.masked_fill(padding[:, :, None], torch.nan)
