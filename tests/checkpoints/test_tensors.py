"""Pairing of weights by name: heads apart, wrappers stripped, strangers refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor

from attnlens.checkpoints.shelf import Shelf
from attnlens.checkpoints.tensors import Pairing, layer_of, module_of, pair, root_of
from attnlens.core.errors import IncompatibleCheckpoints
from tests.models import CONFIGS, build


def paired(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> Pairing:
    return pair(Shelf.of(base), Shelf.of(tuned))


def test_a_backbone_pairs_with_its_classifier():
    base = build("bert").state_dict()
    tuned = tf.BertForSequenceClassification(CONFIGS["bert"]()).state_dict()
    for first, second in ((base, tuned), (tuned, base)):
        pairing = paired(first, second)
        assert len(pairing.pairs) == len(base)
        assert {p.tuned.removeprefix("bert.") for p in pairing.pairs} == set(base) == {p.matrix for p in pairing.pairs}
        assert {p.matrix for p in pairing.pairs if p.kind == "head"} == {"pooler.dense.weight", "pooler.dense.bias"}
        only = (pairing.only_base, pairing.only_tuned)
        assert sorted(map(len, only)) == [0, 2] and set(only[0] + only[1]) == {"classifier.weight", "classifier.bias"}


def test_the_real_encoder_pairs_with_its_fine_tune(minilm: Path, tmp_path: Path):
    config = tf.BertConfig.from_pretrained(minilm)
    tf.BertForSequenceClassification(config).save_pretrained(tmp_path)
    with Shelf([minilm / "model.safetensors"]) as base, Shelf([tmp_path / "model.safetensors"]) as tuned:
        pairing = pair(base, tuned)
    assert len(pairing.pairs) == 103 and (pairing.only_base, pairing.tied) == ([], [])
    assert sorted(pairing.only_tuned) == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "model.", "net.model.", ""])
def test_wrappers_are_stripped(name: str, prefix: str):
    state = build(name).state_dict()
    headed = tf.AutoModelForSequenceClassification.from_config(CONFIGS[name]()).state_dict()
    for other in (state, headed):
        pairing = paired(state, {prefix + name: tensor for name, tensor in other.items()})
        backbone = [name for name in state if not name.startswith("pooler")]
        assert [p.matrix for p in pairing.pairs if p.kind == "backbone"] == backbone


def test_heads_pair_beneath_wrappers_and_another_size_is_another_head():
    config = CONFIGS["bert"]()
    state = tf.BertForSequenceClassification(config).state_dict()
    pairing = paired(state, {f"model.{name}": tensor for name, tensor in state.items()})
    assert {p.matrix for p in pairing.pairs if p.kind == "head"} >= {"classifier.weight", "pooler.dense.bias"}
    assert {(p.layer, p.module) for p in pairing.pairs if p.kind == "head"} == {(-1, "head")}
    config.num_labels = 7
    pairing = paired(state, tf.BertForSequenceClassification(config).state_dict())
    assert sorted(pairing.only_base) == sorted(pairing.only_tuned) == ["classifier.bias", "classifier.weight"]


def test_tied_tensors_count_once_and_keep_the_name_of_the_backbone():
    config = tf.GPT2Config(vocab_size=50, n_embd=8, n_head=2, n_layer=2)
    tied = tf.GPT2LMHeadModel(config).state_dict()
    pairing = paired({name: tensor for name, tensor in tied.items() if name != "lm_head.weight"}, tied)
    assert pairing.tied == ["lm_head.weight"] and (pairing.only_base, pairing.only_tuned) == ([], [])
    assert "wte.weight" in {p.matrix for p in pairing.pairs}


def test_the_stacks_of_an_encoder_decoder_are_told_apart():
    config = tf.T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    pairing = paired(tf.T5Model(config).state_dict(), tf.T5ForConditionalGeneration(config).state_dict())
    assert {p.stack for p in pairing.pairs if p.layer >= 0} == {"encoder", "decoder"}
    assert {p.matrix for p in pairing.pairs if p.layer < 0 and not p.stack} == {"shared.weight"}
    assert {p.stack for p in paired(*[build("bert").state_dict()] * 2).pairs} == {""}, "BERT has an encoder alone"


def test_constants_and_integers_are_no_weights():
    state = build("llama").state_dict()
    old = state | {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "embeddings.position_ids": torch.arange(4)}
    assert paired(old, state).only_base == []


def test_other_shapes_and_strangers_are_refused():
    state = build("bert").state_dict()
    wider = {name: torch.cat([tensor, tensor], -1) for name, tensor in state.items()}
    with pytest.raises(IncompatibleCheckpoints, match=r"word_embeddings.weight is \(100, 32\) in base and \(100, 64\)"):
        paired(state, wider)
    with pytest.raises(IncompatibleCheckpoints, match="only 0 of 37 base tensors have a partner"):
        paired(state, build("gpt2").state_dict())
    half = {name: tensor for name, tensor in state.items() if "layer.1." not in name}
    for first, second, side in ((state, half, "base"), (half, state, "tuned")):
        with pytest.raises(IncompatibleCheckpoints, match=f"only 21 of 37 {side} tensors have a partner"):
            paired(first, second)


@pytest.mark.parametrize(
    ("names", "root"),
    [
        (["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight", "pooler.dense.bias"], ""),
        (["bert.embeddings.norm.weight", "bert.encoder.layer.0.output.dense.weight", "classifier.bias"], "bert"),
        (
            ["model.model.embed_tokens.weight", "model.model.layers.0.mlp.up.weight", "model.score.weight"],
            "model.model",
        ),
        (["bert.encoder.layer.0.a.weight", "bertha.encoder.layer.0.a.weight"], ""),
        (["weight"], ""),
    ],
)
def test_where_the_backbone_begins(names: list[str], root: str):
    assert root_of(names) == root


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
        ("encoder.block.1.layer.0.SelfAttention.o.weight", "output", 1),
        ("encoder.block.1.layer.1.DenseReluDense.wi.weight", "feed-forward", 1),
        ("layers.2.attn.Wqkv.weight", "query+key+value", 2),
        ("layers.2.attn.Wo.weight", "output", 2),
        ("layers.2.attention.dense.weight", "output", 2),
        ("layers.2.self_attn.q_norm.weight", "norm", 2),
        ("shared.weight", "embeddings", -1),
        ("embeddings.word_embeddings.weight", "embeddings", -1),
        ("wte.weight", "embeddings", -1),
        ("pooler.dense.weight", "head", -1),
        ("lm_head.weight", "head", -1),
        ("classifier.dense.weight", "head", -1),
        ("encoder.layer.3.attention.self.in_proj.weight", "query+key+value", 3),
        ("encoder.layer.3.attention.self.q_bias", "query", 3),
        ("encoder.layer.3.attention.self.v_bias", "value", 3),
        ("encoder.layer.3.attention.self.query_proj.weight", "query", 3),
        ("encoder.layer.3.attention.self.key_proj.bias", "key", 3),
        ("encoder.layer.3.attention.self.value_proj.weight", "value", 3),
        ("encoder.layer.3.attention.self.pos_query_proj.weight", "other", 3),
        ("layers.3.mixer.in_proj.weight", "other", 3),
        ("encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", "feed-forward", 0),
        ("encoder.albert_layer_groups.0.albert_layers.0.ffn_output.bias", "feed-forward", 0),
        ("attentions.5.q_lin.weight", "query", 5),
        ("attentions.5.out_lin.bias", "output", 5),
        ("ffns.5.lin1.weight", "feed-forward", 5),
        ("layer_norm1.5.weight", "norm", 5),
        ("layer_norm_emb.weight", "norm", -1),
        ("encoder.blocks.1.0.attention.q_head.weight", "query", 1),
        ("encoder.blocks.1.0.attention.post_proj.weight", "output", 1),
        ("layer.5.rel_attn.q", "query", 5),
        ("layer.5.rel_attn.o", "output", 5),
    ],
)
def test_names_are_understood(name: str, module: str, layer: int):
    assert (module_of(name), layer_of(name)) == (module, layer)
