"""Weights of a loaded checkpoint are those of its model: the files' only while nothing has changed it in memory."""

import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers as tf
from torch import nn

import attnlens
from attnlens.analysis.weights import head_changes, weight_changes
from attnlens.checkpoints.load import Checkpoint, checksum, load, load_all
from attnlens.checkpoints.shelf import Shelf
from attnlens.core.errors import UnsupportedModel
from attnlens.text.corpus import Corpus


@pytest.fixture
def folder(tmp_path: Path, minilm: Path) -> Path:
    """A small BERT with MiniLM's tokenizer, and an adapter of it beside it."""
    torch.manual_seed(0)
    config = tf.BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16)
    model = tf.BertModel(config)
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.self.query.weight.mul_(12)
    model.save_pretrained(tmp_path / "small")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm / name, tmp_path / "small")
    settings = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, settings)
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "small")
    wrapped.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path / "small"


def query(checkpoint: Checkpoint, layer: int = 1) -> nn.Linear:
    return checkpoint.model.get_submodule(f"encoder.layer.{layer}.attention.self.query")  # pyright: ignore[reportReturnType]


def test_a_model_changed_in_memory_is_compared_as_it_is(folder: Path):
    base, tuned = load(folder), load(folder)
    assert base.is_as_loaded and (weight_changes(base, tuned)["delta_norm"] == 0).all()
    with torch.no_grad():
        query(tuned).weight.mul_(1.5)
    assert not tuned.is_as_loaded and base.is_as_loaded
    for pair, sign in (((base, tuned), 1), ((tuned, base), -1), ((folder, tuned), 1)):
        frame = weight_changes(*pair, spectra="none").set_index("matrix")
        assert frame.index[frame["delta_norm"] > 0].tolist() == ["encoder.layer.1.attention.self.query.weight"]
        expected = 0.5 if sign > 0 else 1 / 3
        assert frame["relative"].max() == pytest.approx(expected, rel=1e-6)
    heads = head_changes(base, tuned)
    assert heads.loc[heads["delta_norm"] > 0, "circuit"].tolist() == ["QK"] * 2
    with torch.no_grad():
        query(tuned).weight.copy_(query(base).weight)
    assert tuned.is_as_loaded, "changed back"


def test_a_comparison_sees_the_change_in_weights_too(folder: Path, corpus: Corpus):
    base, tuned = load(folder), load(folder, name="tuned")
    with torch.no_grad():
        query(tuned).weight.mul_(1.5)
    options = attnlens.CompareOptions(passages=0)
    got = attnlens.compare(base, tuned, corpus=corpus.sample(8, 0), options=options)
    first, second = got.provenance["models"]
    assert first["sha256"] and "edited" not in first
    assert second["sha256"] is None and second["edited"] == "in memory, after loading"
    weights = got.weights
    assert weights["matrix"][weights["delta_norm"] > 0].tolist() == ["encoder.layer.1.attention.self.query.weight"]


@pytest.mark.parametrize("step", ["optimizer", "data", "half", "layer"])
def test_no_way_of_changing_goes_unseen(step: str, folder: Path):
    tuned = load(folder)
    model = tuned.model
    if step == "optimizer":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.tensor([[5, 6, 7]])).last_hidden_state.square().sum().backward()
        optimizer.step()
    elif step == "data":
        query(tuned).bias.data[3] += 1e-3
    elif step == "half":
        model.bfloat16()
    else:
        query(tuned, 0).weight = nn.Parameter(query(tuned, 1).weight.detach().clone())
    assert not tuned.is_as_loaded
    assert (weight_changes(folder, tuned, spectra="none")["delta_norm"] > 0).any()


def test_the_checksum_sees_order_signs_and_names():
    class Two(nn.Module):
        def __init__(self, first: torch.Tensor, second: torch.Tensor, swap: bool = False):
            super().__init__()
            pair = {"a": first, "b": second}
            for name in ("b", "a") if swap else ("a", "b"):
                setattr(self, name, nn.Parameter(pair[name]))

    one, other = torch.arange(6.0).reshape(2, 3), torch.tensor(2.0, dtype=torch.bfloat16)
    found = checksum(Two(one, other))
    assert found == checksum(Two(one.clone(), other.clone())) == checksum(Two(one.T.contiguous().T, other))
    for changed in (-one, one.flip(0), one.flip(1), one.double(), one.reshape(3, 2).T, torch.nextafter(one, one + 1)):
        assert checksum(Two(changed, other)) != found
    assert checksum(Two(one, one)) != checksum(Two(one, one, swap=True))
    assert checksum(Two(one[:0], other)) != found


def test_unchanged_models_are_read_from_their_files(folder: Path, monkeypatch: pytest.MonkeyPatch):
    opened, init = [], Shelf.__init__
    base, tuned = load(folder), load(folder)
    monkeypatch.setattr(Shelf, "__init__", lambda self, files: (opened.append(files), init(self, files))[1])
    weight_changes(base, tuned, spectra="none")
    assert [len(files) for files in opened] == [1, 1]
    with torch.no_grad():
        query(tuned).weight.mul_(1.5)
    weight_changes(base, tuned, spectra="none")
    assert [len(files) for files in opened] == [1, 1, 1, 0]


def test_adapters_beside_a_base_that_is_as_loaded(folder: Path):
    """They change the one model they share: what it was is remembered when all are in it."""
    base, first, second = load_all(
        [folder, folder.parent / "adapter", folder.parent / "adapter"], names=["a", "b", "c"]
    )
    assert base.model is first.model is second.model
    assert all(checkpoint.is_as_loaded for checkpoint in (base, first, second))
    assert (weight_changes(base, first, spectra="none")["delta_norm"] > 0).sum() == 2
    single = load(folder.parent / "adapter")
    assert single.is_as_loaded
    with torch.no_grad():
        next(p for name, p in first.model.named_parameters() if "lora_B" in name).mul_(2)
    assert not base.is_as_loaded and not first.is_as_loaded and single.is_as_loaded
    with pytest.raises(UnsupportedModel, match="has an adapter inside it: save the adapter and give its folder"):
        weight_changes(base, first)


def test_a_checkpoint_made_by_hand_is_its_model(folder: Path):
    loaded = load(folder)
    by_hand = Checkpoint(loaded.model, loaded.tokenizer, "by hand", {}, source=loaded.source)
    assert not by_hand.is_as_loaded, "nobody knows what it was"
    with torch.no_grad():
        query(by_hand).weight.mul_(1.5)
    assert (weight_changes(folder, by_hand, spectra="none")["delta_norm"] > 0).sum() == 1
