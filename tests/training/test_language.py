"""Training as a language model: what is predicted, how it is counted, what is kept and what is refused."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from attnlens.checkpoints.identity import read_record
from attnlens.checkpoints.load import quiet
from attnlens.cli import app
from attnlens.core.errors import CheckpointError, TrainingError, UnsupportedModel
from attnlens.text.corpus import Corpus, Example, read_corpus
from attnlens.training.language import language_metrics, language_rows, right_padded, token_losses
from attnlens.training.methods import METHODS
from attnlens.training.record import recorded_corpus
from attnlens.training.split import split
from attnlens.training.train import TrainOptions, finetune
from tests.training.conftest import rows

Tiny = Callable[[str], Path]
FEW = TrainOptions(max_steps=3, batch_size=4, max_length=16, device="cpu")
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def corpus_of(*examples: Example) -> Corpus:
    return Corpus(examples, "rows.jsonl", "0" * 64, True)


@pytest.fixture
def texts(corpus: Corpus) -> Corpus:
    """36 texts of 12 documents, of different lengths, without labels."""
    examples = (replace(example, label=None, text=example.text * (1 + n % 3)) for n, example in enumerate(corpus))
    return replace(corpus, name="texts.jsonl", examples=tuple(examples))


@pytest.fixture
def pairs(corpus: Corpus) -> Corpus:
    """36 prompts with the word that ends them as completion; their labels stand beside."""
    return replace(corpus, examples=tuple(replace(example, completion=example.text.rindex(" ")) for example in corpus))


def loaded(path: Path) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    with quiet():
        return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def nats(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """Loss of each token but the first, given all before it: one row without padding, in double precision."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -logs[np.arange(len(ids) - 1), ids[1:]]


def slow_loss(path: Path, corpus: Corpus, max_length: int) -> tuple[float, int]:
    """Mean loss over the predicted tokens of a corpus, found without the code under test; and their number."""
    model, tokenizer = loaded(path)
    losses = list[float]()
    for example in corpus:
        if example.completion is None:
            ids = tokenizer(example.text)["input_ids"]
            place = 1
            while place < len(ids):
                window = ids[place - 1 : place - 1 + max_length]
                losses += nats(model, window).tolist()
                place += len(window) - 1
        else:
            encoded = tokenizer(example.text, return_offsets_mapping=True)
            ids = [*encoded["input_ids"], tokenizer.eos_token_id]
            first = next(n for n, (_, end) in enumerate(encoded["offset_mapping"]) if end > example.completion)
            losses += nats(model, ids[:max_length])[max(first - 1, 0) :].tolist()
    return float(np.mean(losses)), len(losses)


def test_windows_predict_every_token_but_the_first_and_once(tiny_lm: Tiny):
    _, tokenizer = loaded(tiny_lm("gpt2"))
    for length in range(1, 14):
        text = " the" * length
        ids = tokenizer(text)["input_ids"]
        made, cut = language_rows(tokenizer, Example(text, "1", "1"), 4)
        assert not cut and len(made) == math.ceil((len(ids) - 1) / 3)
        assert all(len(row["input_ids"]) == len(row["labels"]) and 2 <= len(row["labels"]) <= 4 for row in made)
        assert all(row["labels"] == [-100, *row["input_ids"][1:]] for row in made)
        assert [label for row in made for label in row["labels"] if label != -100] == ids[1:]


def test_a_completion_alone_is_predicted_and_ends_with_the_end_of_text(tiny_lm: Tiny):
    _, tokenizer = loaded(tiny_lm("gpt2"))
    example = Example("the party limits liability", "1", "1", completion=len("the party"))
    ids, end = tokenizer(example.text)["input_ids"], tokenizer.eos_token_id
    prompt = len(tokenizer("the party")["input_ids"])
    assert tokenizer.decode(ids[prompt:]) == " limits liability"
    ((row,), cut) = language_rows(tokenizer, example, 40)
    assert row == {"input_ids": [*ids, end], "labels": [-100] * prompt + [*ids[prompt:], end]} and not cut
    ((row,), cut) = language_rows(tokenizer, example, prompt + 1)
    assert row["labels"] == [-100] * prompt + ids[prompt : prompt + 1] and cut
    assert language_rows(tokenizer, example, prompt) == ([], True)
    # The end of text that the text spells out is not doubled.
    ((row,), _) = language_rows(tokenizer, replace(example, text=example.text + "<|endoftext|>"), 40)
    assert row["input_ids"] == [*ids, end] and row["labels"][-1] == end


def test_a_token_across_the_border_belongs_to_the_completion(tiny_lm: Tiny):
    _, tokenizer = loaded(tiny_lm("gpt2"))
    text = "the party limits"
    ids = tokenizer(text)["input_ids"]
    border = len("the party ")  # the blank belongs to the token of the word behind it
    assert tokenizer(text, return_offsets_mapping=True)["offset_mapping"][-1] == (border - 1, len(text))
    ((row,), _) = language_rows(tokenizer, Example(text, "1", "1", completion=border), 40)
    assert row["labels"] == [-100] * (len(ids) - 1) + [ids[-1], tokenizer.eos_token_id]
    # The first token has nothing before it, so it is never predicted.
    ((row,), _) = language_rows(tokenizer, Example(text, "1", "1", completion=1), 40)
    assert row["labels"] == [-100, *ids[1:], tokenizer.eos_token_id]


def test_of_a_conversation_the_assistant_is_predicted(tiny_lm: Tiny):
    _, tokenizer = loaded(tiny_lm("gpt2"))
    tokenizer.chat_template = CHAT
    turns = (("user", "the party"), ("assistant", "limits"), ("user", "deed"), ("assistant", "ends renewal"))
    ((row,), cut) = language_rows(tokenizer, Example("joined", "1", "1", messages=turns), 100)
    assert tokenizer.decode(row["input_ids"]) == (
        "<user>the party\n<assistant>limits\n<user>deed\n<assistant>ends renewal\n"
    )
    learnt = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learnt) == "limits\nends renewal\n" and not cut
    assert language_rows(tokenizer, Example("joined", "1", "1", messages=turns[:1]), 100) == ([], False)


def test_padding_is_masked_by_length_and_the_end_of_text_is_learnt():
    """Also where the end-of-text token, here 0, is the one that pads."""
    batch = right_padded([{"input_ids": [5, 0], "labels": [-100, 0]}, {"input_ids": [5, 6, 0], "labels": [-100, 6, 0]}])
    assert batch["input_ids"].tolist() == [[5, 0, 0], [5, 6, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 0, -100], [-100, 6, 0]]


def test_token_losses_by_hand_and_by_the_slow_way():
    """Equal logits of 4 tokens cost log 4 each; two predicted tokens in the first row, none in the second."""
    labels = torch.tensor([[-100, 1, -100, 3], [2, -100, -100, -100]])
    sums = token_losses((torch.zeros(2, 4, 4), None), labels)
    torch.testing.assert_close(sums, torch.tensor([[2 * math.log(4), 2.0], [0.0, 0.0]]))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 11, generator=generator) * 3
    labels = torch.randint(-1, 11, (3, 7), generator=generator)
    labels[labels < 0] = -100
    logs = logits.double().numpy() - np.log(np.exp(logits.double().numpy()).sum(-1, keepdims=True))
    for row, (total, count) in enumerate(token_losses(logits, labels).tolist()):
        expected = [-logs[row, t, labels[row, t + 1]] for t in range(6) if labels[row, t + 1] != -100]
        assert count == len(expected) and total == pytest.approx(sum(expected), rel=1e-6)


def test_every_token_counts_once_in_the_metrics():
    """6 nats in 3 tokens and 1 nat in 1 token: 7/4, not the 3/2 of a mean of means."""
    prediction = EvalPrediction(predictions=np.array([[6, 3], [1, 1]], dtype=np.float32), label_ids=np.zeros(2))
    assert language_metrics(prediction) == pytest.approx({"token_loss": 1.75, "perplexity": 5.754602676})
    vast = EvalPrediction(predictions=np.array([[2000.0, 1.0]]), label_ids=np.zeros(1))
    assert language_metrics(vast)["perplexity"] == math.inf


@pytest.mark.parametrize(("architecture", "kind"), [("gpt2", "texts"), ("llama", "pairs"), ("qwen2", "texts")])
def test_recorded_loss_and_perplexity_are_those_of_the_logits(
    architecture: str, kind: str, tiny_lm: Tiny, request: pytest.FixtureRequest, tmp_path: Path
):
    """Base and checkpoint, read again with plain transformers, row by row without padding, in double precision."""
    corpus: Corpus = request.getfixturevalue(kind)
    options = replace(FEW, max_steps=20, learning_rate=1e-2)
    result = finetune(tiny_lm(architecture), corpus, output=tmp_path / "out", options=options)
    held = split(corpus, None, 0).heldout
    before, tokens = slow_loss(tiny_lm(architecture), held, 16)
    after, _ = slow_loss(tmp_path / "out", held, 16)
    metrics = result.metrics
    assert result.record["heldout_tokens"] == tokens and after < before
    assert metrics["base_loss"] == pytest.approx(before, rel=1e-5)
    assert metrics["loss"] == pytest.approx(after, rel=1e-5)
    assert metrics["base_perplexity"] == pytest.approx(math.exp(before), rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(math.exp(after), rel=1e-4)
    measured = {row["step"]: row["heldout_loss"] for row in result.record["history"] if "heldout_loss" in row}
    assert measured[0] == metrics["base_loss"]
    assert min(loss for step, loss in measured.items() if step) == metrics["loss"] == measured[metrics["best_step"]]


def test_the_training_loss_is_a_mean_over_predicted_tokens(tiny_lm: Tiny, texts: Corpus, tmp_path: Path):
    """One step over all rows at a vanishing rate: its loss is that of the base on the training rows."""
    options = replace(FEW, max_steps=1, batch_size=200, learning_rate=1e-12)
    result = finetune(tiny_lm("llama"), texts, output=tmp_path / "out", options=options)
    expected, tokens = slow_loss(tiny_lm("llama"), split(texts, None, 0).train, 16)
    (step,) = [row for row in result.record["history"] if "loss" in row]
    assert result.record["train_tokens"] == tokens
    assert step["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("gpt2", "full"), ("gpt2", "last_k"), ("llama", "full"), ("llama", "head"), ("llama", "last_k")],
)
def test_frozen_parameters_do_not_move_by_one_bit(
    architecture: str, method: str, tiny_lm: Tiny, texts: Corpus, tmp_path: Path
):
    options = replace(FEW, learning_rate=1e-2)
    finetune(tiny_lm(architecture), texts, method=method, output=tmp_path / "out", options=options)
    before, after = (load_file(path / "model.safetensors") for path in (tiny_lm(architecture), tmp_path / "out"))
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    last = {name for name in before if ".3." in name}
    expected = {
        ("gpt2", "full"): set(before),
        ("gpt2", "last_k"): last,
        ("llama", "full"): set(before),
        ("llama", "head"): {"lm_head.weight"},
        ("llama", "last_k"): last | {"lm_head.weight"},
    }[architecture, method]
    assert moved <= expected and len(moved) >= 0.8 * len(expected)


def test_a_head_tied_to_the_embeddings_is_not_trained_alone(tiny_lm: Tiny, texts: Corpus, tmp_path: Path):
    with pytest.raises(TrainingError, match=r"GPT2LMHeadModel predicts with its table of input embeddings \(tied"):
        finetune(tiny_lm("gpt2"), texts, method="head", output=tmp_path / "out", options=FEW)
    assert list(tmp_path.iterdir()) == []
    model, _ = loaded(tiny_lm("gpt2"))
    chosen = METHODS["last_k"].select(model, TrainOptions(k=1)).parameters
    assert chosen and all(name.startswith("transformer.h.3.") for name in chosen)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_language_is_learnt(architecture: str, tiny_lm: Tiny, texts: Corpus, tmp_path: Path):
    options = TrainOptions(max_steps=80, batch_size=8, max_length=40, learning_rate=1e-2, patience=10, device="cpu")
    metrics = finetune(tiny_lm(architecture), texts, output=tmp_path / "out", options=options).metrics
    assert metrics["base_perplexity"] > 200 and metrics["perplexity"] < 4


def test_the_record_and_the_card(tiny_lm: Tiny, pairs: Corpus, tmp_path: Path):
    """Labels beside completions do not make it a classifier; the longest prompts leave nothing to predict."""
    output = tmp_path / "tuned.ckpt"
    result = finetune(tiny_lm("llama"), pairs, output=output, options=replace(FEW, max_length=12))
    record = read_record(output)
    assert record == result.record
    assert record["task"] == "causal-lm" and record["labels"] == []
    assert record["options"]["learning_rate"] == METHODS["full"].language_rate
    assert record["options"]["max_length"] == 12 and record["base"]["new_parameters"] == []
    _, tokenizer = loaded(tiny_lm("llama"))
    lengths = [len(tokenizer(example.text)["input_ids"]) + 1 for example in pairs]
    prompts = [len(tokenizer(example.text[: example.completion])["input_ids"]) for example in pairs]
    assert 0 < record["dropped"] == sum(prompt >= 12 for prompt in prompts) < 36
    assert record["truncated"] == sum(length > 12 for length in lengths) > record["dropped"]
    assert record["train_windows"] + record["heldout_windows"] == 36 - record["dropped"]
    assert [row["step"] for row in record["history"] if "perplexity" in row] == [0, 1, 2, 3]
    assert all(math.exp(row["heldout_loss"]) == pytest.approx(row["perplexity"]) for row in record["history"][:1])
    metrics, tokens = record["metrics"], record["heldout_tokens"]
    assert (
        f"held out: perplexity {metrics['base_perplexity']:.2f} before, {metrics['perplexity']:.2f} after, "
        f"loss {metrics['loss']:.3f} nats ({tokens} tokens of 6 texts)"
    ) in str(result)
    # Tokenizer and config are the base's own: nothing was added to pad with.
    for name in ("tokenizer.json", "config.json"):
        assert json.loads((output / name).read_text()) == json.loads((tiny_lm("llama") / name).read_text())


def test_the_same_command_gives_the_same_weights(tiny_lm: Tiny, texts: Corpus, tmp_path: Path):
    a, b = (finetune(tiny_lm("gpt2"), texts, output=tmp_path / name, options=FEW) for name in "ab")
    assert (a.path / "model.safetensors").read_bytes() == (b.path / "model.safetensors").read_bytes()
    assert a.record["history"] == b.record["history"]


def test_rows_of_every_kind_of_file_are_found_again(tiny_lm: Tiny, tmp_path: Path):
    import datasets
    import pyarrow
    from pyarrow import parquet

    made = [{"prompt": f"{row['text']} ", "completion": row["label"], "document": row["document"]} for row in rows()]
    table = pyarrow.Table.from_pylist(made)
    parquet.write_table(table, tmp_path / "rows.parquet")
    datasets.Dataset(table).save_to_disk(str(tmp_path / "folder"))
    (tmp_path / "rows.txt").write_text("\n\n".join(row["text"] for row in rows()))
    for name in ("rows.parquet", "folder", "rows.txt"):
        path = tmp_path / name
        record = finetune(tiny_lm("gpt2"), path, output=tmp_path / "out", options=replace(FEW, force=True)).record
        held, corpus = recorded_corpus(record, "heldout"), read_corpus(path)
        assert held is not None and 0 < len(held) < 36
        assert held.examples == corpus.select(record["data"]["heldout"]["rows"]).examples
        assert record["data"]["heldout"]["sha256"] == corpus.checksum


def test_conversations_are_trained(tiny_lm: Tiny, tmp_path: Path):
    base = tmp_path / "base"
    model, tokenizer = loaded(tiny_lm("llama"))
    tokenizer.chat_template = CHAT
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    turns = [(("user", row["text"][:20]), ("assistant", row["label"])) for row in rows()]
    corpus = corpus_of(*(Example("", str(n), str(n), messages=messages) for n, messages in enumerate(turns)))
    options = replace(FEW, max_steps=10, max_length=40, learning_rate=1e-2)
    result = finetune(base, corpus, output=tmp_path / "out", options=options)
    assert result.metrics["perplexity"] < result.metrics["base_perplexity"] and result.record["dropped"] == 0
    _, kept = loaded(tmp_path / "out")
    assert kept.chat_template == CHAT


def test_models_that_cannot_be_trained_on_text(tiny: Tiny, tiny_lm: Tiny, texts: Corpus, pairs: Corpus, tmp_path: Path):
    seq2seq = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=1))
    seq2seq.save_pretrained(tmp_path / "t5")
    loaded(tiny_lm("gpt2"))[1].save_pretrained(tmp_path / "t5")
    output = tmp_path / "out"
    for base in (tiny("bert"), tiny("roberta"), tiny("distilbert"), tmp_path / "t5"):
        with pytest.raises(
            UnsupportedModel, match=rf"texts\.jsonl has no labels, .*/{base.name} \({base.name}\) is not"
        ):
            finetune(base, texts, output=output, options=FEW)
    with pytest.raises(UnsupportedModel, match=r"task\.jsonl has completions, so it trains a causal language model"):
        finetune(tiny("bert"), pairs, output=output, options=FEW)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of the language model .* \(first: lm_head\.weight\)"):
        finetune(tiny("llama"), texts, output=output, options=FEW)
    assert not output.exists()


def test_nothing_to_predict_is_named(tiny_lm: Tiny, pairs: Corpus, texts: Corpus, tmp_path: Path):
    with pytest.raises(
        TrainingError, match=r"none of the 30 train rows of task\.jsonl has a token to predict within 3"
    ):
        finetune(tiny_lm("gpt2"), pairs, output=tmp_path / "out", options=replace(FEW, max_length=3))
    with pytest.raises(TrainingError, match="max_length=1 leaves nothing to predict a token from"):
        finetune(tiny_lm("gpt2"), texts, output=tmp_path / "out", options=replace(FEW, max_length=1))
    with pytest.raises(TrainingError, match=r"texts\.jsonl is empty: needed held-out rows"):
        empty = replace(texts, examples=())
        finetune(tiny_lm("gpt2"), texts, output=tmp_path / "out", options=replace(FEW, validation=empty))


def test_a_diverging_run_names_the_step(tiny_lm: Tiny, texts: Corpus, tmp_path: Path):
    options = replace(FEW, learning_rate=1e30, max_steps=5)
    with pytest.raises(TrainingError, match=r"the (loss|perplexity) on \S+ rows is (nan|inf) at step [12], so nothing"):
        finetune(tiny_lm("llama"), texts, output=tmp_path / "out", options=options)


def test_the_command_trains_on_text_and_prints_perplexity(tiny_lm: Tiny, tmp_path: Path):
    data = tmp_path / "rows.csv"
    data.write_text("ask,answer\n" + "".join(f"{row['text']}: ,{row['label']}\n" for row in rows()))
    arguments = ["finetune", str(tiny_lm("gpt2")), "--data", str(data), "-o", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--prompt-column", "ask", "--completion-column", "answer", "--max-steps", "2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "held out: perplexity " in done.stdout and " before, " in done.stdout
    done = CliRunner().invoke(app, [*arguments, "--force", "--json"])
    assert set(json.loads(done.stdout)["metrics"]) == {
        "loss", "perplexity", "base_loss", "base_perplexity", "epoch", "steps", "best_step",
    }  # fmt: skip


def test_a_real_model_learns_speeches(shared: Path, tmp_path: Path):
    """Children's stories to the State of the Union: perplexity falls within ten steps, and is the slow one's."""
    corpus = read_corpus(shared / "data" / "lm" / "us_state_union.txt").sample(25, 0)
    short = tuple(replace(example, text=example.text[:400]) for example in corpus)
    base, corpus = shared / "models" / "stories260K", replace(corpus, examples=short)
    options = TrainOptions(max_steps=10, batch_size=4, max_length=64, learning_rate=3e-3, device="cpu")
    result = finetune(base, corpus, method="last_k", output=tmp_path / "out", options=options)
    held = split(corpus, None, 0).heldout
    assert result.metrics["base_loss"] == pytest.approx(slow_loss(base, held, 64)[0], rel=1e-5)
    assert result.metrics["loss"] == pytest.approx(slow_loss(tmp_path / "out", held, 64)[0], rel=1e-5)
    assert result.metrics["perplexity"] < 0.8 * result.metrics["base_perplexity"]
