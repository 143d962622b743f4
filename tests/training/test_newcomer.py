"""What a new user meets: encoder–decoders, validation files that cannot serve, and what the card says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import BartConfig, BartModel, PreTrainedTokenizerFast, T5Config, T5Model

from attnlens.core.errors import TrainingError, UnsupportedModel
from attnlens.text.corpus import Corpus, Example
from attnlens.training.train import TrainOptions, finetune
from tests.training.conftest import encoder_tokenizer

Tiny = Callable[[str], Path]
FEW = TrainOptions(max_steps=2, batch_size=8, device="cpu")


def encoder_decoder(folder: Path, architecture: str, ending: str | None) -> Path:
    """A tiny base whose end-of-text token is </s>, and a tokenizer that writes `ending` after a text."""
    tokenizer: PreTrainedTokenizerFast = encoder_tokenizer()
    tokenizer.eos_token = "</s>"
    added = [(ending, tokenizer.convert_tokens_to_ids(ending))] if ending else []
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        f"$A {ending or ''}".strip(), special_tokens=added
    )
    ids = {"pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "t5":
            shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
            model = T5Model(T5Config(vocab_size=len(tokenizer), **shape, **ids))
        else:
            sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
            model = BartModel(
                BartConfig(vocab_size=len(tokenizer), d_model=16, max_position_embeddings=40, **sides, **ids)
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_whose_texts_have_no_end_is_refused(architecture: str, corpus: Corpus, tmp_path: Path):
    """Its classifier reads the end-of-text token, so that there must be one."""
    base = encoder_decoder(tmp_path / "base", architecture, None)
    with pytest.raises(UnsupportedModel, match=r"classifies at the end-of-text token '</s>', .*base does not add"):
        finetune(base, corpus, output=tmp_path / "out", options=FEW)
    assert not (tmp_path / "out").exists()


def test_a_text_with_an_end_in_its_middle_is_refused(corpus: Corpus, tmp_path: Path):
    base = encoder_decoder(tmp_path / "base", "t5", "</s>")
    odd = replace(corpus, examples=(*corpus, Example("the </s> party", "odd", "odd", "law")))
    with pytest.raises(TrainingError, match=r"row 'odd' holds '</s>' 2 times, .*: remove it from the text"):
        finetune(base, odd, output=tmp_path / "out", options=replace(FEW, validation=odd))


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_that_ends_its_texts_is_trained(architecture: str, corpus: Corpus, tmp_path: Path):
    base = encoder_decoder(tmp_path / "base", architecture, "</s>")
    result = finetune(base, corpus, output=tmp_path / "out", options=replace(FEW, max_length=6))
    assert result.metrics["steps"] == 2 and result.record["truncated"] > 0


def test_the_training_data_is_no_validation_data(tiny: Tiny, data_file: Path, tmp_path: Path):
    """Whatever the file is called: scores on rows that were trained on are not held out."""
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(data_file.read_bytes())
    for same in (data_file, copy):
        with pytest.raises(TrainingError, match=r"is the training data itself, .*: leave --validation out"):
            finetune(tiny("bert"), data_file, output=tmp_path / "out", options=replace(FEW, validation=same))
    assert not (tmp_path / "out").exists()


def test_a_validation_file_without_labels_says_so(tiny: Tiny, data_file: Path, tmp_path: Path):
    plain = tmp_path / "plain.txt"
    plain.write_text("The first passage.\n\nThe second one.\n")
    with pytest.raises(TrainingError, match=r"^plain\.txt has no labels, .*--label-column"):
        finetune(tiny("bert"), data_file, output=tmp_path / "out", options=replace(FEW, validation=plain))


def test_the_card_says_that_training_stopped_early(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    options = TrainOptions(max_steps=40, batch_size=8, learning_rate=1e-12, patience=2, device="cpu")
    card = str(finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)).splitlines()
    assert card[3].startswith("kept: step 4; stopped after step 12 of 40: no better for 2 evaluations; ")
    whole = str(finetune(tiny("bert"), corpus, output=tmp_path / "whole", options=FEW)).splitlines()
    assert "of 2; " in whole[3] and "stopped" not in whole[3] and len(whole) == 4


def test_the_card_says_what_was_cut(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=replace(FEW, max_length=12))
    used = len(result.record["data"]["train"]["rows_used"])
    line = f"{result.record['truncated']} of {used} training texts were cut at 12 tokens"
    assert str(result).splitlines()[4:] == [line]
    named = replace(result, record=result.record | {"base": {"name": "<img src=x>"}}, twin=result)
    page = named._repr_html_()
    assert page.count("<table>") == 2 and "<img" not in page and "&lt;img src=x&gt; fine-tuned by full" in page
    for shown in (line, result.measured, str(tmp_path / "out")):
        assert page.count(shown) == 2


def test_the_card_says_what_was_dropped(tiny_lm: Tiny, tmp_path: Path):
    """A prompt that fills the window leaves nothing of its completion to predict; of another the end is cut."""
    prompts = ["law " * 30, "law " * 5, "law ", "law ", "law "]
    pairs = tuple(
        Example(prompt + "party deed", str(i), str(i), completion=len(prompt)) for i, prompt in enumerate(prompts)
    )
    data = Corpus(pairs, "pairs.jsonl", "0" * 64, False)
    options = replace(FEW, max_length=6, validation=replace(data, examples=pairs[2:]))
    result = finetune(tiny_lm("gpt2"), data, output=tmp_path / "out", options=options)
    counts = result.record["truncated"], result.record["dropped"]
    assert counts[0] >= counts[1] >= 1
    line = f"{counts[0]} of 8 texts were cut at 6 tokens; {counts[1]} left out, with nothing to predict"
    found = str(result).splitlines()[4:]
    assert found[0] == line and found[1] == "warning: 3 of 3 held-out texts are trained on too: the scores flatter."
