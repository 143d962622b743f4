"""The self-proof beyond plain models: windows, softcap, encoder–decoders, injected adapters; and that it can fail."""

import re

import pytest
import torch
import transformers as tf

from attnlens.checkpoints import proof
from attnlens.checkpoints import record as seam
from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.proof import prove
from attnlens.core.errors import UnsupportedModel
from tests.models import CONFIGS, SPECIAL, batch, build

KINDS = ("encoder self", "decoder self", "decoder cross")


@pytest.mark.parametrize("name", SPECIAL)
def test_special_architectures_prove_themselves_and_are_left_as_they_were(name: str):
    model = build(name)
    before = model.config._attn_implementation
    model.train()
    result = prove(model)
    paired = model.config.is_encoder_decoder
    assert (result.layers, result.heads, result.kinds) == ((6, 4, KINDS) if paired else (2, 4, ()))
    assert max(result.weight_error, result.output_error, result.sum_error) < 1e-5
    assert model.training and model.config._attn_implementation == before


def test_the_summary_is_one_line():
    plain, paired = prove(build("bert")).summary, prove(build("t5")).summary
    number = r"\de-\d\d"
    assert re.fullmatch(f"2 layers × 4 heads equal eager attention to {number}, output to {number}", plain)
    head = r"6 layers × 4 heads \(encoder self, decoder self, decoder cross\)"
    assert re.fullmatch(f"{head} equal eager attention to {number}, output to {number}", paired)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_other_dtypes_prove_themselves(name: str, dtype: torch.dtype):
    assert prove(build(name).to(dtype)).weight_error < 16 * max(torch.finfo(dtype).eps, 1e-5)


def test_an_encoder_decoder_with_its_head_proves_itself():
    config = SPECIAL["t5"]()
    assert prove(tf.T5ForConditionalGeneration(config)).kinds == KINDS
    assert prove(tf.BartForConditionalGeneration(SPECIAL["bart"]())).kinds == KINDS


@pytest.mark.parametrize(("name", "target"), [("bert", "query"), ("llama", "q_proj"), ("gpt2", "c_attn"), ("t5", "q")])
def test_models_with_an_injected_adapter_prove_themselves(name: str, target: str):
    """peft writes the adapter into the model itself; wrapped by peft or not, switched on or off."""
    from peft import LoraConfig, get_peft_model

    model = build(name)
    settings = LoraConfig(r=2, target_modules=[target], init_lora_weights=False, fan_in_fan_out=name == "gpt2")
    with torch.no_grad():
        kind = {"layers": [0, 1]} if name == "t5" else {}
        inputs = batch("right") | ({"decoder_input_ids": batch("right")["input_ids"]} if name == "t5" else {})
        before = attention_maps(model, inputs, **kind)
        wrapped = get_peft_model(model, settings)
        tuned = attention_maps(model, inputs, **kind)
    assert (tuned - before).abs().nan_to_num().max() > 1e-3, "the adapter takes part"
    for host in (model, wrapped):
        result = prove(host)  # pyright: ignore[reportArgumentType]
        assert result.layers == (6 if name == "t5" else 2)
        assert result.weight_error < 1e-5
    with wrapped.disable_adapter():
        assert prove(model).weight_error < 1e-5


@pytest.mark.parametrize("field", ["bias", "mask", "softcap"])
def test_a_forgotten_part_of_the_scores_is_found(field: str, monkeypatch: pytest.MonkeyPatch):
    name = {"bias": "t5", "mask": "gemma2", "softcap": "gemma2"}[field]
    true = seam._scores
    monkeypatch.setattr(seam, "_scores", lambda *args: type(true(*args))(**(vars(true(*args)) | {field: None})))
    with pytest.raises(UnsupportedModel, match="failed its self-proof"):
        prove(build(name))


@pytest.mark.parametrize(("number", "kind"), list(enumerate(KINDS)))
def test_a_fault_in_one_kind_of_attention_is_named(number: int, kind: str, monkeypatch: pytest.MonkeyPatch):
    """Maps of one kind that are off by a little, with the output untouched."""
    real, calls = proof.attention_maps, []

    def off(model, inputs, **site):
        calls.append(site)
        return real(model, inputs, **site) * (1.001 if len(calls) == number + 1 else 1.0)

    monkeypatch.setattr(proof, "attention_maps", off)
    with pytest.raises(UnsupportedModel, match=f"{kind}: recorded weights differ from eager ones by"):
        prove(build("t5"))


def test_padding_that_receives_attention_is_found(monkeypatch: pytest.MonkeyPatch):
    real = proof.attention_maps

    def leaking(model, inputs, **choice):
        maps = real(model, inputs, **choice)
        maps[1, ..., -1] += 1e-6  # too little for the tolerances of weights and sums
        return maps

    monkeypatch.setattr(proof, "attention_maps", leaking)
    with pytest.raises(UnsupportedModel, match="failed its self-proof: padding receives attention"):
        prove(build("bert"))


def test_a_model_without_eager_weights_is_refused():
    class Silent(tf.BertModel):
        def forward(self, *args, output_attentions=None, **kwargs):
            return super().forward(*args, **kwargs)

    with pytest.raises(UnsupportedModel, match="Silent returns no eager attention to prove the recording against"):
        prove(Silent(CONFIGS["bert"]()).eval())


def test_eager_output_inside_a_record_block_leaves_the_recording_as_it_was():
    """It switches to eager attention and back: to that of the block, not to the model's own."""
    model, inputs = build("bert"), batch("right")
    with torch.no_grad(), seam.record(model) as tape:
        proof.eager_output(model, inputs)
        tape.calls.clear()
        model(**inputs)
    assert len(tape.sites) == 2 and model.config._attn_implementation == "sdpa"
