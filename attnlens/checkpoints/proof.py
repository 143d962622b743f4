"""The self-proof: before a model is believed, its recorded attention is held against its own eager attention."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.record import record
from attnlens.checkpoints.switch import configs_of, lock, restore, switch
from attnlens.checkpoints.tape import Tape
from attnlens.checkpoints.virtual import grown, virtual_tokens
from attnlens.core.errors import UnsupportedModel

TEXTS, TOKENS, PADDED = 2, 7, 3
# Where transformers puts the eager weights, and which padding masks their queries and their keys have.
PLAIN = {(None, None): ("attentions", "attention_mask", "attention_mask")}
TWO_STACKS = {
    ("encoder", "self"): ("encoder_attentions", "attention_mask", "attention_mask"),
    ("decoder", "self"): ("decoder_attentions", "decoder_attention_mask", "decoder_attention_mask"),
    ("decoder", "cross"): ("cross_attentions", "decoder_attention_mask", "attention_mask"),
}


@dataclass(frozen=True)
class Proof:
    """What the self-proof saw: sites and heads, and the largest errors of output, weights and row sums.

    kinds: the kinds of attention of an encoder–decoder, whose sites are counted together.
    """

    layers: int
    heads: int
    output_error: float
    weight_error: float
    sum_error: float
    kinds: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for `attnlens info` and for provenance."""
        kinds = f" ({', '.join(self.kinds)})" if self.kinds else ""
        return (
            f"{self.layers} layers × {self.heads} heads{kinds} equal eager attention to {self.weight_error:.0e}, "
            f"output to {self.output_error:.0e}"
        )


@dataclass(frozen=True)
class _Seen:
    """One kind of attention: recorded maps and entropies, eager weights, and which queries and keys are no padding."""

    maps: Tensor
    entropy: Tensor
    eager: Tensor
    queries: Tensor
    keys: Tensor

    @property
    def fits(self) -> bool:
        """Whether the maps have the shape (B, L, H, Q, K) of the eager ones."""
        return self.maps.shape == self.eager.shape

    @property
    def rows(self) -> Tensor:
        """Which rows (B, L, H, Q) carry data."""
        return self.queries[:, None, None, :].expand(self.maps.shape[:4])

    @property
    def weight_error(self) -> float:
        """Largest difference of a weight on rows with data."""
        return _gap(self.maps[self.rows], self.eager[self.rows]) if self.fits else float("inf")

    def sum_error(self, tolerance: float) -> float:
        """How far a row misses 1; beside a learned null key eager weights sum to less too, and are the measure."""
        sums = self.eager.sum(-1) if self.fits else torch.ones(())
        sums = torch.where((sums - 1).abs() < tolerance, 1.0, sums)
        return float((self.maps.sum(-1) - sums)[self.rows].abs().max())

    @property
    def masked(self) -> bool:
        """Whether padding receives exactly nothing."""
        hidden = ~self.keys[:, None, None, None, :] & self.rows[..., None]
        return not self.maps.masked_fill(~hidden, 0).any()


def prove(model: PreTrainedModel) -> Proof:
    """Run a small padded batch plainly, under `record` and eagerly; raise UnsupportedModel at the first disagreement.

    Checked for every kind of attention: the output is the same; maps are (B, L, H, Q, K); rows sum to 1; padding
    receives exactly 0; every weight equals the model's own eager attention. Tolerances follow the dtype of the model.
    """
    name = type(model).__name__
    model = cast(PreTrainedModel, model.base_model)  # heads differ and are not measured
    batch = _batch(model)
    tolerance = max(1e-4, 16 * torch.finfo(model.dtype).eps)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plain = _first(model(**batch))
            with record(model, statistics=("entropy",)) as tape:
                recorded = _first(model(**batch))
            seen = _attentions(model, batch, tape)
    finally:
        model.train(training)
    real = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
    rows = real if plain.shape[:2] == real.shape else torch.ones(plain.shape[:1], dtype=torch.bool)
    output_error = _gap(recorded[rows], plain[rows])
    _hold(name, {f"output under record differs by {output_error:.1e}": output_error <= tolerance})
    for kind, part in seen.items():
        _hold(name, _checks(part, tolerance, f"{kind}: " if kind else ""))
    parts = list(seen.values())
    return Proof(
        sum(part.maps.shape[1] for part in parts),
        max(part.maps.shape[2] for part in parts),
        output_error,
        max(part.weight_error for part in parts),
        max(part.sum_error(tolerance) for part in parts),
        tuple(kind for kind in seen if kind),
    )


def _attentions(model: PreTrainedModel, batch: dict[str, Tensor], tape: Tape) -> dict[str, _Seen]:
    """What was recorded of each kind of attention, beside the model's own eager weights."""
    eager = eager_output(model, batch)
    seen = {}
    for (stack, kind), (field, queries, keys) in (TWO_STACKS if "decoder_input_ids" in batch else PLAIN).items():
        # Layers without attention give None, those with linear attention a state.
        length = batch[keys].shape[1] + virtual_tokens(model)
        given = getattr(eager, field, None) or ()
        weights = [each for each in given if isinstance(each, Tensor) and each.shape[-1] == length]
        if not weights:
            raise UnsupportedModel(f"{type(model).__name__} returns no eager attention to prove the recording against")
        measured = tape.select(stack=stack, kind=kind)
        layers = [number for number, site in enumerate(tape.sites) if site in measured.sites]
        maps, entropy = attention_maps(model, batch, layers=layers), measured["entropy"]
        masks = [grown(batch[mask].bool(), virtual_tokens(model), 1) for mask in (queries, keys)]
        seen[f"{stack} {kind}" if stack else ""] = _Seen(maps, entropy, torch.stack(weights, 1).float(), *masks)
    return seen


def _checks(part: _Seen, tolerance: float, kind: str) -> dict[str, bool]:
    """What must hold of one kind of attention, by what is wrong where it does not."""
    weight_error, sum_error = part.weight_error, part.sum_error(tolerance)
    return {
        f"{kind}recorded maps are {tuple(part.maps.shape)}, eager maps {tuple(part.eager.shape)}": part.fits,
        f"{kind}recorded weights differ from eager ones by {weight_error:.1e}": weight_error <= tolerance,
        f"{kind}rows miss 1 by {sum_error:.1e}": sum_error <= tolerance,
        f"{kind}padding receives attention": part.masked,
        f"{kind}entropy has no data on real rows": not part.entropy[part.rows].isnan().any(),
    }


def _hold(name: str, checks: dict[str, bool]) -> None:
    for failure, passed in checks.items():
        if not passed:
            raise UnsupportedModel(
                f"{name} failed its self-proof: {failure}; its attention cannot be trusted (docs/new_architecture.md)"
            )


def _batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two texts of arbitrary tokens, one padded on the right; for an encoder–decoder shorter ones to write too."""
    vocabulary = _vocabulary(model)
    generator = torch.Generator().manual_seed(0)
    low = min(10, vocabulary - 2)
    pad, end = (getattr(model.config, f"{name}_token_id", None) for name in ("pad", "eos"))
    special = [token for token in (pad, end) if isinstance(token, int)]
    batch = {}
    for prefix in ("", "decoder_") if model.config.is_encoder_decoder else ("",):
        length = TOKENS - 2 if prefix else TOKENS
        ids = torch.randint(low, vocabulary, (TEXTS, length), generator=generator)
        ids = torch.where(torch.isin(ids, torch.tensor(special, dtype=torch.long)), low, ids)
        mask = torch.ones_like(ids)
        mask[1, -PADDED:] = 0
        if isinstance(pad, int):
            ids = ids.masked_fill(mask == 0, pad)
        batch |= {f"{prefix}input_ids": ids.to(model.device), f"{prefix}attention_mask": mask.to(model.device)}
    return batch


def _vocabulary(model: PreTrainedModel) -> int:
    """How many tokens there are; a pair of two models tells it by its embeddings alone."""
    size = getattr(model.config, "vocab_size", None)
    if size is None and hasattr(model.config, "encoder"):
        size = model.config.encoder.vocab_size
    if size is None or model.main_input_name != "input_ids":
        raise UnsupportedModel(f"{type(model).__name__} does not read tokens of a vocabulary")
    return int(size)


def _first(output: object) -> Tensor:
    """The main output: hidden states, or logits where there is a head."""
    return output[0]  # pyright: ignore[reportIndexIssue]


def _gap(left: Tensor, right: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((left.float() - right.float()).abs().max() / right.float().abs().max().clamp(min=1e-30))


def eager_output(model: PreTrainedModel, batch: dict[str, Tensor]) -> Any:
    """The model's output with its own eager weights."""
    # Not set_attn_implementation: models off the interface ignore it, and build the masks of another attention.
    configs = configs_of(model)
    with lock:
        switch(configs, "eager")
    try:
        return model(**batch, output_attentions=True)
    finally:
        with lock:
            restore(configs)
