"""Single files of weights: whatever a training script wrapped its model in, the model is the one that was saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

from attnlens.checkpoints.load import load, load_all
from attnlens.checkpoints.single import stored_dtype, wanted_names
from attnlens.core.errors import CheckpointError
from tests.checkpoints.test_adapter import BERT, TOKENS, hidden, tokenizer_files


@pytest.fixture
def model() -> tf.BertForSequenceClassification:
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**BERT)).eval()


@pytest.fixture
def folder(tmp_path: Path, minilm: Path, model: tf.BertForSequenceClassification) -> Path:
    """A folder with config and tokenizer, waiting for weights."""
    (tmp_path / "run").mkdir()
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.save_pretrained(tmp_path / "run")
    tokenizer_files(minilm, tmp_path / "run")
    return tmp_path / "run"


def expected(model: tf.BertForSequenceClassification) -> torch.Tensor:
    with torch.no_grad():
        return model.bert(input_ids=TOKENS).last_hidden_state


WRAPPERS = {
    "as it is": lambda state: state,
    "the backbone alone": lambda state: {n.removeprefix("bert."): t for n, t in state.items() if n.startswith("bert.")},
    "Lightning": lambda state: {
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()} | {"loss.weight": torch.ones(2)},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}}],
        "epoch": 2,
        "hyper_parameters": {"learning_rate": 1e-3},
    },
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "compiled layers in Lightning": lambda state: {
        f"model.{name}".replace("encoder.", "encoder._orig_mod."): tensor for name, tensor in state.items()
    },
    "merged by PEFT": lambda state: {f"base_model.model.{name}": tensor for name, tensor in state.items()},
    "an attribute of another name": lambda state: {f"net.student.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_the_model(model: Any, folder: Path, wrapper: str):
    torch.save(WRAPPERS[wrapper](model.state_dict()), folder / "weights.ckpt")
    loaded = load(folder / "weights.ckpt")
    assert torch.equal(hidden(loaded), expected(model))
    assert loaded.name == "weights" and loaded.provenance["kind"] == "file"
    assert len(loaded.provenance["sha256"]) == 64
    if wrapper != "the backbone alone":
        with torch.no_grad():
            assert torch.equal(loaded.model(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("ending", ["ckpt", "pt", "pth", "bin", "safetensors"])
def test_every_ending(model: Any, folder: Path, ending: str):
    path = folder / f"weights.{ending}"
    if ending == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    assert torch.equal(hidden(load(path)), expected(model))


def test_two_files_of_one_folder(model: Any, folder: Path):
    """Base and tuned share config and tokenizer; each keeps its own weights and checksum."""
    save_file(model.state_dict(), folder / "model-a.safetensors")
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.query.weight.mul_(2.0)
    save_file(model.state_dict(), folder / "model-b.safetensors")
    first, second = load_all([folder / "model-a.safetensors", folder / "model-b.safetensors"])
    assert [first.name, second.name] == ["model-a", "model-b"]
    assert torch.equal(hidden(second), expected(model)) and not torch.equal(hidden(first), expected(model))
    assert first.provenance["sha256"] != second.provenance["sha256"]


def test_a_file_elsewhere_with_config_and_tokenizer(model: Any, folder: Path, tmp_path: Path):
    save_file(model.state_dict(), tmp_path / "alone.safetensors")
    loaded = load(tmp_path / "alone.safetensors", config=folder, tokenizer=folder)
    assert torch.equal(hidden(loaded), expected(model))
    again = load(tmp_path / "alone.safetensors", config=folder, tokenizer=loaded.tokenizer)
    assert torch.equal(hidden(again), expected(model))


def test_the_dtype_is_that_of_the_file(model: Any, folder: Path):
    """Whatever the config beside it says, which was written for another one."""
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    save_file({name: tensor.bfloat16() for name, tensor in model.state_dict().items()}, folder / "half.safetensors")
    assert load(folder / "half.safetensors").model.dtype == torch.bfloat16
    assert load(folder / "half.safetensors", dtype="float32").model.dtype == torch.float32


def test_most_numbers_decide_the_dtype():
    state = {"a": torch.ones(3), "b": torch.ones(4, dtype=torch.bfloat16), "ids": torch.ones(9, dtype=torch.long)}
    assert stored_dtype(state) == torch.bfloat16
    assert stored_dtype({}) == torch.float32


def test_a_decoder_s_own_prefix_is_no_wrapper(tmp_path: Path, minilm: Path):
    """Llama's backbone is itself called `model.`, and Lightning's model too."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16, vocab_size=60
    )
    llama = tf.LlamaForCausalLM(config).eval()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    tokenizer_files(minilm, tmp_path)
    with torch.no_grad():
        truth = llama.model(input_ids=TOKENS).last_hidden_state
    for prefix in ("", "model.", "model.module."):
        torch.save({prefix + name: tensor for name, tensor in llama.state_dict().items()}, tmp_path / "weights.pt")
        assert torch.equal(hidden(load(tmp_path / "weights.pt")), truth), prefix


def test_names_of_a_small_model():
    """By hand: what is taken off, what stays out."""
    names = frozenset({"bert.layer.weight", "bert.norm.weight", "head.weight"})
    cases = {
        ("bert.layer.weight", "head.weight"): {"bert.layer.weight": "bert.layer.weight", "head.weight": "head.weight"},
        ("layer.weight", "norm.weight"): {"layer.weight": "layer.weight", "norm.weight": "norm.weight"},
        ("model.layer.weight", "model.norm.weight", "ema.steps"): {
            "model.layer.weight": "layer.weight",
            "model.norm.weight": "norm.weight",
        },
        ("a.bert.layer._orig_mod.weight",): {"a.bert.layer._orig_mod.weight": "bert.layer.weight"},
    }
    for stored, wanted in cases.items():
        assert wanted_names(stored, names, "bert.", "it") == wanted


def test_two_models_in_one_file_are_an_error(model: Any, folder: Path):
    both = {
        f"{owner}.{name}": tensor for owner in ("student", "teacher") for name, tensor in model.state_dict().items()
    }
    torch.save({"state_dict": both}, folder / "both.ckpt")
    with pytest.raises(CheckpointError, match=r"holds several models, under student\. and teacher\.: save the one"):
        load(folder / "both.ckpt")


def test_what_does_not_fit_its_config_is_one_line(model: Any, folder: Path, tmp_path: Path):
    state = model.state_dict()
    save_file({name: tensor for name, tensor in state.items() if "layer.1" not in name}, folder / "short.safetensors")
    save_file({"something": torch.ones(2)}, folder / "other.safetensors")
    save_file(state | {"bert.embeddings.word_embeddings.weight": torch.ones(50, 16)}, folder / "words.safetensors")
    nan = dict(state) | {"bert.encoder.layer.1.output.dense.bias": torch.full((16,), float("inf"))}
    save_file(nan, folder / "nan.safetensors")
    torch.save({"state_dict": state, "callback": Path("x")}, folder / "code.ckpt")
    for name, message in {
        "short.safetensors": r"lacks 16 backbone weights, the first is bert.encoder.layer.1.*; they would be random",
        "other.safetensors": r"holds no weight that its config describes, the first is something: needed the config",
        "words.safetensors": r"word_embeddings.weight is \(50, 16\) there and \(30522, 16\) by its config.json",
        "nan.safetensors": r"holds NaN or infinite numbers, the first in bert.encoder.layer.1.output.dense.bias",
        "code.ckpt": r"names code \(pathlib.*\) that loading it would run, so it is not loaded; .* convert it once",
    }.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            load(folder / name)
        assert "\n" not in str(caught.value)
