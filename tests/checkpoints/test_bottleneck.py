"""Bottleneck adapters: where they stand, what they compute, and that switched off they are the base bit for bit."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from attnlens.analysis.difference import difference
from attnlens.analysis.weights import weight_changes
from attnlens.checkpoints.bottleneck import Bottleneck, insert, places, save_bottleneck
from attnlens.checkpoints.load import Checkpoint, load, load_all
from attnlens.core.errors import CheckpointError, TrainingError, UnknownName, UnsupportedModel

SHAPE: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
WORDS: dict[str, Any] = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA: dict[str, Any] = {**SHAPE, **WORDS, "num_key_value_heads": 1, "max_position_embeddings": 32}
STACKS: dict[str, Any] = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                          "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}  # fmt: skip
# Model, and the projections behind the first block's attentions and feed-forward, read off the published figures.
PLACES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "bert": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**SHAPE, vocab_size=60)),
        ["bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense"],
    ),
    "xlm-r": (
        lambda: tf.XLMRobertaForSequenceClassification(tf.XLMRobertaConfig(**SHAPE, vocab_size=60)),
        ["roberta.encoder.layer.0.attention.output.dense", "roberta.encoder.layer.0.output.dense"],
    ),
    "distilbert": (
        lambda: tf.DistilBertForSequenceClassification(
            tf.DistilBertConfig(dim=16, n_heads=2, n_layers=2, hidden_dim=24, vocab_size=60)
        ),
        ["distilbert.transformer.layer.0.attention.out_lin", "distilbert.transformer.layer.0.ffn.lin2"],
    ),
    "deberta": (
        lambda: tf.DebertaV2ForSequenceClassification(tf.DebertaV2Config(**SHAPE, vocab_size=60)),
        ["deberta.encoder.layer.0.attention.output.dense", "deberta.encoder.layer.0.output.dense"],
    ),
    "gpt2": (
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_head=2, n_layer=2, **WORDS)),
        ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"],
    ),
    "llama": (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)),
        ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"],
    ),
    "qwen3": (
        lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**LLAMA, head_dim=8)),
        ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"],
    ),
    "gemma2": (
        lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**LLAMA, head_dim=8)),
        ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"],
    ),
    "t5": (
        lambda: tf.T5ForSequenceClassification(
            tf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, **WORDS)  # pyright: ignore[reportCallIssue]
        ),
        [f"transformer.encoder.block.0.layer.{name}" for name in ("0.SelfAttention.o", "1.DenseReluDense.wo")],
    ),
    "bart": (
        lambda: tf.BartForSequenceClassification(tf.BartConfig(**STACKS, vocab_size=60)),
        ["model.encoder.layers.0.self_attn.out_proj", "model.encoder.layers.0.fc2"],
    ),
}  # fmt: skip
TOKENS = torch.tensor([[5, 17, 23, 42, 8, 2]])


def built(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PLACES[name][0]().eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("name", PLACES)
def test_the_start_is_the_base_bit_for_bit_and_each_adapter_reads_the_projection_back(name: str):
    model = built(name)
    plain, keys, order = logits(model), list(model.state_dict()), []
    found = places(model, Bottleneck("houlsby", 4))
    assert list(found)[:2] == PLACES[name][1]
    for key, part in model.named_modules():
        if isinstance(part, nn.Linear | Conv1D):
            part.register_forward_hook(lambda module, args, output, key=key: order.append(key))
    logits(model)
    for key in found:  # behind an attention nothing more of it runs
        attention = key.rpartition(".output")[0] or key.rpartition(".")[0]
        assert "att" not in key.lower() or not any(
            after.startswith(attention) for after in order[order.index(key) + 1 :]
        )
    added = insert(model, Bottleneck("houlsby", 4))
    assert torch.equal(logits(model), plain)
    assert [key for key in model.state_dict() if key not in added] == keys
    assert len(added) == 4 * len(found)
    assert set(places(model, Bottleneck("pfeiffer"))) == {key for key in found if "att" not in key.lower()}


def test_an_adapter_by_hand():
    """h + up(act(down(h))) on the output of BertOutput.dense, before dropout, residual and norm."""
    for variant, act in (("pfeiffer", torch.relu), ("houlsby", nn.functional.gelu)):
        model = built("bert")
        insert(model, Bottleneck(variant, 4), seed=3)
        block = model.bert.encoder.layer[1]
        adapter = block.output.dense.bottleneck["tuned"]
        with torch.no_grad():
            adapter.up.weight.normal_(generator=torch.Generator().manual_seed(0))
            adapter.up.bias.fill_(0.5)
        inner, residual = torch.randn(2, 3, 24), torch.randn(2, 3, 16)
        dense = inner @ block.output.dense.weight.T + block.output.dense.bias
        narrow = act(dense @ adapter.down.weight.T + adapter.down.bias)
        expected = block.output.LayerNorm(dense + narrow @ adapter.up.weight.T + 0.5 + residual)
        torch.testing.assert_close(block.output(inner, residual), expected)
        # Deviation .01 of Houlsby et al.: 4 · 16 normal numbers of it.
        assert 0.007 < float(adapter.down.weight.detach().std()) < 0.013


def test_gradients_reach_the_adapters_and_no_frozen_weight():
    model = built("gpt2").train()
    added = insert(model, Bottleneck("houlsby", 4))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in added
    model(TOKENS, labels=TOKENS).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == added
    # At the start `up` is zero, so that it alone has a gradient; `down` follows.
    moving = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert moving == {name for name in added if ".up." in name}


def test_the_seed_draws_the_adapters():
    weights = []
    for seed in (0, 0, 1):
        model = built("bert")
        insert(model, Bottleneck("pfeiffer", 4), seed=seed)
        weights.append(model.bert.encoder.layer[0].output.dense.bottleneck["tuned"].down.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_what_has_no_place_is_refused():
    with pytest.raises(
        TrainingError, match="bottleneck=17 is wider than BertForSequenceClassification's hidden size: at most 16"
    ):
        insert(built("bert"), Bottleneck("pfeiffer", 17))
    with pytest.raises(UnknownName, match="unknown adapter variant 'pfeifer': did you mean 'pfeiffer'"):
        Bottleneck("pfeifer")
    albert = tf.AlbertForSequenceClassification(tf.AlbertConfig(**SHAPE, vocab_size=60, embedding_size=8))
    with pytest.raises(UnsupportedModel, match="needed the transformer blocks of its 2 layers, found 1"):
        insert(albert, Bottleneck("pfeiffer", 4))
    experts = tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**LLAMA, num_experts=2, moe_intermediate_size=8, shared_expert_intermediate_size=8)
    )
    with pytest.raises(UnsupportedModel, match=r"no place for an adapter behind the feed-forward of model\.layers\.0"):
        insert(experts, Bottleneck("pfeiffer", 4))
    phi = tf.Phi3ForCausalLM(tf.Phi3Config(**LLAMA))  # lists its output projection first
    with pytest.raises(UnsupportedModel, match=r"behind the attention of model\.layers\.0"):
        insert(phi, Bottleneck("houlsby", 4))
    insert(phi, Bottleneck("pfeiffer", 4))


@pytest.fixture
def base(tmp_path: Path, minilm: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tf.BertModel(tf.BertConfig(**SHAPE)).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm / name, tmp_path / "base")
    return tmp_path / "base"


def written(folder: Path, base: Path, kind: Bottleneck, labels: int = 3) -> torch.Tensor:
    """A classifier with adapters far from their start, saved; its logits."""
    with torch.random.fork_rng():
        torch.manual_seed(len(folder.name))
        model: Any = tf.BertForSequenceClassification.from_pretrained(base, num_labels=labels)
        trained = insert(model, kind) | {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in trained:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    save_bottleneck(model.eval(), kind, frozenset(trained), folder)
    return logits(model)


def hidden(checkpoint: Checkpoint) -> torch.Tensor:
    with checkpoint.active(), torch.no_grad():
        return checkpoint.backbone(TOKENS).last_hidden_state


def test_base_and_two_adapters_are_one_model_bit_for_bit(base: Path, tmp_path: Path):
    expected = {
        "one": written(tmp_path / "one", base, Bottleneck("pfeiffer", 4)),
        "other": written(tmp_path / "other", base, Bottleneck("houlsby", 8)),
    }
    plain = hidden(load(base))
    loaded = load_all([base, tmp_path / "one", tmp_path / "other"])
    first, *tuned = loaded
    assert first.model is tuned[0].model is tuned[1].model
    # A copy in another dtype, as `compare` makes, keeps its own adapters.
    wide, *_ = copied = copy.deepcopy(loaded)
    wide.model.double()
    for _ in range(2):
        assert torch.equal(hidden(first), plain)
        for checkpoint, twin in zip(tuned, copied[1:], strict=True):
            with checkpoint.active(), twin.active():
                assert torch.equal(logits(checkpoint.model), expected[checkpoint.name])
                torch.testing.assert_close(logits(twin.model).float(), expected[twin.name])
            assert not torch.equal(hidden(checkpoint), plain)
        assert all(checkpoint.is_as_loaded for checkpoint in loaded)
    alone = load(tmp_path / "one")
    assert torch.equal(logits(alone.model), expected["one"])
    # 2 layers × (down 4 × 16 + 4, up 16 × 4 + 16).
    facts = alone.provenance["adapter"]
    assert facts == {"type": "BOTTLENECK", "variant": "pfeiffer", "width": 4, "parameters": 2 * 148,
                     "base": str(base), "base_sha256": facts["base_sha256"]}  # fmt: skip


def test_adapters_beside_peft_s_keep_their_own_models(base: Path, tmp_path: Path):
    expected = written(tmp_path / "own", base, Bottleneck("houlsby", 4))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "dense"])
    lora: Any = peft.get_peft_model(tf.BertForSequenceClassification.from_pretrained(base, num_labels=3), config)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    lora.save_pretrained(tmp_path / "lora")
    plain = hidden(load(base))
    for order in (["own", "lora"], ["lora", "own"]):
        first, *tuned = load_all([base, *(tmp_path / name for name in order)])
        assert torch.equal(hidden(first), plain)
        own = tuned[order.index("own")]
        with own.active():
            assert torch.equal(logits(own.model), expected)
        with torch.no_grad():
            peft_own = lora.eval().base_model.model.bert(TOKENS).last_hidden_state
        torch.testing.assert_close(hidden(tuned[order.index("lora")]), peft_own)


def test_no_other_library_takes_it_for_its_own(base: Path, tmp_path: Path):
    written(tmp_path / "own", base, Bottleneck("pfeiffer", 4))
    model = tf.BertForSequenceClassification.from_pretrained(base)
    with pytest.raises(ValueError, match=r"Can't find 'adapter_config\.json'"):
        peft.PeftModel.from_pretrained(model, tmp_path / "own")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "own")


def test_the_files(base: Path, tmp_path: Path):
    written(tmp_path / "own", base, Bottleneck("pfeiffer", 4))
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [
        "bottleneck.safetensors", "bottleneck_config.json", "config.json",
    ]  # fmt: skip
    stored = load_file(tmp_path / "own" / "bottleneck.safetensors")
    places = [f"bert.encoder.layer.{block}.output.dense.bottleneck" for block in (0, 1)]
    parts = [f"{place}.{part}.{kind}" for place in places for part in ("down", "up") for kind in ("bias", "weight")]
    assert sorted(stored) == [*parts, "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    settings = json.loads((tmp_path / "own" / "bottleneck_config.json").read_text())
    assert settings == {"base_model_name_or_path": str(base), "variant": "pfeiffer", "width": 4}


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            {"bert.encoder.layer.1.output.dense.bottleneck.up.bias": None},
            "lacks 1 of its weights, the first is bert.enc",
        ),
        ({"bert.encoder.layer.7.output.dense.bottleneck.up.bias": torch.zeros(16)}, "layer.7.*no place in its base"),
        ({"classifier.weight": torch.zeros(5, 16)}, r"classifier.weight of shape \(5, 16\), which has no place"),
        ({"bert.encoder.layer.0.output.dense.weight": torch.zeros(16, 24)}, "which has no place in its base"),
    ],
)
def test_damaged_adapters(base: Path, tmp_path: Path, damage: dict[str, Any], match: str):
    written(tmp_path / "own", base, Bottleneck("pfeiffer", 4))
    path = tmp_path / "own" / "bottleneck.safetensors"
    stored = {**load_file(path), **damage}
    save_file({name: value for name, value in stored.items() if value is not None}, path)
    with pytest.raises(CheckpointError, match=match):
        load(tmp_path / "own")


def test_damaged_settings(base: Path, tmp_path: Path):
    written(tmp_path / "own", base, Bottleneck("pfeiffer", 4))
    path = tmp_path / "own" / "bottleneck_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": str(base), "variant": "pfeifer", "width": 4}))
    with pytest.raises(CheckpointError, match="variant 'pfeifer' and width 4: needed one of pfeiffer, houlsby"):
        load(tmp_path / "own")
    path.write_text(json.dumps({"base_model_name_or_path": str(base), "variant": "pfeiffer", "width": 64}))
    with pytest.raises(CheckpointError, match="does not fit its base: bottleneck=64 is wider"):
        load(tmp_path / "own")
    path.write_text(json.dumps({"base_model_name_or_path": None, "variant": "pfeiffer", "width": 4}))
    with pytest.raises(
        CheckpointError, match=r"the base \(none named\) of the adapter .* is neither here nor a hub id"
    ):
        load(tmp_path / "own")
    (tmp_path / "own" / "bottleneck.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is an adapter without bottleneck\.safetensors"):
        load(tmp_path / "own")


def test_the_weights_of_the_base_have_not_changed(base: Path, tmp_path: Path):
    written(tmp_path / "own", base, Bottleneck("houlsby", 4))
    found = difference(base, tmp_path / "own", spectra="none")
    assert found.total.delta_norm == 0 and found.total.identical == found.total.entries > 0
    assert found.notes[0].startswith("The base's weights are untouched: own adds 16 tensors beside them (bert.encoder.")
    changes = weight_changes(None, tmp_path / "own", spectra="none")
    assert set(changes.loc[changes["delta_norm"] > 0, "matrix"]) == {"pooler.dense.weight"}
