"""What methods add to a model of each architecture, and what they refuse."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf

from attnlens.checkpoints.blocks import head_parameters
from attnlens.core.errors import TrainingError, UnsupportedModel
from attnlens.training.methods import METHODS
from attnlens.training.options import TrainOptions
from attnlens.training.split import CLASSIFICATION
from tests.models import BERT, CONFIGS, SIZES, SPECIAL, batch

ALL = CONFIGS | SPECIAL | {"xlm-roberta": lambda: tf.XLMRobertaConfig(**SIZES, **BERT)}  # pyright: ignore
LABELS = TrainOptions(task=CLASSIFICATION)
# Where PEFT has no default of its own: by hand, from the models' source.
LORA = {"distilbert": {"q_lin", "v_lin"}, "albert": {"query", "value"}, "modernbert": {"Wqkv"}}
IA3 = {
    "xlm-roberta": {"key", "value", "0.output.dense", "1.output.dense"},
    "distilbert": {"k_lin", "v_lin", "lin2"},
    "modernbert": {"Wqkv", "mlp.Wo"},
}


def classifier(architecture: str) -> Any:
    config = ALL[architecture]()
    config.num_labels, config.pad_token_id = 3, 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tf.AutoModelForSequenceClassification.from_config(config).eval()


def inputs(architecture: str) -> dict[str, torch.Tensor]:
    """Texts of which each ends with the one token that encoder–decoders classify at."""
    made = batch()
    ends = made["attention_mask"].sum(1) - 1
    made["input_ids"][torch.arange(len(ends)), ends] = 2
    return made


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("method", ["lora", "ia3", "prompt"])
def test_a_head_and_what_is_added_train_and_nothing_else(method: str, architecture: str):
    """LoRA and (IA)³ begin as the base, bit for bit, on every architecture; counts agree with PEFT's."""
    model = classifier(architecture)
    size = sum(p.numel() for name, p in model.named_parameters() if name in head_parameters(model))
    tokens = inputs(architecture)
    with torch.no_grad():
        before = model(**tokens).logits
    if (method, architecture) in {("prompt", "t5"), ("prompt", "bart"), ("ia3", "albert")}:
        with pytest.raises(UnsupportedModel):
            METHODS[method].select(model, LABELS)
        return
    selection = METHODS[method].select(model, LABELS)
    wrapped: Any = selection.model
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert trained.keys() == selection.parameters
    assert sum(p.numel() for p in trained.values()) == wrapped.get_nb_trainable_parameters()[0]
    assert sum(p.numel() for name, p in trained.items() if "modules_to_save" in name) == size
    assert all(any(mark in name for mark in ("modules_to_save", "lora_", "ia3_", "prompt_")) for name in trained)
    wrapped.eval()
    with torch.no_grad():
        after = wrapped(**tokens).logits
    assert torch.equal(after, before) if method != "prompt" else not torch.allclose(after, before)
    by_hand = {"lora": LORA, "ia3": IA3}.get(method, {}).get(architecture)
    assert by_hand is None or set(selection.settings["targets"]) == by_hand


def test_a_padded_text_is_classified_as_it_is_alone():
    """Decoders read the last token: behind virtual tokens too it is the text's, not the padding's."""
    for architecture in ("gpt2", "llama"):
        model = METHODS["prompt"].select(classifier(architecture), LABELS).model
        assert isinstance(model, torch.nn.Module)
        tokens = inputs(architecture)
        with torch.no_grad():
            together = model.eval()(**tokens).logits
            for row, length in enumerate(tokens["attention_mask"].sum(1).tolist()):
                alone = model(**{name: values[row : row + 1, :length] for name, values in tokens.items()}).logits
                torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-6)
        assert (together[0] - together[2]).abs().max() > 1e-4


def test_a_prompt_begins_as_tokens_of_the_vocabulary_drawn_by_the_seed():
    for architecture in ("bert", "albert", "gemma2"):
        model = classifier(architecture)
        drawn = []
        for seed in (1, 1, 2):
            selection = METHODS["prompt"].select(classifier(architecture), replace(LABELS, virtual_tokens=5), seed)
            wrapped: Any = selection.model
            drawn.append(wrapped.prompt_encoder["default"].embedding.weight.detach())
            assert selection.virtual == 5
        with torch.no_grad():
            table = model.get_input_embeddings()(torch.arange(100))
        assert all((table == row).all(1).any() for row in drawn[2])
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_fits_no_adapter_is_refused_with_the_reason():
    with pytest.raises(UnsupportedModel, match=r"T5For\w+ cannot be prompt-tuned: .*'lora' or 'ia3'"):
        METHODS["prompt"].select(classifier("t5"), LABELS)
    tokens = TrainOptions(task="token-classification")
    with pytest.raises(TrainingError, match="prompt tuning does not serve the task 'token-classification'"):
        METHODS["prompt"].select(classifier("bert"), tokens)
    with pytest.raises(UnsupportedModel, match="shares blocks between layers"):
        METHODS["ia3"].select(classifier("albert"), LABELS)
    for method in ("lora", "ia3", "prompt"):
        quantised = classifier("bert")
        quantised.is_quantized = True
        with pytest.raises(UnsupportedModel, match=r"quantised: .* Start from the unquantised base"):
            METHODS[method].select(quantised, LABELS)


def test_blocks_are_chosen_by_number():
    model = classifier("bert")
    chosen = METHODS["layers"].select(model, replace(LABELS, layers=(1, 1)))
    assert chosen.parameters == METHODS["last_k"].select(model, replace(LABELS, k=1)).parameters
    assert chosen.settings == {"k": 1, "blocks": [1]}
    both = METHODS["layers"].select(model, replace(LABELS, layers=(1, 0)))
    assert both.parameters == METHODS["last_k"].select(model, replace(LABELS, k=2)).parameters
    for wrong in (2, -1):
        with pytest.raises(TrainingError, match=f"layers names block {wrong}, .*: needed numbers from 0 to 1"):
            METHODS["layers"].select(model, replace(LABELS, layers=(0, wrong)))
    with pytest.raises(TrainingError, match="is told: add --layers with numbers from 0 to 1"):
        METHODS["layers"].select(model, LABELS)
