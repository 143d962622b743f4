"""Quality on texts: what training measured on the same rows, and losses by hand in float64."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from attnlens.analysis.studies.judge import Judgement, judge
from attnlens.checkpoints.load import Checkpoint, load_all
from attnlens.core.errors import CorpusError, TrainingError
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.training.options import TrainOptions
from attnlens.training.split import split
from attnlens.training.train import TrainingResult, finetune
from tests.training.conftest import rows

Model = Callable[[str], Path]
STEPS = {"max_steps": 12, "batch_size": 8, "learning_rate": 2e-2, "device": "cpu"}
CLASSIFIERS = [("bert", "full"), ("bert", "lora"), ("bert", "adapter"), ("bert", "prompt"), ("gpt2", "full")]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(
    base: Path, data: Path, output: Path, method: str, **options: Any
) -> tuple[Checkpoint, TrainingResult, Corpus]:
    """A tuned model as a study loads it, its training, and the rows held out."""
    result = finetune(base, data, method=method, output=output, options=TrainOptions(**STEPS | options))
    held_out = split(read_corpus(data), None, 0, options.get("task")).heldout
    return load_all([base, output])[1], result, held_out


def judged(checkpoint: Checkpoint, result: TrainingResult, corpus: Corpus, batch_size: int = 3) -> Judgement:
    length = result.record["options"]["max_length"]
    return judge(checkpoint, corpus, result.record, max_length=length, batch_size=batch_size)


@pytest.mark.parametrize(("architecture", "method"), CLASSIFIERS)
def test_a_classifier_is_as_good_as_its_training_found(architecture: str, method: str, tiny: Model, tmp_path: Path):
    data = write(tmp_path / "task.jsonl", rows(20))
    options = {"bottleneck": 8} if method == "adapter" else {}
    checkpoint, result, held_out = trained(tiny(architecture), data, tmp_path / "tuned", method, **options)
    found = judged(checkpoint, result, held_out)
    assert (found.unit, found.higher, found.values.shape) == ("accuracy", True, (len(held_out),))
    assert found.scores == {name: result.metrics[name] for name in ("accuracy", "macro_f1")}
    for batch_size in (1, 64):
        np.testing.assert_array_equal(judged(checkpoint, result, held_out, batch_size).values, found.values)
    turned = held_out.select(range(len(held_out))[::-1])
    np.testing.assert_array_equal(judged(checkpoint, result, turned).values[::-1], found.values)


def test_a_classifier_text_by_text(tiny: Model, tmp_path: Path):
    data = write(tmp_path / "task.jsonl", rows(20))
    checkpoint, result, _ = trained(tiny("bert"), data, tmp_path / "tuned", "full", max_steps=3)
    corpus, labels = read_corpus(data), result.record["labels"]
    named = []
    for example in corpus:
        with torch.no_grad():
            logits = checkpoint.model(**checkpoint.tokenizer(example.text, return_tensors="pt")).logits[0]
        named.append(labels[int(logits.argmax())])
    right = np.array([name == example.label for name, example in zip(named, corpus, strict=True)], float)
    found = judged(checkpoint, result, corpus)
    np.testing.assert_array_equal(found.values, right)
    assert 0 < right.mean() < 1, "a test that could not fail"
    macro = f1_score([example.label for example in corpus], named, average="macro")
    assert found.scores == {"accuracy": pytest.approx(right.mean()), "macro_f1": pytest.approx(macro)}


def test_texts_are_cut_as_in_training(tiny: Model, tmp_path: Path):
    """What lies beyond the length changes nothing."""
    data = write(tmp_path / "task.jsonl", rows(12))
    checkpoint, result, _ = trained(tiny("bert"), data, tmp_path / "tuned", "full", max_length=6, max_steps=2)
    short, long = rows(12), [row | {"text": f"{row['text']} {'renewal ' * 60}"} for row in rows(12)]
    one = judged(checkpoint, result, read_corpus(write(tmp_path / "short.jsonl", short)))
    other = judged(checkpoint, result, read_corpus(write(tmp_path / "long.jsonl", long)))
    np.testing.assert_array_equal(one.values, other.values)


def test_labels_that_were_never_trained_are_named(tiny: Model, tmp_path: Path):
    data = write(tmp_path / "task.jsonl", rows(6))
    checkpoint, result, _ = trained(tiny("bert"), data, tmp_path / "tuned", "head", max_steps=1)
    strange = read_corpus(write(tmp_path / "strange.jsonl", [rows(1)[0] | {"label": "zebra"}, *rows(1)[1:]]))
    with pytest.raises(CorpusError, match=r"strange.jsonl has labels that were never trained: zebra"):
        judged(checkpoint, result, strange)


@pytest.mark.parametrize("task", ["multi-label", "token-classification", "masked-lm", None])
def test_tasks_without_one_number_a_text_are_refused_by_name(task: str | None):
    checkpoint: Any = Checkpoint.__new__(Checkpoint)
    object.__setattr__(checkpoint, "name", "some model")
    corpus = Corpus((), "x", "0" * 64, has_documents=False)
    with pytest.raises(TrainingError, match=f"judges .* and causal-lm; some model was trained for {task}"):
        judge(checkpoint, corpus, {"task": task}, max_length=8, batch_size=2)


# --- language models ---------------------------------------------------------------------------------------------


def nats(checkpoint: Checkpoint, ids: list[int], first: int) -> list[float]:
    """−log p of tokens `first` and on, one text at a time, in float64 and by the definition of softmax."""
    with torch.no_grad():
        logits = checkpoint.model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    return [
        float(np.log(np.exp(logits[place - 1]).sum()) - logits[place - 1, ids[place]])
        for place in range(first, len(ids))
    ]


PROMPT = "the party agrees that"


@pytest.fixture(scope="module")
def speaker(
    tiny_lm: Model, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, TrainingResult, Corpus, Path]:
    """A decoder trained on plain texts."""
    folder = tmp_path_factory.mktemp("speaker")
    data = write(folder / "plain.jsonl", [{"text": row["text"], "document": row["document"]} for row in rows(12)])
    return *trained(tiny_lm("gpt2"), data, folder / "tuned", "full", max_steps=4), folder


def test_a_language_model_is_as_good_as_its_training_found(speaker: tuple[Checkpoint, TrainingResult, Corpus, Path]):
    checkpoint, result, held_out, _ = speaker
    found = judged(checkpoint, result, held_out)
    assert (found.unit, found.higher) == ("loss", False)
    assert found.scores["loss"] == pytest.approx(result.metrics["loss"], rel=1e-6)
    assert found.scores["perplexity"] == pytest.approx(result.metrics["perplexity"], rel=1e-6)
    np.testing.assert_allclose(judged(checkpoint, result, held_out, 64).values, found.values, rtol=1e-5)


def test_losses_of_texts_by_hand(speaker: tuple[Checkpoint, TrainingResult, Corpus, Path]):
    checkpoint, result, held_out, _ = speaker
    found = judged(checkpoint, result, held_out)
    losses = [nats(checkpoint, checkpoint.tokenizer(example.text)["input_ids"], 1) for example in held_out]  # pyright: ignore
    np.testing.assert_allclose(found.values, [np.mean(some) for some in losses], rtol=1e-5)
    whole = np.mean([loss for some in losses for loss in some])  # of tokens, not of texts
    assert found.scores == {
        "loss": pytest.approx(whole, rel=1e-6),
        "perplexity": pytest.approx(math.exp(whole), rel=1e-6),
    }


def test_a_completion_alone_counts_with_its_end(speaker: tuple[Checkpoint, TrainingResult, Corpus, Path]):
    """As in training: the end-of-text token belongs to it, and so does the blank that it begins with."""
    checkpoint, result, _, folder = speaker
    completions = [" limits liability", "\nends renewal of the deed", " x"]
    made = [{"prompt": PROMPT, "completion": completion} for completion in completions]
    corpus = read_corpus(write(folder / "completions.jsonl", made))
    found = judged(checkpoint, result, corpus)
    expected, prompt = [], checkpoint.tokenizer(PROMPT)["input_ids"]
    for example in corpus:
        ids: list[int] = [*checkpoint.tokenizer(example.text)["input_ids"], checkpoint.tokenizer.eos_token_id]  # pyright: ignore
        assert ids[: len(prompt)] == prompt  # pyright: ignore
        expected.append(nats(checkpoint, ids, len(prompt)))  # pyright: ignore
    np.testing.assert_allclose(found.values, [np.mean(some) for some in expected], rtol=1e-5)
    assert found.scores["loss"] == pytest.approx(np.mean([loss for some in expected for loss in some]), rel=1e-6)


def test_a_text_without_a_token_to_predict_is_no_data(speaker: tuple[Checkpoint, TrainingResult, Corpus, Path]):
    checkpoint, result, _, folder = speaker
    lone = next(word for word in "abcdefgh" if len(checkpoint.tokenizer(word)["input_ids"]) == 1)  # pyright: ignore
    long = {"text": rows(1)[0]["text"]}
    with_lone = judged(checkpoint, result, read_corpus(write(folder / "lone.jsonl", [{"text": lone}, long])))
    without = judged(checkpoint, result, read_corpus(write(folder / "long.jsonl", [long])))
    assert math.isnan(with_lone.values[0]) and with_lone.values[1] == pytest.approx(without.values[0], rel=1e-6)
    assert with_lone.scores == pytest.approx(without.scores, rel=1e-6)
    nothing = judged(checkpoint, result, read_corpus(write(folder / "nothing.jsonl", [{"text": lone}])))
    assert math.isnan(nothing.scores["loss"]) and math.isnan(nothing.scores["perplexity"])


def test_virtual_tokens_stand_before_the_text(tiny_lm: Model, tmp_path: Path):
    data = write(tmp_path / "plain.jsonl", [{"text": row["text"]} for row in rows(6)])
    checkpoint, result, held_out = trained(tiny_lm("gpt2"), data, tmp_path / "tuned", "prompt", max_steps=2)
    assert judged(checkpoint, result, held_out).scores["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
