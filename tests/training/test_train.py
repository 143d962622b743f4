"""Fine-tuning end to end on tiny models: what moves, what stays, what is written and what is refused."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction

from attnlens.checkpoints.identity import read_record
from attnlens.checkpoints.load import longest_input, quiet
from attnlens.core.errors import AttnlensError, CheckpointError, OutputExists, TrainingError, UnknownName
from attnlens.text.corpus import Corpus
from attnlens.training.base import load_classifier
from attnlens.training.methods import METHODS
from attnlens.training.record import history, recorded_corpus
from attnlens.training.scores import classification_metrics
from attnlens.training.train import TrainOptions, finetune
from tests.training.conftest import ARCHITECTURES, rows

Tiny = Callable[[str], Path]
FEW = TrainOptions(max_steps=3, batch_size=8, device="cpu")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def start(path: Path, labels: tuple[str, ...], seed: int) -> dict[str, torch.Tensor]:
    """The weights a run begins with: the base's, and a head drawn by the seed."""
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: value.clone() for name, value in load_classifier(path, labels).model.state_dict().items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["full", "head", "last_k"])
def test_frozen_parameters_do_not_move_by_one_bit(
    architecture: str, method: str, tiny: Tiny, corpus: Corpus, tmp_path: Path
):
    """Steps are large, so that anything that may move does; the saved checkpoint is compared with the start."""
    output = tmp_path / "tuned"
    options = replace(FEW, learning_rate=1e-2)
    result = finetune(tiny(architecture), corpus, method=method, output=output, options=options)
    before, after = start(tiny(architecture), corpus.labels, 0), weights(output)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(output)
    chosen = METHODS[method].select(model, options).parameters
    assert set(after) <= set(before)
    for name, _ in model.named_parameters():
        if name not in chosen:
            assert torch.equal(after[name], before[name]), f"{name} moved"
    # Biases of keys get no gradient: softmax does not see them. Unused rows of embeddings get none either.
    moved = {name for name in chosen if not torch.equal(after[name], before[name])}
    assert len(moved) >= 0.8 * len(chosen)
    counted = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert result.record["parameters"] == {
        "trainable": sum(counted[name] for name in chosen),
        "total": sum(counted.values()),
    }


def test_the_same_command_gives_the_same_weights(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Bit for bit, whatever the state of the global generators; another seed gives others."""
    options = replace(FEW, max_steps=6)
    first = finetune(tiny("bert"), corpus, output=tmp_path / "a", seed=3, options=options)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 the Trainer draws from this one
    random.seed(99)
    second = finetune(tiny("bert"), corpus, output=tmp_path / "b", seed=3, options=options)
    finetune(tiny("bert"), corpus, output=tmp_path / "c", seed=4, options=options)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)
    assert first.record["history"] == second.record["history"] and first.metrics == second.metrics


def test_global_random_states_are_left_alone(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 the Trainer draws from this one
    random.seed(7)
    expected = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002 the Trainer draws from this one
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 the Trainer draws from this one
    random.seed(7)
    finetune(tiny("bert"), corpus, output=tmp_path / "out", options=FEW)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected  # noqa: NPY002 the Trainer draws from this one


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_task_is_learnt(architecture: str, tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """A tiny model learns its 36 texts by heart; with a shifted label map or pooling at padding it would not."""
    options = TrainOptions(
        max_steps=100, batch_size=8, learning_rate=1e-2, patience=10, validation=corpus, device="cpu"
    )
    result = finetune(tiny(architecture), corpus, output=tmp_path / "out", options=options)
    assert result.metrics["accuracy"] >= 0.9
    losses = [row["loss"] for row in result.record["history"] if "loss" in row]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize("architecture", ["roberta", "gpt2"])
def test_the_checkpoint_repeats_the_recorded_metrics(architecture: str, tiny: Tiny, data_file: Path, tmp_path: Path):
    """Reload with plain transformers, classify the held-out rows one by one without padding, count by hand."""
    output = tmp_path / "out"
    result = finetune(
        tiny(architecture), data_file, output=output, options=replace(FEW, max_steps=20, learning_rate=1e-2)
    )
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(output).eval()
        tokenizer = AutoTokenizer.from_pretrained(output)
    held = recorded_corpus(result.record, "heldout")
    assert held is not None and 0 < len(held) < len(rows())
    truth, guess, losses = [], [], []
    for example in held:
        with torch.no_grad():
            logits = model(**tokenizer(example.text, return_tensors="pt")).logits[0]
        truth.append(example.label)
        guess.append(model.config.id2label[int(logits.argmax())])
        losses.append(-logits.log_softmax(-1)[model.config.label2id[example.label]].item())
    assert accuracy_score(truth, guess) == pytest.approx(result.metrics["accuracy"])
    assert f1_score(truth, guess, average="macro", labels=sorted(set(truth)), zero_division=0) == pytest.approx(  # pyright: ignore
        result.metrics["macro_f1"]
    )
    assert np.mean(losses) == pytest.approx(result.metrics["loss"], rel=1e-4)


def test_the_record_says_what_was_done(tiny: Tiny, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    output = tmp_path / "tuned.ckpt"
    result = finetune(tiny("bert"), data_file, method="last_k", output=output, seed=5, options=replace(FEW, k=2))
    record = read_record(output)
    assert record == result.record
    assert record["kind"] == "finetune" and record["task"] == "sequence-classification"
    assert (record["method"], record["k"], record["seed"], record["device"]) == ("last_k", 2, 5, "cpu")
    assert record["labels"] == ["cap", "law", "term"]
    assert record["base"]["new_parameters"] == ["classifier.bias", "classifier.weight"]
    assert record["options"]["learning_rate"] == METHODS["last_k"].learning_rate
    assert record["options"]["max_length"] == 40
    train, held = record["data"]["train"], record["data"]["heldout"]
    assert train["path"] == held["path"] == "~/data/task.jsonl"
    assert (train["rows"], train["documents"]) == (36, 12)
    assert sorted(train["rows_used"] + held["rows"]) == list(range(36))
    assert record["metrics"]["steps"] == 3 and 1 <= record["metrics"]["best_step"] <= 3
    assert [row["step"] for row in record["history"] if "loss" in row] == [1, 2, 3]
    for path in output.iterdir():
        if path.suffix == ".json":
            assert str(tmp_path) not in path.read_text(), f"{path.name} holds the home directory"
    assert {path.name for path in output.iterdir()} == {
        "attnlens.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "SHA256SUMS",
    }  # fmt: skip
    card = str(result)
    assert "fine-tuned by 'last_k' → ~/tuned.ckpt" in card and "6 texts, 3 labels" in card


def test_the_tuned_config_keeps_what_the_trainer_changes(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    finetune(tiny("llama"), corpus, output=tmp_path / "out", options=FEW)
    base, tuned = (json.loads((path / "config.json").read_text()) for path in (tiny("llama"), tmp_path / "out"))
    assert tuned["use_cache"] == base["use_cache"] and tuned["bos_token_id"] == base["bos_token_id"]


def test_nothing_is_printed(tiny: Tiny, corpus: Corpus, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    finetune(tiny("gpt2"), corpus, output=tmp_path / "out", options=FEW)
    assert capfd.readouterr() == ("", "")


def test_progress_is_reported_for_every_step(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    seen: list[tuple[int, int, dict[str, float]]] = []
    options = replace(FEW, progress=lambda step, total, logs: seen.append((step, total, logs)))
    finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)
    assert [step for step, _, logs in seen if "loss" in logs] == [1, 2, 3]
    assert [step for step, _, logs in seen if "eval_macro_f1" in logs] == [1, 2, 3]
    assert {total for _, total, _ in seen} == {3}


def test_training_stops_early_and_keeps_the_best_step(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """At a vanishing learning rate macro-F1 stands still: the first evaluation is the best, and patience ends it."""
    options = TrainOptions(max_steps=40, batch_size=8, learning_rate=1e-12, patience=2, device="cpu")
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)
    assert (result.metrics["best_step"], result.metrics["steps"]) == (4, 12)


def test_the_best_step_is_saved_not_the_last(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    options = TrainOptions(max_steps=40, batch_size=8, learning_rate=2e-2, patience=10, device="cpu")
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)
    scores = {row["step"]: row["macro_f1"] for row in result.record["history"] if "macro_f1" in row}
    assert result.metrics["macro_f1"] == max(scores.values()) == scores[int(result.metrics["best_step"])]
    assert max(scores) == 40


def test_epochs_count_the_training_rows_alone(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """30 training rows of 36 in batches of 8 are 4 steps an epoch; half an epoch more is 2."""
    options = TrainOptions(epochs=1.5, batch_size=8, patience=10, device="cpu")
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)
    assert result.metrics["steps"] == 6 and result.metrics["epoch"] == pytest.approx(1.5)


def test_base_in_half_precision_is_trained_in_single(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    half = tmp_path / "half"
    with quiet():
        AutoModelForSequenceClassification.from_pretrained(tiny("bert"), dtype=torch.bfloat16).save_pretrained(half)
        AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(half)
    finetune(half, corpus, output=tmp_path / "out", options=FEW)
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.float32}


def test_a_tuned_checkpoint_can_be_tuned_on_other_labels(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    finetune(tiny("bert"), corpus, output=tmp_path / "first", options=FEW)
    two = replace(corpus, examples=tuple(example for example in corpus if example.label != "cap"))
    result = finetune(tmp_path / "first", two, output=tmp_path / "second", options=FEW)
    assert result.record["base"]["new_parameters"] == ["classifier.bias", "classifier.weight"]
    assert result.record["labels"] == ["law", "term"]


def test_decoders_without_a_padding_token_pool_the_last_word(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    finetune(tiny("gpt2"), corpus, output=tmp_path / "out", options=FEW)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id
    texts = ["the party", "limits liability of the party of the deed"]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_longest_input_of_roberta_leaves_out_the_padding_rows(tiny: Tiny):
    """40 positions counted from the padding index (0) + 1 leave 39; BERT reads all 40."""
    lengths = {}
    for architecture in ("bert", "roberta"):
        with quiet():
            base = load_classifier(tiny(architecture), ("a", "b"))
        lengths[architecture] = longest_input(base.model, base.tokenizer)
        base.model(torch.full((1, lengths[architecture]), 5))
        with pytest.raises((IndexError, RuntimeError)):
            base.model(torch.full((1, lengths[architecture] + 1), 5))
    assert lengths == {"bert": 40, "roberta": 39}


def test_long_texts_are_cut_and_counted(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Of the training texts, those with more than 10 words and the two special tokens exceed 12 tokens."""
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=replace(FEW, max_length=12))
    used = corpus.select(result.record["data"]["train"]["rows_used"])
    expected = sum(len(example.text.split()) > 10 for example in used)
    assert 0 < expected < len(used)
    assert result.record["truncated"] == expected


def test_validation_file_is_used_and_found_again(tiny: Tiny, corpus: Corpus, data_file: Path, tmp_path: Path):
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=replace(FEW, validation=data_file))
    held = recorded_corpus(result.record, "heldout")
    assert held is not None and len(held) == 36 and result.record["data"]["heldout"]["rows"] is None
    assert result.record["data"]["train"]["rows_used"] == list(range(36))


def test_heldout_data_is_followed_only_to_the_same_bytes(tiny: Tiny, data_file: Path, tmp_path: Path):
    record = finetune(tiny("bert"), data_file, output=tmp_path / "out", options=FEW).record
    held = recorded_corpus(record, "heldout")
    assert held is not None
    lines = data_file.read_text().splitlines()
    assert [example.text for example in held] == [
        json.loads(lines[row])["text"] for row in record["data"]["heldout"]["rows"]
    ]
    foreign = json.loads(json.dumps(record))
    for wrong in ([36], [-1], ["0"], 3):
        foreign["data"]["heldout"]["rows"] = wrong
        with pytest.raises(AttnlensError, match=r"names rows that .* does not have"):
            recorded_corpus(foreign, "heldout")
    used = recorded_corpus(record, "train")
    assert used is not None and len(used) + len(held) == len(lines)
    assert not {example.document for example in used} & {example.document for example in held}
    data_file.write_text(data_file.read_text().replace("governs", "rules"))
    with pytest.raises(AttnlensError, match=r"has changed since training .*: add --data"):
        recorded_corpus(record, "heldout")
    data_file.unlink()
    with pytest.raises(AttnlensError, match=r"is not there: add --data"):
        recorded_corpus(record, "heldout")


def test_a_corpus_in_memory_cannot_be_found_again(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    record = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=FEW).record
    assert record["data"]["train"]["path"] is None and recorded_corpus(record, "heldout") is None


def test_columns_are_recorded_for_reading_again(tiny: Tiny, tmp_path: Path):
    path = tmp_path / "task.csv"
    path.write_text("sentence,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows()))
    options = replace(FEW, columns={"text": "sentence"})
    result = finetune(tiny("bert"), path, output=tmp_path / "out", options=options)
    held = recorded_corpus(result.record, "heldout")
    assert held is not None and len(held) == 7  # a fifth of 36 rows, each its own document


def test_read_record(tmp_path: Path):
    assert read_record(tmp_path) is None
    for text in ("{", "[]", "{}"):
        (tmp_path / "attnlens.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"attnlens\.json .*remove it or train again"):
            read_record(tmp_path)


def test_a_killed_run_leaves_no_checkpoint(tiny: Tiny, data_file: Path, tmp_path: Path):
    output = tmp_path / "out" / "tuned"
    code = (
        "import os, sys\nfrom attnlens.training.train import TrainOptions, finetune\n"
        "stop = lambda step, total, logs: os.kill(os.getpid(), 9) if step == 2 else None\n"
        "finetune(sys.argv[1], sys.argv[2], output=sys.argv[3], options=TrainOptions(max_steps=3, progress=stop))\n"
    )
    command = [sys.executable, "-c", code, str(tiny("bert")), str(data_file), str(output)]
    killed = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists() and [path.name for path in output.parent.iterdir()] == [".tuned.partial"]
    with pytest.raises(OutputExists, match=r"got to step 1: --resume goes on from there, --force begins anew"):
        finetune(tiny("bert"), data_file, output=output, options=FEW)
    finetune(tiny("bert"), data_file, output=output, options=replace(FEW, force=True))
    assert read_record(output) is not None and list(output.parent.iterdir()) == [output]


def test_an_interrupted_run_leaves_nothing(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    def interrupt(step: int, total: int, logs: dict[str, float]):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(tiny("bert"), corpus, output=tmp_path / "out" / "a", options=replace(FEW, progress=interrupt))
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_a_number_names_the_step(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    options = replace(FEW, learning_rate=1e30, max_steps=5)
    with pytest.raises(TrainingError, match=r"the loss on \S+ rows is (nan|inf) at step [12], so nothing was saved"):
        finetune(tiny("bert"), corpus, output=tmp_path / "out" / "a", options=options)
    assert not (tmp_path / "out").exists()


def test_existing_output_needs_force(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    output = tmp_path / "tuned"
    finetune(tiny("bert"), corpus, output=output, options=FEW)
    before = weights(output)
    with pytest.raises(OutputExists, match="already holds a checkpoint: choose another output, or --force"):
        finetune(tiny("bert"), corpus, output=output, options=FEW)
    assert all(torch.equal(before[name], value) for name, value in weights(output).items())
    (output / "stale.txt").touch()
    finetune(tiny("bert"), corpus, output=output, seed=1, options=replace(FEW, force=True))
    assert not all(torch.equal(before[name], value) for name, value in weights(output).items())
    assert not (output / "stale.txt").exists() and list(tmp_path.iterdir()) == [output]


def test_force_replaces_nothing_but_checkpoints(tiny: Tiny, corpus: Corpus, data_file: Path, tmp_path: Path):
    force = replace(FEW, force=True)
    with pytest.raises(OutputExists, match="is a folder but not a checkpoint, so it is never replaced"):
        finetune(tiny("bert"), corpus, output=tmp_path, options=force)
    with pytest.raises(OutputExists, match="is a file"):
        finetune(tiny("bert"), corpus, output=data_file, options=force)
    with pytest.raises(OutputExists, match="which this run reads"):
        finetune(tiny("bert"), corpus, output=tiny("bert"), options=force)
    (tmp_path / "empty").mkdir()
    finetune(tiny("bert"), corpus, output=tmp_path / "empty", options=FEW)


def test_a_place_that_cannot_be_written(tiny: Tiny, corpus: Corpus, data_file: Path):
    with pytest.raises(TrainingError, match=r"cannot write .*task\.jsonl/out: Not a directory"):
        finetune(tiny("bert"), corpus, output=data_file / "out", options=FEW)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("./nowhere", "no checkpoint at nowhere"),
        ("empty", r"empty holds no config\.json"),
        ("file.txt", r"file\.txt is a file: needed"),
        ("unheard/of-model", "unheard/of-model is no folder here, and no such model could be had"),
        ("garbage", "cannot load .*garbage: "),
        ("hollow", "the weights of hollow cannot be loaded: it holds neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_bases_that_are_none(base: str, message: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("garbage", "hollow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "nonsense"}')
    save_file({"a": torch.ones(1)}, tmp_path / "garbage" / "model.safetensors")
    (tmp_path / "file.txt").write_text("no model")
    with pytest.raises(CheckpointError, match=message) as error:
        finetune(base, corpus, output=tmp_path / "out", options=FEW)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_backbone_with_missing_weights_is_refused(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny("bert").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    kept = {name: value for name, value in weights(broken).items() if "layer.1.attention" not in name}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 10 weights of the backbone .*bert\.encoder\.layer\.1\.attention"):
        finetune(broken, corpus, output=tmp_path / "out", options=FEW)


def test_faults_are_named_before_anything_is_written(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    output = tmp_path / "out"
    cases = [
        ({"method": "fulll"}, FEW, UnknownName, "did you mean 'full'"),
        ({"seed": -1}, FEW, TrainingError, "seed must be a whole number"),
        ({}, replace(FEW, k=2), TrainingError, "k=2 means nothing to 'full'"),
        ({}, replace(FEW, device="gpu"), TrainingError, "unknown device 'gpu'"),
        ({}, replace(FEW, max_length=41), TrainingError, "max_length=41 is more than bert reads: at most 40"),
    ]
    if not torch.cuda.is_available():
        cases.append(({}, replace(FEW, device="cuda"), TrainingError, "device 'cuda' is not on this machine"))
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            finetune(tiny("bert"), corpus, output=output, options=options, **arguments)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["max_steps", "batch_size", "max_length", "k", "patience", "epochs", "learning_rate"])
def test_options_are_checked(name: str):
    for value in (0, -1, float("nan"), "3"):
        with pytest.raises(TrainingError, match=f"{name} must be a"):
            TrainOptions(**{name: value})


def test_classification_metrics_by_hand_and_by_the_slow_way():
    logits = np.eye(3)[[0, 1, 1, 1]]
    result = classification_metrics(EvalPrediction(predictions=logits, label_ids=np.array([0, 0, 1, 2])))
    assert result == pytest.approx({"accuracy": 0.5, "macro_f1": (2 / 3 + 1 / 2 + 0) / 3})
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, logits = rng.integers(0, 4, 9), rng.normal(size=(9, 5))
        guess, scores = logits.argmax(1), []
        for label in set(truth.tolist()):
            hits = sum((truth == label) & (guess == label))
            scores.append(2 * hits / (sum(truth == label) + sum(guess == label)))
        result = classification_metrics(EvalPrediction(predictions=(logits, None), label_ids=truth))  # pyright: ignore
        assert result["macro_f1"] == pytest.approx(np.mean(scores))
        assert result["accuracy"] == pytest.approx(np.mean(truth == guess))


def test_history_pools_long_runs():
    """400 steps become 200 points of two; evaluations stay as they are."""
    logs = [{"step": step, "loss": float(step), "learning_rate": 1 / step} for step in range(1, 401)]
    logs.append({"step": 400, "eval_loss": 1.0, "eval_accuracy": 0.5, "eval_macro_f1": 0.25})
    pooled = history(logs)
    assert len(pooled) == 201
    assert pooled[0] == {"step": 2, "loss": 1.5, "learning_rate": 0.5}
    assert pooled[-1] == {"step": 400, "heldout_loss": 1.0, "accuracy": 0.5, "macro_f1": 0.25}
    assert history([]) == []


def test_minilm_learns(minilm: Path, corpus: Corpus, tmp_path: Path):
    """A real pretrained encoder: the loss falls within ten steps, and only what `last_k` names has moved."""
    options = TrainOptions(max_steps=10, batch_size=8, learning_rate=5e-4, device="cpu")
    result = finetune(minilm, corpus, method="last_k", output=tmp_path / "out", options=options)
    assert result.record["k"] == 2 and result.record["parameters"]["total"] == 22_714_371
    losses = [row["loss"] for row in result.record["history"] if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    before, after = weights(minilm), weights(tmp_path / "out")
    assert torch.equal(before["encoder.layer.3.output.dense.weight"], after["bert.encoder.layer.3.output.dense.weight"])
    assert not torch.equal(
        before["encoder.layer.4.output.dense.weight"], after["bert.encoder.layer.4.output.dense.weight"]
    )
