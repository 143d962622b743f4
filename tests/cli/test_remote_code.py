"""Checkpoints with an architecture of their own: their code runs only under --trust-remote-code, and is named first."""

import ast
import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest

from attnlens.analysis.results import open_comparison
from attnlens.analysis.studies.run import StudyOptions, held, run
from attnlens.analysis.weights import weight_changes
from attnlens.checkpoints.load import load
from attnlens.checkpoints.remote_code import trusted, trusting
from attnlens.core.errors import AttnlensError, CheckpointError, Damaged, OwnCode, UnsupportedModel
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune
from tests.cli.shell import Run, refused
from tests.conftest import Tuning

CONFIGURATION = """
from pathlib import Path

from transformers import BertConfig

Path({mark!r}).touch()


class OwnConfig(BertConfig):
    model_type = "own"
"""
MODEL = """
from transformers import BertForSequenceClassification, BertModel

from .configuration_own import OwnConfig


class OwnModel(BertModel):
    config_class = OwnConfig
    # more


class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""
CLASSES = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModel": "modeling_own.OwnModel",
    "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
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
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)  # of another test's folder
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))  # of processes of a study
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    return tmp_path / "it ran"


@pytest.fixture
def own(tuning: Tuning, tmp_path: Path, mark: Path) -> Path:
    """The small base as an architecture of its own: a BERT that only its code knows."""
    folder = tmp_path / "own" / "base.ckpt"
    shutil.copytree(tuning.base, folder)
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(mark=str(mark)))
    (folder / "modeling_own.py").write_text(MODEL)
    described(folder, model_type="own", architectures=["OwnModel"], auto_map=CLASSES)
    return folder


def described(folder: Path, file: str = "config.json", **changes: object) -> None:
    """Change a config of a checkpoint; without classes of its own it names none."""
    path = folder / file
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in found.items() if (name, value) != ("auto_map", {})}))


def changed(folder: Path) -> None:
    """Change the code of a checkpoint."""
    path = folder / "modeling_own.py"
    path.write_text(path.read_text() + "\n# changed\n")


def test_code_that_nobody_asked_for_does_not_run(attnlens: Run, own: Path, tuning: Tuning, mark: Path):
    data = ("--data", tuning.data)
    lines = [
        ("info", own),
        ("info", own / "model.safetensors"),
        ("finetune", own, *data, "--max-steps", 1, "-o", "out"),
        ("finetune", own, *data, "--max-steps", 1, "-o", "out", "--estimate"),
        ("report", own, tuning.tuned, *data),
        ("report", tuning.base, own, *data),
        ("report", tuning.base, tuning.tuned, *data, "--salience", "leave_one_out", "--encoder", own),
    ]
    for line in lines:
        done = attnlens(*line)
        assert refused(done, "is no architecture of transformers: its own code (configuration_own.OwnConfig)"), done
        assert "runs only if you ask for it: read it, then add --trust-remote-code" in done.err
    assert not mark.exists() and not Path("out").exists()


@pytest.mark.parametrize(
    ("architectures", "classes"),
    [
        (["OwnModel"], {"AutoModel": "modeling_own.OwnModel"}),
        ([], {"AutoModel": "modeling_own.OwnModel"}),
        (["OwnForMaskedLM"], {"AutoModelForCausalLM": "modeling_own.Other", "AutoModel": "modeling_own.OwnModel"}),
        (["OwnModel", "BertModel"], {"AutoModel": "modeling_own.OwnModel"}),
        (["PreTrainedModel"], {"AutoModel": "modeling_own.OwnModel"}),
        (["logging"], {"AutoModel": "modeling_own.OwnModel"}),  # transformers has one, which is no model
    ],
)
def test_a_class_of_its_own_is_not_taken_for_the_one_it_was_made_from(
    own: Path, mark: Path, architectures: list[str], classes: dict[str, str]
):
    """Its weights would fit a plain BERT, which is another model."""
    described(own, model_type="bert", architectures=architectures, auto_map=classes)
    with pytest.raises(OwnCode, match=r"\(modeling_own\.(OwnModel|Other)\) runs only if you ask"):
        load(own)
    assert not mark.exists()
    with trusting():
        assert load(own).provenance["architecture"] == "OwnModel"
    assert mark.exists()


def test_of_a_name_that_both_have_transformers_is_taken_and_that_is_said(
    own: Path, mark: Path, caplog: pytest.LogCaptureFixture
):
    """Most of these came to the hub before transformers had them; a config cannot say whether they are the same."""
    described(own, model_type="bert", architectures=["BertModel"], auto_map={"AutoModel": "modeling_own.BertModel"})
    found = load(own)
    told = f"code of {own} is not run: what transformers has under that name takes its place"
    assert caplog.messages == [told] and not mark.exists()
    assert found.provenance["architecture"] == "BertModel"
    assert [place["ran"] for place in found.provenance["remote_code"]] == [False]


def test_a_head_of_transformers_is_not_put_on_an_architecture_of_its_own(own: Path, tuning: Tuning, mark: Path):
    """Trained or as an adapter's base it would be another model; nor are its heads its backbone's."""
    described(own, auto_map={"AutoConfig": CLASSES["AutoConfig"], "AutoModel": CLASSES["AutoModel"]})
    options = TrainOptions(max_steps=1, trust_remote_code=True, device="cpu")
    for changes in ({}, {"model_type": "bert", "auto_map": {"AutoModel": CLASSES["AutoModel"]}}):
        described(own, **changes)
        with pytest.raises(UnsupportedModel, match="whose code has no AutoModelForSequenceClassification"):
            finetune(own, tuning.data, output=own.with_name("tuned"), options=options)


def test_code_of_a_checkpoint_that_was_saved_in_a_class_of_transformers(
    own: Path, mark: Path, caplog: pytest.LogCaptureFixture
):
    """What does not run is neither said nor kept."""
    described(own, model_type="bert", architectures=["BertModel"], auto_map={"AutoModel": CLASSES["AutoModel"]})
    for on in (False, True):
        with trusting(on):
            assert load(own).provenance.get("remote_code") is None
    assert not caplog.messages and not mark.exists()


def test_code_in_two_places_is_kept_for_both(own: Path, mark: Path, tmp_path: Path):
    """The model's here and the tokenizer's there, in modules of one name."""
    other = Path(shutil.copytree(own, tmp_path / "other"))
    for path in [*own.glob("tokenizer*"), *own.glob("vocab*")]:
        path.unlink()
    with trusting():
        before = load(own, tokenizer=other).provenance["remote_code"]
        changed(own)
        after = load(own, tokenizer=other).provenance["remote_code"]
    assert len(before) == 2 and before[1] == after[1] and before[0] != after[0]


def test_a_tokenizer_needs_no_code_of_the_model_beside_it(tuning: Tuning, own: Path, mark: Path, tmp_path: Path):
    bare = Path(shutil.copytree(tuning.base, tmp_path / "bare"))
    for path in [*bare.glob("tokenizer*"), *bare.glob("vocab*")]:
        path.unlink()
    assert load(bare, tokenizer=own).provenance["architecture"] == "BertModel" and not mark.exists()


def test_a_trusted_architecture_gives_the_numbers_of_the_one_it_equals(
    attnlens: Run,
    own: Path,
    tuning: Tuning,
    mark: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    unpictured: None,
):
    """Trained and measured; what runs is said before, and the checkpoint that is written has the code."""
    ran = []
    watch = [lambda record: ran.append(mark.exists()) or True]
    monkeypatch.setattr(logging.getLogger("attnlens"), "filters", watch)
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
    assert mark.exists() and ran == [False, True]
    named = ", ".join(f"{reference} as {auto}" for auto, reference in CLASSES.items())
    assert caplog.messages == [f"running code of {folder}: {named}" for folder in (own, own.with_name("tuned.ckpt"))]
    assert {path.name for path in own.with_name("tuned.ckpt").glob("*.py")} == {
        "configuration_own.py",
        "modeling_own.py",
    }
    tables = [(tmp_path / kind / "report" / "tests.csv").read_bytes() for kind in ("own", "plain")]
    assert tables[0] == tables[1]
    facts = json.loads(said["own", "info"])
    assert facts["architecture"] == "OwnForSequenceClassification"
    (code,) = facts["remote_code"]
    assert code["ran"] and code["classes"] == CLASSES
    assert sorted(code["modules"]) == ["configuration_own.py", "modeling_own.py"]
    assert [place["classes"] for place in facts["training"]["base"]["remote_code"]] == [CLASSES]
    assert open_comparison(tmp_path / "own" / "report").provenance["command"].endswith(" --trust-remote-code")


@pytest.mark.parametrize(("method", "settings"), [("lora", {"rank": 2}), ("adapter", {"bottleneck": 4})])
def test_adapters_on_an_architecture_of_its_own(
    own: Path, tuning: Tuning, mark: Path, tmp_path: Path, method: str, settings: dict[str, int]
):
    options = TrainOptions(max_steps=1, trust_remote_code=True, device="cpu", **settings)  # pyright: ignore[reportArgumentType]
    finetune(own, tuning.data, method=method, output=tmp_path / "tuned", options=options)
    with pytest.raises(OwnCode):
        load(tmp_path / "tuned")
    with trusting():
        found = load(tmp_path / "tuned")
    assert found.adapter is not None and found.provenance["architecture"] == "OwnForSequenceClassification"


def test_changed_code_is_another_question(own: Path, tuning: Tuning, mark: Path, tmp_path: Path):
    """Of provenance, which a report's key holds, of an interrupted or finished training, of the cells of a study."""
    (tmp_path / "own.toml").write_text(STUDY)
    order = TrainOptions(max_steps=1, trust_remote_code=True, device="cpu")
    finetune(own, tuning.data, output=tmp_path / "tuned", options=order)

    def seen() -> list[object]:
        with trusting(), held(tmp_path / "own.toml", StudyOptions(output=tmp_path / "study")) as plan:
            return [load(own).provenance["remote_code"], plan.weights]

    before = seen()
    assert before == seen()
    changed(own)
    assert all(old != new for old, new in zip(before, seen(), strict=True))
    again = TrainOptions(max_steps=1, trust_remote_code=True, device="cpu", resume=True)
    with pytest.raises(AttnlensError, match="remote_code"):
        finetune(own, tuning.data, output=tmp_path / "tuned", options=again)


def test_code_of_a_sealed_checkpoint_that_changed(own: Path, mark: Path):
    with trusting():
        sums = load(own).provenance["remote_code"][0]["modules"]
        (own / "SHA256SUMS").write_text(f"{sums['modeling_own.py']}  modeling_own.py\n")
        changed(own)
        with pytest.raises(Damaged, match=r"modeling_own\.py has changed since it was written"):
            load(own)


def test_weights_are_compared_without_any_code(attnlens: Run, own: Path, tuning: Tuning, mark: Path):
    tuned = own.with_name("tuned.ckpt")
    shutil.copytree(tuning.tuned, tuned, ignore=shutil.ignore_patterns("SHA256SUMS"))
    described(tuned, model_type="own", auto_map=CLASSES)
    done = attnlens("diff", own, tuned, "--json")
    with trusting():
        weight_changes(own, tuned)
    assert done.code == 0 and not mark.exists()
    found = json.loads(done.out)
    assert found["weights"] and found["heads"] == []
    assert any("no config.json of an architecture that transformers knows" in note for note in found["notes"])


def test_a_study_asks_before_its_first_cell(own: Path, mark: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Its cells are processes of their own, which are told."""
    (tmp_path / "own.toml").write_text(STUDY)
    with pytest.raises(OwnCode):
        run(tmp_path / "own.toml", StudyOptions(output=tmp_path / "study"))
    assert not mark.exists()
    _, state = run(tmp_path / "own.toml", StudyOptions(output=tmp_path / "study", trust_remote_code=True))
    assert len(state.finished) == 1 and not state.failed and mark.exists() and not trusted()
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"running code of {own}: ")


def test_code_for_a_part_of_a_model_is_refused(own: Path, mark: Path):
    """transformers builds the part without a word on trust, and would ask on the terminal."""
    part = {"model_type": "distilbert", "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnModel"}}
    described(own, model_type="encoder-decoder", auto_map={}, decoder=part, encoder={"model_type": "bert"})
    for on in (False, True):
        with trusting(on), pytest.raises(CheckpointError, match="names code for a part of the model"):
            load(own)
    assert len(weight_changes(own, own)) and not mark.exists()


def test_other_code_that_own_code_asks_for_is_not_asked_about(own: Path, mark: Path, tmp_path: Path):
    """Nobody named it; transformers would ask on the terminal."""
    other = Path(shutil.copytree(own, tmp_path / "other"))
    text = (
        CONFIGURATION.format(mark=str(mark))
        + f"""
    def __init__(self, **settings):
        super().__init__(**settings)
        from transformers import AutoConfig

        AutoConfig.from_pretrained({str(other)!r})
"""
    )
    (own / "configuration_own.py").write_text(text)
    with trusting(), pytest.raises(CheckpointError, match=r"config\.json cannot be used"):
        load(own)


def test_code_that_would_generate_text_never_runs(own: Path, mark: Path):
    (own / "custom_generate").mkdir()
    (own / "custom_generate" / "generate.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    described(own, model_type="bert", architectures=["BertModel"], auto_map={})
    with trusting():
        assert load(own).provenance["architecture"] == "BertModel"
    assert not mark.exists()


def test_what_is_named_is_what_runs(own: Path, mark: Path):
    """A tokenizer's config speaks of the tokenizer alone; of two tokenizers the fast one goes first."""
    pair = ["slow.Tokenizer", "fast.Tokenizer"]
    for given, expected in ((pair, pair[1]), ([pair[0], None], pair[0])):
        described(own, "tokenizer_config.json", auto_map={"AutoModel": "other.BertModel", "AutoTokenizer": given})
        with pytest.raises(OwnCode, match=r"\(configuration_own\.OwnConfig\)"):
            load(own)
        with trusting(), pytest.raises(CheckpointError) as fault:
            load(own)
        assert "tokenizer" in str(fault.value) and expected.partition(".")[0] in str(fault.value)


@pytest.mark.parametrize(
    "code",
    [
        "import a_package_that_is_not_here",
        "def",
        "raise RuntimeError('no')",
        "raise SystemExit(3)",
        "1 / 0",
        "class Other: pass",
        "OwnModel = 3",
        MODEL.replace("# more", "def __init__(self, config):\n        raise ImportError('no flash_attn')"),
        MODEL.replace("# more", "def forward(self, *_, **__):\n        return self.config.no_such_setting"),
    ],
)
@pytest.mark.parametrize("place", [".", "model.safetensors"])
def test_code_that_fails_is_one_line(attnlens: Run, own: Path, mark: Path, code: str, place: str):
    (own / "modeling_own.py").write_text(code)
    done = attnlens("info", own / place, "--trust-remote-code")
    assert done.code == 1 and done.out == "" and len(done.err.splitlines()) == 1, done
    assert "modeling_own" in done.err or "flash_attn" in done.err


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"auto_map": {"AutoModel": "own"}}),
        ("config.json", {"auto_map": {"AutoModel": "../own.OwnModel"}}),
        ("config.json", {"auto_map": {"AutoModel": "a/b/c--own.OwnModel"}}),
        ("config.json", {"auto_map": {"AutoModel": "own.Own\x1b[2J"}}),
        ("config.json", {"auto_map": {"AutoModel\x1b[2J\nattnlens: all is well": "own.OwnModel"}}),
        ("config.json", {"auto_map": {"AutoModel": ["own.A", "own.B"]}}),
        ("config.json", {"auto_map": {"AutoConfig": None}}),
        ("config.json", {"auto_map": {"AutoModel": 3}}),
        ("config.json", {"auto_map": 1.5}),
        ("config.json", {"auto_map": None}),
        ("tokenizer_config.json", {"auto_map": None}),
        ("config.json", {"auto_map": "own.OwnModel"}),
        ("config.json", {"auto_map": ["own.OwnModel"]}),
        ("config.json", {"model_type": ["bert"]}),
        ("config.json", {"model_type": {}}),
        ("config.json", {"model_type": None}),
        ("config.json", {"architectures": 3}),
        ("config.json", {"architectures": [3]}),
        ("config.json", {"architectures": {"a": 1}}),
        ("tokenizer_config.json", {"auto_map": ["own.A"]}),
        ("tokenizer_config.json", {"auto_map": "own.A"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, None]}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.A", 3]}}),
    ],
)
def test_configs_that_name_code_in_no_way_that_can_be_read(
    attnlens: Run, own: Path, mark: Path, file: str, changes: dict[str, object]
):
    described(own, file, **changes)
    for flag in ((), ("--trust-remote-code",)):
        done = attnlens("info", own, *flag)
        assert done.code == 1 and done.out == "" and len(done.err.splitlines()) == 1 and "\x1b" not in done.err, done
    assert not mark.exists()


def test_transformers_is_never_left_to_ask():
    """None of its loaders is called without saying whether code may run; of a model the class is already known."""
    seen = []
    for path in sorted(Path("attnlens").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if name.endswith(".from_pretrained") and not name.startswith(("type(config)", "Peft")):
                assert isinstance(call, ast.Call)
                told = {word.arg: ast.unparse(word.value) for word in call.keywords}
                allowed = "trusted()" if re.match(r"Auto(Config|Tokenizer)\.", name) else "False"
                seen.append((f"{path}:{call.lineno}", told.get("trust_remote_code") == allowed))
    assert len(seen) >= 6
    assert not [where for where, told in seen if not told]
