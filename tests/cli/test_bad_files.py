"""Checkpoints that cannot be used: one line on stderr and exit 1, with nothing on stdout and nothing written."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from tests.cli.shell import Run, refused, tree
from tests.conftest import Tuning


@pytest.fixture(scope="module")
def place(tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BASE and TUNED, weights without config, weights that lie, adapters without their base."""
    place = tmp_path_factory.mktemp("place")
    (place / "BASE").symlink_to(tuning.base)
    (place / "TUNED").symlink_to(tuning.tuned)
    (place / "empty").mkdir()
    (place / "text.ckpt").write_text("no checkpoint")
    (place / "notes.md").write_text("# Notes")
    wider = tf.BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48)
    tf.BertModel(wider).save_pretrained(place / "wider")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (tuning.base / name).exists():
            shutil.copy(tuning.base / name, place / "wider")
    broken_files(place, tuning.tuned / "model.safetensors")
    broken_folders(place, tuning)
    adapters(place, tuning.base)
    return place


def broken_files(place: Path, weights: Path) -> None:
    state = load_file(weights)
    for name in ("a", "b"):
        (place / f"{name}.safetensors").symlink_to(weights)
    (place / "code.ckpt").write_bytes(pickle.dumps({"state_dict": {}, "path": Path("x")}))
    torch.save({"state_dict": state, "callback": Path("x")}, place / "hooked.ckpt")
    (place / "cut.safetensors").write_bytes(weights.read_bytes()[:-8])
    content = weights.read_bytes()
    (place / "lying.safetensors").write_bytes(content[:8].replace(content[:2], b"\xff\xff") + content[8:])
    nan = {"bert.encoder.layer.1.output.dense.bias": torch.full((32,), torch.nan)}
    save_file(state | nan, place / "nan.safetensors")
    two = {f"{owner}.{name}": state[name].clone() for owner in "xy" for name in state}
    save_file(two, place / "two.safetensors")


def broken_folders(place: Path, tuning: Tuning) -> None:
    shutil.copytree(tuning.tuned, place / "sharded")
    (place / "sharded" / "model.safetensors").unlink()
    index = {"weight_map": {"bert.embeddings.word_embeddings.weight": "model-00001-of-00002.safetensors"}}
    (place / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copytree(tuning.tuned, place / "misfit")
    config = json.loads((place / "misfit" / "config.json").read_text())
    (place / "misfit" / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    (place / "misfit" / "SHA256SUMS").unlink()
    shutil.copytree(tuning.tuned, place / "spoilt")
    (place / "spoilt" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    (place / "weights-only").mkdir()
    (place / "weights-only" / "model.safetensors").symlink_to(tuning.tuned / "model.safetensors")


def adapters(place: Path, base: Path) -> None:
    model: Any = tf.BertModel.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "output.dense"])).save_pretrained(
        str(place / "adapter")
    )
    changes = {
        "astray": {"base_model_name_or_path": "../gone/base"},
        "lost": {"base_model_name_or_path": str(Path.home() / "gone" / "base")},
        "of-wider": {"base_model_name_or_path": str(place / "wider")},
        "prefix": {"peft_type": "PREFIX_TUNING"},
        "hollow": {},
    }
    for name, change in changes.items():
        shutil.copytree(place / "adapter", place / name)
        path = place / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (place / "hollow" / "adapter_model.safetensors").unlink()


LINES = [
    (
        "report a.safetensors b.safetensors",
        "a.safetensors has no config.json beside it: put one there with its tokenizer",
    ),
    ("report BASE weights-only", "weights-only holds no config.json"),
    ("report BASE notes.md", "notes.md is a file that ends in none of .safetensors, .ckpt, .pt, .pth, .bin"),
    ("report BASE text.ckpt --config BASE", "text.ckpt is damaged, or was not written by torch.save"),
    ("report BASE code.ckpt --config BASE", "code.ckpt"),
    ("report BASE hooked.ckpt --config BASE", "that loading it would run, so it is not loaded"),
    ("report BASE cut.safetensors --config BASE", "it is cut off or damaged"),
    ("report BASE lying.safetensors --config BASE", "lying.safetensors"),
    ("report BASE nan.safetensors --config BASE", "holds NaN or infinite numbers, the first in encoder.layer.1.output"),
    ("report BASE two.safetensors --config BASE", "holds several models, under x. and y.: save the one you mean"),
    ("report BASE a.safetensors --config wider", "intermediate.dense.bias is (32,) there and (48,) by its config.json"),
    ("report BASE a.safetensors --config ./nowhere", "nowhere does not exist: needed a folder or a hub id"),
    ("report BASE a.safetensors --config BASE --tokenizer empty", "the tokenizer of a.safetensors cannot be loaded"),
    ("report BASE sharded", "names model-00001-of-00002.safetensors, which is not there"),
    (
        "report BASE spoilt",
        "spoilt/config.json has changed since it was written (its sha256 is not that in SHA256SUMS)",
    ),
    ("report BASE misfit", "by its config.json, which belongs to another model"),
    ("report astray", "the base of the adapter astray is neither here nor a hub id: give both, attnlens report BASE"),
    ("report of-wider", "does not fit its base: size mismatch"),
    ("report adapter of-wider", "of-wider is an adapter of "),
    ("report wider adapter", "wider has other weights: give the base it was trained on, or the adapter alone"),
    ("report BASE hollow", "hollow is an adapter without adapter_model.safetensors or adapter_model.bin"),
    ("report BASE prefix", "its virtual tokens take part in attention, and attnlens cannot measure those yet"),
    ("info astray", "the base ../gone/base of the adapter astray is neither here nor a hub id: put it there, or name"),
    ("info lost", "the base ~/gone/base of the adapter lost is neither here nor a hub id: put it there, or name"),
    ("info a.safetensors", "has no config.json beside it"),
]


@pytest.mark.parametrize(("line", "message"), LINES, ids=lambda value: str(value)[:60])
def test_a_fault_is_one_line_and_leaves_nothing(
    attnlens: Run, place: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
):
    monkeypatch.chdir(place)
    before = tree(place)
    done = attnlens(*line.split(), *(["-o", "new/out"] if line.startswith("report") else []))
    assert refused(done, message), done
    assert tree(place) == before and not (place / "new").exists()
