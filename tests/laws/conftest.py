"""The real models of this folder's tests."""

from pathlib import Path

import pytest
import torch
import transformers as tf

from tests.laws.models import SENTENCES, Real


@pytest.fixture(scope="session", params=["minilm", "stories260K"])
def real(minilm: Path, request: pytest.FixtureRequest) -> Real:
    name = request.param
    folder = minilm if name == "minilm" else request.getfixturevalue("shared") / "models" / name
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    encoded = [tokenizer(text)["input_ids"] for text in SENTENCES]
    longest = max(map(len, encoded))
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in encoded])
    mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in encoded])
    groups = torch.randint(0, 2, ids.shape, generator=torch.Generator().manual_seed(0))
    groups[:, 0] = 2
    groups[mask == 0] = -1
    model = tf.AutoModel.from_pretrained(folder).double().eval()
    if name == "minilm":  # half of its layers, for time
        model.encoder.layer, model.config.num_hidden_layers = model.encoder.layer[:3], 3
    return Real(name, model, tokenizer, {"input_ids": ids, "attention_mask": mask}, groups)
