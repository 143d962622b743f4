"""Virtual tokens of prompt and prefix tuning: a group of their own, before the tokens of the text."""

import pytest
import torch
import transformers as tf
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from attnlens.checkpoints.maps import attention_maps
from attnlens.checkpoints.record import record
from attnlens.core.errors import UnsupportedModel
from tests.models import CONFIGS, SPECIAL, batch, build

VIRTUAL = 4
METHODS = {
    "prompt": lambda: PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=VIRTUAL),
    "prefix": lambda: PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=VIRTUAL),
    "p-tuning": lambda: PromptEncoderConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=VIRTUAL, encoder_hidden_size=16
    ),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_virtual_tokens_are_group_3(name: str, method: str, side: str):
    """Mass of each group is the sum of the map's columns, the first four of which are virtual; rows are the text's."""
    model, inputs = get_peft_model(build(name), METHODS[method]()).eval(), batch(side)
    groups = torch.randint(0, 3, (3, 13), generator=torch.Generator().manual_seed(2))
    groups = groups.masked_fill(inputs["attention_mask"] == 0, -1)
    rows = torch.ones(3, 13)
    maps = attention_maps(model, inputs)
    queries = VIRTUAL * (method != "prefix")
    assert maps.shape == (3, 2, 4, 13 + queries, 13 + VIRTUAL)
    with torch.no_grad():
        with record(model, ("mass",), groups=groups) as full:
            model(**inputs)
        with record(model, ("mass",), groups=groups, rows=rows) as means:
            model(**inputs)
        with record(model, ("mass",), groups=torch.nn.functional.one_hot(groups + 1).float()[..., 1:]) as floats:
            model(**inputs)
    columns = torch.cat([torch.full((3, VIRTUAL), 3), groups], 1)
    want = torch.stack([(maps * (columns == g)[:, None, None, None]).sum(-1) for g in range(4)], -1)
    assert torch.equal(full["mass"][:, 0, 0, :, 0].isnan(), maps[:, 0, 0, :, 0].isnan())
    torch.testing.assert_close(full["mass"], want, atol=1e-6, rtol=1e-5, equal_nan=True)
    assert want[..., 3].nan_to_num().max() > 1e-3, "virtual tokens are looked at"
    torch.testing.assert_close(floats["mass"], want[..., :3], atol=1e-6, rtol=1e-5, equal_nan=True)
    torch.testing.assert_close(means["mass"], want[..., queries:, :].nanmean(3), atol=1e-6, rtol=1e-5)


def test_without_the_adapter_there_are_none():
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    model = get_peft_model(tf.LlamaForCausalLM(CONFIGS["llama"]()), settings).eval()
    inputs = batch("right")
    groups = torch.zeros(3, 13, dtype=torch.long)
    with torch.no_grad(), model.disable_adapter(), record(model, ("mass",), groups=groups) as tape:
        model(**inputs)
    assert tape["mass"].shape == (3, 2, 4, 13, 3)


def test_encoder_decoders_with_virtual_tokens_take_no_groups():
    settings = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=VIRTUAL)
    model = get_peft_model(tf.T5ForConditionalGeneration(SPECIAL["t5"]()), settings)
    with (
        pytest.raises(UnsupportedModel, match="virtual tokens of an encoder–decoder"),
        record(model, rows=torch.ones(3, 13)),
    ):
        pass
