"""A small base with MiniLM's tokenizer, a tuned copy, and a corpus with known deciding words."""

import copy
from pathlib import Path

import pytest
import torch
import transformers as tf

from attnlens.checkpoints.load import Checkpoint
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.text.embedded import embedded


@pytest.fixture(scope="session")
def base(minilm: Path) -> Checkpoint:
    """Two layers of four heads with wide random weights, so that attention is far from uniform."""
    tokenizer = tf.AutoTokenizer.from_pretrained(minilm)
    config = tf.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.BertModel(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "query" in name or "key" in name:
                    parameter.mul_(12.0)
    return Checkpoint(model, tokenizer, "base", {})


@pytest.fixture(scope="session")
def tuned(base: Checkpoint) -> Checkpoint:
    """The base with noise on the last layer's queries."""
    model = copy.deepcopy(base.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weight = model.encoder.layer[1].attention.self.query.weight
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.15)
    return Checkpoint(model, base.tokenizer, "tuned", {})


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """A slice of the embedded clauses: 40 texts of 20 documents."""
    whole = read_corpus(embedded("contracts_eval"))
    documents = sorted({example.document for example in whole})[:20]
    chosen = [i for i, example in enumerate(whole) if example.document in documents]
    return whole.select(chosen).sample(40, 0)
