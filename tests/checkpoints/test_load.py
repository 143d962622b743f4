"""`load`: what is missing or does not fit is one clear error; what loads has proved its attention."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from attnlens.checkpoints import proof
from attnlens.checkpoints.load import load
from attnlens.checkpoints.proof import prove
from attnlens.core.errors import CheckpointError, UnknownName, UnsupportedModel
from tests.models import CONFIGS, build


@pytest.fixture
def saved(tmp_path: Path, minilm: Path) -> Path:
    """A small BERT on disk with MiniLM's tokenizer."""
    folder = tmp_path / "small"
    config = tf.BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16)
    tf.BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm / name, folder)
    return folder


def test_a_directory_loads_with_identity_and_proof(saved: Path):
    checkpoint = load(saved)
    assert checkpoint.name == "small"
    assert checkpoint.provenance["architecture"] == "BertModel"
    assert len(checkpoint.provenance["sha256"]) == 64
    assert "2 layers × 2 heads equal eager attention" in checkpoint.provenance["proof"]
    assert not checkpoint.model.training
    assert "BertModel" in str(checkpoint)


def test_a_notebook_shows_what_it_is_and_runs_none_of_it(saved: Path):
    checkpoint = load(saved, name="<img src=x onerror=alert(1)>")
    page = checkpoint._repr_html_()
    assert "<img" not in page and "&lt;img src=x" in page and page.count("<tr>") == 6
    rows = dict(re.findall(r"<tr><th scope=\"row\">(.*?)</th><td>(.*?)</td></tr>", page))
    assert rows["architecture"] == "BertModel" and rows["attention"].startswith("2 layers × 2 heads")
    assert rows["parameters"] == f"{checkpoint.provenance['parameters']:,}" and rows["number format"] == "float32"
    assert "sha256" not in page
    training = {"method": "<b>alf</b>"}
    adapter = {"type": "LORA", "r": 8, "base": "here"}
    tuned = replace(checkpoint, provenance=checkpoint.provenance | {"training": training, "adapter": adapter})
    rows = dict(re.findall(r"<tr><th scope=\"row\">(.*?)</th><td>(.*?)</td></tr>", tuned._repr_html_()))
    assert (rows["adapter"], rows["on the base"], rows["fine-tuned by"]) == (
        "LORA, r 8",
        "here",
        "&lt;b&gt;alf&lt;/b&gt;",
    )
    assert "<table>" in replace(checkpoint, provenance={})._repr_html_()


def test_the_published_similarities_of_minilm(minilm: Path):
    """SBERT's quickstart: .6660, .1046, .1411 (METRICS 7.1), through attnlens' own loading."""
    checkpoint = load(minilm, dtype="float32")
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    inputs = checkpoint.tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = checkpoint.model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    embeddings = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    similarity = (embeddings @ embeddings.T).numpy()
    np.testing.assert_allclose(similarity[np.triu_indices(3, 1)], [0.6660, 0.1046, 0.1411], atol=5e-5)


def test_real_decoders_load_and_prove(shared: Path):
    for name in ("stories260K", "babyllama_tok105"):
        assert "5 layers × 8 heads" in load(shared / "models" / name).provenance["proof"]


def test_a_tuned_checkpoint_without_tokenizer_takes_the_base_s(saved: Path, tmp_path: Path):
    base = load(saved)
    bare = tmp_path / "bare"
    base.model.save_pretrained(bare)
    assert load(bare, tokenizer=base.tokenizer).tokenizer is base.tokenizer
    with pytest.raises(CheckpointError, match="no tokenizer files"):
        load(bare)


def test_dtype_is_as_stored_or_as_asked(saved: Path):
    load(saved, dtype="bfloat16").model.save_pretrained(saved)
    assert load(saved).model.dtype == torch.bfloat16
    assert load(saved, dtype="float32").model.dtype == torch.float32
    with pytest.raises(UnknownName, match="did you mean 'float16'"):
        load(saved, dtype="floatt16")


def broken(folder: Path, what: str) -> Path:
    """A checkpoint folder with one thing wrong."""
    if what == "no config":
        (folder / "config.json").unlink()
    elif what == "config not json":
        (folder / "config.json").write_text("{")
    elif what == "unknown type":
        (folder / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    elif what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "weights not safetensors":
        (folder / "model.safetensors").write_bytes(b"not a tensor file")
    elif what == "weights of another shape":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 24}))
    elif what == "weights missing":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    elif what == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif what == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", "holds no config.json"),
        ("config not json", "config.json cannot be used"),
        ("unknown type", "config.json cannot be used"),
        ("no weights", "the weights of .* cannot be loaded"),
        ("weights not safetensors", "is no whole safetensors file"),
        (
            "weights of another shape",
            r"dense.bias is \(16,\) there and \(24,\) by its config.json, which belongs to another",
        ),
        ("weights missing", "lacks 16 backbone weights, the first is encoder.layer.2"),
        ("adapter", "is an adapter without adapter_model.safetensors"),
        ("broken tokenizer", "the tokenizer of .* cannot be loaded"),
    ],
)
def test_broken_checkpoints_are_one_line(saved: Path, what: str, message: str):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(broken(saved, what))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/model", "does not exist"),
        ("./nowhere", "does not exist"),
        ("some/model", "no such model could be had from the hub"),
        (__file__, "is a file"),
    ],
)
def test_missing_sources_are_one_line(source: str, message: str):
    with pytest.raises(CheckpointError, match=message):
        load(source)


@pytest.mark.parametrize("architecture", [tf.T5Model, tf.T5ForConditionalGeneration])
def test_of_an_encoder_decoder_the_encoder_is_compared(tmp_path: Path, minilm: Path, architecture: Any):
    config = tf.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50)
    architecture(config).save_pretrained(tmp_path)
    checkpoint = load(tmp_path, tokenizer=tf.AutoTokenizer.from_pretrained(minilm))
    assert checkpoint.backbone is checkpoint.model.get_encoder()
    assert "3 layers × 2 heads (encoder self, decoder self, decoder cross)" in checkpoint.provenance["proof"]


def test_what_finetune_wrote_brings_its_record(saved: Path):
    record = {"base": {"name": "b"}, "data": {}, "metrics": {"accuracy": 0.5}, "history": [{"step": 1, "loss": 2.0}]}
    (saved / "attnlens.json").write_text(json.dumps(record))
    assert load(saved).provenance["training"] == record
    (saved / "attnlens.json").write_text(json.dumps({"base": {}}))
    with pytest.raises(CheckpointError, match="is not a training record of attnlens"):
        load(saved)


def test_weights_that_are_no_numbers_name_the_first(saved: Path):
    state = load_file(saved / "model.safetensors")
    state["encoder.layer.1.output.dense.bias"][3] = float("nan")
    save_file(state, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds NaN or infinite numbers, the first in encoder.layer.1.output"):
        load(saved)


def test_a_head_of_another_size_is_no_fault(saved: Path):
    """Heads are not compared; the backbone is what must fit."""
    tf.BertForSequenceClassification.from_pretrained(saved, num_labels=4).save_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (saved / "config.json").write_text(json.dumps(config | labels))
    assert load(saved).provenance["architecture"] == "BertForSequenceClassification"


def test_spread_over_the_devices_it_computes_the_same(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of which there may be one here; what would have to lie on disk beside them is refused."""
    plain, given, places = load(saved), [], {}
    from_pretrained = tf.BertModel.from_pretrained

    def watched(*args: Any, **kwargs: Any) -> Any:
        given.append(kwargs.get("device_map"))
        return from_pretrained(*args, **kwargs | places)

    monkeypatch.setattr(tf.BertModel, "from_pretrained", watched)
    spread = load(saved, device="auto")
    alone = load(saved / "model.safetensors", tokenizer=saved, device="auto")
    assert given == ["auto", "auto"] and load(saved) and given.pop() is None
    batch = plain.tokenizer(["one short text", "and another text"], return_tensors="pt")
    with torch.no_grad():
        right = plain.model(**batch)[0]
        assert torch.equal(spread.model(**batch)[0], right) and torch.equal(alone.model(**batch)[0], right)
    places["device_map"] = {"embeddings": "cpu", "encoder": "disk", "pooler": "cpu"}
    places["offload_folder"] = tmp_path / "offload"
    with pytest.raises(CheckpointError, match="does not fit the GPUs here: use a narrower --dtype, or the cpu"):
        load(saved, device="auto")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_proves_itself_and_is_left_as_it_was(name: str):
    model = build(name)
    model.train()
    result = prove(model)
    assert (result.layers, result.heads) == (2, 4)
    assert result.weight_error < 1e-4
    assert model.training and model.config._attn_implementation == "sdpa"


def test_the_proof_stops_a_model_whose_recording_is_wrong(monkeypatch: pytest.MonkeyPatch):
    """A recording that forgets the scaling of the logits must not pass."""
    from attnlens.checkpoints import record

    true = record._scores

    def doubled(*args):
        scores = true(*args)
        return replace(scores, scale=2 * scores.scale)

    monkeypatch.setattr(record, "_scores", doubled)
    with pytest.raises(UnsupportedModel, match="failed its self-proof: output under record differs"):
        prove(build("bert"))


def test_the_proof_sees_a_lost_mask(monkeypatch: pytest.MonkeyPatch):
    real = proof.attention_maps
    monkeypatch.setattr(
        proof,
        "attention_maps",
        lambda model, batch, layers: real(model, {"input_ids": batch["input_ids"]}, layers=layers),
    )
    with pytest.raises(UnsupportedModel, match="failed its self-proof"):
        prove(build("bert"))


@pytest.mark.parametrize("name", ["logging", "Trainer", "pipeline", "AutoTokenizer"])
def test_a_config_cannot_name_anything_but_a_model(saved: Path, name: str):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
    assert load(saved).provenance["architecture"] == "BertModel"


def test_a_classifier_without_padding_token_proves_itself():
    model = tf.GPT2ForSequenceClassification(tf.GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=50)).eval()
    assert prove(model).heads == 2


def test_learned_sinks_prove_themselves():
    """gpt-oss adds a null key to the softmax: its visible weights sum to less than 1, in eager attention too."""
    config = tf.GptOssConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=2,
        intermediate_size=16, num_local_experts=2, num_experts_per_tok=1, vocab_size=60, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = tf.GptOssModel(config).eval()
    assert prove(model).weight_error < 1e-4
