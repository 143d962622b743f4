"""Two real Llamas on real text against a forward pass written here from the formulas, in float64.

RMSNorm, rotary positions, grouped queries, SwiGLU: none of transformers' model code takes part in the reference.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor

from attnlens.checkpoints.record import record
from tests.models import padded

NAMES = ("entropy", "entropy_normalized", "max_weight", "renyi2", "lse", "mass", "log_odds", "received", "distance")
TEXTS = 3


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x: Tensor, theta: float) -> Tensor:
    """Turn coordinates i and i + D/2 of x (H, T, D) at position t by the angle t·θ^(−2i/D)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def forward(folder: Path, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """Attention logits (H, T, T) of each layer for one text, −∞ where a key is hidden, and next-token logits (T, V)."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    heads, groups, width = (config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    eps, theta = config["rms_norm_eps"], config["rope_parameters"]["rope_theta"]
    length = len(ids)
    hidden = weights["model.embed_tokens.weight"][ids]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    layers = []
    for layer in range(config["num_hidden_layers"]):
        w = {
            name.split(".", 3)[3].removesuffix(".weight"): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        x = norm(hidden, w["input_layernorm"], eps)
        q, k, v = (
            (x @ w[f"self_attn.{name}_proj"].T).view(length, -1, width).transpose(0, 1) for name in ("q", "k", "v")
        )
        q, k = rotate(q, theta), rotate(k, theta)
        s = torch.stack([q[head] @ k[head * groups // heads].T for head in range(heads)]) / math.sqrt(width)
        layers.append(s.masked_fill(future, -torch.inf))
        out = [layers[-1][head].softmax(-1) @ v[head * groups // heads] for head in range(heads)]
        hidden = hidden + torch.cat(out, -1) @ w["self_attn.o_proj"].T
        x = norm(hidden, w["post_attention_layernorm"], eps)
        gate = x @ w["mlp.gate_proj"].T
        hidden = hidden + (gate * gate.sigmoid() * (x @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
    return layers, norm(hidden, weights["model.norm.weight"], eps) @ weights["model.embed_tokens.weight"].T


def statistics(s: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """The named statistics of logits (H, T, T) under a causal mask, row by row from their definitions."""
    length = len(groups)
    n = torch.arange(1, length + 1, dtype=torch.float64)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    lse = s.logsumexp(-1)
    p = (s - lse[..., None]).exp()
    entropy = (p * (lse[..., None] - s.masked_fill(~seen, 0.0))).sum(-1)
    means = [
        s.masked_fill(~(seen & (groups == g)), -torch.inf).logsumexp(-1) - (seen & (groups == g)).sum(-1).log()
        for g in (1, 0)
    ]
    both = (seen & (groups == 1)).any(-1) & (seen & (groups == 0)).any(-1)
    position = torch.arange(length)
    return {
        "entropy": entropy,
        "entropy_normalized": torch.where(n > 1, entropy / n.log(), torch.nan),
        "max_weight": p.amax(-1),
        "renyi2": -p.square().sum(-1).log(),
        "lse": lse,
        "mass": torch.stack([p[..., groups == g].sum(-1) for g in range(3)], -1),
        "log_odds": torch.where(both, means[0] - means[1], torch.nan),
        "received": p.sum(-2) / (1 / n).flip(0).cumsum(0).flip(0),
        "distance": (p * (position[:, None] - position).abs()).sum(-1),
    }


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["stories260K", "babyllama_tok105"])
def test_statistics_of_real_models_equal_an_independent_float64_computation(shared: Path, name: str, exact: bool):
    folder = shared / "models" / name
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    model = tf.AutoModelForCausalLM.from_pretrained(folder).eval()
    lines = (shared / "data/lm/us_state_union.txt").read_text().splitlines()
    texts = [line for line in lines if len(line) > 100][:TEXTS]
    encoded = [tokenizer(text)["input_ids"][: 60 + 20 * i] for i, text in enumerate(texts)]
    inputs, groups = padded(encoded, seed=6)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    longest = ids.shape[1]
    with torch.no_grad(), record(model, NAMES, groups=groups, exact=exact) as tape:
        model(input_ids=ids, attention_mask=mask)
    assert tape["entropy"].shape == (TEXTS, 5, 8, longest)
    for text, tokens in enumerate(encoded):
        length = len(tokens)
        for layer, s in enumerate(forward(folder, torch.tensor(tokens))[0]):
            for statistic, want in statistics(s, groups[text, :length]).items():
                got = tape[statistic][text, layer, :, :length].double()
                got = got[..., 1] if statistic == "log_odds" else got
                # 1e-5, of the largest value where that is more than 1: logits of 36 in float32 have no more digits.
                size = max(1.0, float(want.nan_to_num().abs().max()))
                gap = float((got - want).nan_to_num().abs().max())
                assert torch.equal(got.isnan(), want.isnan().expand(got.shape)), (statistic, text, layer)
                assert gap <= 1e-5 * size, (statistic, text, layer, gap, size)


def test_the_reference_is_the_trained_model(shared: Path):
    """It goes on with the story: a forward pass that only looked like a Llama would not."""
    folder = shared / "models" / "stories260K"
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer("Once upon a time, there was a little girl named")["input_ids"])
    following = int(forward(folder, ids)[1][-1].argmax())
    assert tokenizer.decode([following]).strip() == "Lily"
