"""Methods through PEFT: what trains, what is left behind, and that it is what the run ended with."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    TrainerState,
)

from attnlens.checkpoints.load import load, quiet
from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus, Example
from attnlens.training.job import Job
from attnlens.training.loop import train_model
from attnlens.training.train import TrainOptions, finetune
from tests.training.conftest import FILLER, VERBS

Tiny = Callable[[str], Path]
Wide = Callable[..., Path]
FEW = TrainOptions(max_steps=30, batch_size=12, device="cpu", learning_rate=3e-2, patience=20)


def widened(path: Path, auto: Any, folder: Path, head: float = 0.02) -> Path:
    """The base with weights so wide that its outputs depend on its inputs; head: width of a new head's."""
    if not folder.exists():
        with quiet():
            model = auto.from_pretrained(path)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.mul_(16.0)
            model.config.initializer_range = head
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Wide:
    """Path of a wide base without a head."""
    folder = tmp_path_factory.mktemp("wide")
    return lambda name, head=0.02: widened(tiny(name), AutoModel, folder / str(head) / name, head)


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


PAIRS = [
    *[("lora", architecture) for architecture in ("bert", "xlm-roberta", "gpt2", "llama")],
    *[("ia3", architecture) for architecture in ("xlm-roberta", "qwen2")],
    *[("prompt", architecture) for architecture in ("bert", "xlm-roberta", "gpt2")],
]


@pytest.mark.parametrize(("method", "architecture"), PAIRS)
def test_a_classifier_trains_and_reloads_bit_for_bit(
    method: str, architecture: str, wide: Wide, plain: Corpus, tmp_path: Path, jobs: list[Job]
):
    """Loss falls below that of a blind guess; plain PEFT computes the same logits from the folder; the base stays."""
    # RoBERTa's new head would hardly pass on what a prompt can change.
    base = wide(architecture, 0.3 if method == "prompt" else 0.02)
    options = replace(FEW, max_steps=40, virtual_tokens=2 if method == "prompt" else None)
    finetune(base, plain, method=method, output=tmp_path / "out", options=options)
    assert outputs(jobs[0]).loss < math.log(3) - 0.01
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("the deed limits liability", return_tensors="pt")
    headed = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    reloaded = peft.PeftModel.from_pretrained(headed, str(tmp_path / "out")).eval()
    with torch.no_grad():
        expected = jobs[0].model(**tokens).logits
        assert torch.equal(reloaded(**tokens).logits, expected)
        if method != "prompt":
            tuned = load(tmp_path / "out")
            with tuned.active():
                assert torch.equal(tuned.model(**tokens).logits, expected)
    own, stored = own_weights(jobs[0].base.model), load_file(base / "model.safetensors")
    found = {name: tensor for key, tensor in own.items() for name in stored if key.endswith(f".{name}")}
    pooled = {name for name in stored if name.startswith("pooler.")}
    assert found.keys() >= stored.keys() - pooled
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.items())


@pytest.mark.parametrize(("method", "architecture"), [("lora", "gpt2"), ("ia3", "llama"), ("prompt", "qwen2")])
def test_a_language_model_trains_and_reloads_bit_for_bit(
    method: str, architecture: str, wide_lm: Tiny, plain: Corpus, tmp_path: Path, jobs: list[Job]
):
    """Its head is the base's own and stays; a prompt's logits are measured at the text's tokens alone."""
    base = wide_lm(architecture)
    unlabelled = replace(plain, examples=tuple(replace(example, label=None) for example in plain))
    result = finetune(base, unlabelled, method=method, output=tmp_path / "out", options=FEW)
    assert result.metrics["loss"] < result.metrics["base_loss"] - 0.05
    plainly = finetune(base, unlabelled, output=tmp_path / "full", options=replace(FEW, max_steps=1))
    assert result.metrics["base_loss"] == pytest.approx(plainly.metrics["base_loss"], rel=1e-6), "without the prompt"
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("the deed limits liability", return_tensors="pt")
    headed = AutoModelForCausalLM.from_pretrained(base)
    reloaded = peft.PeftModel.from_pretrained(headed, str(tmp_path / "out")).eval()
    with torch.no_grad():
        logits = reloaded(**tokens).logits[:, -tokens["input_ids"].shape[1] :]
        assert torch.equal(logits, jobs[0].model.eval()(**tokens).logits)
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == result.record["parameters"]["trainable"]


@pytest.mark.parametrize(("method", "architecture"), [("lora", "bert"), ("prompt", "llama")])
def test_what_is_saved_is_the_best_step_adapter_and_head(
    method: str,
    architecture: str,
    wide: Wide,
    plain: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Of every evaluated step the trained weights are kept; the file holds those of the best, which is not the last."""
    seen = dict[int, dict[str, torch.Tensor]]()

    class Keep(TrainerCallback):
        def on_evaluate(self, args: Any, state: TrainerState, control: Any, *, model: Any, **kwargs: Any):
            seen[state.global_step] = {
                name: tensor.detach().clone() for name, tensor in peft.get_peft_model_state_dict(model).items()
            }

    def run(job: Job, folder: Path, callbacks: Any = ()) -> Any:
        return train_model(job, folder, [*callbacks, Keep()])

    monkeypatch.setattr("attnlens.training.train.train_model", run)
    options = replace(FEW, learning_rate=5e-2)
    metrics = finetune(wide(architecture), plain, method=method, output=tmp_path / "out", options=options).metrics
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    best, last = seen[int(metrics["best_step"])], seen[int(metrics["steps"])]
    assert stored.keys() == best.keys() and any("classifier" in name or "score" in name for name in stored)
    assert all(torch.equal(tensor, best[name]) for name, tensor in stored.items())
    assert not any(torch.equal(tensor, last[name]) for name, tensor in stored.items())


@pytest.mark.parametrize(("method", "architecture"), [("lora", "gpt2"), ("ia3", "bert")])
def test_merged_weights_compute_what_the_adapter_did(
    method: str, architecture: str, wide: Wide, plain: Corpus, tmp_path: Path, jobs: list[Job]
):
    """A plain Hugging Face folder; products of float32 are added in another order."""
    base = wide(architecture)
    for name, merge in (("apart", None), ("merged", True)):
        finetune(base, plain, method=method, output=tmp_path / name, options=replace(FEW, max_steps=6, merge=merge))
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")("the deed limits liability", return_tensors="pt")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        expected = jobs[0].model.eval()(**tokens).logits
        torch.testing.assert_close(merged(**tokens).logits, expected, rtol=1e-4, atol=1e-5)
    assert merged.config.id2label == dict(enumerate(sorted(VERBS)))
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    before = AutoModel.from_pretrained(base).state_dict()
    moved = [name for name, tensor in merged.base_model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved and not any("embed" in name or "wte" in name for name in moved)


def test_a_record_shows_no_home_and_the_adapter_finds_its_base(
    wide: Wide, plain: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Wherever it is loaded from: the path in adapter_config.json is whole, in the record without the home."""
    base = wide("bert")
    monkeypatch.setenv("HOME", str(base.parent))
    monkeypatch.chdir(base.parent)
    result = finetune("bert", plain, method="lora", output=tmp_path / "out", options=replace(FEW, max_steps=2))
    monkeypatch.chdir(tmp_path)
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base.resolve())
    assert result.record["base"]["path"] == "~/bert" and str(base.parent) not in json.dumps(result.record)
    assert load(tmp_path / "out").provenance["adapter"]["base"] == "~/bert"
    assert not (tmp_path / "out" / "README.md").exists()
    again = replace(FEW, max_steps=2, force=True)
    finetune(base, plain, method="ia3", output=tmp_path / "out", options=again)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "IA3"


def test_parameters_are_counted_as_peft_counts_them(wide: Wide, plain: Corpus, tmp_path: Path, jobs: list[Job]):
    """2 projections of 4 layers, 16 × 2 in and 2 × 16 out; pooler and head train as well; no weight counts twice."""
    base = wide("bert")
    options = replace(FEW, max_steps=2, rank=2)
    record = finetune(base, plain, method="lora", output=tmp_path / "out", options=options).record
    added, head = 2 * 4 * 2 * 16 * 2, (16 * 16 + 16) + (16 * 3 + 3)
    whole = sum(parameter.numel() for parameter in AutoModel.from_pretrained(base).parameters()) + 16 * 3 + 3 + added
    assert record["parameters"] == {"trainable": added + head, "total": whole}
    assert jobs[0].model.get_nb_trainable_parameters()[0] == added + head  # pyright: ignore[reportCallIssue]
    shares = record["accounting"]["cumulative"]
    assert shares["parameters"] == added + head and shares["of_total"] == (added + head) / whole
    blocks = sum(p.numel() for p in AutoModel.from_pretrained(base).encoder.parameters()) + added
    assert shares["of_blocks"] == pytest.approx(added / blocks)
    assert record["selection"] == {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["query", "value"]}


def test_text_leaves_room_for_virtual_tokens(wide: Wide, plain: Corpus, tmp_path: Path):
    """Models of 40 positions read 33 tokens beside 7; RoBERTa never reaches the position of its padding."""
    few = replace(FEW, max_steps=2, virtual_tokens=7)
    for architecture, room in (("bert", 33), ("xlm-roberta", 32)):
        out = tmp_path / architecture
        options = finetune(wide(architecture), plain, method="prompt", output=out, options=few).record["options"]
        assert options["max_length"] == room
    with pytest.raises(
        TrainingError, match="max_length=34 is more than bert reads beside 7 virtual tokens: at most 33"
    ):
        finetune(wide("bert"), plain, method="prompt", output=tmp_path / "no", options=replace(few, max_length=34))
    with pytest.raises(TrainingError, match="reads no text beside 40 virtual tokens: ask for fewer --virtual-tokens"):
        finetune(wide("bert"), plain, method="prompt", output=tmp_path / "no", options=replace(few, virtual_tokens=40))
