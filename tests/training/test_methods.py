"""The registry: which parameters each method trains, on every architecture of the project."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    MixtralConfig,
    MixtralForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from attnlens.checkpoints.blocks import head_parameters, transformer_blocks
from attnlens.checkpoints.load import quiet
from attnlens.core.errors import TrainingError, UnknownName, UnsupportedModel
from attnlens.training.methods import METHODS, freeze, method_named
from attnlens.training.options import TrainOptions

# Where each architecture keeps its blocks and its head, written by hand.
PLACES = {
    "bert": (
        "bert.encoder.layer.{}.",
        {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"},
    ),
    "roberta": (
        "roberta.encoder.layer.{}.",
        {"classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias"},
    ),
    "distilbert": (
        "distilbert.transformer.layer.{}.",
        {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"},
    ),
    "gpt2": ("transformer.h.{}.", {"score.weight"}),
    "llama": ("model.layers.{}.", {"score.weight"}),
    "qwen2": ("model.layers.{}.", {"score.weight"}),
}


def load(path: Path):
    with quiet():
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)


@pytest.mark.parametrize("architecture", PLACES)
def test_each_method_trains_what_it_says(architecture: str, tiny: Callable[[str], Path]):
    model = load(tiny(architecture))
    names = {name for name, _ in model.named_parameters()}
    place, head = PLACES[architecture]
    last = {name for name in names if name.startswith((place.format(2), place.format(3)))}
    assert METHODS["full"].select(model, TrainOptions()).parameters == names
    assert METHODS["head"].select(model, TrainOptions()).parameters == head
    assert METHODS["last_k"].select(model, TrainOptions(k=2)).parameters == head | last
    assert len(last) > 8  # attention and MLP of two blocks


def test_last_k_takes_a_quarter_of_the_blocks_unless_told():
    for blocks, k in {1: 1, 2: 1, 4: 1, 6: 2, 12: 3}.items():
        config = BertConfig(
            hidden_size=4, num_hidden_layers=blocks, num_attention_heads=1, intermediate_size=4, vocab_size=9
        )
        model = BertForSequenceClassification(config)
        assert METHODS["last_k"].select(model, TrainOptions()).settings == {"k": k}


def test_last_k_of_all_blocks_leaves_embeddings_frozen(tiny: Callable[[str], Path]):
    model = load(tiny("bert"))
    chosen = METHODS["last_k"].select(model, TrainOptions(k=4)).parameters
    left = {name for name, _ in model.named_parameters()} - chosen
    assert left and all(name.startswith("bert.embeddings.") for name in left)


def test_more_blocks_than_there_are(tiny: Callable[[str], Path]):
    with pytest.raises(
        TrainingError, match="k=5 asks for more blocks than BertForSequenceClassification has: at most 4"
    ):
        METHODS["last_k"].select(load(tiny("bert")), TrainOptions(k=5))


def test_blocks_of_two_stacks_and_of_experts():
    """An encoder–decoder's blocks are its encoder's, then its decoder's; lists inside a block are no blocks."""
    bart = BartForSequenceClassification(
        BartConfig(vocab_size=9, d_model=4, encoder_layers=2, decoder_layers=3, encoder_attention_heads=1,
                   decoder_attention_heads=1, encoder_ffn_dim=4, decoder_ffn_dim=4, max_position_embeddings=8)
    )  # fmt: skip
    assert transformer_blocks(bart) == (*bart.model.encoder.layers, *bart.model.decoder.layers)
    t5 = T5ForSequenceClassification(T5Config(vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=2, num_heads=1))
    assert transformer_blocks(t5) == (*t5.transformer.encoder.block, *t5.transformer.decoder.block)
    shape = {"hidden_size": 4, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 4}
    mixtral = MixtralForSequenceClassification(
        MixtralConfig(**shape, vocab_size=9, num_key_value_heads=1, num_local_experts=2, pad_token_id=0)
    )
    assert transformer_blocks(mixtral) == tuple(mixtral.model.layers)


def test_shared_blocks_are_refused():
    config = AlbertConfig(
        vocab_size=9, embedding_size=4, hidden_size=4, num_hidden_layers=3, num_attention_heads=1, intermediate_size=4
    )
    with pytest.raises(UnsupportedModel, match="needed the transformer blocks of its 3 layers, found 1 in encoder"):
        transformer_blocks(AlbertForSequenceClassification(config))
    model = BertForSequenceClassification(
        BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=1, intermediate_size=4, vocab_size=9)
    )
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    with pytest.raises(UnsupportedModel, match="a parameter belongs to two blocks"):
        transformer_blocks(model)


def test_the_head_of_a_bare_encoder_is_its_pooler():
    config = BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, vocab_size=9)
    assert head_parameters(BertModel(config)) == {"pooler.dense.weight", "pooler.dense.bias"}


def test_freeze_leaves_no_gradient_behind(tiny: Callable[[str], Path]):
    model = load(tiny("bert"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    selection = METHODS["head"].select(model, TrainOptions())
    freeze(model, selection)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == selection.parameters
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_registry_is_complete():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.title and method.trains and method.reference
        assert 1e-6 < method.learning_rate < 1e-1


def test_unknown_names_and_options_are_refused():
    with pytest.raises(UnknownName, match="unknown fine-tuning method 'ful': did you mean 'full'"):
        method_named("ful", TrainOptions())
    with pytest.raises(TrainingError, match="k=2 means nothing to 'full': it belongs to last_k"):
        method_named("full", TrainOptions(k=2))
    assert method_named("last_k", TrainOptions(k=2)).name == "last_k"
