"""`attnlens diff`: tables on stdout, CSV where asked, one JSON object, and one line for a user's fault."""

import csv
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from attnlens.analysis.difference import difference
from tests.cli.shell import Run, process, refused, tree
from tests.conftest import Tuning


@pytest.fixture
def place(tmp_path: Path, tuning: Tuning) -> Path:
    """BASE, TUNED, a bfloat16 copy of BASE, and an adapter of it."""
    (tmp_path / "BASE").symlink_to(tuning.base)
    (tmp_path / "TUNED").symlink_to(tuning.tuned)
    shutil.copytree(tuning.base, tmp_path / "copy")
    state = load_file(tuning.base / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, tmp_path / "copy" / "model.safetensors")
    model = get_peft_model(
        tf.BertModel.from_pretrained(tuning.base), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    )
    model.peft_config["default"].base_model_name_or_path = "BASE"
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path


def test_what_the_screen_says(attnlens: Run, place: Path):
    done = attnlens("diff", "BASE", "TUNED")
    assert done.code == 0 and done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "base.ckpt → tuned.ckpt" and lines[1].startswith("The weights moved by ")
    found = difference(place / "BASE", place / "TUNED")
    table = [line.split() for line in lines]
    for row in found.layers.itertuples():
        number = "outside" if row.layer < 0 else str(row.layer + 1)
        share = f"{100 * row.share:.3g}"
        assert [number, f"{100 * row.relative:.3g}", "%", share, "%"] in table
    assert [cells[0] for cells in table if cells and cells[0] in set(found.modules["module"])] == [
        *found.modules["module"]
    ]
    assert "(QK) changed most in layer" in done.out and "(OV) changed most in layer" in done.out
    text = " ".join(done.out.split())
    assert "Only tuned.ckpt has classifier.bias, classifier.weight: not compared." in text
    assert "Task heads and poolers are not part of the layers: pooler.dense.bias, pooler.dense.weight." in text
    assert all(len(line) <= 80 for line in lines)


def test_a_copy_in_another_dtype_is_called_rounding(attnlens: Run, place: Path):
    done = attnlens("diff", "BASE", "copy", "--spectra", "none")
    rows = [line for line in done.out.splitlines() if line.startswith(("  1 ", "  2 ", "  outside", "  query"))]
    assert len(rows) == 4 and all(line.rstrip().endswith("rounding") for line in rows)
    assert rows[-1].split()[1] in {"0.165", "0.166", "0.167"}
    assert "the two differ by rounding alone" in " ".join(done.out.split()) and "changed most" not in done.out


def test_heads_that_only_rounding_moved_are_not_presented(attnlens: Run, place: Path):
    file = place / "copy" / "model.safetensors"
    state = load_file(file)
    state["encoder.layer.1.attention.output.dense.weight"] *= 2
    save_file(state, file)
    done = attnlens("diff", "BASE", "copy", "--spectra", "none", "--json")
    heads = json.loads(done.out)["heads"]
    assert {row["circuit"] for row in heads if not row["rounding"]} == {"OV"}
    assert all(row["relative"] > 0 for row in heads if row["circuit"] == "QK")
    screen = attnlens("diff", "BASE", "copy", "--spectra", "none").out
    assert "(OV) changed most in layer 2" in screen and "(QK)" not in screen


def test_an_adapter_alone_finds_its_base(attnlens: Run, place: Path):
    alone, both = (json.loads(attnlens("diff", *words, "--json").out) for words in (["adapter"], ["BASE", "adapter"]))
    assert alone == both and alone["tuned"] == "adapter"
    assert {row["matrix"] for row in alone["weights"] if row["delta_norm"]} == {
        f"encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 1)
    }


def test_single_files_share_the_config_beside_them(attnlens: Run, place: Path):
    for name in ("BASE", "TUNED"):
        torch.save({"state_dict": load_file(place / name / "model.safetensors")}, place / f"{name}.ckpt")
    bare = json.loads(attnlens("diff", "BASE.ckpt", "TUNED.ckpt", "--json").out)
    assert bare["heads"] == [] and any("there is no config.json" in note for note in bare["notes"])
    shutil.copy(place / "BASE" / "config.json", place)
    whole, folders = (
        json.loads(attnlens("diff", *pair, "--json").out) for pair in (("BASE.ckpt", "TUNED.ckpt"), ("BASE", "TUNED"))
    )
    assert [row["relative"] for row in whole["heads"]] == [row["relative"] for row in folders["heads"]]
    assert whole["relative"] == pytest.approx(folders["relative"], rel=1e-12) == bare["relative"]


def test_json_and_tables_say_the_same(attnlens: Run, place: Path):
    done = attnlens("diff", "BASE", "TUNED", "--json", "-o", "out")
    result = json.loads(done.out)
    assert done.code == 0 and len(done.out.splitlines()) == 1
    assert sorted(tree(place / "out")) == ["heads.csv", "layers.csv", "modules.csv", "weights.csv"]
    for name in ("weights", "layers", "modules", "heads"):
        rows = list(csv.DictReader((place / "out" / f"{name}.csv").read_text().splitlines()))
        assert len(rows) == len(result[name]) > 0
        for row, said in zip(rows, result[name], strict=True):
            assert row.keys() == said.keys()
            assert row["relative"] == ("" if said["relative"] is None else f"{said['relative']:.9g}")
    assert {row["layer"] for row in result["heads"]} == {1, 2} == {row["head"] for row in result["heads"]}
    assert [row["layer"] for row in result["layers"]] == [None, 1, 2]
    before = tree(place / "out")
    assert refused(
        attnlens("diff", "BASE", "BASE", "-o", "out"), "weights.csv exists: name another folder, or add --force"
    )
    assert tree(place / "out") == before
    assert attnlens("diff", "BASE", "BASE", "-o", "out", "--force").out.endswith("Tables: out\n")
    assert tree(place / "out") != before


def test_tables_that_a_kill_left_half_are_written_again(attnlens: Run, place: Path, monkeypatch: pytest.MonkeyPatch):
    """The same command completes them, if they are its own; a fault while they are written leaves no folder."""
    words = ("diff", "BASE", "TUNED", "-o", "half")
    with monkeypatch.context() as patch:
        patch.setattr("attnlens.checkpoints.files.write", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        assert refused(attnlens(*words), "the disk is full")
    assert not (place / "half").exists()
    assert attnlens(*words).code == 0
    whole = tree(place / "half")
    for name in ("heads", "modules"):
        (place / "half" / f"{name}.csv").unlink()
    (place / "half" / ".heads.csv.5m6vlbvh").write_text("model,")
    half = tree(place / "half")
    assert refused(attnlens("diff", "BASE", "BASE", "-o", "half"), "exists: name another folder")
    assert tree(place / "half") == half
    assert attnlens(*words).code == 0 and tree(place / "half") == whole
    assert refused(attnlens(*words), "exists: name another folder")


def test_progress_goes_to_stderr_as_a_process(place: Path):
    done = process("diff", "BASE", "TUNED", cwd=place)
    assert done.code == 0 and done.out.startswith("base.ckpt → tuned.ckpt\n") and done.err == ""


def planted(place: Path, name: str, content: bytes) -> None:
    shutil.copytree(place / "copy", place / name)
    (place / name / "model.safetensors").write_bytes(content)


def test_faults_are_one_line(attnlens: Run, place: Path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    planted(place, "lying", struct.pack("<Q", len(header)) + header)
    planted(place, "cut", (place / "copy" / "model.safetensors").read_bytes()[:5000])
    state = load_file(place / "BASE" / "model.safetensors")
    query = "encoder.layer.1.attention.self.query.weight"
    for name, tensor in (("nan", state[query] * torch.nan), ("shapes", state[query][:4].clone())):
        planted(place, name, b"")
        save_file(state | {query: tensor}, place / name / "model.safetensors")
    planted(place, "sharded", b"")
    (place / "sharded" / "model.safetensors").unlink()
    index = {"weight_map": {query: "model-00002-of-00002.safetensors"}}
    (place / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"state_dict": state, "callbacks": Path("x")}, place / "code.ckpt")
    for words, message in (
        ("BASE lying", "the tensors need 4,000,000,000,000 bytes, the file has 0 for them"),
        ("BASE cut", "it is cut off or damaged"),
        ("BASE nan", f"{query} of nan holds NaN or infinite numbers"),
        ("nan TUNED", f"{query} of nan holds NaN or infinite numbers"),
        ("BASE shapes", f"{query} is (32, 32) in base and (4, 32) in tuned: base and tuned must share the backbone"),
        ("BASE sharded", "model-00002-of-00002.safetensors"),
        ("BASE code.ckpt", "names code (pathlib"),
        ("BASE nowhere", "nowhere is no folder here"),
        ("TUNED", "tuned.ckpt is no adapter, which would name its base: give BASE and TUNED"),
    ):
        done = attnlens("diff", *words.split(), "-o", "out")
        assert refused(done, message), (words, done)
        assert not (place / "out").exists()
    assert attnlens("diff", "BASE", "TUNED", "copy").code == 2


def test_files_without_a_config_are_compared_without_heads(attnlens: Run, tmp_path: Path):
    model = tf.BertModel(
        tf.BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16)
    )
    for name, factor in (("a", 1.0), ("b", 1.5)):
        state = {key: factor * tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    done = attnlens("diff", "a.safetensors", "b.safetensors")
    assert done.code == 0 and "The weights moved by 50 % of their norm" in done.out
    assert "changed most" not in done.out
