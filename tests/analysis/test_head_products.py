"""Products of heads against what the models themselves compute with them, whatever the layout; and their rounding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from attnlens.analysis.difference import difference
from attnlens.analysis.opening import opened
from attnlens.analysis.weights import head_changes
from attnlens.checkpoints.heads import circuits, sites
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.circuits import Factors
from tests.models import BERT, CONFIGS, LLAMA, SIZES, SPECIAL

HEADS, SIZE, LAYERS = 4, 8, 2
# Modules that take in what queries are made of, and those that give what a head writes.
FIRST = ("query", "query_proj", "q_lin", "q_proj", "c_attn", "in_proj", "query_key_value", "qkv_proj", "Wqkv")
LAST = ("output.dense", "out_lin", "out_proj", "o_proj", "c_proj", "Wo", "dense")
GPT = SIZES | {"n_embd": 32, "n_head": HEADS, "n_layer": LAYERS}
# Rotary positions are all put at 0 and ALiBi off: they stand between the product and the logits.
MODELS: dict[str, Callable[[], Any]] = {
    **{name: CONFIGS[name] for name in ("bert", "distilbert", "gpt2", "llama")},
    "modernbert": SPECIAL["modernbert"],
    "deberta": lambda: tf.DebertaConfig(vocab_size=100, pad_token_id=0, **BERT),
    "deberta-v2": lambda: tf.DebertaV2Config(vocab_size=100, pad_token_id=0, **BERT),
    "xlm": lambda: tf.XLMConfig(vocab_size=100, emb_dim=32, n_heads=HEADS, n_layers=LAYERS),
    "phi3": lambda: tf.Phi3Config(**SIZES, **LLAMA),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**SIZES, **BERT),
    "gpt_neo": lambda: tf.GPTNeoConfig(
        vocab_size=100, hidden_size=32, num_layers=LAYERS, num_heads=HEADS, attention_types=[[["global", "local"], 1]]
    ),
    "bloom": lambda: tf.BloomConfig(vocab_size=100, hidden_size=32, n_head=HEADS, n_layer=LAYERS),
    "mpt": lambda: tf.MptConfig(vocab_size=100, d_model=32, n_heads=HEADS, n_layers=LAYERS),
    "persimmon": lambda: tf.PersimmonConfig(**SIZES, **BERT, qk_layernorm=False),
    "gpt_bigcode": lambda: tf.GPTBigCodeConfig(**GPT, multi_query=False),
    "gpt_bigcode shared": lambda: tf.GPTBigCodeConfig(**GPT, multi_query=True),
    "falcon": lambda: tf.FalconConfig(vocab_size=100, **falcon(multi_query=False)),
    "falcon shared": lambda: tf.FalconConfig(vocab_size=100, **falcon(multi_query=True)),
}


def falcon(**settings: object) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    return sizes | {"bos_token_id": 1, "eos_token_id": 2} | settings


def built(name: str) -> tf.PreTrainedModel:
    """A random model in float64 with biases, whose attention uses the plain implementation."""
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(MODELS[name](), attn_implementation="eager").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, dtype=torch.float64))
    return model


def in_memory(model: tf.PreTrainedModel, name: str = "model") -> Checkpoint:
    return Checkpoint(model, None, name, {})  # pyright: ignore[reportArgumentType]


def products(model: tf.PreTrainedModel) -> dict[str, dict[str, Tensor]]:
    """Both products of every head as full matrices (H, M, N), by the name of the attention module."""
    with opened(in_memory(model), in_memory(model)) as both:
        assert both.geometry is not None

        def dense(factors: Factors) -> Tensor:
            repeats = len(factors.left) // len(factors.right)
            return factors.left.transpose(1, 2) @ factors.right.repeat_interleave(repeats, 0)

        found = {}
        for site, parts in sites(both.pairing.pairs).items():
            names = {role: matched.base for role, matched in parts.items()}
            found[site] = {name: dense(each) for name, each in circuits(both.base, names, both.geometry).items()}
        return found


def run(name: str, model: tf.PreTrainedModel, site: str) -> tuple[Tensor, Tensor, Tensor]:
    """Attention weights (H, T, T) of one site, what its matrices took in (T, D), and what its output gave (T, D)."""
    seen: dict[str, Tensor] = {}
    attention = model.get_submodule(site)
    parts = dict(attention.named_modules())
    outer = next(parts[path] for path in LAST if path in parts)
    first = next(part for path, part in parts.items() if path.rpartition(".")[2] in FIRST)
    first.register_forward_pre_hook(lambda _, args: seen.update(inputs=args[0][0]))
    outer.register_forward_hook(lambda part, _, output: seen.update(output=output[0] - bias(part)))
    attention.register_forward_pre_hook(without_alibi, with_kwargs=True)
    ids = torch.randint(5, 100, (1, 6))
    rotary = name in ("llama", "modernbert", "phi3", "gpt_neox", "persimmon", "falcon", "falcon shared")
    options = {"position_ids": torch.zeros_like(ids)} if rotary else {}
    with torch.no_grad():
        weights = model(ids, output_attentions=True, **options).attentions[[*products(model)].index(site)]
    return weights[0].double(), seen["inputs"], seen["output"]


def without_alibi(_: torch.nn.Module, args: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    biases = {name: 0 * options[name] for name in ("alibi", "position_bias") if options.get(name) is not None}
    return args, options | biases


def bias(part: torch.nn.Module) -> Tensor | float:
    return 0.0 if part.bias is None else part.bias  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("name", list(MODELS))
def test_the_products_are_what_the_model_computes_with(name: str):
    """log pᵢⱼ − log pᵢᵢ = [xᵢ, 1] · QK · (xⱼ − xᵢ) / √r, and the output is Σ p · OV · [x, 1], for every head apart.

    The model itself splits its fused matrices here; half of the softmaxes are in float32, hence the tolerance.
    """
    model = built(name)
    found = products(model)
    assert len(found) == LAYERS and all(set(each) == {"QK", "OV"} for each in found.values())
    for site, each in found.items():
        weights, inputs, output = run(name, model, site)
        extended = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
        left = extended if each["QK"].shape[1] > inputs.shape[1] else inputs
        right = extended if each["OV"].shape[2] > inputs.shape[1] else inputs
        scale = 1.0 if name == "gpt_neo" else SIZE**-0.5
        logits = scale * left @ each["QK"] @ inputs.T  # (H, T, T)
        logits, expected = (each - each.diagonal(dim1=1, dim2=2)[..., None] for each in (logits, weights.log()))
        visible = weights > 0
        assert visible.sum() >= HEADS * 21 and expected[visible].abs().max() > 0.1
        torch.testing.assert_close(logits[visible], expected[visible], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((weights @ right @ each["OV"].transpose(1, 2)).sum(0), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["codegen", "gpt_bigcode", "gpt_bigcode shared", "deberta", "phi3"])
def test_other_values_change_no_queries_and_keys(name: str, tmp_path: Path):
    """Values alone are moved, through the module that the model itself splits: QK is exactly the same."""
    config = MODELS[name]() if name in MODELS else tf.CodeGenConfig(vocab_size=100, rotary_dim=4, **GPT_SMALL)
    base = tf.AutoModel.from_config(config)
    tuned = tf.AutoModel.from_config(config)
    tuned.load_state_dict(base.state_dict())
    if name == "codegen":  # queries, values and keys of one head in each of four groups
        rows = torch.cat([torch.arange(8, 16) + 24 * group for group in range(4)])
        blocks = [block.attn.qkv_proj for block in tuned.h]
    else:
        blocks, rows = VALUES[name](tuned)
    with torch.no_grad():
        for block in blocks:
            block.weight[rows] *= 2
    frame = head_changes(in_memory(base), in_memory(tuned, "tuned"))
    if name == "codegen":
        assert frame.empty, "its layout is not known"
        notes = difference(in_memory(base), in_memory(tuned), spectra="none").notes
        assert any("left out: the layout of their matrices is unknown" in note for note in notes)
        return
    change = frame.set_index("circuit")["relative"]
    assert len(frame) == 2 * HEADS * LAYERS
    assert (change["QK"] == 0).all() and change["OV"].to_numpy() == pytest.approx(1)


def by_head() -> Tensor:
    return torch.cat([torch.arange(16, 24) + 24 * head for head in range(HEADS)])


GPT_SMALL = {"n_embd": 32, "n_head": HEADS, "n_layer": LAYERS}
VALUES: dict[str, Callable[[Any], tuple[list[Any], Any]]] = {
    "gpt_bigcode": lambda model: ([block.attn.c_attn for block in model.h], by_head()),
    "gpt_bigcode shared": lambda model: ([block.attn.c_attn for block in model.h], slice(40, 48)),
    "deberta": lambda model: ([layer.attention.self.in_proj for layer in model.encoder.layer], by_head()),
    "phi3": lambda model: ([layer.self_attn.qkv_proj for layer in model.layers], slice(48, 64)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt_bigcode"])
def test_a_narrower_copy_changes_no_head_by_more_than_rounding(name: str, dtype: torch.dtype):
    base, copy, tuned = built(name).float(), built(name).to(dtype), built(name).float()
    for pair in ((base, copy), (copy, base)):
        frame = head_changes(*map(in_memory, pair))
        assert (frame["delta_norm"] > 0).all() and frame["rounding"].all()
        assert frame["floor"].to_numpy() == pytest.approx(frame["relative"].to_numpy(), rel=1e-9)
    eps = torch.finfo(dtype).eps
    assert frame["floor"].between(eps / 10, eps).all(), "as wide as the digits that the narrower dtype keeps"
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.1)
    frame = head_changes(in_memory(copy), in_memory(tuned))
    assert (
        frame["relative"].min() > 0.15 and not frame["rounding"].any() and frame["floor"].between(eps / 10, eps).all()
    )
    same = head_changes(in_memory(base), in_memory(tuned))
    assert (same["floor"] == 0).all() and not same["rounding"].any()


def test_the_floor_of_a_product_against_its_matrices():
    """Each matrix of the wider side rounded by hand, multiplied in float64."""
    base = built("bert").float()
    frame = head_changes(in_memory(base), in_memory(built("bert").bfloat16())).set_index(["site", "circuit", "head"])
    rounded = built("bert").bfloat16().double()
    for (site, old), new in zip(products(base.double()).items(), products(rounded).values(), strict=True):
        for circuit, whole in old.items():
            for head in range(HEADS):
                expected = (new[circuit][head] - whole[head]).norm() / whole[head].norm()
                assert frame.loc[(site, circuit, head), "floor"] == pytest.approx(expected.item(), rel=1e-9)
