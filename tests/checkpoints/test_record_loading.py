"""`record` on models as they are loaded for real: spread over devices, with weights on disk, in half precision."""

from pathlib import Path

import pytest
import torch
import transformers as tf

from attnlens.checkpoints.record import record
from tests.models import batch, build

NAMES = ("entropy", "max_weight", "received")
BLOOM = {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4}


@pytest.fixture(params=["llama", "bert", "bloom"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[tf.PreTrainedModel, Path]:
    """On both routes: a model, and the folder it was saved to."""
    config = tf.BloomConfig(**BLOOM) if request.param == "bloom" else None
    model = build(request.param, config=config)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def layers(model: tf.PreTrainedModel) -> str:
    """The name of the list of layers."""
    return next(name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList))


@pytest.mark.parametrize("side", ["left", "right"])
def test_weights_that_lie_on_disk(saved: tuple[tf.PreTrainedModel, Path], side: str, tmp_path: Path):
    """accelerate fetches each module's weights when it runs."""
    plain, folder = saved
    rest = [name for name, _ in plain.named_children() if not layers(plain).startswith(name)]
    inside = layers(plain).split(".")[0]
    if inside != layers(plain):  # BERT's list lies in its encoder
        rest += [f"{inside}.{name}" for name, _ in getattr(plain, inside).named_children() if name != "layer"]
    places = dict.fromkeys(rest, "cpu") | {f"{layers(plain)}.0": "cpu", f"{layers(plain)}.1": "disk"}
    model = tf.AutoModel.from_pretrained(folder, device_map=places, offload_folder=tmp_path / "offload").eval()
    assert any(parameter.device.type == "meta" for parameter in model.parameters()), "some weights are on disk"
    inputs = batch(side)
    with torch.no_grad():
        with record(plain, NAMES) as expected:
            output = plain(**inputs)[0]
        with record(model, NAMES) as tape:
            recorded = model(**inputs)[0]
    torch.testing.assert_close(recorded, output)
    for name in NAMES:
        torch.testing.assert_close(tape[name], expected[name], equal_nan=True)
    assert [site.name for site in tape.sites] == [site.name for site in expected.sites]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(saved: tuple[tf.PreTrainedModel, Path], dtype: torch.dtype):
    """Statistics in float32 of what half precision computes: near those of the whole model, NaN in the same places."""
    plain, folder = saved
    model = tf.AutoModel.from_pretrained(folder, dtype=dtype, device_map="auto").eval()
    inputs = batch("left")
    with torch.no_grad():
        with record(plain, NAMES) as expected:
            plain(**inputs)
        with record(model, NAMES) as tape:
            model(**inputs)
    for name in NAMES:
        assert tape[name].dtype == torch.float32 and torch.equal(tape[name].isnan(), expected[name].isnan())
        gap = (tape[name] - expected[name]).abs().nan_to_num()
        assert gap.mean() < (0.1 if dtype == torch.bfloat16 else 0.02)
