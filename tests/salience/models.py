"""Third models for the tests of this floor: small, random, with MiniLM's tokenizer."""

from pathlib import Path

import torch
import transformers as tf

from attnlens.checkpoints.load import Checkpoint

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}


def encoder(minilm: Path, *, seed: int = 0, labels: tuple[str, ...] = ()) -> Checkpoint:
    """A BertModel, or with labels a classifier of them."""
    tokenizer = tf.AutoTokenizer.from_pretrained(minilm)
    names: dict = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    config = tf.BertConfig(vocab_size=len(tokenizer), **SIZES, **(names if labels else {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (tf.BertForSequenceClassification if labels else tf.BertModel)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8.0)
    return Checkpoint(model, tokenizer, "third", {})
