"""The real models of this folder's tests."""

from pathlib import Path

import pytest
import transformers as tf

from tests.laws.models import SENTENCES, Real
from tests.models import padded


@pytest.fixture(scope="session", params=["minilm", "stories260K"])
def real(minilm: Path, request: pytest.FixtureRequest) -> Real:
    name = request.param
    folder = minilm if name == "minilm" else request.getfixturevalue("shared") / "models" / name
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    encoded = [tokenizer(text)["input_ids"] for text in SENTENCES]
    inputs, groups = padded(encoded, seed=0)
    model = tf.AutoModel.from_pretrained(folder).double().eval()
    if name == "minilm":  # half of its layers, for time
        model.encoder.layer, model.config.num_hidden_layers = model.encoder.layer[:3], 3
    return Real(name, model, tokenizer, inputs, groups)
