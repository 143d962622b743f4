"""Pairing of weights by name: heads apart, wrappers stripped, strangers refused."""

import pytest
import torch
import transformers as tf

from attnlens.checkpoints.tensors import layer_of, module_of, pair
from attnlens.core.errors import IncompatibleCheckpoints
from tests.models import CONFIGS, build


def test_a_backbone_pairs_with_its_classifier():
    base = build("bert")
    tuned = tf.BertForSequenceClassification(CONFIGS["bert"]())
    pairing = pair(base.state_dict(), tuned.state_dict(), ("bert",))
    assert len(pairing.pairs) == len(base.state_dict())
    assert sorted(pairing.only_tuned) == ["classifier.bias", "classifier.weight"]
    assert pairing.only_base == []


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_wrappers_are_stripped(prefix: str):
    state = build("llama").state_dict()
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    assert [p.matrix for p in pair(state, wrapped, ("model",)).pairs] == list(state)


def test_other_shapes_and_strangers_are_refused():
    state = build("bert").state_dict()
    wider = {name: torch.cat([tensor, tensor], -1) for name, tensor in state.items()}
    with pytest.raises(IncompatibleCheckpoints, match="must share the backbone"):
        pair(state, wider, ("bert",))
    with pytest.raises(IncompatibleCheckpoints, match="have a partner"):
        pair(state, build("gpt2").state_dict(), ("bert",))


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("encoder.layer.3.attention.self.query.weight", "query", 3),
        ("encoder.layer.3.attention.output.dense.bias", "output", 3),
        ("encoder.layer.3.attention.output.LayerNorm.weight", "norm", 3),
        ("encoder.layer.3.output.dense.weight", "feed-forward", 3),
        ("layers.11.self_attn.k_proj.weight", "key", 11),
        ("layers.11.mlp.gate_proj.weight", "feed-forward", 11),
        ("layers.0.input_layernorm.weight", "norm", 0),
        ("h.1.attn.c_attn.weight", "query+key+value", 1),
        ("h.1.attn.c_proj.weight", "output", 1),
        ("h.1.mlp.c_proj.weight", "feed-forward", 1),
        ("h.1.ln_1.weight", "norm", 1),
        ("transformer.layer.0.attention.v_lin.weight", "value", 0),
        ("transformer.layer.0.attention.out_lin.weight", "output", 0),
        ("transformer.layer.0.ffn.lin1.weight", "feed-forward", 0),
        ("embeddings.word_embeddings.weight", "embeddings", -1),
        ("wte.weight", "embeddings", -1),
        ("pooler.dense.weight", "head", -1),
        ("lm_head.weight", "head", -1),
        ("classifier.dense.weight", "head", -1),
    ],
)
def test_names_are_understood(name: str, module: str, layer: int):
    assert (module_of(name), layer_of(name)) == (module, layer)
