"""Method `adapter`: what it trains, that the best step comes back whole, that its checkpoint is the trained model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, TrainerCallback

from attnlens.checkpoints.blocks import head_parameters
from attnlens.checkpoints.load import load, load_all
from attnlens.core.errors import OutputExists, TrainingError, UnknownName
from attnlens.show.run import ReportOptions, run_report
from attnlens.text.corpus import Corpus
from attnlens.training.job import Job, prepare
from attnlens.training.loop import train_model
from attnlens.training.methods import method_named
from attnlens.training.options import TrainOptions
from attnlens.training.split import split
from attnlens.training.train import finetune

OPTIONS = TrainOptions(max_steps=6, batch_size=8, device="cpu", bottleneck=4, learning_rate=2e-2)


def job_of(base: Path, corpus: Corpus, options: TrainOptions = OPTIONS) -> Job:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepare(base, split(corpus, None, 0), method_named("adapter", options), options, 0)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "llama"])
def test_a_classifier_reloads_to_identical_logits(
    tiny: Callable[[str], Path], data_file: Path, tmp_path: Path, architecture: str
):
    base, folder = tiny(architecture), tmp_path / "tuned.ckpt"
    variant = "houlsby" if architecture in ("bert", "gpt2") else "pfeiffer"
    result = finetune(base, data_file, method="adapter", output=folder, options=replace(OPTIONS, variant=variant))
    assert result.record["selection"] == {"variant": variant, "bottleneck": 4}
    first, tuned = load_all([base, folder])
    texts = tuned.tokenizer(
        ["the party limits liability", "governs disputes of the deed"], return_tensors="pt", padding=True
    )
    texts = {name: texts[name] for name in ("input_ids", "attention_mask")}
    plain = AutoModel.from_pretrained(base).eval()
    with torch.no_grad():
        with tuned.active():
            logits, inside = tuned.model(**texts).logits, tuned.backbone(**texts)[0]
            again = load(folder).model(**texts).logits
        with first.active():
            outside = first.backbone(**texts)[0]
        assert torch.equal(logits, again) and torch.equal(outside, plain(**texts)[0])
        assert not torch.equal(inside, outside)
    assert tuned.model.config.id2label == {0: "cap", 1: "law", 2: "term"}


def test_the_best_step_comes_back_with_its_adapters(tiny: Callable[[str], Path], corpus: Corpus, tmp_path: Path):
    """The first of three evaluations is told to be the best: the model ends as it was then, all else as the base."""
    job = job_of(tiny("bert"), corpus, replace(OPTIONS, max_steps=12))
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    scores, seen = iter((0.9, *[0.1] * 20)), {}

    class Watch(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any):
            seen[state.global_step] = {name: value.clone() for name, value in kwargs["model"].state_dict().items()}

    judged = replace(job.work, measure=lambda prediction: {"accuracy": 0.5, "macro_f1": next(scores)})
    outcome = train_model(replace(job, work=judged), tmp_path, [Watch()])
    best = int(outcome.metrics["best_step"])
    assert best == min(seen) < max(seen)
    after = job.model.state_dict()
    assert [name for name, value in seen[best].items() if not torch.equal(after[name], value)] == []
    trained = job.selection.parameters
    assert trained == {name for name in after if ".bottleneck." in name} | head_parameters(job.base.model)
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved and moved <= trained
    assert any(not torch.equal(after[name], seen[max(seen)][name]) for name in trained)


def test_what_is_saved_is_the_trained_model(tiny: Callable[[str], Path], corpus: Corpus, tmp_path: Path):
    job = job_of(tiny("bert"), corpus)
    train_model(job, tmp_path)
    job.save(tmp_path / "saved")
    AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(tmp_path / "saved")
    ids = torch.tensor([[1, 5, 6, 7, 2]])
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "saved").model(ids).logits, job.base.model.eval()(ids).logits)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_language_model_reloads_to_identical_logits(
    tiny_lm: Callable[[str], Path], data_file: Path, tmp_path: Path, architecture: str
):
    text = tmp_path / "texts.jsonl"
    text.write_text(data_file.read_text().replace('"label"', '"kind"'))
    result = finetune(tiny_lm(architecture), text, method="adapter", output=tmp_path / "tuned.ckpt", options=OPTIONS)
    assert result.metrics["perplexity"] < result.metrics["base_perplexity"]
    ids = torch.tensor([[5, 6, 7, 8]])
    first, tuned = load_all([tiny_lm(architecture), tmp_path / "tuned.ckpt"])
    plain = load(tiny_lm(architecture)).model(ids).logits
    for _ in range(2):
        with first.active():
            assert torch.equal(first.model(ids).logits, plain)
        with tuned.active():
            assert torch.equal(tuned.model(ids).logits, load(tmp_path / "tuned.ckpt").model(ids).logits)
            assert not torch.equal(tuned.model(ids).logits, plain)


@pytest.mark.usefixtures("undrawn")
def test_a_report_on_it(tiny: Callable[[str], Path], data_file: Path, tmp_path: Path):
    """Alone, and beside its base and another: attention is measured, and what the weights do not show is said."""
    base = tiny("bert")
    for name, variant in (("one", "pfeiffer"), ("other", "houlsby")):
        finetune(base, data_file, method="adapter", output=tmp_path / name, options=replace(OPTIONS, variant=variant))
    comparison = run_report([tmp_path / "one"], ReportOptions(output=tmp_path / "report")).comparison
    line = "one leaves the weights of its base as they are and adds bottleneck adapters beside them"
    assert any(line in warning for warning in comparison.provenance["warnings"])
    backbone = comparison.weights[comparison.weights["kind"] == "backbone"]
    assert (backbone["delta_norm"] == 0).all() and len(backbone)
    # The first block's attention lies before every adapter, the last one's behind the first's.
    jsd = comparison.data["jsd"].isel(model=1).mean(("example", "head")).values
    assert jsd[0] == 0 and jsd[-1] > 0
    both = run_report([base, tmp_path / "one", tmp_path / "other"], ReportOptions(output=tmp_path / "both")).comparison
    torch.testing.assert_close(both.data["jsd"].isel(model=1).values, comparison.data["jsd"].isel(model=1).values)
    assert {name: list(answers) for name, answers in both.answers.items()} == {"one": ["keyness"], "other": ["keyness"]}


def test_refusals(tiny: Callable[[str], Path], corpus: Corpus, data_file: Path, tmp_path: Path):
    with pytest.raises(
        TrainingError, match="bottleneck=64 is wider than BertForSequenceClassification's hidden size: at most 16"
    ):
        job_of(tiny("bert"), corpus, replace(OPTIONS, bottleneck=None))
    with pytest.raises(UnknownName, match="unknown adapter variant 'pfeifer': did you mean 'pfeiffer'"):
        job_of(tiny("bert"), corpus, replace(OPTIONS, variant="pfeifer"))
    with pytest.raises(TrainingError, match="bottleneck=4 means nothing to 'full': it belongs to adapter"):
        method_named("full", OPTIONS)
    tuned = tmp_path / "tuned.ckpt"
    finetune(tiny("bert"), data_file, method="adapter", output=tuned, options=replace(OPTIONS, max_steps=1))
    with pytest.raises(OutputExists, match="already holds a checkpoint: choose another output, or --force"):
        finetune(tiny("bert"), data_file, method="adapter", output=tuned, options=OPTIONS)
