"""Methods through PEFT: what trains, what is left behind, and that it is what the run ended with."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from attnlens.checkpoints.load import load, quiet
from attnlens.text.corpus import Corpus, Example
from attnlens.training.job import Job
from attnlens.training.loop import train_model
from attnlens.training.train import TrainOptions, finetune
from tests.training.conftest import FILLER, VERBS

Tiny = Callable[[str], Path]
FEW = TrainOptions(max_steps=20, batch_size=12, device="cpu", learning_rate=3e-2, patience=20)


def widened(path: Path, auto: Any, folder: Path) -> Path:
    """The base with weights so wide that its outputs depend on its inputs, as a trained one's do."""
    if not folder.exists():
        with quiet():
            model = auto.from_pretrained(path)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.mul_(8.0)
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Path of a wide base without a head."""
    folder = tmp_path_factory.mktemp("wide")
    return lambda architecture: widened(tiny(architecture), AutoModel, folder / architecture)


@pytest.fixture(scope="module")
def wide_lm(tiny_lm: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Path of a wide decoder with its language-model head."""
    folder = tmp_path_factory.mktemp("wide_lm")
    return lambda architecture: widened(tiny_lm(architecture), AutoModelForCausalLM, folder / architecture)


@pytest.fixture
def plain() -> Corpus:
    """Two words decide, and stand last, where decoders read."""
    rows = [(f"{filler} {words}", label, row) for row, filler in enumerate(FILLER) for label, words in VERBS.items()]
    examples = tuple(Example(text, f"{row}{label}", f"d{row:02}", label) for text, label, row in rows)
    return Corpus(examples, "plain.jsonl", "0" * 64, True)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The job of every run, whose model is as the run left it."""
    kept = list[Job]()

    def run(job: Job, *rest: Any) -> Any:
        kept.append(job)
        return train_model(job, *rest)

    monkeypatch.setattr("attnlens.training.train.train_model", run)
    return kept


def outputs(job: Job) -> Any:
    """What the trained model makes of the training rows."""
    with torch.no_grad():
        return job.model.eval()(**job.work.collate(job.work.train))


def own_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that the base brought, under its own names."""
    marks = (".base_layer.", ".original_module.")
    return {re.sub("|".join(map(re.escape, marks)), ".", name): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "distilbert", "gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("method", ["lora"])
def test_a_classifier_trains_and_reloads_bit_for_bit(
    method: str, architecture: str, wide: Tiny, plain: Corpus, tmp_path: Path, jobs: list[Job]
):
    """Loss falls below that of a blind guess; plain PEFT computes the same logits from the folder; the base stays."""
    base = wide(architecture)
    finetune(base, plain, method=method, output=tmp_path / "out", options=FEW)
    assert outputs(jobs[0]).loss < math.log(3) - 0.1
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("the deed limits liability", return_tensors="pt")
    headed = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    reloaded = peft.PeftModel.from_pretrained(headed, str(tmp_path / "out")).eval()
    with torch.no_grad():
        expected = jobs[0].model(**tokens).logits
        assert torch.equal(reloaded(**tokens).logits, expected)
        tuned = load(tmp_path / "out")
        with tuned.active():
            assert torch.equal(tuned.model(**tokens).logits, expected)
    own, stored = own_weights(jobs[0].base.model), load_file(base / "model.safetensors")
    found = {name: tensor for key, tensor in own.items() for name in stored if key.endswith(f".{name}")}
    pooled = {name for name in stored if name.startswith("pooler.")}
    assert found.keys() >= stored.keys() - pooled
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.items())
