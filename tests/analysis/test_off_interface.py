"""A comparison of models that compute attention past transformers' interface: what it has, and what it lacks."""

import pytest
import torch
import transformers as tf

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.reduced import REASON
from attnlens.core.errors import UnsupportedModel
from attnlens.text.corpus import Corpus


def test_it_runs_and_says_what_is_missing(base: Checkpoint, corpus: Corpus):
    size = len(base.tokenizer)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = tf.BloomConfig(vocab_size=size, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)
        models.append(Checkpoint(tf.BloomForSequenceClassification(config).eval(), base.tokenizer, f"seed {seed}", {}))
    found = compare(models[0], models[1], corpus=corpus, options=CompareOptions(passages=1, max_length=64))
    assert found.provenance["rows"] == "last", "it looks back, so the last row reads the whole text"
    assert found.data["entropy"].notnull().all() and found.data["focus"].notnull().any()
    assert found.data["jsd"].isnull().all() and found.data["stack"].values.tolist() == ["decoder", "decoder"]
    (told,) = [line for line in found.provenance["warnings"] if REASON in line]
    assert told.startswith(
        "share_value, jsd, kl_forward, kl_backward, tv have no data in some layers of seed 0, seed 1"
    )
    with pytest.raises(UnsupportedModel, match="keys cannot be hidden from it"):
        compare(models[0], models[1], corpus=corpus, options=CompareOptions(knockout=True))
