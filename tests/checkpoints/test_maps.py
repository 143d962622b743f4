"""Dense maps: chosen queries, and value-weighted ones against vectors that were added up one by one."""

import peft
import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.record import record
from attnlens.core.errors import AttnlensError, ShapeError, UnknownName, UnsupportedModel
from tests.checkpoints.test_record_values import projections, values_of
from tests.models import CONFIGS, batch, build

BLOOM = {"vocab_size": 100, "hidden_size": 32, "n_layer": 3, "n_head": 4}
SINKS = tf.GptOssConfig(
    vocab_size=100,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    intermediate_size=48,
    num_local_experts=2,
    num_experts_per_tok=1,
    head_dim=8,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention"],
    pad_token_id=0,
)
OTHERS = {"bloom": tf.BloomConfig(**BLOOM), "gpt_oss": SINKS}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["bert", "qwen2", "gemma2", "gemma3", *OTHERS])
def test_chosen_queries_are_rows_of_the_whole_map(name: str, side: str):
    model, inputs = build(name, config=OTHERS.get(name)), batch(side)
    whole = attention_maps(model, inputs)
    some = attention_maps(model, inputs, queries=[-1, 3, 0], layers=[1], heads=[2, 1])
    assert some.shape == (3, 1, 2, 3, 13)
    torch.testing.assert_close(some, whole[:, 1:2, [2, 1]][:, :, :, [12, 3, 0]], equal_nan=True, atol=1e-6, rtol=1e-5)
    with pytest.raises(ShapeError, match=r"queries must lie in -13 … 12; got \[13\]"):
        attention_maps(model, inputs, queries=[13])


def test_chosen_queries_of_cross_attention_and_with_a_bias():
    model, inputs = build("t5"), batch("right")
    inputs |= {"decoder_input_ids": inputs["input_ids"][:, :4]}
    for layers, keys in (([2, 4], 4), ([3, 5], 13), ([0, 1], 13)):
        whole, some = (
            attention_maps(model, inputs, layers=layers),
            attention_maps(model, inputs, layers=layers, queries=[2]),
        )
        torch.testing.assert_close(some, whole[:, :, :, 2:3], equal_nan=True)
        assert some.shape == (3, 2, 4, 1, keys)
    with pytest.raises(
        AttnlensError, match="0, 1: encoder self-attention; 2, 4: decoder self-attention; 3, 5: decoder"
    ):
        attention_maps(model, inputs)


def test_only_the_chosen_rows_are_computed(monkeypatch: pytest.MonkeyPatch):
    from attnlens.checkpoints import dense

    real, shapes = dense.dense_map, []

    def spy(query: Tensor, key: Tensor, scores: object):
        shapes.append(tuple(query.shape))
        return real(query, key, scores)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(dense, "dense_map", spy)
    attention_maps(build("qwen2"), batch(), layers=[1], heads=[0], queries=[4, 5])
    assert shapes == [(3, 1, 2, 8)]


@pytest.mark.parametrize("name", [*CONFIGS, "opt", "albert"])
def test_value_weighted_maps_are_lengths_of_explicit_vectors(name: str, monkeypatch: pytest.MonkeyPatch):
    model, inputs = build(name).double(), batch()
    plain, heads, layer, pair = (
        attention_maps(model, inputs, value_weighted=kind, heads=some)
        for kind, some in ((None, None), ("heads", None), ("layer", None), ("layer", [3, 1]))
    )
    values, outputs = values_of(model, inputs, monkeypatch), projections(model)
    outputs = outputs * (len(values) // len(outputs))
    for number, (value, output) in enumerate(zip(values, outputs, strict=True)):
        count = plain.shape[2]
        vectors = value.repeat_interleave(count // value.shape[1], 1) @ output.detach().unflatten(0, (count, -1))
        carried = plain[:, number, ..., None] * vectors[:, :, None]  # (B, H, Q, K, M)
        torch.testing.assert_close(heads[:, number], carried.norm(dim=-1), equal_nan=True, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(
            layer[:, number, 0], carried.sum(1).norm(dim=-1), equal_nan=True, atol=1e-7, rtol=1e-7
        )
        both = carried[:, [3, 1]].sum(1).norm(dim=-1)
        torch.testing.assert_close(pair[:, number, 0], both, equal_nan=True, atol=1e-7, rtol=1e-7)
    assert layer.shape == (3, len(values), 1, 13, 13)


def test_value_weighting_is_refused_where_the_projection_is_not_known():
    inputs = batch()
    with pytest.raises(UnknownName, match="unknown kind of value weighting 'head'"):
        attention_maps(build("bert"), inputs, value_weighted="head")
    with pytest.raises(UnsupportedModel, match="no value-weighted maps: this architecture computes attention past"):
        attention_maps(build("bloom", config=OTHERS["bloom"]), inputs, value_weighted="heads")
    model = build("llama")

    class Halved(nn.Module):
        def __init__(self, inner: nn.Linear):
            super().__init__()
            self.o_proj = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.o_proj(x / 2)  # a gate between attention and projection

    model.layers[0].self_attn.o_proj = Halved(model.layers[0].self_attn.o_proj)
    with pytest.raises(UnsupportedModel, match="no value-weighted maps"):
        attention_maps(model, inputs, value_weighted="heads", layers=[0])
    assert attention_maps(model, inputs, value_weighted="heads", layers=[1]).nansum() > 0


def test_half_precision_of_the_second_route_is_exact_or_refused():
    """A weight of 0 in float16 is a hidden key only where the mask says so."""
    model, inputs = build("bloom", config=tf.BloomConfig(**BLOOM | {"n_head": 1})), batch("left")
    names = ("entropy_normalized", "received")
    with torch.no_grad(), record(model, names) as wide:
        model(**inputs)
    with torch.no_grad(), record(model.half(), names) as half:
        model(**inputs)
    for name in names:
        torch.testing.assert_close(half[name], wide[name], atol=0.03, rtol=0, equal_nan=True, check_dtype=False)
    for block in model.h:
        block.self_attention.query_key_value.weight.data.mul_(8)  # now some weights vanish in float16
    with torch.no_grad(), pytest.raises(UnsupportedModel, match="may be a hidden key or one below 6e-8"):
        with record(model, names):
            model(**inputs)
    assert attention_maps(model, inputs).nansum() > 0, "a map needs no count of keys"


def test_training_on_the_second_route_needs_rows_that_sum_to_one():
    inputs = batch()
    plain = build("bloom", config=tf.BloomConfig(**BLOOM)).train()
    with record(plain) as tape:
        plain(**inputs).last_hidden_state.sum().backward()
    assert not tape["entropy"].requires_grad and all(each.grad is not None for each in plain.parameters())
    dropping = build("bloom", config=tf.BloomConfig(**BLOOM, attention_dropout=0.3)).train()
    with pytest.raises(UnsupportedModel, match="no weights whose rows sum to 1, as dropout leaves none: record in"):
        with record(dropping):
            dropping(**inputs)


def test_several_adapters_on_the_second_route():
    config = peft.LoraConfig(target_modules=["query_key_value"], r=2, init_lora_weights=False)
    model, inputs = peft.get_peft_model(build("bloom", config=OTHERS["bloom"]), config, "one").eval(), batch()
    model.add_adapter("two", config)
    found = []
    for name in ("one", "two", None):
        if name:
            model.set_adapter(name)
        merged = build("bloom", config=OTHERS["bloom"])
        if name:
            merged.load_state_dict(_merged(model, name))
        with torch.no_grad(), record(merged) as alone:
            merged(**inputs)
        with torch.no_grad(), record(model) as tape:
            if name:
                model(**inputs)
            else:
                with model.disable_adapter():
                    model(**inputs)
        torch.testing.assert_close(tape["entropy"], alone["entropy"], equal_nan=True, atol=1e-5, rtol=1e-5)
        found.append(tape["entropy"].nan_to_num())
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])


def _merged(model: peft.PeftModel, name: str) -> dict[str, Tensor]:
    """The weights of the backbone with one adapter added to them."""
    state = {}
    for key, tensor in model.get_base_model().state_dict().items():
        if "lora_" not in key:
            state[key.replace(".base_layer", "")] = tensor.clone()
    for key, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            state[f"{key}.weight"] += module.get_delta_weight(name)  # pyright: ignore[reportCallIssue]
    return state
