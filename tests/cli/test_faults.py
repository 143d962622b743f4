"""What a machine does to a run: folders that take no files, files and folders that vanish under it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from attnlens.analysis import measure
from attnlens.checkpoints.config import read_config
from tests.cli.shell import Run, refused
from tests.conftest import Tuning

SYSTEM = Path("/sys")  # takes no file from anybody, root included


@pytest.mark.parametrize("command", ["report", "finetune", "diff", "study"])
def test_a_folder_that_takes_no_files(
    attnlens: Run, tuning: Tuning, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One line, and no pass of a model before it."""
    if not SYSTEM.is_dir():
        pytest.skip("/sys is not on this machine")
    monkeypatch.setattr(measure, "_part", None)
    monkeypatch.setattr("attnlens.training.train.train_model", None)
    monkeypatch.setattr("attnlens.analysis.difference.difference", None)
    study = tmp_path / "study.toml"
    study.write_text(
        f'title = "One"\nseeds = [0]\n[[models]]\nname = "tiny"\ncheckpoint = "{tuning.base}"\n[[data]]\nname = "a"\n'
        'train = "attnlens:contracts_train"\ntest = "attnlens:contracts_eval"\n'
        '[[arms]]\nname = "head"\nmethod = "head"\n'
    )
    words: dict[str, list[object]] = {
        "report": [tuning.base, tuning.tuned],
        "diff": [tuning.base, tuning.tuned],
        "finetune": [tuning.base, "--data", tuning.data],
        "study": [study],
    }
    with pytest.raises(OSError, match="/sys/attnlens") as reason:  # root, others and containers have their own
        (SYSTEM / "attnlens").mkdir()
    done = attnlens(command, *words[command], "-o", SYSTEM / "attnlens")
    assert refused(done, "/sys/attnlens: ") and str(reason.value.strerror) in done.err, done


def test_an_output_that_vanishes(attnlens: Run, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = list[int]()

    def part(*arguments: Any, real: Any = measure._part):
        calls.append(1)
        if len(calls) == 2:
            shutil.rmtree(tmp_path / "it")
        return real(*arguments)

    monkeypatch.setattr(measure, "_part", part)
    done = attnlens("report", tuning.tuned, "-o", "it", "--limit", "40", "--batch-size", "8")
    assert done.code == 1 and done.out == "" and done.err.splitlines()[-1].startswith("attnlens: it/parts/")
    assert "Traceback" not in done.err and list(tmp_path.iterdir()) == [] and len(calls) == 2


def test_weights_that_vanish(attnlens: Run, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After they were found, before they are opened."""
    shutil.copytree(tuning.tuned, tmp_path / "tuned")

    def vanishing(source: Any):
        (tmp_path / "tuned" / "model.safetensors").unlink(missing_ok=True)
        return read_config(source)

    monkeypatch.setattr("attnlens.checkpoints.load.read_config", vanishing)
    assert refused(attnlens("report", tuning.base, "tuned"), "model.safetensors cannot be read: No such file")
