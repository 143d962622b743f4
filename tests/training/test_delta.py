"""A checkpoint as its difference from the base: what is kept, and that every byte comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from attnlens.core.errors import CheckpointError, OutputExists
from attnlens.text.corpus import Corpus
from attnlens.training.delta import apply_delta, save_delta
from attnlens.training.train import TrainOptions, finetune


def test_every_byte_comes_back_and_only_what_was_trained_is_kept(tiny: Any, corpus: Corpus, tmp_path: Path):
    base, tuned = tiny("bert"), tmp_path / "tuned"
    options = TrainOptions(max_steps=12, learning_rate=1e-2, max_length=16, device="cpu", budget=0.25)
    result = finetune(base, corpus, method="alf", output=tuned, options=options)
    delta = save_delta(base, tuned, tmp_path / "delta")
    names = load_file(delta / "delta.safetensors")
    chosen = {n for choice in result.record["switching"]["choices"] for n in choice["active"]}
    blocks = tuple(f"{result.record['switching']['blocks'][number]}." for number in chosen)
    assert names and all(name.startswith((*blocks, "classifier", "bert.pooler")) for name in names)
    assert not any("embeddings" in name for name in names)
    back = apply_delta(base, delta, tmp_path / "back")
    assert {path.name: path.read_bytes() for path in back.iterdir()} == {
        path.name: path.read_bytes() for path in tuned.iterdir()
    }


def test_another_base_and_taken_names_are_refused(tiny: Any, tmp_path: Path):
    base = tiny("bert")
    delta = save_delta(base, base, tmp_path / "delta")
    assert load_file(delta / "delta.safetensors") == {}
    with pytest.raises(CheckpointError, match=r"belongs to a base with [0-9a-f]{12}…: give the base that was"):
        apply_delta(tiny("roberta"), delta, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with pytest.raises(CheckpointError, match=r"holds no delta\.safetensors: needed a folder that save_delta wrote"):
        apply_delta(base, base, tmp_path / "back")
    with pytest.raises(OutputExists, match="delta exists: needed the name of a new folder"):
        save_delta(base, base, delta)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        save_delta(tmp_path, base, tmp_path / "other")
    assert not (tmp_path / "other").exists()
