"""Checkpoints with an architecture of their own: their code runs only under --trust-remote-code, and is named first."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from attnlens.analysis.results import open_comparison
from attnlens.analysis.studies.run import StudyOptions, run
from attnlens.checkpoints.load import load
from attnlens.checkpoints.remote_code import trusted, trusting
from attnlens.core.errors import Damaged, OwnCode
from tests.cli.shell import Run, refused
from tests.conftest import Tuning

CODE = """
from pathlib import Path

from transformers import BertConfig, BertForSequenceClassification, BertModel

Path({mark!r}).touch()


class OwnConfig(BertConfig):
    model_type = "own"


class OwnModel(BertModel):
    config_class = OwnConfig


class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""
CLASSES = {
    "AutoConfig": "own.OwnConfig",
    "AutoModel": "own.OwnModel",
    "AutoModelForSequenceClassification": "own.OwnForSequenceClassification",
}
STUDY = """
title = "An architecture of its own"
seeds = [0]
models = [{name = "own", checkpoint = "own/base.ckpt"}]
data = [{name = "clauses", train = "attnlens:contracts_train", test = "attnlens:contracts_eval", labels = 2}]
arms = [{name = "full", method = "full", twin = false}]
[training]
max_steps = 1
[measure]
salience = ["spans"]
limit = 8
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """There once code of the checkpoint has run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))  # of processes of a study
    return tmp_path / "it ran"


@pytest.fixture
def own(tuning: Tuning, tmp_path: Path, mark: Path) -> Path:
    """The small base as an architecture of its own: a BERT that only its code knows."""
    folder = tmp_path / "own" / "base.ckpt"
    shutil.copytree(tuning.base, folder)
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    described(folder, model_type="own", architectures=["OwnModel"], auto_map=CLASSES)
    return folder


def described(folder: Path, **changes: object) -> None:
    """Change the config of a checkpoint."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def commands(base: Path, tuned: Path, data: Path) -> list[tuple[object, ...]]:
    """All commands that load a model."""
    return [
        ("info", base),
        ("finetune", base, "--data", data, "--max-steps", 1, "-o", "out"),
        ("finetune", base, "--data", data, "--max-steps", 1, "-o", "out", "--estimate"),
        ("report", base, tuned, "--data", data),
    ]


def test_code_that_nobody_asked_for_does_not_run(attnlens: Run, own: Path, tuning: Tuning, mark: Path):
    for line in commands(own, tuning.tuned, tuning.data):
        done = attnlens(*line)
        assert refused(done, f"{own} is no architecture of transformers: its own code (own.OwnConfig)"), done
        assert "runs only if you ask for it: read it, then add --trust-remote-code" in done.err
    assert not mark.exists() and not Path("out").exists()


def test_a_class_of_its_own_is_not_taken_for_the_one_it_was_made_from(tuning: Tuning, own: Path, mark: Path):
    """Its weights would fit a plain BERT, which is another model."""
    described(own, model_type="bert", auto_map={"AutoModel": "own.OwnModel"})
    with pytest.raises(OwnCode, match=r"\(own\.OwnModel\) runs only if you ask"):
        load(own)
    assert not mark.exists()
    with trusting():
        assert load(own).provenance["architecture"] == "OwnModel"
    assert mark.exists()


def test_a_trusted_architecture_gives_the_numbers_of_the_one_it_equals(
    attnlens: Run,
    own: Path,
    tuning: Tuning,
    mark: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    unpictured: None,
):
    """Trained and measured; each command says first what it runs, and the checkpoint that it writes has the code."""
    shutil.copytree(tuning.base, tmp_path / "plain" / "base.ckpt")
    said = {}
    for base, flag in ((own, ("--trust-remote-code",)), (tmp_path / "plain" / "base.ckpt", ())):
        tuned = base.with_name("tuned.ckpt")
        lines = [
            ("finetune", base, "--data", tuning.data, "--max-steps", 2, "--learning-rate", 5e-3, "-o", tuned, *flag),
            ("report", tuned, "--data", tuning.data, "--limit", 24, "-o", base.with_name("report"), *flag),
            ("info", tuned, "--json", *flag),
        ]
        for line in lines:
            done = attnlens(*line)
            assert done.code == 0, done
            said[base.parent.name, line[0]] = done.out
    assert mark.exists() and (own.with_name("tuned.ckpt") / "own.py").is_file()
    named = ", ".join(f"{reference} as {auto}" for auto, reference in CLASSES.items())
    assert caplog.messages == [f"running code of {folder}: {named}" for folder in (own, own.with_name("tuned.ckpt"))]
    tables = [(tmp_path / kind / "report" / "tests.csv").read_bytes() for kind in ("own", "plain")]
    assert tables[0] == tables[1]
    facts = json.loads(said["own", "info"])
    assert facts["architecture"] == "OwnForSequenceClassification"
    assert facts["remote_code"]["classes"]["AutoConfig"] == "own.OwnConfig" and facts["remote_code"]["sha256"]
    assert facts["training"]["base"]["remote_code"]["classes"] == CLASSES
    assert open_comparison(tmp_path / "own" / "report").provenance["command"].endswith(" --trust-remote-code")


def test_changed_code_is_another_question_and_no_code_of_a_sealed_checkpoint(own: Path, mark: Path):
    with trusting():
        before = load(own).provenance["remote_code"]
        (own / "own.py").write_text((own / "own.py").read_text() + "\n# changed\n")
        assert load(own).provenance["remote_code"]["sha256"] != before["sha256"]
        (own / "SHA256SUMS").write_text(f"{before['sha256']}  own.py\n")
        with pytest.raises(Damaged, match=r"own\.py has changed since it was written"):
            load(own)


def test_weights_are_compared_without_any_code(attnlens: Run, own: Path, tuning: Tuning, mark: Path):
    tuned = own.with_name("tuned.ckpt")
    shutil.copytree(tuning.tuned, tuned, ignore=shutil.ignore_patterns("SHA256SUMS"))
    described(tuned, model_type="own", auto_map=CLASSES)
    done = attnlens("diff", own, tuned, "--json")
    assert done.code == 0 and not mark.exists()
    found = json.loads(done.out)
    assert found["weights"] and found["heads"] == []
    assert any("no config.json of an architecture that transformers knows" in note for note in found["notes"])


def test_a_study_asks_before_its_first_cell(own: Path, mark: Path, tmp_path: Path):
    """Its cells are processes of their own, which are told."""
    (tmp_path / "own.toml").write_text(STUDY)
    with pytest.raises(OwnCode):
        run(tmp_path / "own.toml", StudyOptions(output=tmp_path / "study"))
    assert not mark.exists()
    _, state = run(tmp_path / "own.toml", StudyOptions(output=tmp_path / "study", trust_remote_code=True))
    assert len(state.finished) == 1 and not state.failed and mark.exists() and not trusted()


@pytest.mark.parametrize("reference", ["own", "../own.OwnModel", "a/b/c--own.OwnModel", "own.Own\x1b[2J", 3])
def test_code_is_named_as_module_and_class(own: Path, mark: Path, reference: object):
    described(own, auto_map={"AutoModel": reference})
    with trusting(), pytest.raises(ValueError, match=r"names code as .*: needed module\.Class"):
        load(own)
    assert not mark.exists()


def test_transformers_is_never_left_to_ask():
    """None of its loaders is called without saying whether code may run; a config's own class runs none."""
    seen = []
    for path in sorted(Path("attnlens").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if re.fullmatch(r"(Auto\w+|auto|architecture|loader)\.from_(pretrained|config)", name):
                assert isinstance(call, ast.Call)
                told = {word.arg: ast.unparse(word.value) for word in call.keywords}
                seen.append((f"{path}:{call.lineno}", told.get("trust_remote_code")))
    assert len(seen) >= 6
    assert not [where for where, told in seen if told != "trusted()"]
