"""Attention knockout: hidden keys get exactly nothing, everything else is a softmax over the keys that are left."""

import pytest
import torch
import transformers as tf

from attnlens.checkpoints.hide import SLOT, without_keys
from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.record import record
from attnlens.core.errors import ShapeError, UnsupportedModel
from tests.models import CONFIGS, batch, build

HIDDEN = (3, 6)


def some_keys(inputs: dict[str, torch.Tensor], *places: int) -> torch.Tensor:
    """(B, T): keys at these places of every text, counted from its first token."""
    keys = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    first = inputs["attention_mask"].argmax(1)
    for place in places or HIDDEN:
        keys[torch.arange(len(keys)), first + place] = True
    return keys


def visible_by_hand(inputs: dict[str, torch.Tensor], keys: torch.Tensor, causal: bool) -> torch.Tensor:
    """(B, 1, Q, K) bool: written row by row, as the docstring says."""
    texts, length = keys.shape
    seen = torch.zeros(texts, 1, length, length, dtype=torch.bool)
    for text in range(texts):
        for row in range(length):
            real = [k for k in range(length) if inputs["attention_mask"][text, k] and (k <= row or not causal)]
            left = [k for k in real if not keys[text, k]]
            seen[text, 0, row, left or [k for k in real if k == row]] = True
    return seen


def is_causal(name: str) -> bool:
    return name in ("gpt2", "llama", "qwen2", "qwen3")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("own", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "qwen3"])
def test_outputs_equal_those_of_a_float64_model_given_the_mask(name: str, own: str, side: str):
    """The reference is eager float64 attention that is handed the whole 4-D mask and never heard of a knockout."""
    model, inputs = build(name), batch(side)
    keys = some_keys(inputs)
    reference = build(name).double()
    reference.set_attn_implementation("eager")
    seen = visible_by_hand(inputs, keys, is_causal(name))
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = {}  # given to both: with a 4-D mask a model cannot tell where a text begins
    if is_causal(name):
        positions["position_ids"] = torch.arange(keys.shape[1])[None].expand(keys.shape)
    elif name == "roberta":  # it counts the tokens that are no padding, whatever the mask
        real = inputs["attention_mask"]
        positions["position_ids"] = torch.cumsum(real, 1) * real
    model.set_attn_implementation(own)
    with torch.no_grad():
        want = reference(input_ids=inputs["input_ids"], attention_mask=mask, **positions).last_hidden_state
        with without_keys(model, keys):
            got = model(**inputs, **positions).last_hidden_state
        plain = model(**inputs, **positions).last_hidden_state
    real = inputs["attention_mask"].bool()
    scale = want[real].abs().max()
    assert (got.double() - want)[real].abs().max() < 1e-4 * scale
    assert (plain.double() - want)[real].abs().max() > 1e-2 * scale


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", [*CONFIGS, "albert", "opt", "modernbert", "gemma2", "gemma3"])
def test_hidden_keys_get_nothing_in_every_layer_and_rows_sum_to_1(name: str, side: str):
    model, inputs = build(name), batch(side)
    keys, real = some_keys(inputs), inputs["attention_mask"].bool()
    plain = attention_maps(model, inputs)
    with without_keys(model, keys):
        maps = attention_maps(model, inputs)
    rows = real[:, None, None, :].expand(maps.shape[:4])
    assert ((maps.sum(-1) - 1).abs()[rows] < 1e-5).all()
    own = torch.eye(keys.shape[1], dtype=torch.bool)[None, None, None] & (maps == 1)  # it sees itself alone
    hidden = keys[:, None, None, None, :] & rows[..., None] & ~own
    assert not maps.masked_fill(~hidden, 0).any()
    # What is left in the first layer, whose input is the same, is the map without those columns, scaled to 1.
    first = plain[:, 0].double().masked_fill(keys[:, None, None, :], 0.0)
    total = first.sum(-1, keepdim=True)
    want = first / total
    clear = (total[..., 0] > 1e-3) & rows[:, 0]  # after cancellation float32 maps say little
    assert (maps[:, 0].double() - want)[clear].abs().max() < 1e-4
    assert clear.float().mean() > 0.5


def test_the_encoder_of_t5_with_its_position_bias():
    model, inputs = build("t5").get_encoder(), batch("right")
    keys = some_keys(inputs)
    plain = attention_maps(model, inputs)
    with without_keys(model, keys):
        maps = attention_maps(model, inputs)
    assert not maps.masked_fill(~keys[:, None, None, None, :], 0).nan_to_num().any()
    first = plain[:, 0].masked_fill(keys[:, None, None, :], 0.0)
    real = inputs["attention_mask"].bool()[:, None, :].expand(first.shape[:3])
    torch.testing.assert_close(maps[:, 0][real], (first / first.sum(-1, keepdim=True))[real], atol=1e-5, rtol=1e-4)
    with pytest.raises(UnsupportedModel, match="encoder alone"), without_keys(build("t5"), keys):
        pass


@pytest.mark.parametrize("name", ["bert", "llama", "gemma2"])
def test_nothing_hidden_changes_nothing_and_nothing_is_left_behind(name: str):
    model, inputs = build(name), batch("right")
    before = model.config._attn_implementation
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
        with without_keys(model, torch.zeros_like(inputs["input_ids"], dtype=torch.bool)):
            same = model(**inputs).last_hidden_state
        with pytest.raises(RuntimeError, match="stop"), without_keys(model, some_keys(inputs)):
            raise RuntimeError("stop")
        after = model(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(same[real], plain[real], atol=1e-6 * float(plain.abs().max()), rtol=1e-5)
    assert torch.equal(after, plain)
    assert model.config._attn_implementation == before
    assert not any(SLOT in module.__dict__ or module._forward_pre_hooks for module in model.modules())


def test_chosen_layers_alone():
    model, inputs = build("bert"), batch("right")
    keys = some_keys(inputs)
    plain = attention_maps(model, inputs)
    with without_keys(model, keys, layers=(1,)):
        first, second = attention_maps(model, inputs).unbind(1)
        again = attention_maps(model, inputs)[:, 1]  # a second call counts from the first layer again
    assert torch.equal(first.nan_to_num(), plain[:, 0].nan_to_num())
    for maps in (second, again):
        assert not maps.masked_fill(~keys[:, None, None, :], 0).nan_to_num().any()
    with pytest.raises(ShapeError, match=r"0 … 1; got \[7\]"), without_keys(model, keys, layers=(7,)):
        model(**inputs)


def test_a_token_that_would_see_nothing_sees_itself():
    """The first token of a causal text, hidden, has itself alone; the others do not see it."""
    model, inputs = build("llama"), batch("left")
    keys = some_keys(inputs, 0, 1)
    with without_keys(model, keys):
        maps = attention_maps(model, inputs)
    for text, first in enumerate(inputs["attention_mask"].argmax(1).tolist()):
        assert (maps[text, :, :, first, first] == 1).all()
        assert (maps[text, :, :, first + 1, first + 1] == 1).all()
        assert (maps[text, :, :, first + 2 :, first : first + 2] == 0).all()


def test_what_is_recorded_inside_is_what_is_left():
    """Statistics of the tiled pass, and a bias planted by a pre-hook, both under a knockout."""
    model, inputs = build("llama"), batch("right")
    keys, real = some_keys(inputs), inputs["attention_mask"].bool()
    groups = keys.long().masked_fill(~real, -1)
    with torch.no_grad(), without_keys(model, keys), record(model, ("mass",), groups=groups) as tape:
        got = model(**inputs).last_hidden_state
    with torch.no_grad(), without_keys(model, keys):
        want = model(**inputs).last_hidden_state
    assert (tape["mass"][..., 1].nan_to_num() == 0).all()
    torch.testing.assert_close(got[real], want[real], atol=1e-4, rtol=1e-4)


def test_two_blocks_hide_both():
    model, inputs = build("bert"), batch("right")
    one, two = some_keys(inputs, 3), some_keys(inputs, 6)
    with torch.no_grad():
        with without_keys(model, one | two):
            want = model(**inputs).last_hidden_state
        with without_keys(model, one), without_keys(model, two):
            got = model(**inputs).last_hidden_state
    assert torch.equal(got, want)


def test_what_cannot_be_hidden_is_refused():
    inputs = batch("right")
    keys = some_keys(inputs)
    model = build("bert")
    with pytest.raises(ShapeError, match="bool"), without_keys(model, keys.long()):
        pass
    with pytest.raises(ShapeError, match=r"must be \(3, 13\)"), without_keys(model, keys[:2]):
        model(**inputs)
    bloom = tf.BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(UnsupportedModel, match="attention interface"), without_keys(tf.BloomModel(bloom), keys):
        pass
    # One of the two layers is a recurrence: what a token says travels on past attention.
    mixed = tf.Qwen3NextConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=32, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=2,
        num_experts_per_tok=1, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    model = tf.Qwen3NextModel(mixed).eval()
    with torch.no_grad(), pytest.raises(UnsupportedModel, match="ran 1 attentions"), without_keys(model, keys):
        model(**inputs)
