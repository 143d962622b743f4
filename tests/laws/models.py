"""Real models in float64 with a few texts, for laws that speak of models."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from attnlens.checkpoints.record import record

SENTENCES = (
    "The old farmer sold the red barn to a rich lady.",
    "It rains.",
    "Tom and Lily went to the park with the big dog, and the dog ran to the water.",
)
NAMES = ("entropy", "effective_keys", "renyi2", "mass", "share", "log_odds", "received", "entropy_content")


@dataclass(frozen=True)
class Real:
    """A trained model in float64, three texts padded on the right, and a partition of their tokens."""

    name: str
    model: tf.PreTrainedModel
    tokenizer: tf.PreTrainedTokenizerBase
    inputs: dict[str, Tensor]
    groups: Tensor

    @property
    def causal(self) -> bool:
        return self.name == "stories260K"

    def attentions(self, model: Any = None) -> list:
        """The attention modules, of this model or of a changed copy."""
        model = model or self.model
        return [layer.self_attn if self.causal else layer.attention.self for layer in layers_of(model)]

    @property
    def real(self) -> Tensor:
        """(B, T) bool, no padding."""
        return self.inputs["attention_mask"].bool()

    def tape(self, model=None, names: tuple[str, ...] = NAMES, **options):
        with torch.no_grad(), record(model or self.model, names, groups=self.groups, **options) as tape:
            (model or self.model)(**self.inputs)
        return tape


def layers_of(model: Any) -> Any:
    return model.layers if hasattr(model, "layers") else model.encoder.layer


def same(got, expected, names: tuple[str, ...] = NAMES, *, atol: float = 1e-9) -> None:
    """Two tapes, or mappings of tensors, with the same numbers and gaps."""
    for name in names:
        torch.testing.assert_close(got[name], expected[name], atol=atol, rtol=atol, equal_nan=True, msg=name)


def noisy(model, size: float = 0.05):
    """A copy with noise of 5 % of its size on every matrix of the layers."""
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if weight.ndim == 2 and "layer" in name:
                noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
                weight.add_(noise * (size * weight.norm() / noise.norm()))
    return changed
