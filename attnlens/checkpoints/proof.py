"""The self-proof: before a model is believed, its recorded attention is held against its own eager attention."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from attnlens.checkpoints.record import attention_maps, record
from attnlens.core.errors import UnsupportedModel

TEXTS, TOKENS, PADDED = 2, 7, 3


@dataclass(frozen=True)
class Proof:
    """What the self-proof saw: sites and heads, and the largest errors of output, weights and row sums."""

    layers: int
    heads: int
    output_error: float
    weight_error: float
    sum_error: float

    @property
    def summary(self) -> str:
        """One line for `attnlens info` and for provenance."""
        return (
            f"{self.layers} layers × {self.heads} heads equal eager attention to {self.weight_error:.0e}, "
            f"output to {self.output_error:.0e}"
        )


def prove(model: PreTrainedModel) -> Proof:
    """Run a small padded batch plainly, under `record` and eagerly; raise UnsupportedModel at the first disagreement.

    Checked: the output is the same; maps are (B, L, H, Q, K); rows sum to 1; padding receives exactly 0; every weight
    equals the model's own eager attention. Tolerances follow the dtype of the model.
    """
    name = type(model).__name__
    model = cast(PreTrainedModel, model.base_model)  # heads differ and are not measured
    batch = _batch(model)
    real = batch["attention_mask"].bool()
    tolerance = max(1e-4, 16 * torch.finfo(model.dtype).eps)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plain = _first(model(**batch))
            with record(model, statistics=("entropy",)) as tape:
                recorded = _first(model(**batch))
            maps = attention_maps(model, batch)
            eager = _eager(model, batch)
    finally:
        model.train(training)
    rows = real if plain.shape[:2] == real.shape else torch.ones(plain.shape[:1], dtype=torch.bool)
    output_error = _gap(recorded[rows], plain[rows])
    valid = real[:, None, None, :, None].expand(maps.shape)
    weight_error = _gap(maps[valid], eager[valid]) if maps.shape == eager.shape else float("inf")
    # Beside a learned null key the visible weights sum to less than 1, in eager attention too.
    sums = torch.where((eager.sum(-1) - 1).abs() < tolerance, 1.0, eager.sum(-1)) if maps.shape == eager.shape else 1.0
    sum_error = float((maps.sum(-1) - sums)[valid[..., 0]].abs().max())
    checks = {
        f"output under record differs by {output_error:.1e}": output_error <= tolerance,
        f"recorded maps are {tuple(maps.shape)}, eager maps {tuple(eager.shape)}": maps.shape == eager.shape,
        f"recorded weights differ from eager ones by {weight_error:.1e}": weight_error <= tolerance,
        f"rows miss 1 by {sum_error:.1e}": sum_error <= tolerance,
        "padding receives attention": not maps.masked_fill(~valid, 0)[
            ~real[:, None, None, None].expand(maps.shape)
        ].any(),
        "entropy has no data on real rows": not tape["entropy"][valid[..., 0]].isnan().any(),
    }
    for failure, passed in checks.items():
        if not passed:
            raise UnsupportedModel(f"{name} failed its self-proof: {failure}; its attention cannot be trusted")
    return Proof(maps.shape[1], maps.shape[2], output_error, weight_error, sum_error)


def _batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two texts of arbitrary tokens, one padded on the right."""
    vocabulary = int(model.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    low = min(10, vocabulary - 2)
    ids = torch.randint(low, vocabulary, (TEXTS, TOKENS), generator=generator)
    special = [token for token in (model.config.pad_token_id, model.config.eos_token_id) if isinstance(token, int)]
    ids = torch.where(torch.isin(ids, torch.tensor(special, dtype=torch.long)), low, ids)
    mask = torch.ones_like(ids)
    mask[1, -PADDED:] = 0
    if model.config.pad_token_id is not None:
        ids = ids.masked_fill(mask == 0, model.config.pad_token_id)
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def _first(output: object) -> Tensor:
    """The main output: hidden states, or logits where there is a head."""
    return output[0]  # pyright: ignore[reportIndexIssue]


def _gap(left: Tensor, right: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((left.float() - right.float()).abs().max() / right.float().abs().max().clamp(min=1e-30))


def _eager(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The model's own eager weights (B, L, H, Q, K)."""
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation("eager")
    try:
        attentions = model(**batch, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    if not attentions:
        raise UnsupportedModel(f"{type(model).__name__} returns no eager attention to prove the recording against")
    return torch.stack(attentions, 1).float()
