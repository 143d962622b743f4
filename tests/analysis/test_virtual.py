"""Reports on prompt-tuned models: base and tuned on the text's own tokens, against plain eager attention in float64."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as tf

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.difference import difference
from attnlens.analysis.prepare import Reading, prepare
from attnlens.analysis.results import Comparison, Passage
from attnlens.analysis.word_maps import units_of
from attnlens.checkpoints.load import Checkpoint, load, load_all
from attnlens.core.errors import CheckpointError, UnsupportedModel
from attnlens.text.align import Encoded
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.text.embedded import embedded

VIRTUAL = 3
SHAPE: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
BASES: dict[str, Callable[[], Any]] = {
    "classifier": lambda: tf.BertModel(tf.BertConfig(**SHAPE)),
    "decoder": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE, num_key_value_heads=1, vocab_size=30522)),
}
TASKS: dict[str, Any] = {
    "classifier": (tf.AutoModelForSequenceClassification, "SEQ_CLS", {"num_labels": 3}),
    "decoder": (tf.AutoModelForCausalLM, "CAUSAL_LM", {}),
}
KINDS: dict[str, Callable[..., peft.PeftConfig]] = {
    "prompt": lambda **more: peft.PromptTuningConfig(num_virtual_tokens=VIRTUAL, **more),
    "p-tuning": lambda **more: peft.PromptEncoderConfig(num_virtual_tokens=VIRTUAL, encoder_hidden_size=8, **more),
    "prefix": lambda **more: peft.PrefixTuningConfig(num_virtual_tokens=VIRTUAL, **more),
}


@pytest.fixture(scope="module")
def texts() -> Corpus:
    return read_corpus(embedded("contracts_eval")).sample(5, 0)


@pytest.fixture(scope="module")
def folders(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of each task and adapters for it, their weights far from the start; attention far from uniform."""
    folder = tmp_path_factory.mktemp("virtual")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, build in BASES.items():
            model = build()
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if any(part in key for part in ("query", "key", "q_proj", "k_proj")):
                        parameter.mul_(12.0)
            model.save_pretrained(folder / name)
            for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
                shutil.copy(minilm / file, folder / name)
            for kind, config in KINDS.items():
                wrapped(folder, name, config).save_pretrained(str(folder / f"{name}-{kind}"))
    return folder


def wrapped(folder: Path, name: str, config: Callable[..., peft.PeftConfig] | None = None, kind: str = "") -> Any:
    """A new PEFT model on a base; the saved one of a kind."""
    headed, task, more = TASKS[name]
    model: Any = headed.from_pretrained(folder / name, **more)
    if config is None:
        return peft.PeftModel.from_pretrained(model, folder / f"{name}-{kind}").eval()
    tuned: Any = peft.get_peft_model(model, config(task_type=task))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return tuned.eval()


def eager(model: Any, ids: np.ndarray) -> np.ndarray:
    """(L, H, Q, K) of one text in float64."""
    inner: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    inner.set_attn_implementation("eager")
    model.double()
    tokens = torch.from_numpy(ids)[None]
    with torch.no_grad():
        output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_attentions=True)
    return torch.cat(output.attentions).numpy()


def entropy(maps: np.ndarray) -> np.ndarray:
    return -(maps * np.log(np.where(maps > 0, maps, 1.0))).sum(-1)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("kind", ["prompt", "p-tuning"])
@pytest.mark.parametrize("name", BASES)
def test_numbers_of_a_comparison_are_those_of_the_text_s_own_tokens(folders: Path, texts: Corpus, name: str, kind: str):
    """Of the eager map (v + T, v + T) the last T rows and columns, each row scaled to 1; the rest is `virtual_mass`."""
    models = load_all([folders / name, folders / f"{name}-{kind}"])
    assert models[0].model is models[1].model and models[1].virtual == VIRTUAL
    options = CompareOptions(passages=1, max_length=48)
    found = compare(models[0], models[1], corpus=texts, salience=("textrank",), options=options)
    prepared = prepare(texts, models, Reading("content", ("textrank",), max_length=48))
    plain, tuned = TASKS[name][0].from_pretrained(folders / name, **TASKS[name][2]), wrapped(folders, name, kind=kind)
    assert found.provenance["rows"] == "content"  # a classifier would read the first virtual token
    for i, encoded in enumerate(prepared.encodings):
        base, whole = eager(plain, encoded.ids), eager(tuned, encoded.ids)
        text = whole[..., VIRTUAL:, VIRTUAL:]
        left = text / text.sum(-1, keepdims=True)
        rows = prepared.rows[i]
        middle = (base + left) / 2
        expected = {
            "entropy": np.stack([entropy(base), entropy(left)]),
            "virtual_mass": np.stack([0 * entropy(base), whole[..., VIRTUAL:, :VIRTUAL].sum(-1)]),
            "content_mass": np.stack([maps @ prepared.columns[i][:, 0] for maps in (base, left)]),
        }
        for key, values in expected.items():
            values = values[..., rows].mean(-1)
            np.testing.assert_allclose(found.data[key].values[:, i], values, atol=2e-5, err_msg=key)
        jsd = (entropy(middle) - (entropy(base) + entropy(left)) / 2)[..., rows].mean(-1)
        np.testing.assert_allclose(found.data["jsd"].values[1, i], jsd, atol=2e-5)
        for number, maps in enumerate((base, text)):  # a share needs no scaling: both its parts lose the same
            columns = prepared.columns[i].astype(np.float64)
            seen = (maps > 0) @ columns[:, 1] > 0
            content = np.where(seen, maps @ columns[:, 0], np.nan)
            share = np.ma.masked_invalid((maps @ columns[:, 1] / content)[..., rows])
            mean = share.mean(-1).filled(np.nan)
            np.testing.assert_allclose(found.data["share"].values[number, i, ..., 0], mean, atol=2e-5)
        if prepared.examples[i].id == found.passages[0].id:
            _maps_are(found.passages[0], encoded, np.stack([base, left]))
    assert float(found.data["virtual_mass"].isel(model=1).max()) > 0.05
    _says_so(found, f"{name}-{kind}")


def _maps_are(passage: Passage, encoded: Encoded, dense: np.ndarray) -> None:
    """Word to word, the text's own tokens alone: (model, L, H, T, T) folded, within what four bits can hold."""
    stored = passage.maps
    assert stored is not None
    unit, _ = units_of(encoded, range(stored.words))
    belongs = np.eye(stored.levels.shape[-1])[unit]
    folded = (belongs.T @ dense @ belongs) / belongs.sum(0)[:, None]
    scales = stored.scales.repeat((stored.words, len(stored.outside)), -1) / 65535
    for place, (layer, head) in enumerate(passage.heads):
        expected = folded[:, layer].mean(1) if head < 0 else folded[:, layer, head]
        assert (np.abs(stored.values[:, place] - expected) <= scales[place] / 14 + 1e-4).all()


def _says_so(found: Comparison, name: str) -> None:
    """Page one and provenance name the virtual tokens and what they take."""
    facts = found.provenance["virtual_tokens"][name]
    mass = found.data["virtual_mass"].sel(model=name)
    assert facts["count"] == VIRTUAL and facts["mass"] == pytest.approx(float(mass.mean()))
    warnings = " ".join(found.provenance["warnings"])
    assert (
        f"{name} reads 3 virtual tokens before each text, which take {facts['mass']:.0%} of the attention" in warnings
    )
    assert f"{name} leaves the weights of its base as they are and adds virtual tokens beside them" in warnings
    assert all(answer.verdict != "identical" for answer in found.answers[name].values())


def hidden(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    with checkpoint.active(), torch.no_grad():
        return checkpoint.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).logits


@pytest.mark.parametrize("kind", ["prompt", "p-tuning"])
@pytest.mark.parametrize("name", BASES)
def test_loaded_is_what_peft_loads_and_off_is_the_base_bit_for_bit(folders: Path, name: str, kind: str):
    ids = torch.tensor([[101, 2023, 2003, 1037, 102]])
    with torch.no_grad():
        expected = wrapped(folders, name, kind=kind)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    first, tuned, other = load_all([folders / name, folders / f"{name}-{kind}", folders / f"{name}-prompt"])
    plain = load(folders / name)
    for _ in range(2):
        assert torch.equal(hidden(tuned, ids), expected)
        with first.active(), torch.no_grad():
            assert torch.equal(first.backbone(ids)[0], plain.backbone(ids)[0])
        assert torch.equal(hidden(other, ids), expected) == (kind == "prompt")
    assert tuned.is_as_loaded
    assert tuned.provenance["adapter"]["virtual_tokens"] == VIRTUAL


def test_the_weights_of_the_base_have_not_changed(folders: Path):
    for name in BASES:
        found = difference(folders / name, folders / f"{name}-prompt", spectra="none")
        assert found.total.delta_norm == 0 and found.total.identical == found.total.entries > 0
        assert found.notes[0].startswith(
            f"The base's weights are untouched: {name}-prompt adds prompt_embeddings beside"
        )


def test_longer_texts_leave_room_for_the_virtual_tokens(folders: Path, minilm: Path, tmp_path: Path, texts: Corpus):
    """A base of 32 positions: 29 tokens of a text are read where 3 stand before it."""
    torch.manual_seed(0)
    tf.BertModel(tf.BertConfig(**SHAPE, max_position_embeddings=32)).save_pretrained(tmp_path / "classifier")
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm / file, tmp_path / "classifier")
    wrapped(tmp_path, "classifier", KINDS["prompt"]).save_pretrained(str(tmp_path / "tuned"))
    found = compare(tmp_path / "classifier", tmp_path / "tuned", corpus=texts, salience=("textrank",))
    assert int(found.data["tokens"].max()) == 29


def test_refusals(folders: Path):
    with pytest.raises(UnsupportedModel, match="a PREFIX_TUNING adapter: its virtual tokens take part in attention"):
        load(folders / "classifier-prefix")
    path = folders / "classifier-prompt" / "adapter_config.json"
    text = path.read_text()
    try:
        path.write_text(text.replace('"num_virtual_tokens": 3', '"num_virtual_tokens": 5'))
        with pytest.raises(CheckpointError, match=r"does not fit its base: .*size mismatch"):
            load(folders / "classifier-prompt")
        path.write_text(text.replace('"num_transformer_submodules": 1', '"num_transformer_submodules": 2'))
        with pytest.raises(UnsupportedModel, match="a PROMPT_TUNING adapter of an encoder–decoder"):
            load(folders / "classifier-prompt")
    finally:
        path.write_text(text)
