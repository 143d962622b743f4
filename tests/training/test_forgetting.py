"""What is forgotten, against plain transformers: losses, divergence, drift; and attention watched meanwhile."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)

from attnlens.checkpoints.load import quiet
from attnlens.core.errors import CorpusError
from attnlens.text.corpus import Corpus, Example
from attnlens.training.forgetting import Forgetting, compared
from attnlens.training.masked import hide
from attnlens.training.train import TrainOptions, finetune
from tests.training.conftest import encoder_tokenizer
from tests.training.test_observers import FEW, job

Tiny = Callable[[str], Path]


def plain(corpus: Corpus, count: int = 12) -> Corpus:
    """The texts alone."""
    return replace(corpus, examples=tuple(replace(row, label=None) for row in corpus.examples[:count]))


def test_losses_and_divergence_by_hand():
    before, after = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = [math.log(2), math.log(4), 0.5 * math.log(2) + 0.5 * math.log(2 / 3)]
    assert compared(before, after, torch.tensor([0])).tolist() == pytest.approx(expected, rel=1e-6)
    assert compared(before, before, torch.tensor([1]))[2] == 0


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_language_model_on_general_text(architecture: str, tiny_lm: Tiny, corpus: Corpus, tmp_path: Path):
    """The held-out text as general text: the losses are the run's own; divergence and drift text by text, unpadded."""
    general = plain(corpus)
    options = replace(FEW, general=general, validation=replace(general, checksum="1" * 64))
    output = tmp_path / "out"
    result = finetune(tiny_lm(architecture), plain(corpus, 36), output=output, options=options)
    facts = result.record["forgetting"]
    assert facts["loss_before"] == pytest.approx(result.metrics["base_loss"], rel=1e-5)
    assert facts["loss_after"] == pytest.approx(result.metrics["loss"], rel=1e-5)
    assert facts["perplexity_after"] == pytest.approx(math.exp(facts["loss_after"]))
    tokenizer = AutoTokenizer.from_pretrained(output)
    with quiet(), torch.no_grad():
        models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (tiny_lm(architecture), output)]
        divergence, drift, tokens, read = 0.0, torch.zeros(5), 0, 0
        for row in general:
            ids = torch.tensor([tokenizer(row.text)["input_ids"]])
            old, new = (model(ids, output_hidden_states=True) for model in models)
            p, q = (output.logits[0, :-1].softmax(-1) for output in (old, new))
            divergence += (p * (p / q).log()).sum().item()
            tokens += ids.shape[1] - 1
            read += ids.shape[1]
            for layer, (h0, h) in enumerate(zip(old.hidden_states, new.hidden_states, strict=True)):
                drift[layer] += ((h - h0).norm(dim=-1) / h0.norm(dim=-1)).sum()
    assert facts["tokens"] == tokens and facts["texts"] == 12 and facts["task"] == "causal-lm"
    assert facts["kl"] == pytest.approx(divergence / tokens, rel=1e-3) and facts["kl"] > 0
    assert facts["drift"] == pytest.approx((drift / read).tolist(), rel=1e-3)


def test_a_classifier_whose_base_can_fill_masks(corpus: Corpus, tmp_path: Path):
    """The base's head reads the tuned backbone: nothing changes where that is frozen, and all of it is done by hand."""
    tokenizer = encoder_tokenizer()
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=0, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options = replace(FEW, general=plain(corpus))
    still = finetune(tmp_path / "base", corpus, method="head", output=tmp_path / "head", options=options)
    kept = still.record["forgetting"]
    assert kept["task"] == "masked-lm" and kept["kl"] == 0 and kept["loss_before"] == kept["loss_after"]
    assert kept["drift"] == [0.0] * 3
    moved = finetune(tmp_path / "base", corpus, output=tmp_path / "full", options=options).record["forgetting"]
    assert moved["loss_before"] == pytest.approx(kept["loss_before"]) and moved["kl"] > 0
    with quiet(), torch.no_grad():
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "base").eval()
        tuned = AutoModel.from_pretrained(tmp_path / "full").eval()
        model.bert.load_state_dict(tuned.state_dict(), strict=False)
        losses = []
        for number, row in enumerate(plain(corpus)):
            hidden = hide(tokenizer, tokenizer(row.text)["input_ids"], [0, number])
            logits = model(torch.tensor([hidden["input_ids"]])).logits[0]
            labels = torch.tensor(hidden["labels"])
            losses += cross_entropy(logits, labels, reduction="none")[labels != -100].tolist()
    assert moved["loss_after"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert moved["tokens"] == len(losses)


def test_a_classifier_whose_base_has_no_head(tiny: Tiny, corpus: Corpus):
    """Only the drift remains, with the reason; before any step it is zero."""
    facts = Forgetting(job(tiny("bert"), corpus)).facts()
    assert facts["drift"] == [0.0] * 5 and facts["kl"] is None and "no language-model head" in facts["reason"]


def test_general_text_that_says_nothing(tiny_lm: Tiny, tiny: Tiny, corpus: Corpus):
    """Given by the user it is an error; the embedded one only means that nothing is known."""
    empty = Corpus((Example("zzz", "0", "0"),), "none.jsonl", "0" * 64, False)
    with pytest.raises(CorpusError, match=r"none\.jsonl holds no text with a token to predict: give other"):
        Forgetting(job(tiny("bert"), corpus, options=replace(FEW, general=empty)))
    watch = Forgetting(job(tiny("bert"), corpus))
    watch._texts = []
    facts = watch.facts()
    assert facts["drift"] is None and "knows no word of probe.jsonl" in facts["reason"]


def test_attention_is_watched(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Entropy at step 0 against the base's own attention weights; the last look against the checkpoint's."""
    options = TrainOptions(
        max_steps=8, batch_size=8, learning_rate=1e-2, validation=corpus, watch_attention=True, device="cpu"
    )
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)
    facts = result.record["attention"]
    assert facts["steps"] == [0, 8] and facts["texts"] == 12 and len(facts["layers"]) == 4
    assert all("layer" in name and "attention" in name for name in facts["layers"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with quiet(), torch.no_grad():
        base = AutoModel.from_pretrained(tiny("bert"), attn_implementation="eager").eval()
        expected = torch.zeros(4)
        for row in corpus.examples[::3]:
            maps = base(torch.tensor([tokenizer(row.text)["input_ids"]]), output_attentions=True).attentions
            expected += torch.stack([torch.special.entr(each[0]).sum(-1).mean() for each in maps]) / 12
    assert facts["entropy"][0] == pytest.approx(expected.tolist(), rel=1e-4)
    assert facts["entropy"][1] != facts["entropy"][0]
