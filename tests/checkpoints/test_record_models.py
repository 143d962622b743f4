"""`record` on windows, softcap, shared modules and encoder–decoders, against each model's own eager weights.

The reference is written from the formulas on the eager weights in float64, and says itself what is visible.
"""

import copy

import pytest
import torch
import transformers as tf
from torch import Tensor

from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.record import record
from attnlens.core.errors import AttnlensError, ShapeError
from tests.models import BERT, SIZES, batch, build

NAMES = (
    "entropy",
    "entropy_normalized",
    "max_weight",
    "renyi2",
    "mass",
    "share",
    "log_odds",
    "received",
    "distance",
)
# Does a query see later keys, and how far does the first layer see?
CAUSAL = {"albert": False, "opt": True, "modernbert": False, "gemma2": True, "gemma3": True}
WINDOW = {"modernbert": 3, "gemma2": 3, "gemma3": 3}
# Encoder–decoder: the eager weights, the numbers of the sites, and whose tokens are queries and keys.
KINDS = {
    ("encoder", "self"): ("encoder_attentions", [0, 1], "encoder", "encoder"),
    ("decoder", "self"): ("decoder_attentions", [2, 4], "decoder", "decoder"),
    ("decoder", "cross"): ("cross_attentions", [3, 5], "decoder", "encoder"),
}


def reference(p: Tensor, visible: Tensor, rows: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """Statistics of weights p (B, H, Q, K) in float64; visible (B, 1, Q, K), rows (B, Q), groups (B, K) as integers."""
    p = p.double().masked_fill(~visible, 0.0)
    p = p / p.sum(-1, keepdim=True)
    n = visible.sum(-1).double()
    inside = torch.stack([groups == g for g in range(3)], 1)[:, None, None] & visible[..., None, :]  # (B, 1, Q, G, K)
    content = ((groups == 0) | (groups == 1))[:, None, None] & visible
    rest = content[..., None, :] & ~inside
    sums = [(p[..., None, :] * side).sum(-1) for side in (inside, rest)]
    means = [(part / side.sum(-1)).log() for part, side in zip(sums, (inside, rest), strict=True)]
    odds = means[0] - means[1]
    odds[..., 2] = torch.nan  # sinks are no content
    odds[~(inside.any(-1) & rest.any(-1)).expand(odds.shape)] = torch.nan
    share = sums[0] / (p * content).sum(-1, keepdim=True)
    share[..., 2] = torch.nan
    share[~inside.any(-1).expand(share.shape)] = torch.nan
    entropy = -torch.xlogy(p, p).sum(-1)
    gaps = (torch.arange(p.shape[2])[:, None] - torch.arange(p.shape[3])).abs()
    real = rows[:, None, :, None]
    uniform = torch.where(real & visible, 1 / n[..., None], 0.0).sum(-2)
    result = {
        "entropy": entropy,
        "entropy_normalized": torch.where(n > 1, entropy / n.log(), torch.nan),
        "max_weight": p.amax(-1),
        "renyi2": -p.square().sum(-1).log(),
        "mass": sums[0],
        "share": share,
        "log_odds": odds,
        "distance": (p * gaps).sum(-1),
    }
    for name, value in result.items():
        empty = ~rows[:, None, :].expand(entropy.shape)
        result[name] = value.masked_fill(empty if value.ndim == 3 else empty[..., None], torch.nan)
    return result | {"received": (p.nan_to_num() * real).sum(-2) / torch.where(uniform > 0, uniform, torch.nan)}


def assert_equal(got: Tensor, want: list[Tensor], name: str) -> None:
    """Layers (B, L, H, …) against the reference of each; eager softmax in float32 costs the digits."""
    torch.testing.assert_close(got.double(), torch.stack(want, 1), atol=1e-4, rtol=1e-4, equal_nan=True, msg=name)


def eager(model, inputs):
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(**inputs, output_attentions=True)


def partition(mask: Tensor) -> Tensor:
    groups = torch.randint(0, 3, mask.shape, generator=torch.Generator().manual_seed(2))
    return groups.masked_fill(mask == 0, -1)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", CAUSAL)
def test_statistics_equal_those_of_eager_weights(name: str, side: str, exact: bool):
    model, inputs = build(name), batch(side)
    real, groups = inputs["attention_mask"].bool(), partition(inputs["attention_mask"])
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
        with record(model, NAMES, groups=groups, exact=exact) as tape:
            output = model(**inputs).last_hidden_state
    assert (output - plain)[real].abs().max() <= (0 if exact else 1e-5) * plain[real].abs().max()
    want: dict[str, list[Tensor]] = {statistic: [] for statistic in NAMES}
    for layer, weights in enumerate(eager(model, inputs).attentions):
        steps = torch.arange(13)[:, None] - torch.arange(13)
        seen = torch.ones(13, 13, dtype=torch.bool)
        if CAUSAL[name]:
            seen &= steps >= 0
        if layer == 0 and name in WINDOW:
            seen &= steps.abs() <= WINDOW[name]
        visible = seen & real[:, None, None, :]
        assert not weights[(~visible & real[:, None, :, None]).expand_as(weights)].any(), "the test knows the mask"
        for statistic, value in reference(weights, visible, real, groups).items():
            want[statistic].append(value)
    assert len(want["entropy"]) == 2
    for statistic in NAMES:
        assert_equal(tape[statistic], want[statistic], statistic)


def seq2seq(side: str) -> dict[str, Tensor]:
    """Texts to read and texts to write, of unequal lengths and padding."""
    read, write = batch(side), batch("right", tokens=9)
    write = {name: tensor.flip(0) for name, tensor in write.items()}
    return read | {f"decoder_{name}": tensor for name, tensor in write.items()}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_three_kinds_of_an_encoder_decoder(name: str, side: str, exact: bool):
    model, inputs = build(name), seq2seq(side)
    masks = {"encoder": inputs["attention_mask"].bool(), "decoder": inputs["decoder_attention_mask"].bool()}
    own = eager(model, inputs)
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
    for (stack, kind), (field, layers, queries, keys) in KINDS.items():
        groups, real = partition(masks[keys]), masks[queries]
        with torch.no_grad(), record(model, NAMES, groups=groups, layers=layers, exact=exact) as tape:
            output = model(**inputs).last_hidden_state
        assert (output - plain)[masks["decoder"]].abs().max() <= (0 if exact else 1e-5) * plain.abs().max()
        assert {(site.stack, site.kind) for site in tape.sites} == {(stack, kind)}
        assert [site.number for site in tape.sites] == [0, 1]
        want: dict[str, list[Tensor]] = {statistic: [] for statistic in NAMES}
        for weights in getattr(own, field):
            visible = masks[keys][:, None, None, :].expand(-1, 1, real.shape[1], -1)
            visible = visible.tril() if (stack, kind) == ("decoder", "self") else visible
            for statistic, value in reference(weights, visible, real, groups).items():
                want[statistic].append(value)
        for statistic in NAMES:
            if (kind, statistic) == ("cross", "distance"):
                assert tape["distance"].isnan().all(), "positions of two texts have no distance"
            else:
                assert_equal(tape[statistic], want[statistic], statistic)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_kinds_are_selected_and_never_mixed(name: str):
    model, inputs = build(name), seq2seq("right")
    with torch.no_grad(), record(model, ("entropy", "max_weight")) as tape:
        model(**inputs)
    with pytest.raises(AttnlensError, match=r'several kinds of attention.*tape\.select\(stack="decoder", kind="cross"'):
        _ = tape["entropy"]
    for stack, kind, length in (("encoder", "self", 13), ("decoder", "self", 9), ("decoder", "cross", 9)):
        chosen = tape.select(stack=stack, kind=kind)
        assert chosen["entropy"].shape == (3, 2, 4, length)
        maps = attention_maps(model, inputs, layers=[i for i, site in enumerate(tape.sites) if site in chosen.sites])
        assert maps.shape == (3, 2, 4, length, 13 if kind == "cross" or stack == "encoder" else 9)
        torch.testing.assert_close(maps.amax(-1), chosen["max_weight"], equal_nan=True)
    with pytest.raises(AttnlensError, match="choose layers of one kind of attention with layers="):
        attention_maps(model, inputs)


def test_groups_and_rows_are_of_one_text():
    """Groups go with whose keys, rows with whose queries; equal lengths must not let one pass for the other."""
    model, inputs = build("t5"), batch("right")
    inputs |= {f"decoder_{name}": tensor for name, tensor in inputs.items()}
    groups, rows = partition(inputs["attention_mask"]), torch.ones(3, 13)
    with torch.no_grad():
        with record(model, ("mass",), groups=groups, layers=[0, 1, 3, 5]) as tape:
            model(**inputs)
        assert tape.select(kind="cross")["mass"].shape == tape.select(kind="self")["mass"].shape == (3, 2, 4, 13, 3)
        with record(model, rows=rows, layers=[2, 3, 4, 5]) as tape:
            model(**inputs)
        assert tape.select(kind="cross")["entropy"].shape == (3, 2, 4)
        for mixed in ({"groups": groups}, {"rows": rows}):
            with pytest.raises(ShapeError, match=f"{next(iter(mixed))} mark .* choose those of one with layers="):
                with record(model, **mixed):
                    model(**inputs)
        inputs["decoder_input_ids"] = inputs["decoder_input_ids"][:, :5]
        inputs["decoder_attention_mask"] = inputs["decoder_attention_mask"][:, :5]
        with pytest.raises(ShapeError, match=r"groups must be \(3, 5\) for the decoder tokens of this batch"):
            with record(model, ("mass",), groups=groups, layers=[2, 4]):
                model(**inputs)


def test_an_encoder_alone_is_an_encoder():
    """What attnlens compares of an encoder–decoder: its encoder, run by itself."""
    for name in ("t5", "bart"):
        model, inputs = build(name), batch("left")
        with torch.no_grad(), record(model.get_encoder()) as alone:
            model.get_encoder()(**inputs)
        with torch.no_grad(), record(model) as whole:
            model(**inputs, decoder_input_ids=inputs["input_ids"])
        assert [site.stack for site in alone.sites] == ["encoder", "encoder"]
        want = whole.select(stack="encoder")["entropy"]
        torch.testing.assert_close(alone["entropy"], want, equal_nan=True)
        assert torch.equal(alone["entropy"][:, 0, 0].isnan(), inputs["attention_mask"] == 0)


def test_a_shared_module_is_numbered_by_order():
    model = build("albert")
    with torch.no_grad(), record(model) as tape:
        model(**batch("right"))
    assert [site.number for site in tape.sites] == [0, 1]
    assert tape.sites[0].name == tape.sites[1].name
    assert (tape["entropy"][:, 0] - tape["entropy"][:, 1]).abs().nan_to_num().max() > 1e-3


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_padding_of_both_texts_is_seen_through_peft(name: str):
    from peft import LoraConfig, get_peft_model

    inputs = seq2seq("left")
    adapted = get_peft_model(build(name), LoraConfig(r=2, target_modules=["q", "q_proj"]))
    with torch.no_grad(), record(adapted) as tape:
        adapted(**inputs)
    for stack, kind, mask in (
        ("encoder", "self", "attention_mask"),
        ("decoder", "self", "decoder_attention_mask"),
        ("decoder", "cross", "decoder_attention_mask"),
    ):
        rows = tape.select(stack=stack, kind=kind)["entropy"][:, 0, 0]
        assert torch.equal(rows.isnan(), inputs[mask] == 0)


def test_a_decoder_alone_reads_what_it_is_given():
    """Its own padding stands in attention_mask, that of the text it reads in encoder_attention_mask."""
    write, read = batch("left", tokens=9), batch("right")
    hidden = torch.randn(3, 13, 32, generator=torch.Generator().manual_seed(3))
    inputs = write | {"encoder_hidden_states": hidden, "encoder_attention_mask": read["attention_mask"]}
    lone = build("bert", config=tf.BertConfig(**SIZES, **BERT, is_decoder=True, add_cross_attention=True))
    for model in (lone, build("t5").get_decoder()):
        with torch.no_grad(), record(model, ("max_weight",)) as tape:
            model(**inputs)
        own, real = eager(model, inputs), write["attention_mask"].bool()
        assert {(site.stack, site.kind) for site in tape.sites} == {("decoder", "self"), ("decoder", "cross")}
        for kind, weights in (("self", own.attentions), ("cross", own.cross_attentions)):
            got = tape.select(stack="decoder", kind=kind)["max_weight"]
            want = torch.stack(weights, 1).amax(-1).masked_fill(~real[:, None, None], torch.nan)
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5, equal_nan=True)
