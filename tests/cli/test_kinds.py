"""`attnlens report` and `info` on every kind of checkpoint: adapters, single files, Lightning, several tuned models."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from attnlens.analysis.results import Comparison, open_comparison
from tests.cli.shell import Done, Run, refused
from tests.conftest import Tuning

ADAPTERS: dict[str, Any] = {
    "lora": peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8),
    "ia3": peft.IA3Config(task_type="SEQ_CLS", target_modules=["query", "key", "value"], feedforward_modules=[]),
}
FEW = ("--limit", "24", "--batch-size", "8", "--no-text", "--json")


@pytest.fixture(scope="module")
def kinds(tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the base beside their merged model, and the base and tuned weights as single files."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "base.ckpt").symlink_to(tuning.base)
    (folder / "tuned.ckpt").symlink_to(tuning.tuned)
    for name, config in ADAPTERS.items():
        torch.manual_seed(3)
        model: Any = tf.BertForSequenceClassification.from_pretrained(tuning.base, num_labels=5)
        adapted = peft.get_peft_model(model, copy.deepcopy(config))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        adapted.save_pretrained(str(folder / name))
        merged: Any = adapted.merge_and_unload()
        merged.save_pretrained(folder / f"{name}-merged")
    (folder / "files").mkdir()
    for path in tuning.base.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, folder / "files")
    shutil.copy(tuning.base / "model.safetensors", folder / "files" / "model-a.safetensors")
    shutil.copy(tuning.tuned / "model.safetensors", folder / "files" / "model-b.safetensors")
    state = load_file(tuning.tuned / "model.safetensors")
    lightning = {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    torch.save(lightning | {"loops": {"fit_loop": {}}, "optimizer_states": []}, folder / "epoch=3.ckpt")
    return folder


def said(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    return json.loads(done.out)


def opened(folder: Path) -> Comparison:
    return open_comparison(folder)


def same_data(left: Comparison, right: Comparison, tolerance: float = 1e-5) -> None:
    """All measured numbers, and the change of every matrix, agree."""
    assert left.data.sizes == right.data.sizes
    for name in left.data.data_vars:
        np.testing.assert_allclose(left.data[name], right.data[name], rtol=tolerance, atol=tolerance, err_msg=str(name))
    backbones = [each.weights[each.weights["kind"] == "backbone"] for each in (left, right)]
    both = backbones[0].merge(backbones[1], on=["matrix"])
    assert len(both) == len(backbones[0]) == len(backbones[1]) and both["relative_x"].max() > 1e-3
    np.testing.assert_allclose(both["relative_x"], both["relative_y"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_measured_as_its_merged_model_is(
    attnlens: Run, undrawn: None, tuning: Tuning, kinds: Path, tmp_path: Path, name: str
):
    result = said(attnlens("report", tuning.base, kinds / name, "--data", tuning.data, "-o", "adapter", *FEW))
    assert result["models"] == ["base.ckpt", name]
    said(attnlens("report", tuning.base, kinds / f"{name}-merged", "--data", tuning.data, "-o", "merged", *FEW))
    adapter, merged = opened(tmp_path / "adapter"), opened(tmp_path / "merged")
    same_data(adapter, merged)
    assert float(abs(adapter.data["entropy"][1] - adapter.data["entropy"][0]).max()) > 1e-3
    facts = adapter.provenance["models"][1]["adapter"]
    assert facts["type"] == ADAPTERS[name].peft_type.value and facts["base"] == str(tuning.base)


def test_an_adapter_alone_names_its_base(attnlens: Run, undrawn: None, tuning: Tuning, kinds: Path, tmp_path: Path):
    """The same question as with the base before it; the base is printed."""
    words = (kinds / "lora", "--data", tuning.data, *FEW)
    first = attnlens("report", *words)
    assert f"lora was tuned from {tuning.base}" in first.err.splitlines()
    assert said(first)["report"] == "report-base.ckpt-vs-lora/report.html"
    again = attnlens("report", tuning.base, *words)
    assert again.out == first.out and "Measuring" not in again.err
    assert (
        opened(tmp_path / "report-base.ckpt-vs-lora")
        .provenance["command"]
        .startswith(f"attnlens report {kinds / 'lora'} --data {tuning.data}")
    )


def test_another_alpha_is_another_question(attnlens: Run, undrawn: None, tuning: Tuning, kinds: Path, tmp_path: Path):
    """The same weights of the same adapter, but they count twice as much."""
    shutil.copytree(kinds / "lora", tmp_path / "lora")
    words = ("report", tuning.base, "lora", "--data", tuning.data, "-o", "it", *FEW)
    said(attnlens(*words))
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 16}))
    assert refused(attnlens(*words), "another run's report")


def test_two_files_of_one_folder(attnlens: Run, undrawn: None, tuning: Tuning, kinds: Path, tmp_path: Path):
    """They share config and tokenizer, and say what the folders they came from say."""
    files = (kinds / "files" / "model-a.safetensors", kinds / "files" / "model-b.safetensors")
    result = said(attnlens("report", *files, "--data", tuning.data, *FEW))
    assert result["models"] == ["model-a", "model-b"]
    said(
        attnlens("report", tuning.base, tuning.tuned, "--data", tuning.data, "-o", "folders", "--rows", "content", *FEW)
    )
    same_data(opened(tmp_path / "report-model-a-vs-model-b"), opened(tmp_path / "folders"))


def test_a_lightning_checkpoint(attnlens: Run, undrawn: None, tuning: Tuning, kinds: Path, tmp_path: Path):
    """Alone in its folder: config and tokenizer are named, and stand in the command that made the report."""
    words = ("report", tuning.base, kinds / "epoch=3.ckpt", "--data", tuning.data, "-o", "it")
    assert refused(attnlens(*words, *FEW), "has no config.json beside it")
    given = ("--config", tuning.tuned, "--tokenizer", tuning.base)
    assert said(attnlens(*words, *given, *FEW))["models"] == ["base.ckpt", "epoch=3"]
    said(attnlens("report", tuning.base, tuning.tuned, "--data", tuning.data, "-o", "folder", *FEW))
    same_data(opened(tmp_path / "it"), opened(tmp_path / "folder"))
    made = opened(tmp_path / "it").provenance["command"]
    assert f"--config {tuning.tuned} --tokenizer {tuning.base}" in made


def test_three_tuned_models_share_one_pass_of_the_base(
    attnlens: Run, undrawn: None, tuning: Tuning, kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Three batches of eight texts, four models; each as it is alone."""
    batches = list[int]()

    def forward(self, input_ids, *rest, real=tf.BertModel.forward, **more):
        batches.append(len(input_ids))
        return real(self, input_ids, *rest, **more)

    shared = ("--data", tuning.data, "--rows", "cls", *FEW)
    single = {}
    for tuned in ("lora", "ia3", "tuned.ckpt"):
        said(attnlens("report", tuning.base, kinds / tuned, *shared))
        single[tuned] = opened(tmp_path / f"report-base.ckpt-vs-{tuned}")
    monkeypatch.setattr(tf.BertModel, "forward", forward)
    words = (tuning.base, *(kinds / tuned for tuned in single), *shared)
    result = said(attnlens("report", *words))
    assert batches.count(8) == 3 * 4
    assert result["models"] == ["base.ckpt", "lora", "ia3", "tuned.ckpt"]
    together = opened(tmp_path / "report-base.ckpt-vs-lora-ia3-tuned.ckpt")
    for tuned, alone in single.items():
        for variable in ("entropy", "share"):
            np.testing.assert_allclose(
                together.data[variable].sel(model=tuned), alone.data[variable].sel(model=tuned), rtol=1e-6, atol=1e-7
            )


def test_checkpoints_of_one_name_are_told_apart(
    attnlens: Run, undrawn: None, tuning: Tuning, kinds: Path, tmp_path: Path
):
    for run in ("seed0", "seed1"):
        (tmp_path / run).mkdir()
        shutil.copytree(kinds / "lora", tmp_path / run / "last")
    result = said(attnlens("report", tuning.base, "seed0/last", "seed1/last", "--data", tuning.data, *FEW))
    assert result["models"] == ["base.ckpt", "seed0/last", "seed1/last"]


def test_an_adapter_may_be_the_base(attnlens: Run, undrawn: None, tuning: Tuning, kinds: Path, tmp_path: Path):
    """Two runs of one base against each other: nothing differs between an adapter and itself."""
    shutil.copytree(kinds / "lora", tmp_path / "again")
    said(attnlens("report", kinds / "lora", "again", "--data", tuning.data, *FEW))
    data = opened(tmp_path / "report-lora-vs-again").data
    assert np.array_equal(data["entropy"][0], data["entropy"][1], equal_nan=True)


def facts_of(done: Done) -> dict[str, str]:
    assert done.code == 0, done.err
    lines = [line.strip().split("  ", 1) for line in done.out.splitlines()[1:]]
    return {name: value.strip() for name, value in lines}


def test_info_on_every_kind(attnlens: Run, tuning: Tuning, kinds: Path):
    facts = facts_of(attnlens("info", kinds / "lora"))
    # 2 layers × query, value × (4 × 32 + 32 × 4), and a head of 5 × 32 + 5.
    assert facts["adapter"] == "LORA, r 4, alpha 8, task SEQ_CLS, 1,189 parameters of its own"
    assert facts["base"] == str(tuning.base) and facts["kind"] == "PEFT adapter"
    assert facts["architecture"] == "BertForSequenceClassification" and "2 layers × 2 heads" in facts["attention"]
    facts = facts_of(attnlens("info", kinds / "files" / "model-b.safetensors"))
    assert facts["kind"] == "single file of weights" and facts["dtype"] == "float32"
    facts = facts_of(attnlens("info", kinds / "epoch=3.ckpt", "--config", tuning.tuned, "--tokenizer", tuning.base))
    assert facts["architecture"] == "BertForSequenceClassification"
    value = said(attnlens("info", kinds / "ia3", "--json"))
    assert value["adapter"]["type"] == "IA3" and value["kind"] == "adapter" and value["training"] is None


def test_half_precision_files_beside_a_full_base(
    attnlens: Run, undrawn: None, tuning: Tuning, kinds: Path, tmp_path: Path
):
    """A bfloat16 copy of the base: what differs is rounding."""
    state = {name: tensor.bfloat16() for name, tensor in load_file(tuning.base / "model.safetensors").items()}
    save_file(state, tmp_path / "half.safetensors")
    words = ("report", tuning.base, "half.safetensors", "--config", tuning.base, "--data", tuning.data, *FEW)
    assert said(attnlens(*words))["models"] == ["base.ckpt", "half"]
    models = opened(tmp_path / "report-base.ckpt-vs-half").provenance["models"]
    assert [model["dtype"] for model in models] == ["float32", "bfloat16"]
