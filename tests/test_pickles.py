"""Files of strangers that carry code, in every form that is read: no command runs it, and a naive loader would."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.parts import _read
from attnlens.analysis.results import open_comparison
from attnlens.checkpoints.load import load
from attnlens.checkpoints.seal import SUMS
from attnlens.core.errors import AttnlensError
from attnlens.text.corpus import read_corpus
from tests.cli.conftest import attnlens  # noqa: F401 - a fixture
from tests.cli.shell import Run
from tests.conftest import Tuning


class Planted:
    """Whoever unpickles it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


def runs(naive: Callable[[], Any], mark: Path) -> None:
    """The file would run its code under a loader that does not care."""
    naive()
    assert mark.is_dir()
    mark.rmdir()


def weights(place: Path, form: str, tuned: Path, mark: Path) -> tuple[Path, Path]:
    """A checkpoint of this form with code among its weights: what a command is given, and the file."""
    state = {**load_file(tuned / "model.safetensors"), "trap": Planted(mark)}
    given = place / form
    if form.startswith("."):
        file = given = place / f"weights{form}"
    else:
        shutil.copytree(tuned, given, ignore=shutil.ignore_patterns("model.safetensors", SUMS))
        file = given / ("adapter_model.bin" if form == "adapter" else "pytorch_model.bin")
    if form == "adapter":
        settings = {"peft_type": "LORA", "r": 2, "target_modules": ["query"], "base_model_name_or_path": str(tuned)}
        (given / "adapter_config.json").write_text(json.dumps(settings))
    if form == "sharded":
        file = given / "pytorch_model-00001-of-00001.bin"
        index = {"weight_map": dict.fromkeys(state, file.name)}
        (given / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    if form == ".ckpt":  # as Lightning nests it
        torch.save({"state_dict": state, "callbacks": {}}, file)
    elif form == ".bin":
        file.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form != ".pth")
    return given, file


@pytest.mark.parametrize("form", [".pt", ".pth", ".bin", ".ckpt", "folder", "sharded", "adapter"])
def test_weights_that_carry_code(attnlens: Run, tuning: Tuning, mark: Path, tmp_path: Path, form: str):  # noqa: F811
    given, file = weights(tmp_path, form, tuning.tuned, mark)
    load_it = pickle.loads if form == ".bin" else lambda _: torch.load(file, weights_only=False)
    runs(lambda: load_it(file.read_bytes()), mark)
    lines = [
        ("report", tuning.base, given, "--config", tuning.base, "--tokenizer", tuning.base, "--data", tuning.data),
        ("diff", tuning.base, given),
        ("info", given, "--config", tuning.base, "--tokenizer", tuning.base),
    ]
    if form in ("folder", "sharded"):
        lines.append(("finetune", given, "--data", tuning.data, "--max-steps", "1", "-o", "out"))
    for line in lines:
        done = attnlens(*line)
        assert done.code == 1 and done.out == "" and done.err.startswith("attnlens: "), (line, done)
        assert len(done.err.splitlines()) == 1 and "Traceback" not in done.err
        assert not mark.exists(), f"{line[0]} ran the code"


def test_files_beside_the_weights_that_carry_code(
    tuning: Tuning, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What trainers leave, and modules that a config names, are not even opened."""
    folder = tmp_path / "folder"
    shutil.copytree(tuning.tuned, folder, ignore=shutil.ignore_patterns(SUMS))
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        torch.save(Planted(mark), folder / name)
        runs(lambda name=name: torch.load(folder / name, weights_only=False), mark)
    (folder / "trap.py").write_text(
        f"import os\nos.mkdir({str(mark)!r})\nfrom transformers import BertModel\nclass Trap(BertModel):\n    pass\n"
    )
    for name, key in (("config.json", "AutoModel"), ("tokenizer_config.json", "AutoTokenizer")):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"auto_map": {key: "trap.Trap"}}))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    runs(lambda: tf.AutoModel.from_pretrained(folder, trust_remote_code=True), mark)
    assert load(folder).provenance["architecture"] == "BertForSequenceClassification"
    assert not mark.exists(), "loading ran the code"


def test_parts_of_a_report_that_carry_code(mark: Path, tmp_path: Path):
    path = tmp_path / "000000.npz"
    np.savez(path, entropy=np.array([Planted(mark)], dtype=object), identity=np.array("a"))
    runs(lambda: np.load(path, allow_pickle=True)["entropy"], mark)
    assert _read(path, "a") is None and not mark.exists()


@pytest.mark.parametrize("form", ["passages", "filters", "compressor"])
def test_a_stored_comparison_that_carries_code(tuning: Tuning, mark: Path, tmp_path: Path, form: str):
    """As pickled arrays of NumPy, and by the codecs that a Zarr store names."""
    corpus = read_corpus(tuning.data)
    corpus = replace(corpus, examples=corpus.examples[:4])
    compare(load(tuning.base), load(tuning.tuned), corpus=corpus, options=CompareOptions(passages=1)).save(tmp_path)
    (tmp_path / SUMS).unlink()
    trap = pickle.dumps(Planted(mark))
    if form == "passages":
        np.savez(tmp_path / "passages.npz", received_0=np.array([Planted(mark)], dtype=object))
        runs(lambda: np.load(tmp_path / "passages.npz", allow_pickle=True)["received_0"], mark)
    else:
        store = tmp_path / "comparison.zarr"
        metadata = json.loads((store / ".zmetadata").read_text())
        codec = {"id": "pickle", "protocol": 5}
        changes = {"compressor": None, "filters": None} | {form: [codec] if form == "filters" else codec}
        for name, array in metadata["metadata"].items():
            if name == "entropy/.zarray":
                array |= changes
                (store / name).write_text(json.dumps(array))
        (store / ".zmetadata").write_text(json.dumps(metadata))
        for path in (store / "entropy").iterdir():
            if not path.name.startswith("."):
                path.write_bytes(trap)
        runs(lambda: pickle.loads(trap), mark)
    with pytest.raises(AttnlensError, match="holds a comparison that cannot be read: "):
        open_comparison(tmp_path)
    assert not mark.exists(), "opening ran the code"
