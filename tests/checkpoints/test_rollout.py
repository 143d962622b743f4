"""Attention rollout: layer by layer, and as the product of the maps says."""

import numpy as np
import pytest
import transformers as tf

from attnlens.checkpoints.maps import attention_maps, attention_rollout
from attnlens.core.errors import AttnlensError
from tests.models import batch, build


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["bert", "llama", "bloom"])
def test_it_is_the_product_of_the_layers(name: str, side: str):
    bloom = tf.BloomConfig(vocab_size=100, hidden_size=32, n_layer=3, n_head=4)
    model, inputs = build(name, config=bloom if name == "bloom" else None), batch(side)
    rolled = attention_rollout(model, inputs)
    maps = attention_maps(model, inputs).double().numpy()
    real = inputs["attention_mask"].bool().numpy()
    for text, kept in enumerate(real):
        product = np.eye(kept.sum())
        for layer in maps[text]:
            mean = layer[:, kept][:, :, kept].mean(0)
            product = (mean + np.eye(len(mean))) / 2 @ product
        mine = rolled[text].numpy()
        np.testing.assert_allclose(mine[kept][:, kept], product, atol=1e-6)
        np.testing.assert_allclose(mine[kept].sum(-1), 1, atol=1e-6)
        assert np.isnan(mine[~kept]).all() and not mine[kept][:, ~kept].any()
        assert name == "bert" or not np.triu(mine[kept][:, kept], 1).any(), "what looks back stays so"


def test_an_encoder_decoder_is_asked_for_its_stack():
    model, inputs = build("t5"), batch("right")
    inputs |= {"decoder_input_ids": inputs["input_ids"][:, :4]}
    with pytest.raises(AttnlensError, match="choose one stack of self-attention: stack='decoder' or 'encoder'"):
        attention_rollout(model, inputs)
    assert attention_rollout(model, inputs, stack="encoder").shape == (3, 13, 13)
    assert attention_rollout(model, inputs, stack="decoder").shape == (3, 4, 4)
