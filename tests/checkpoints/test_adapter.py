"""PEFT adapters: base and tuned are one loaded model, switched exactly; what does not fit is one clear error."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from attnlens.checkpoints.load import Checkpoint, load, load_all
from attnlens.core.errors import CheckpointError, UnsupportedModel

BERT: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
GPT: dict[str, Any] = {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 60, "n_positions": 32}
TOKENS = torch.tensor([[5, 17, 23, 42, 8, 11]])
KINDS: dict[str, peft.PeftConfig] = {
    "lora": peft.LoraConfig(task_type="SEQ_CLS", r=2),
    "rslora": peft.LoraConfig(task_type="SEQ_CLS", r=2, use_rslora=True, lora_alpha=3),
    "dora": peft.LoraConfig(task_type="SEQ_CLS", r=2, use_dora=True),
    "ia3": peft.IA3Config(task_type="SEQ_CLS"),
    "loha": peft.LoHaConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]),
    "lokr": peft.LoKrConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]),
    "oft": peft.OFTConfig(task_type="SEQ_CLS", oft_block_size=4, target_modules=["query"]),
}


def tokenizer_files(minilm: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm / name, folder)


@pytest.fixture
def base(tmp_path: Path, minilm: Path) -> Path:
    """A small BERT without a head, with attention far from uniform."""
    torch.manual_seed(0)
    model = tf.BertModel(tf.BertConfig(**BERT))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query" in name or "key" in name:
                parameter.mul_(12.0)
    model.save_pretrained(tmp_path / "base")
    tokenizer_files(minilm, tmp_path / "base")
    return tmp_path / "base"


def write_adapter(
    folder: Path, base: Path, config: peft.PeftConfig, *, headed: Any = tf.BertForSequenceClassification, **head: Any
) -> Path:
    """An adapter saved as peft saves it, its weights far from their start."""
    torch.manual_seed(1)
    model = peft.get_peft_model(headed.from_pretrained(base, **head), copy.deepcopy(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(str(folder))
    return folder


def hidden(checkpoint: Checkpoint) -> torch.Tensor:
    with checkpoint.active(), torch.no_grad():
        return checkpoint.backbone(input_ids=TOKENS).last_hidden_state


def saved_by_peft(base: Path, folder: Path, headed: Any, **head: Any) -> torch.Tensor:
    """What peft itself computes, with the adapter merged into the weights."""
    model: Any = peft.PeftModel.from_pretrained(headed.from_pretrained(base, **head), folder)
    with torch.no_grad():
        return model.merge_and_unload().eval().base_model(input_ids=TOKENS).last_hidden_state


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_the_base_bit_for_bit_and_on_is_the_merged_model(base: Path, tmp_path: Path, kind: str):
    folder = write_adapter(tmp_path / "adapter", base, KINDS[kind])
    plain = hidden(load(base))
    first, tuned = load_all([base, folder])
    assert first.model is tuned.model and type(tuned.model) is tf.BertForSequenceClassification
    assert torch.equal(hidden(first), plain)
    merged = saved_by_peft(base, folder, tf.BertForSequenceClassification)
    assert (merged - plain).abs().max() > 1e-3
    torch.testing.assert_close(hidden(tuned), merged, rtol=1e-4, atol=1e-5)
    assert torch.equal(hidden(first), plain)


def test_a_classifier_s_adapter_brings_its_head(base: Path, tmp_path: Path):
    """Five classes where the base has none; logits are those of peft."""
    folder = write_adapter(tmp_path / "adapter", base, peft.LoraConfig(task_type="SEQ_CLS", r=2), num_labels=5)
    expected = peft.PeftModel.from_pretrained(
        tf.BertForSequenceClassification.from_pretrained(base, num_labels=5), folder
    )
    tuned = load(folder)
    with torch.no_grad(), tuned.active():
        assert torch.equal(tuned.model(TOKENS).logits, expected.eval()(TOKENS).logits)
    facts = tuned.provenance["adapter"]
    assert (facts["type"], facts["r"], facts["task"], facts["base"]) == ("LORA", 2, "SEQ_CLS", str(base))
    assert "ignored" not in facts
    # 2 layers × query, value × A (2 × 16), B (16 × 2), and a head of 5 × 16 + 5.
    assert facts["parameters"] == 2 * 2 * 2 * 32 + 85
    assert tuned.provenance["kind"] == "adapter" and len(tuned.provenance["sha256"]) == 64


def test_a_headed_base_and_a_base_of_another_head(base: Path, tmp_path: Path, minilm: Path):
    """The adapter is a classifier's; its base was saved as classifier, and once more as masked language model."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2)
    for name, headed in (("classifier", tf.BertForSequenceClassification), ("masked", tf.BertForMaskedLM)):
        headed.from_pretrained(base).save_pretrained(tmp_path / name)
        tokenizer_files(minilm, tmp_path / name)
        folder = write_adapter(tmp_path / f"adapter-{name}", tmp_path / name, config)
        first, tuned = load_all([tmp_path / name, folder])
        assert type(tuned.model) is tf.BertForSequenceClassification
        assert torch.equal(hidden(first), hidden(load(base)))
        merged = saved_by_peft(tmp_path / name, folder, tf.BertForSequenceClassification)
        torch.testing.assert_close(hidden(tuned), merged, rtol=1e-4, atol=1e-5)


def test_a_language_model_s_adapter(tmp_path: Path, minilm: Path):
    torch.manual_seed(0)
    tf.GPT2LMHeadModel(tf.GPT2Config(**GPT)).save_pretrained(tmp_path / "gpt")
    tokenizer_files(minilm, tmp_path / "gpt")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    folder = write_adapter(tmp_path / "adapter", tmp_path / "gpt", config, headed=tf.GPT2LMHeadModel)
    first, tuned = load_all([tmp_path / "gpt", folder])
    assert torch.equal(hidden(first), hidden(load(tmp_path / "gpt")))
    torch.testing.assert_close(
        hidden(tuned), saved_by_peft(tmp_path / "gpt", folder, tf.GPT2LMHeadModel), rtol=1e-4, atol=1e-5
    )


def test_an_adapter_of_a_model_without_a_head(base: Path, tmp_path: Path):
    config = peft.LoraConfig(r=2, target_modules=["query"])
    folder = write_adapter(tmp_path / "adapter", base, config, headed=tf.BertModel)
    tuned = load(folder)
    assert type(tuned.model) is tf.BertModel
    torch.testing.assert_close(hidden(tuned), saved_by_peft(base, folder, tf.BertModel), rtol=1e-4, atol=1e-5)


def test_several_adapters_stand_on_one_base(base: Path, tmp_path: Path):
    """Each computes what it computes alone, in any order, and an interrupted pass leaves the model as it was."""
    folders = [write_adapter(tmp_path / kind, base, KINDS[kind]) for kind in ("lora", "ia3", "dora")]
    alone = [hidden(load(folder)) for folder in folders]
    first, *tuned = load_all([base, *folders])
    assert all(each.model is first.model for each in tuned)
    assert [each.name for each in tuned] == ["lora", "ia3", "dora"]
    for index in (2, 0, 1, 0):
        assert torch.equal(hidden(tuned[index]), alone[index])
    assert torch.equal(hidden(first), hidden(load(base)))
    with first.active():
        with pytest.raises(KeyboardInterrupt), tuned[0].active():
            raise KeyboardInterrupt
        assert torch.equal(first.backbone(input_ids=TOKENS).last_hidden_state, hidden(load(base)))
        assert torch.equal(hidden(tuned[1]), alone[1])
    assert not any(parameter.requires_grad for parameter in first.model.parameters())


def test_an_adapter_alone_computes_as_itself_without_being_asked(base: Path, tmp_path: Path):
    tuned = load(write_adapter(tmp_path / "adapter", base, KINDS["lora"]))
    with torch.no_grad():
        assert torch.equal(tuned.backbone(input_ids=TOKENS).last_hidden_state, hidden(tuned))


def test_an_adapter_that_trained_biases_of_the_base_gets_a_model_of_its_own(base: Path, tmp_path: Path):
    """Switched off it would not be the base: peft puts the trained biases into the base's own weights."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, bias="lora_only")
    folder = write_adapter(tmp_path / "adapter", base, config)
    lora = write_adapter(tmp_path / "lora", base, KINDS["lora"])
    first, tuned, other = load_all([base, folder, lora])
    assert tuned.model is not first.model and other.model is first.model
    assert torch.equal(hidden(first), hidden(load(base)))
    merged = saved_by_peft(base, folder, tf.BertForSequenceClassification)
    torch.testing.assert_close(hidden(tuned), merged, rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_model_switches_on_its_own(base: Path, tmp_path: Path):
    """Comparisons in another dtype copy the model; the copy's adapter is switched, not the original's."""

    tuned = load_all([base, write_adapter(tmp_path / "adapter", base, KINDS["lora"])])[1]
    twin = replace(tuned, model=copy.deepcopy(tuned.model).double())
    torch.testing.assert_close(hidden(twin).float(), hidden(tuned), rtol=1e-4, atol=1e-5)


def rename(folder: Path, how: Any) -> None:
    """Rewrite the weights of an adapter; `how` gives the new names, None to drop one."""
    path = folder / "adapter_model.safetensors"
    tensors = {how(name): tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name is not None}, path)


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_the_adapter_lacks_or_holds_too_much_is_an_error(base: Path, tmp_path: Path):
    folder = write_adapter(tmp_path / "a", base, KINDS["lora"])
    rename(folder, lambda name: None if "layer.1.attention.self.value.lora_B" in name else name)
    with pytest.raises(CheckpointError, match=r"lacks 1 of its weights, the first is .*lora_B.*; they would be random"):
        load(folder)
    folder = write_adapter(tmp_path / "b", base, KINDS["lora"])
    rename(folder, lambda name: name.replace("layer.1.", "layer.7."))
    with pytest.raises(CheckpointError, match=r"lacks 4 of its weights"):
        load(folder)
    folder = write_adapter(tmp_path / "c", base, KINDS["lora"])
    settings(folder, target_modules=["query"])
    with pytest.raises(CheckpointError, match=r"holds 4 weights that have no place in its base, .*value"):
        load(folder)


def test_a_head_without_a_place_is_ignored_and_said(base: Path, tmp_path: Path):
    folder = write_adapter(tmp_path / "a", base, KINDS["lora"])
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.extra_head.weight": torch.zeros(3)}, path)
    tuned = load(folder)
    assert tuned.provenance["adapter"]["ignored"] == ["base_model.model.extra_head.weight"]
    merged = saved_by_peft(base, folder, tf.BertForSequenceClassification)
    torch.testing.assert_close(hidden(tuned), merged, rtol=1e-4, atol=1e-5)


def test_a_head_that_the_settings_do_not_name(base: Path, tmp_path: Path):
    """Saved by hand beside the adapter: peft puts it into the base's head, which is not the base's own either."""
    folder = write_adapter(tmp_path / "a", base, KINDS["lora"])
    head = {"base_model_class": "BertForSequenceClassification", "parent_library": "transformers"}
    settings(folder, task_type=None, auto_mapping=head, modules_to_save=None)
    first, tuned = load_all([base, folder])
    assert type(tuned.model) is tf.BertForSequenceClassification
    assert torch.equal(hidden(first), hidden(load(base)))
    stored = load_file(folder / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    assert torch.equal(tuned.model.get_parameter("classifier.weight"), stored)


def test_a_head_that_was_not_saved(base: Path, tmp_path: Path):
    folder = write_adapter(tmp_path / "a", base, KINDS["lora"])
    rename(folder, lambda name: None if "classifier" in name else name)
    with pytest.raises(CheckpointError, match=r"does not fit its base: it lacks '.*classifier.weight'"):
        load(folder)


def test_embeddings_saved_along_must_be_the_base_s(base: Path, tmp_path: Path):
    """Some trainers save them with the adapter."""
    folder = write_adapter(tmp_path / "a", base, KINDS["lora"])
    path = folder / "adapter_model.safetensors"
    name = "embeddings.word_embeddings.weight"
    table = load_file(base / "model.safetensors")[name]
    for change, passes in ((0.0, True), (0.5, False)):
        save_file(load_file(path) | {f"base_model.model.bert.{name}": table + change}, path)
        if passes:
            assert torch.equal(hidden(load_all([base, folder])[0]), hidden(load(base)))
        else:
            with pytest.raises(UnsupportedModel, match="brings other weights for its base itself"):
                load(folder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"peft_type": "NEW_KIND"}, UnsupportedModel, "of the kind NEW_KIND, which this version of peft lacks"),
        ({"peft_type": "PREFIX_TUNING"}, UnsupportedModel, "virtual tokens take part in attention"),
        ({"peft_type": None}, CheckpointError, "names no peft_type"),
        ({"task_type": None}, CheckpointError, "does not say which head it was trained with"),
        ({"r": 3}, CheckpointError, "does not fit its base: size mismatch"),
        (
            {"base_model_name_or_path": "../nowhere/x"},
            CheckpointError,
            "the base ../nowhere/x of the adapter .* is nei",
        ),
        ({"base_model_name_or_path": None}, CheckpointError, r"the base \(none named\) of the adapter"),
        ({"base_model_name_or_path": "no/such"}, CheckpointError, "no such model could be had from the hub"),
        ({"target_modules": ["nothing"]}, CheckpointError, "does not fit its base: "),
    ],
)
def test_adapters_that_cannot_be_used_are_one_line(
    base: Path, tmp_path: Path, changes: dict, error: type[Exception], message: str
):
    folder = write_adapter(tmp_path / "adapter", base, KINDS["lora"])
    settings(folder, **changes)
    with pytest.raises(error, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_an_adapter_with_nan_is_refused(base: Path, tmp_path: Path):
    folder = write_adapter(tmp_path / "adapter", base, KINDS["lora"])
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match=r"adapter holds NaN or infinite numbers, the first in .*lora_A"):
        load(folder)
