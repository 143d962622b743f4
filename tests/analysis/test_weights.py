"""Changes of weights from files: every kind of checkpoint, the adapters' factors, rounding, and bad input."""

import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attnlens.analysis.difference import difference
from attnlens.analysis.weights import by_layer, by_module, head_changes, weight_changes
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.shelf import Shelf
from attnlens.core.errors import CheckpointError, IncompatibleCheckpoints, UnsupportedModel
from tests.models import CONFIGS, build

SPECTRAL = ("spectral_norm", "stable_rank", "effective_rank", "nuclear_norm")
TARGETS = {
    "bert": ["query", "value", "dense"],
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}


def nudged(model: nn.Module, size: float = 0.01) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A small base, and a classifier on it whose weights were moved a little."""
    base = nudged(build("bert"))
    base.save_pretrained(tmp_path / "base")
    tuned = tf.BertForSequenceClassification(CONFIGS["bert"]())
    tuned.bert.load_state_dict(base.state_dict())
    nudged(tuned, 0.02).save_pretrained(tmp_path / "tuned")
    return tmp_path / "base", tmp_path / "tuned"


def by_hand(base: Path, tuned: Path, prefix: str = "bert.") -> dict[str, tuple[float, float]]:
    """Both norms of each matrix, with NumPy from the whole files."""
    left, right = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    pairs = {name: (tensor.double().numpy(), right[prefix + name].double().numpy()) for name, tensor in left.items()}
    return {name: (float(np.linalg.norm(new - old)), float(np.linalg.norm(old))) for name, (old, new) in pairs.items()}


def test_every_matrix_of_the_files(folders: tuple[Path, Path]):
    frame = weight_changes(*folders)
    expected = by_hand(*folders)
    assert set(frame["matrix"]) == set(expected) and set(frame["model"]) == {"tuned"}
    for row in frame.itertuples():
        delta, norm = expected[row.matrix]
        assert (row.delta_norm, row.base_norm) == pytest.approx((delta, norm), rel=1e-12)
        assert row.relative == pytest.approx(delta / norm, rel=1e-12)
    assert set(frame.loc[frame["kind"] == "head", "matrix"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert (frame["floor"] == 0).all() and not frame["rounding"].any()


def test_spectra_of_the_files(folders: tuple[Path, Path]):
    frame = weight_changes(*folders).set_index("matrix")
    plain = weight_changes(*folders, spectra="none")
    pd.testing.assert_frame_equal(frame.reset_index()[plain.columns], plain)
    left, right = (load_file(folder / "model.safetensors") for folder in folders)
    name = "encoder.layer.1.intermediate.dense.weight"
    row = frame.loc[name]
    old, new = left[name].double().numpy(), right[f"bert.{name}"].double().numpy()
    values = np.linalg.svd(new - old, compute_uv=False)
    assert row["spectral_norm"] == pytest.approx(values[0], rel=1e-10)
    assert row["nuclear_norm"] == pytest.approx(values.sum(), rel=1e-10)
    assert row["spectral_relative"] == pytest.approx(values[0] / np.linalg.norm(old, 2), rel=1e-10)
    assert row["cosine"] == pytest.approx((old * new).sum() / np.linalg.norm(old) / np.linalg.norm(new), rel=1e-12)
    assert row["k"] == 16 and 0 < row["angle"] < math.pi / 2 and -1 < row["overlap"] < 1 <= row["gap"]
    vectors = frame[frame.index.str.endswith("bias")]
    assert vectors[[*SPECTRAL, "angle", "overlap", "gap"]].isna().all(axis=None) and vectors["cosine"].notna().all()


def test_a_checkpoint_against_itself_has_not_moved_at_all(folders: tuple[Path, Path]):
    frame, heads = weight_changes(folders[1], folders[1]), head_changes(folders[1], folders[1])
    assert (frame[["delta_norm", "relative"]] == 0).all(axis=None) and (frame["identical"] == frame["entries"]).all()
    matrices = frame[frame["spectral_norm"].notna()]
    assert (matrices[["spectral_norm", "nuclear_norm", "spectral_relative", "angle"]] == 0).all(axis=None)
    assert (matrices["overlap"] == 1).all() and (frame["cosine"] == 1).all()
    assert (heads[["delta_norm", "relative"]] == 0).all(axis=None)


def test_swapping_keeps_the_size(folders: tuple[Path, Path]):
    there, back = (weight_changes(*pair).set_index("matrix") for pair in (folders, folders[::-1]))
    same = ["delta_norm", "identical", "cosine", *SPECTRAL]
    pd.testing.assert_frame_equal(there[same].sort_index(), back[same].sort_index(), rtol=1e-9)


def test_pooling_is_the_root_of_summed_squares(folders: tuple[Path, Path]):
    frame = weight_changes(*folders, spectra="none")
    backbone = frame[frame["kind"] == "backbone"]
    layers, modules = by_layer(frame), by_module(frame)
    assert layers["layer"].tolist() == [-1, 0, 1] and layers["share"].sum() == pytest.approx(1)
    for pooled, key in ((layers, "layer"), (modules, "module")):
        for row in pooled.to_dict("records"):
            part = backbone[backbone[key] == row[key]]
            squares = (part["delta_norm"] ** 2).sum(), (part["base_norm"] ** 2).sum()
            assert row["relative"] == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-12)
            assert row["share"] == pytest.approx(squares[0] / (backbone["delta_norm"] ** 2).sum(), rel=1e-12)
            assert row["entries"] == part["entries"].sum()
    assert modules["share"].is_monotonic_decreasing and "head" not in set(modules["module"])


@pytest.mark.parametrize(("dtype", "floor"), [(torch.bfloat16, 1.66e-3), (torch.float16, 2.07e-4)])
def test_a_narrower_copy_is_flagged_as_rounding(folders: tuple[Path, Path], dtype: torch.dtype, floor: float):
    copy = folders[0].parent / "copy"
    tf.BertModel.from_pretrained(folders[0]).to(dtype).save_pretrained(copy)  # pyright: ignore[reportArgumentType]
    for pair in ((folders[0], copy), (copy, folders[0])):
        frame = weight_changes(*pair, spectra="none")
        changed = frame[frame["delta_norm"] > 0]
        assert changed["rounding"].all() and len(changed) > 20
        pooled = by_layer(frame)
        assert pooled["rounding"].all() and pooled["relative"].to_numpy() == pytest.approx(floor, rel=0.05)
        found = difference(*pair, spectra="none")
        assert any("differ by rounding alone" in note for note in found.notes)
    tuned = difference(copy, folders[1], spectra="none")
    assert not tuned.changes["rounding"].any()
    assert any("rounding alone changes the weights by" in note for note in tuned.notes)
    assert not any("did not change by more" in note or "No matrix" in note for note in tuned.notes)
    assert not any("rounding" in note for note in difference(folders[1], folders[1], spectra="none").notes)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "qwen2"])
def test_head_products_of_each_architecture(name: str, tmp_path: Path):
    """Against dense products from the modules themselves."""
    base, tuned = build(name), nudged(build(name), 0.05)
    for model, folder in ((base, "a"), (tuned, "b")):
        model.save_pretrained(tmp_path / folder)
    frame = head_changes(tmp_path / "a", tmp_path / "b")
    assert len(frame) == 2 * 4 * 2 and frame["layer"].unique().tolist() == [0, 1]
    for row in frame.to_dict("records"):
        old, new = (dense_product(name, model, row) for model in (base, tuned))
        assert row["base_norm"] == pytest.approx(old.norm().item(), rel=1e-5)
        assert row["delta_norm"] == pytest.approx((new - old).norm().item(), rel=1e-5)


def dense_product(name: str, model: tf.PreTrainedModel, row: dict) -> Tensor:
    """[W_Q | b_Q]ᵀW_K or W_O [W_V | b_V] of one head as a full matrix."""
    parts = attention_parts(name, model, row["layer"])
    size = parts["query"][0].shape[0] // 4
    shared = row["head"] // (4 * size // parts["key"][0].shape[0])
    mine, theirs = (slice(head * size, (head + 1) * size) for head in (row["head"], shared))

    def with_bias(role: str, rows: slice) -> Tensor:
        weight, bias = parts[role]
        return weight[rows] if bias is None else torch.cat([weight[rows], bias[rows, None]], 1)

    if row["circuit"] == "QK":
        return with_bias("query", mine).T @ parts["key"][0][theirs]
    return parts["output"][0][:, mine] @ with_bias("value", theirs)


def attention_parts(name: str, model: tf.PreTrainedModel, layer: int) -> dict[str, tuple[Tensor, Tensor | None]]:
    paths = {
        "bert": "encoder.layer.{}.attention.self.{{}}|query key value|encoder.layer.{}.attention.output.dense",
        "distilbert": "transformer.layer.{}.attention.{{}}|q_lin k_lin v_lin|transformer.layer.{}.attention.out_lin",
        "llama": "layers.{}.self_attn.{{}}|q_proj k_proj v_proj|layers.{}.self_attn.o_proj",
    }
    roles = ("query", "key", "value", "output")
    if name == "gpt2":
        block = model.get_submodule(f"h.{layer}.attn")
        weights, biases = block.c_attn.weight.T.chunk(3), block.c_attn.bias.chunk(3)
        return dict(zip(roles, [*zip(weights, biases, strict=True), (block.c_proj.weight.T, None)], strict=True))
    inner, names, outer = paths.get(name, paths["llama"]).format(layer, layer).split("|")
    modules = [model.get_submodule(inner.format(part)) for part in names.split()] + [model.get_submodule(outer)]
    return {role: (module.weight, module.bias) for role, module in zip(roles, modules, strict=True)}


def test_what_attention_cannot_see_is_no_change_of_heads(tmp_path: Path):
    """Queries and keys turned together, values and outputs likewise, another key bias: the model computes the same."""
    base, turned = build("bert").double(), build("bert").double()
    with torch.no_grad():
        for layer in turned.encoder.layer:
            inner, outer = layer.attention.self, layer.attention.output.dense
            for head in range(4):
                rows = slice(8 * head, 8 * head + 8)
                mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(head), dtype=torch.float64)
                inner.query.weight[rows] = torch.linalg.inv(mixing).T @ inner.query.weight[rows]
                inner.query.bias[rows] = torch.linalg.inv(mixing).T @ inner.query.bias[rows]
                inner.key.weight[rows], inner.key.bias[rows] = mixing @ inner.key.weight[rows], 5.0
                inner.value.weight[rows] = mixing @ inner.value.weight[rows]
                inner.value.bias[rows] = mixing @ inner.value.bias[rows]
                outer.weight[:, rows] = outer.weight[:, rows] @ torch.linalg.inv(mixing)
    base.save_pretrained(tmp_path / "a")
    turned.save_pretrained(tmp_path / "b")
    modules = by_module(weight_changes(tmp_path / "a", tmp_path / "b", spectra="none")).set_index("module")
    assert modules.loc["query", "relative"] > 0.5
    assert head_changes(tmp_path / "a", tmp_path / "b")["relative"].max() < 1e-12


def adapter(name: str, folder: Path, config: LoraConfig | IA3Config) -> tuple[Path, Path, Path]:
    """Folders of a base, of a trained-looking adapter on it, and of the two merged; all in float64."""
    model = build(name).double()
    model.save_pretrained(folder / "base")
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part, parameter in wrapped.named_parameters():
            if "lora_" in part or "ia3_" in part:
                parameter.data = parameter.double()
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    wrapped.peft_config["default"].base_model_name_or_path = str(folder / "base")
    wrapped.save_pretrained(folder / "adapter")
    wrapped.merge_and_unload().save_pretrained(folder / "merged")
    return folder / "base", folder / "adapter", folder / "merged"


def lora(name: str, **settings: object) -> LoraConfig:
    return LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2", **settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", list(TARGETS))
def test_lora_from_factors_equals_the_merged_difference(name: str, rslora: bool, tmp_path: Path):
    config = lora(name, use_rslora=rslora, alpha_pattern={TARGETS[name][0]: 7}, rank_pattern={TARGETS[name][1]: 2})
    base, tuned, merged = adapter(name, tmp_path, config)
    factors, dense = (weight_changes(base, other).set_index("matrix") for other in (tuned, merged))
    assert list(factors.index) == list(dense.index)
    touched = dense["delta_norm"] > 0
    assert touched.sum() >= 4 and ((factors["delta_norm"] > 0) == touched).all()
    norms = ["delta_norm", "base_norm", "relative", "spectral_norm", "spectral_relative"]
    pd.testing.assert_frame_equal(factors.loc[touched, norms], dense.loc[touched, norms], rtol=1e-9, atol=0)
    shape = ["stable_rank", "effective_rank", "nuclear_norm", "cosine", "angle", "overlap"]
    pd.testing.assert_frame_equal(factors.loc[touched, shape], dense.loc[touched, shape], rtol=1e-9, atol=1e-9)
    assert (factors.loc[touched, "effective_rank"] <= 3 * (1 + 1e-12)).all(), "the rank is at most r"
    assert (factors.loc[~touched, "delta_norm"] == 0).all() and not factors["rounding"].any()
    plain = weight_changes(base, tuned, spectra="none").set_index("matrix")
    pd.testing.assert_frame_equal(plain, factors[plain.columns])
    heads = [head_changes(base, other)["relative"] for other in (tuned, merged)]
    assert heads[0].to_numpy() == pytest.approx(heads[1].to_numpy(), rel=1e-9)
    alone = weight_changes(None, tuned, spectra="none")
    pd.testing.assert_frame_equal(alone.set_index("matrix"), plain)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("bert", lora("bert", use_dora=True)),
        ("gpt2", lora("gpt2", use_dora=True)),
        ("llama", lora("llama", bias="all")),
        ("bert", LoraConfig(r=2, target_modules=["word_embeddings", "key"])),
        ("bert", IA3Config(target_modules=["key", "intermediate.dense"], feedforward_modules=["intermediate.dense"])),
        ("gpt2", IA3Config(target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"], fan_in_fan_out=True)),
    ],
)  # fmt: skip
def test_other_adapters_equal_the_merged_difference(name: str, config: LoraConfig | IA3Config, tmp_path: Path):
    base, tuned, merged = adapter(name, tmp_path, config)
    first, second = (weight_changes(base, other).set_index("matrix") for other in (tuned, merged))
    columns = ["delta_norm", "base_norm", "spectral_norm", "nuclear_norm"]
    pd.testing.assert_frame_equal(first[columns], second[columns], rtol=1e-9, atol=1e-12)
    assert (first["delta_norm"] > 0).sum() >= 3


def test_an_untrained_adapter_is_exactly_no_change(tmp_path: Path):
    build("bert").save_pretrained(tmp_path / "base")
    model = tf.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")).save_pretrained(
        tmp_path / "a"
    )  # pyright: ignore[reportArgumentType]
    frame = weight_changes(tmp_path / "base", tmp_path / "a")
    assert (frame["delta_norm"] == 0).all() and (frame["identical"] == frame["entries"]).all()
    assert (head_changes(tmp_path / "base", tmp_path / "a")["delta_norm"] == 0).all()
    assert any("Only a has" in note and "classifier" in note for note in difference(None, tmp_path / "a").notes)


def test_two_adapters_of_one_base(tmp_path: Path):
    base, first, merged = adapter("bert", tmp_path / "1", lora("bert"))
    (tmp_path / "2").mkdir()
    second = adapter("bert", tmp_path / "2", LoraConfig(r=2, target_modules=["key"]))
    left = weight_changes(first, second[1], spectra="none").set_index("matrix")
    right = weight_changes(merged, second[2], spectra="none").set_index("matrix")
    pd.testing.assert_frame_equal(left[["delta_norm", "base_norm"]], right[["delta_norm", "base_norm"]], rtol=1e-9)
    assert base.is_dir()


@pytest.mark.parametrize(
    "config",
    [
        lora("bert"),
        lora("bert", use_dora=True),
        IA3Config(target_modules=["key", "intermediate.dense"], feedforward_modules=["intermediate.dense"]),
    ],
)
def test_an_adapter_on_a_narrow_base_has_rounded_nothing(config: LoraConfig | IA3Config, tmp_path: Path):
    """What it makes of a bfloat16 base is computed, not stored: no change of it is rounding, however small."""
    _, tuned, _ = adapter("bert", tmp_path, config)
    tf.BertModel.from_pretrained(tmp_path / "base").bfloat16().save_pretrained(tmp_path / "base")
    found = difference(tmp_path / "base", tuned, spectra="none")
    assert load_file(tmp_path / "base" / "model.safetensors")["embeddings.LayerNorm.weight"].dtype == torch.bfloat16
    assert (found.changes["delta_norm"] > 0).sum() >= 4
    assert (found.changes["floor"] == 0).all() and not found.changes["rounding"].any()
    assert (found.heads["floor"] == 0).all() and not found.heads["rounding"].any()
    assert not any("rounding" in note for note in found.notes)


def edited(folder: Path, change: Callable[[dict], dict]) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return folder


def test_adapters_whose_size_cannot_be_read_are_refused(tmp_path: Path):
    base, tuned, _ = adapter("bert", tmp_path, lora("bert"))
    edited(tuned, lambda settings: settings | {"init_lora_weights": "pissa"})
    with pytest.raises(UnsupportedModel, match="began by changing its base"):
        weight_changes(base, tuned)
    edited(tuned, lambda settings: settings | {"init_lora_weights": True, "peft_type": "LOHA"})
    with pytest.raises(UnsupportedModel, match="weight changes of LOHA adapters cannot be read"):
        weight_changes(base, tuned)
    edited(tuned, lambda settings: settings | {"peft_type": "LORA"})
    file = tuned / "adapter_model.safetensors"
    whole = load_file(file)
    name = "base_model.model.encoder.layer.0.attention.self.query."
    bad = {
        "holds only one of lora_A and lora_B": {k: v for k, v in whole.items() if k != f"{name}lora_B.weight"},
        "a kind of change whose size cannot be read": whole | {f"{name}lora_B.bias": torch.ones(32)},
        "changes nowhere, which its base does not have": {"base_model.model.nowhere.lora_A.weight": torch.ones(2, 2)},
        r"of shape \(9, 32\), but in the base it is \(32, 32\)": whole | {f"{name}lora_B.weight": torch.ones(9, 3)},
    }
    for message, content in bad.items():
        save_file(content, file)
        with pytest.raises((UnsupportedModel, CheckpointError), match=message):
            weight_changes(base, tuned)


@pytest.mark.parametrize("settings", [{"lora_alpha": "x"}, {"alpha_pattern": {"(": 3}}, {"alpha_pattern": [1]}])
def test_settings_that_are_none_are_refused(tmp_path: Path, settings: dict):
    base, tuned, _ = adapter("bert", tmp_path, lora("bert"))
    edited(tuned, lambda written: written | settings)
    with pytest.raises(CheckpointError, match=r"the adapter's settings give no scale for encoder\.layer"):
        weight_changes(base, tuned)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (lora("bert", use_dora=True), "lora_magnitude_vector"),
        (IA3Config(target_modules=["query"], feedforward_modules=[]), "ia3_l"),
    ],
)
def test_scales_of_another_size_are_refused(tmp_path: Path, config: LoraConfig | IA3Config, part: str):
    base, tuned, _ = adapter("bert", tmp_path, config)
    whole = load_file(tuned / "adapter_model.safetensors")
    name = next(name for name in whole if part in name)
    save_file(whole | {name: torch.ones(9, 1)}, tuned / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{part} of the adapter has shape \(9,"):
        weight_changes(base, tuned)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin", ".ckpt"])
def test_single_files_need_no_config(folders: tuple[Path, Path], ending: str, tmp_path: Path):
    (tmp_path / "files").mkdir()
    files = []
    for number, folder in enumerate(folders):
        state = load_file(folder / "model.safetensors")
        files.append(tmp_path / "files" / f"{number}{ending}")
        if ending == ".safetensors":
            save_file(state, files[-1])
        else:
            torch.save({"epoch": 1, "state_dict": {f"model.{name}": state[name] for name in state}}, files[-1])
    frame = weight_changes(*files, spectra="none").set_index("matrix")
    expected = weight_changes(*folders, spectra="none").set_index("matrix")
    pd.testing.assert_frame_equal(frame.drop(columns="model"), expected.loc[frame.index].drop(columns="model"))
    found = difference(*files, spectra="none")
    assert found.heads.empty and any("there is no config.json" in note for note in found.notes)


def test_checkpoints_in_memory_and_their_files_agree(folders: tuple[Path, Path]):
    models = tf.BertModel.from_pretrained(folders[0]), tf.BertForSequenceClassification.from_pretrained(folders[1])
    loaded = [Checkpoint(model, None, f"m{i}", {}) for i, model in enumerate(models)]  # pyright: ignore[reportArgumentType]
    memory, files = (weight_changes(*pair).set_index("matrix") for pair in (loaded, folders))
    assert set(memory["model"]) == {"m1"}
    pd.testing.assert_frame_equal(memory.drop(columns="model").sort_index(), files.drop(columns="model").sort_index())
    assert len(head_changes(*loaded)) == 16
    wrapped = get_peft_model(models[0], LoraConfig(r=1, target_modules=["query"]))
    assert isinstance(wrapped, PeftModel)
    with pytest.raises(UnsupportedModel, match="m0 has an adapter inside it: save the adapter"):
        weight_changes(*loaded)


def test_the_real_encoder_in_bfloat16_differs_by_rounding_alone(minilm: Path, tmp_path: Path):
    state = load_file(minilm / "model.safetensors")
    halved = {f"bert.{n}": t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}
    save_file(halved, tmp_path / "copy.safetensors")
    found = difference(minilm, tmp_path / "copy.safetensors", spectra="none")
    matrices = found.changes[found.changes["entries"] > 10_000]
    assert len(found.changes) == 103 and len(matrices) == 39
    assert matrices["relative"].to_numpy() == pytest.approx(1.66e-3, rel=0.03)
    assert found.layers["relative"].to_numpy() == pytest.approx(1.66e-3, rel=0.01) and found.layers["rounding"].all()
    assert len(found.heads) == 6 * 12 * 2


def test_two_tensors_are_held_at_a_time(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    read, held = Shelf.read, []
    most = 0

    def watched(shelf: Shelf, name: str) -> Tensor:
        nonlocal most
        tensor = read(shelf, name)
        held.append(weakref.ref(tensor))
        most = max(most, sum(one() is not None for one in held))
        return tensor

    monkeypatch.setattr(Shelf, "read", watched)
    weight_changes(*folders)
    assert len(held) == 2 * 39 and most == 2


def test_progress_counts_the_tensors(folders: tuple[Path, Path]):
    seen = []
    weight_changes(*folders, spectra="none", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 39) for i in range(1, 40)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_named(folders: tuple[Path, Path], value: float):
    for side, folder in enumerate(folders):
        state = load_file(folder / "model.safetensors")
        name = [*state][5]
        save_file(state | {name: torch.full_like(state[name], value)}, folder / "model.safetensors")
        expected = f"{name} of {'base' if side == 0 else 'tuned'} holds NaN or infinite numbers"
        with pytest.raises(CheckpointError, match=expected):
            weight_changes(*folders)
        save_file(state, folder / "model.safetensors")


def test_bad_input_is_refused(folders: tuple[Path, Path], tmp_path: Path):
    build("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(IncompatibleCheckpoints, match="have a partner"):
        weight_changes(folders[0], tmp_path / "other")
    with pytest.raises(CheckpointError, match="tuned is no adapter, which would name its base: give BASE and TUNED"):
        weight_changes(None, folders[1])
    with pytest.raises(CheckpointError, match="does not exist"):
        weight_changes(folders[0], tmp_path / "nowhere")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folders[1] / "model.safetensors").rename(folders[1] / "gone")
    (folders[1] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors"):
        weight_changes(*folders)


def test_large_matrices_are_estimated_within_the_errors_beside_them(tmp_path: Path):
    """Embeddings of 700 × 600 in bfloat16 are estimated, the rest is decomposed; asked for, everything is."""
    generator, folders = torch.Generator().manual_seed(3), (tmp_path / "base", tmp_path / "tuned")
    base = {"embeddings.weight": torch.randn(700, 600, generator=generator), "layer.0.q.weight": torch.ones(40, 30)}
    moved = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    for folder, state in zip(folders, (base, moved), strict=True):
        folder.mkdir()
        save_file({name: tensor.bfloat16() for name, tensor in state.items()}, folder / "model.safetensors")
    files = [folder / "model.safetensors" for folder in folders]
    fast, exact = (weight_changes(*files, spectra=how).set_index("matrix") for how in ("estimated", "exact"))
    large, small = fast.loc["embeddings.weight"], fast.loc["layer.0.q.weight"]
    assert (exact[[f"{name}_error" for name in SPECTRAL]] == 0).all(axis=None)
    for name in SPECTRAL:
        assert 0 < large[f"{name}_error"] < 0.05 and small[f"{name}_error"] == 0
        assert large[name] == pytest.approx(exact.loc["embeddings.weight", name], rel=large[f"{name}_error"])
        assert small[name] == exact.loc["layer.0.q.weight", name]
    assert math.isnan(large["angle"]) and exact.loc["embeddings.weight", "angle"] > 0
    assert large["delta_norm"] == exact.loc["embeddings.weight", "delta_norm"]
