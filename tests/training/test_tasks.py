"""Label sets, labelled spans and masked text as tasks: what is learnt, how it is judged, what is refused."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    EvalPrediction,
)

from attnlens.checkpoints.load import quiet
from attnlens.core.errors import TrainingError, UnknownName, UnsupportedModel
from attnlens.text.corpus import Corpus, Example, Span
from attnlens.training.base import Base, load_classifier, load_masked_model, load_tagger
from attnlens.training.masked import hidden_batch, hidden_losses, hide
from attnlens.training.options import TrainOptions
from attnlens.training.scores import multi_label_metrics
from attnlens.training.split import NAMES, Split, hold_out, split
from attnlens.training.tasks import TASKS
from attnlens.training.tokens import entities, token_guesses, token_metrics, token_row
from attnlens.training.train import finetune
from tests.training.conftest import VERBS, encoder_tokenizer, rows

Tiny = Callable[[str], Path]
FEW = TrainOptions(max_steps=2, batch_size=8, device="cpu")


@pytest.fixture
def marked(corpus: Corpus) -> Corpus:
    """The words that decide, as spans with labels; every fourth row lacks them."""
    made = list[Example]()
    for number, example in enumerate(corpus):
        words = VERBS[str(example.label)]
        start = example.text.index(words)
        spans = (Span(start, start + len(words), example.label),) if number % 4 else ()
        text = example.text if spans else example.text.replace(words, "")
        made.append(replace(example, text=text, spans=spans, label=None))
    return replace(corpus, examples=tuple(made))


@pytest.fixture
def several(corpus: Corpus) -> Corpus:
    """Texts with the words of one to three labels, or with none of them."""
    made = list[Example]()
    for number, example in enumerate(corpus):
        labels = tuple(label for place, label in enumerate(VERBS) if number >> place & 1)
        text = " ".join(["the party", *(VERBS[label] for label in labels), "of the deed"])
        made.append(replace(example, text=text, label=None, labels=labels))
    return replace(corpus, examples=tuple(made))


@pytest.fixture(scope="module")
def masking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its head for masked tokens, and a tokenizer with a mask."""
    tokenizer = encoder_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    folder = tmp_path_factory.mktemp("masking") / "bert"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 24,
        }
        config = BertConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=40)
        BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loaded(path: Path, data: Split) -> Base:
    with quiet():
        return TASKS[data.task].load(path, data)


def test_every_name_has_its_task():
    assert tuple(TASKS) == NAMES


# --- any number of labels ---------------------------------------------------------------------------------------------


def test_sets_of_labels_are_learnt(tiny: Tiny, several: Corpus, tmp_path: Path):
    """The scores are those of the checkpoint's logits, read again with plain transformers, text by text."""
    options = replace(FEW, max_steps=30, learning_rate=1e-2, patience=20)
    result = finetune(tiny("gpt2"), several, output=tmp_path / "out", options=options)
    assert result.record["task"] == "multi-label" and result.record["labels"] == ["cap", "law", "term"]
    losses = [row["loss"] for row in result.record["history"] if "loss" in row]
    assert losses[-1] < 0.8 * losses[0] and "exact match" in str(result)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.label2id == {"cap": 0, "law": 1, "term": 2}
    held = several.select(hold_out(several, 0, "multi-label")[1])
    truth = np.array([[float(label in (example.labels or ())) for label in VERBS] for example in held])
    with torch.no_grad():
        logits = np.concatenate([model(**tokenizer(row.text, return_tensors="pt")).logits.numpy() for row in held])
    expected = multi_label_metrics(EvalPrediction(logits, truth))
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected)
    table = result.record["per_class"]
    assert [row["n"] for row in table["classes"]] == truth.sum(0).tolist() and table["confusion"] is None


def test_multi_label_metrics_by_hand():
    """Two rows, two labels; logit 0 is a probability of 1/2, which is not above it."""
    prediction = EvalPrediction(np.array([[2.0, 0.0], [-1.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert multi_label_metrics(prediction) == pytest.approx(
        {"exact_match": 1 / 2, "macro_f1": 5 / 6, "micro_f1": 4 / 5}
    )
    nothing = EvalPrediction(np.array([[-1.0, -1.0]]), np.array([[0.0, 0.0]]))
    assert multi_label_metrics(nothing) == {"exact_match": 1.0, "macro_f1": 0.0, "micro_f1": 0.0}


def test_a_label_of_a_set_stays_in_training(several: Corpus):
    """`rare` stands beside other labels in two documents: under no seed may both be held out."""
    rare = tuple(
        replace(example, labels=(*(example.labels or ()), "rare")) if number in (0, 3) else example
        for number, example in enumerate(several)
    )
    for seed in range(20):
        train, _ = hold_out(replace(several, examples=rare), seed, "multi-label")
        assert {0, 3} & set(train)


# --- classes of tokens ------------------------------------------------------------------------------------------------


def test_tokens_take_the_label_of_their_span(tiny: Tiny, tiny_lm: Tiny):
    """Special tokens have none; the first listed span wins; half a word is a word's token; a blank is no part."""
    text = "the party limits liability of the deed"
    example = Example(text, "1", "1", spans=(Span(4, 12, "cap"), Span(10, 26, "law")))
    corpus = Corpus((example,), "x", "", False)
    data = Split("token-classification", corpus, corpus, corpus, ("O", "cap", "law"), [0], None)
    row, cut = token_row(loaded(tiny("bert"), data), example, data.labels, 40)
    assert row["labels"] == [-100, 0, 1, 1, 2, 0, 0, 0, -100] and not cut
    row, cut = token_row(loaded(tiny("bert"), data), example, data.labels, 6)
    assert row["labels"] == [-100, 0, 1, 1, 2, -100] and cut
    # Byte-level tokens begin with the blank before a word: a span that ends before the word does not reach it.
    base = loaded(tiny("gpt2"), data)
    ends = replace(example, spans=(Span(0, 4, "cap"),))
    words = [base.tokenizer.decode([token]) for token in token_row(base, ends, data.labels, 40)[0]["input_ids"]]
    found = dict(zip(words, token_row(base, ends, data.labels, 40)[0]["labels"], strict=True))
    assert found["the"] == 1 and found[" party"] == 0


def test_token_metrics_by_hand():
    """Truth O A A O B, predicted O A A B B, padding and special tokens aside."""
    truth = np.array([[-100, 0, 1, 1, 0, 2, -100], [-100, 0, -100, -100, -100, -100, -100]])
    guess = np.array([[1, 0, 1, 1, 2, 2, 1], [2, 0, 1, 1, 1, 1, 1]], dtype=float)
    losses = np.array([[9, 1, 1, 1, 1, 1, 9], [9, 7, 9, 9, 9, 9, 9]], dtype=float)
    found = token_metrics(EvalPrediction(np.stack([guess, losses], -1), truth))
    assert found == pytest.approx({"token_loss": 2.0, "accuracy": 5 / 6, "macro_f1": 5 / 6, "entity_f1": 1 / 2})
    assert entities(np.array([1, 1, 0, 2, 2, 1])) == {(0, 2, 1), (3, 5, 2), (5, 6, 1)} and not entities(np.array([]))


def test_token_metrics_where_the_base_has_another_order():
    """The hand example with O as class 2: the numbers stay."""
    truth = np.array([[2, 0, 0, 2, 1]])
    guess = np.array([[2, 0, 0, 1, 1]])
    prediction = EvalPrediction(predictions=np.stack([guess, np.zeros(guess.shape)], -1), label_ids=truth)
    found = token_metrics(prediction, outside=2)
    assert found["accuracy"] == 4 / 5 and found["macro_f1"] == pytest.approx(5 / 6) and found["entity_f1"] == 1 / 2


def test_token_guesses_by_hand():
    """Equal logits of 3 classes cost log 3 each; an ignored token costs nothing; weights multiply."""
    kept = token_guesses(torch.zeros(1, 3, 3), torch.tensor([[-100, 0, 2]]), np.array([1.0, 1.0, 4.0]))
    torch.testing.assert_close(kept[0, :, 1], torch.tensor([0.0, math.log(3), 4 * math.log(3)]))


def test_spans_are_learnt(tiny: Tiny, marked: Corpus, tmp_path: Path):
    options = replace(FEW, max_steps=30, learning_rate=1e-2, task="token-classification", patience=10)
    result = finetune(tiny("roberta"), marked, output=tmp_path / "out", options=options)
    assert result.metrics["macro_f1"] > 0.9 and result.metrics["entity_f1"] > 0.9
    assert result.record["labels"] == ["O", "cap", "law", "term"] and result.record["scheme"] == "IO"
    with quiet():
        model, info = AutoModelForTokenClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.config.id2label == {0: "O", 1: "cap", 2: "law", 3: "term"} and not info["missing_keys"]
    table = result.record["per_class"]
    assert [sum(row) for row in table["confusion"]] == [row["n"] for row in table["classes"]]


# --- masked text ------------------------------------------------------------------------------------------------------


def test_what_is_hidden(masking: Path):
    """15 % of the tokens and never a special one: of those 80 % masks, 10 % random, 10 % kept."""
    with quiet():
        tokenizer = load_masked_model(masking).tokenizer
    special = set(tokenizer.all_special_ids)
    words = [token for token in range(len(tokenizer)) if token not in special]
    ids = [tokenizer.cls_token_id, *(words * 200)[:2000], tokenizer.sep_token_id]
    row = hide(tokenizer, ids, [0, 1])
    seen, labels = np.array(row["input_ids"]), np.array(row["labels"])
    hidden = labels != -100
    assert hidden.sum() == 300 and not hidden[[0, -1]].any() and (seen[~hidden] == np.array(ids)[~hidden]).all()
    assert (labels[hidden] == np.array(ids)[hidden]).all()
    masked, kept = (seen == tokenizer.mask_token_id).sum(), (seen == labels).sum()
    assert abs(masked - 240) < 4 * math.sqrt(300 * 0.8 * 0.2) and abs(kept - 30) < 4 * math.sqrt(300 * 0.1 * 0.9)
    assert not special & set(seen[hidden & (seen != tokenizer.mask_token_id)].tolist())
    assert row == hide(tokenizer, ids, [0, 1]) != hide(tokenizer, ids, [0, 2])
    (only,) = np.flatnonzero(np.array(hide(tokenizer, [ids[0], words[0], ids[-1]], [0])["labels"]) != -100)
    assert only == 1
    # In training the masks of a row change from pass to pass, and are the same from the same state of the generator.
    alone = [{"input_ids": ids[:30]}]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = (hidden_batch(alone, tokenizer, 0)["labels"] for _ in range(2))
        torch.manual_seed(3)
        again = hidden_batch(alone, tokenizer, 0)["labels"]
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_recorded_perplexity_of_hidden_tokens_is_that_of_the_logits(masking: Path, corpus: Corpus, tmp_path: Path):
    """Base and checkpoint, read again with plain transformers, row by row without padding, in double precision."""
    bare = replace(corpus, examples=tuple(replace(example, label=None) for example in corpus))
    options = replace(FEW, max_steps=20, learning_rate=1e-2, task="masked-lm")
    result = finetune(masking, bare, output=tmp_path / "out", options=options)
    tokenizer, data = encoder_tokenizer(), split(bare, None, 0, "masked-lm")
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    for path, prefix in ((masking, "base_"), (tmp_path / "out", "")):
        with quiet():
            model = AutoModelForMaskedLM.from_pretrained(path).eval()
        losses = list[float]()
        for number, example in enumerate(data.heldout):
            row = hide(tokenizer, tokenizer(example.text)["input_ids"], [0, number])
            with torch.no_grad():
                logs = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
            losses += [-float(logs[place, label]) for place, label in enumerate(row["labels"]) if label != -100]
        assert result.metrics[f"{prefix}perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert result.record["heldout_tokens"] == len(losses) and result.metrics["loss"] < result.metrics["base_loss"]


def test_hidden_losses_by_hand():
    sums = hidden_losses(torch.zeros(2, 3, 4), torch.tensor([[1, -100, 3], [-100, 2, -100]]))
    torch.testing.assert_close(sums, torch.tensor([[2 * math.log(4), 2.0], [math.log(4), 1.0]]))


# --- heads and refusals -----------------------------------------------------------------------------------------------


def head(base: Base) -> nn.Linear:
    found = base.model.classifier
    assert isinstance(found, nn.Linear)
    return found


def test_a_head_of_these_labels_is_kept_and_another_is_not(tiny: Tiny, tmp_path: Path):
    with quiet(), torch.random.fork_rng():
        first = load_classifier(tiny("bert"), ("b", "c", "a"))
        first.model.save_pretrained(tmp_path / "head")
        first.tokenizer.save_pretrained(tmp_path / "head")
        weight = head(first).weight
        same = load_classifier(tmp_path / "head", ("a", "b", "c"))
        other = load_classifier(tmp_path / "head", ("a", "b", "d"))
        several = load_classifier(tmp_path / "head", ("a", "b", "c"), "multi_label_classification")
        tokens = load_tagger(tmp_path / "head", ("a", "b", "c"))
    assert same.labels == ("b", "c", "a") and torch.equal(head(same).weight, weight)
    assert not same.new_parameters and same.model.config.label2id == {"b": 0, "c": 1, "a": 2}
    for base in (other, several, tokens):
        assert base.new_parameters == ("classifier.bias", "classifier.weight")
        assert not torch.equal(head(base).weight, weight) and not head(base).bias.any()
    assert other.labels == ("a", "b", "d")


def test_rows_that_cannot_serve_the_task(corpus: Corpus, several: Corpus, marked: Corpus):
    bare = replace(corpus, examples=tuple(replace(example, label=None) for example in corpus))
    mixed = replace(corpus, examples=(*several.examples[:5], *corpus.examples))
    unlabelled = replace(marked, examples=(replace(marked.examples[1], spans=(Span(0, 3),)), *marked.examples))
    spoken = replace(corpus, examples=(replace(corpus.examples[0], messages=(("user", "Hi"),)), *corpus.examples))
    empty = replace(several, examples=tuple(replace(example, labels=()) for example in several))
    outside = replace(marked, examples=(replace(marked.examples[1], spans=(Span(0, 3, "O"),)), *marked.examples))
    cases = [
        (corpus, "token-clasification", UnknownName, "unknown task .*did you mean 'token-classification'"),
        (
            several,
            "sequence-classification",
            TrainingError,
            "36 of 36 rows .* have a list of labels .*multi-label",
        ),
        (mixed, None, TrainingError, "36 of 41 rows .* have one label that is no list .*write each as a list"),
        (bare, "multi-label", TrainingError, r"36 of 36 rows .* have no label .*give a list, \[\] where"),
        (empty, None, TrainingError, "no label in any row: needed at least two classes"),
        (corpus, "token-classification", TrainingError, r"36 of 36 rows .* have no spans .*\[\] where there is none"),
        (unlabelled, "token-classification", TrainingError, "1 of 37 rows .* have spans without labels .*label every"),
        (outside, "token-classification", TrainingError, "a span labelled 'O'"),
        (spoken, "masked-lm", TrainingError, "1 of 37 rows .* have conversations .*plain text"),
    ]
    for data, task, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            split(data, None, 0, task)
        assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match=r"have a label unseen in training \('tax'\)"):
        split(several, replace(several, examples=(replace(several.examples[0], labels=("cap", "tax")),)), 0)
    with pytest.raises(TrainingError, match="no labelled span"):
        empty = tuple(replace(example, spans=()) for example in marked)
        split(replace(marked, examples=empty), None, 0, "token-classification")


def test_bases_that_cannot_serve_the_task(tiny: Tiny, tiny_lm: Tiny, corpus: Corpus, marked: Corpus, tmp_path: Path):
    output = tmp_path / "out"
    masked, tokens = replace(FEW, task="masked-lm"), replace(FEW, task="token-classification")
    sizes: dict[str, Any] = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1}
    bart = BartConfig(**sizes, decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, vocab_size=60)
    BartModel(bart).save_pretrained(tmp_path / "bart")
    encoder_tokenizer().save_pretrained(tmp_path / "bart")
    cases = [
        (tiny_lm("gpt2"), corpus, masked, r"masked-lm needs an encoder .*gpt2 \(gpt2\) is not: .*--task causal-lm"),
        (tmp_path / "bart", corpus, masked, r"masked-lm needs an encoder .*bart \(bart\) is not"),
        (tiny("bert"), corpus, masked, "needs a mask token, which the tokenizer of .*bert lacks"),
        (tmp_path / "bart", marked, tokens, r"token-classification needs .*which .*bart \(bart\) is not"),
        (tiny("bert"), corpus, replace(FEW, task="causal-lm"), "causal-lm was asked for, so .*--task masked-lm"),
    ]
    for base, data, options, message in cases:
        with pytest.raises(UnsupportedModel, match=message) as caught:
            finetune(base, data, output=output, options=options)
        assert "\n" not in str(caught.value) and not output.exists()
    for options, message in (
        (replace(masked, class_weights=True), "class_weights means nothing to 'masked-lm': it belongs to sequence-c"),
        (replace(tokens, windows=True), "windows means nothing to 'token-classification': it belongs to .*multi-label"),
    ):
        with pytest.raises(TrainingError, match=message):
            finetune(tiny("bert"), marked, output=output, options=options)
    with pytest.raises(TrainingError, match=r"no token of the .* lies in a span within 3 tokens: raise --max-length"):
        finetune(tiny("bert"), marked, output=output, options=replace(tokens, max_length=3))


def test_sets_of_labels_are_read_from_a_csv(tiny: Tiny, tmp_path: Path):
    path = tmp_path / "task.csv"
    lines = [f'{row["text"]},"{json.dumps([row["label"]]).replace(chr(34), chr(34) * 2)}"' for row in rows()]
    path.write_text("\n".join(["text,label", *lines, "nothing of the kind,[]"]) + "\n")
    result = finetune(tiny("bert"), path, output=tmp_path / "out", options=FEW)
    assert result.record["task"] == "multi-label" and result.record["threshold"] == 0.5
