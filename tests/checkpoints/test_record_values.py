"""`share_value` through whole models: against eager weights and explicit vectors; NaN with a reason where unknown."""

import copy

import peft
import pytest
import torch
from torch import Tensor, nn

from attnlens.checkpoints.heads import is_output, site_of
from attnlens.checkpoints.record import record
from tests.models import CONFIGS, batch, build

NAME = "share_value"


def partition(inputs: dict[str, Tensor]) -> Tensor:
    groups = torch.randint(0, 3, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(2))
    return groups.masked_fill(inputs["attention_mask"] == 0, -1)


def projections(model: nn.Module) -> list[Tensor]:
    """W_O of each attention as (H·D_v, M), by the names that these models give it."""
    endings = ("attention.output.dense", "out_lin", "attn.c_proj", "o_proj", "attn.out_proj", "attention.dense")
    found = [module for name, module in model.named_modules() if name.endswith(endings)]
    return [module.weight if hasattr(module, "nf") else module.weight.T for module in found]


def values_of(model: nn.Module, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The values (B, H_kv, K, D_v) of each attention, from the function that record registers."""
    seen = []
    from attnlens.checkpoints.session import Session

    measure = Session.measure

    def spy(self, module, query, key, value, scores, output):
        seen.append(value)
        return measure(self, module, query, key, value, scores, output)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(Session, "measure", spy)
        with record(model):
            model(**inputs)
    return seen


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", [*CONFIGS, "opt", "albert"])
def test_equals_explicit_vectors(name: str, exact: bool, monkeypatch: pytest.MonkeyPatch):
    model, inputs = build(name).double(), batch()
    groups, real = partition(inputs), inputs["attention_mask"].bool()
    with torch.no_grad(), record(model, (NAME, "share"), groups=groups, exact=exact) as tape:
        model(**inputs)
    assert tape.only().reasons == {}
    values, outputs = values_of(model, inputs, monkeypatch), projections(model)
    outputs = outputs * (len(values) // len(outputs))
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager(**inputs, output_attentions=True).attentions
    for layer, (p, value, output) in enumerate(zip(weights, values, outputs, strict=True)):
        heads = p.shape[1]
        value = value.repeat_interleave(heads // value.shape[1], 1)
        lengths = (value @ output.detach().unflatten(0, (heads, -1))).norm(dim=-1)  # (B, H, K)
        carried = p.double() * lengths[:, :, None] * real[:, None, None]
        content = ((groups == 0) | (groups == 1))[:, None, None]
        got = tape[NAME][:, layer]
        for g in (0, 1):
            expected = (carried * (groups == g)[:, None, None]).sum(-1) / (carried * content).sum(-1)
            data = ~got[..., g].isnan()
            assert (data == ~tape["share"][:, layer, ..., g].isnan()).all() and data.any()
            torch.testing.assert_close(got[..., g][data], expected[data], atol=1e-6, rtol=1e-6)


def test_some_heads_layers_and_rows():
    model, inputs = build("llama"), batch()
    groups = partition(inputs)
    rows = torch.zeros(inputs["input_ids"].shape)
    rows[:, 4:7] = 1
    with torch.no_grad():
        with record(model, (NAME,), groups=groups) as whole:
            model(**inputs)
        with record(model, (NAME,), groups=groups, heads=[3, 1], layers=[1], rows=rows) as part:
            model(**inputs)
    expected = whole[NAME][:, 1:, [3, 1], 4:7].nanmean(3)
    torch.testing.assert_close(part[NAME], expected, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_low_rank_adapters_are_part_of_the_projection():
    model, inputs = build("llama"), batch()
    config = peft.LoraConfig(target_modules=["o_proj"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    merged = copy.deepcopy(adapted).merge_and_unload()
    groups = partition(inputs)
    with torch.no_grad():
        for one, other in ((adapted, merged), (adapted.base_model.model, merged)):
            tapes = []
            for each in (one, other):
                with record(each, (NAME,), groups=groups) as tape:
                    each(**inputs)
                tapes.append(tape[NAME])
            torch.testing.assert_close(*tapes, atol=1e-5, rtol=1e-5, equal_nan=True)
            assert not tapes[0][..., :2].isnan().all()
        with adapted.disable_adapter(), record(adapted, (NAME,), groups=groups) as tape:
            adapted(**inputs)
        with record(model, (NAME,), groups=groups) as plain:
            model(**inputs)
    torch.testing.assert_close(tape[NAME], plain[NAME], atol=1e-5, rtol=1e-5, equal_nan=True)


class Gated(nn.Module):
    """A projection behind a gate."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        return self.inner(states * states.sigmoid())


def test_what_stands_between_attention_and_projection_makes_it_unknown():
    """The module with the right name is not given what the attention gave: no number, and the reason."""
    model, inputs = build("llama"), batch()
    attention = model.layers[1].self_attn
    own = attention.forward
    before = attention.o_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,), prepend=True)
    with torch.no_grad(), record(model, (NAME, "share"), groups=partition(inputs)) as tape:
        model(**inputs)
    before.remove()
    assert attention.forward == own
    assert tape[NAME][:, 1].isnan().all()
    assert not tape[NAME][:, 0].isnan().all() and not tape["share"][:, 1].isnan().all()
    assert "is not what the attention gave" in tape.only().reasons[NAME]
    rows = inputs["attention_mask"].float()
    before = attention.o_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,), prepend=True)
    with torch.no_grad(), record(model, (NAME,), groups=partition(inputs), rows=rows) as tape:
        model(**inputs)
    before.remove()
    assert tape.count(NAME)[:, 1].eq(0).all() and tape[NAME][:, 1].isnan().all()


def test_an_unknown_projection_is_said():
    model, inputs = build("llama"), batch()
    for layer in model.layers:
        layer.self_attn.o_proj = Gated(layer.self_attn.o_proj)
    with torch.no_grad(), record(model, (NAME,), groups=partition(inputs)) as tape:
        model(**inputs)
    assert tape[NAME].isnan().all()
    assert tape.only().reasons == {NAME: "the output projection of layers.0.self_attn is not known"}


def test_dropout_of_an_adapter_in_training_is_said():
    config = peft.LoraConfig(target_modules=["o_proj"], r=2, init_lora_weights=False)
    model, inputs = peft.get_peft_model(build("llama"), config).train(), batch()
    with record(model, (NAME,), groups=partition(inputs)) as tape:
        model(**inputs)
    assert "cannot be read in training mode" in tape.only().reasons[NAME]
    assert tape[NAME].isnan().all()


def test_nothing_is_left_on_the_model():
    model, inputs = build("bert"), batch()
    with torch.no_grad(), record(model, (NAME,), groups=partition(inputs)):
        model(**inputs)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_cross_attention_has_its_own_projection():
    model = build("bart")
    inputs = batch()
    with torch.no_grad(), record(model, (NAME,), groups=partition(inputs), layers=[3]) as tape:
        model(**inputs, decoder_input_ids=inputs["input_ids"])
    assert [site.name for site in tape.sites] == ["decoder.layers.0.encoder_attn"]
    assert tape.only().reasons == {} and not tape[NAME][..., :2].isnan().all()


def test_names_of_projections():
    assert is_output("encoder.layer.0.attention.output.dense.weight")
    assert not is_output("encoder.layer.0.output.dense.weight")
    assert not is_output("encoder.layer.0.attention.output.LayerNorm.weight")
    assert site_of("encoder.layer.0.attention.self.value.weight") == "encoder.layer.0.attention"
    assert site_of("encoder.layer.0.attention.output.dense.weight") == "encoder.layer.0.attention"
