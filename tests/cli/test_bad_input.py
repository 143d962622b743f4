"""A user's fault is one line on stderr and exit 1, with nothing on stdout and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import transformers as tf

from tests.cli.shell import Run, keep_case, process, refused, tree
from tests.conftest import Tuning

ROW = {"text": "The tenant shall pay the rent.", "label": "a", "document": "d"}
GOOD = [ROW | {"label": label, "document": document} for label in "ab" for document in "de"]


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def place(tmp_path: Path, tuning: Tuning) -> Path:
    """A folder with everything that can be wrong, and BASE and TUNED as links."""
    (tmp_path / "BASE").symlink_to(tuning.base)
    (tmp_path / "TUNED").symlink_to(tuning.tuned)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    wider = tf.BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=32)
    tf.BertModel(wider).save_pretrained(tmp_path / "wider")
    shutil.copytree(tuning.tuned, tmp_path / "cased")
    keep_case(tmp_path / "cased")
    shutil.copytree(tuning.tuned, tmp_path / "broken")
    (tmp_path / "broken" / "attnlens.json").write_text("{}")
    shutil.copytree(tuning.tuned, tmp_path / "garbled")
    (tmp_path / "garbled" / "config.json").write_text('{"model_type": ')
    shutil.copytree(tuning.tuned, tmp_path / "orphan")
    record = json.loads((tmp_path / "orphan" / "attnlens.json").read_text())
    record["data"]["heldout"]["path"] = "/nowhere/data.jsonl"
    (tmp_path / "orphan" / "attnlens.json").write_text(json.dumps(record))
    for name in ("broken", "garbled", "orphan"):
        (tmp_path / name / "SHA256SUMS").unlink()  # or that is what would be told
    jsonl(tmp_path / "good.jsonl", *GOOD)
    jsonl(tmp_path / "no_text.jsonl", {"sentence": "The tenant."})
    jsonl(tmp_path / "outside.jsonl", ROW | {"spans": [{"start": 0, "end": 99}]})
    jsonl(tmp_path / "no_span.jsonl", ROW | {"spans": []})
    jsonl(tmp_path / "no_label.jsonl", {"text": "The tenant."})
    jsonl(tmp_path / "foreign.jsonl", *[{"text": "𓀀 𓀁 𓀂 𓀃 𓀄", "spans": [{"start": 0, "end": 1}]}] * 3)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "data.parquet").write_text("")
    (tmp_path / "data.xlsx").write_text("")
    return tmp_path


REPORT = [
    (
        "report nowhere TUNED",
        "nowhere is no folder here, and no such model could be had from the hub: check the path or the id, or set "
        "HF_TOKEN where the model is private",
    ),
    ("report BASE garbled", "garbled/config.json cannot be used: no JSON from line 1 on; copy or download it again"),
    ("report ./nowhere TUNED", "nowhere does not exist: needed a Hugging Face checkpoint directory, an adapter"),
    ("report BASE empty", "empty holds no config.json and no adapter_config.json"),
    ("report BASE text.ckpt", "text.ckpt has no config.json beside it"),
    ("report BASE", "BASE has no training record that names its base: give both"),
    ("report BASE broken", "broken/attnlens.json is not a training record of attnlens"),
    ("report BASE orphan", "the data /nowhere/data.jsonl named in the training record is not there: add --data FILE"),
    ("report BASE wider --data good.jsonl", "must share the backbone: num_attention_heads is 2 in base.ckpt and 4 in"),
    ("report BASE cased", "must give the same token ids"),
    ("report BASE TUNED --data nowhere.jsonl", "nowhere.jsonl: needs a data file; there is none at this path"),
    ("report BASE TUNED --data data.parquet", "data.parquet: needs a Parquet file; this one is damaged"),
    ("report BASE TUNED --data data.xlsx", "needs a file whose name ends in"),
    ("report BASE TUNED --data no_text.jsonl", "needs a column 'text'; the columns are 'sentence'"),
    ("report BASE TUNED --data outside.jsonl", "the span from 0 to 99 lies outside its text of 30 characters"),
    ("report BASE TUNED --data empty.jsonl", "empty.jsonl: needs at least one example"),
    ("report BASE TUNED --data no_span.jsonl --salience spans", "no text has a salient word by 'spans'"),
    ("report BASE TUNED --data good.jsonl --salience spans", "needs a spans field; good.jsonl has none"),
    (
        "report BASE TUNED --data good.jsonl --salience txtrank",
        "definition 'txtrank': did you mean 'textrank'",
    ),
    ("report BASE TUNED --data foreign.jsonl", "of the tokens of foreign.jsonl are unknown to the tokenizer"),
    ("report BASE BASE --salience textrank", "salience needs texts of your task: add --data FILE"),
    ("report BASE TUNED --rows clss", "unknown row selector 'clss': did you mean 'cls'"),
    ("report BASE TUNED --dtype flaot16", "unknown dtype 'flaot16': did you mean 'float16'"),
    ("report BASE TUNED --device nonsense", "device nonsense cannot be used here: this machine has cpu"),
    ("report BASE TUNED --device cuda:99", "device cuda:99 cannot be used here: this machine has cpu"),
    ("report BASE TUNED --text-column body", "columns were named, but no data that has them: add --data FILE"),
    ("info nowhere", "nowhere is no folder here"),
    ("info broken", "broken/attnlens.json is not a training record of attnlens"),
]
FINETUNE = [
    ("finetune BASE --data good.jsonl --method ful", "unknown fine-tuning method 'ful': did you mean 'full'?"),
    ("finetune BASE --data no_label.jsonl", "no_label.jsonl has no labels"),
    ("finetune BASE --data nowhere.jsonl", "nowhere.jsonl: needs a data file"),
    ("finetune BASE --data good.jsonl --k 1", "k=1 means nothing to 'full'"),
    ("finetune BASE --data good.jsonl --epochs nan", "epochs must be a finite number above 0"),
    ("finetune BASE --data good.jsonl --device nonsense", "unknown device 'nonsense'"),
    (
        "finetune garbled --data good.jsonl",
        "garbled/config.json cannot be used: no JSON from line 1 on; copy or download it again",
    ),
    ("finetune nowhere --data good.jsonl", "nowhere is no folder here"),
    ("finetune empty --data good.jsonl", "empty holds no config.json"),
    ("finetune BASE --data good.jsonl --validation good.jsonl", "good.jsonl is the training data itself"),
    ("finetune BASE --data good.jsonl --validation no_label.jsonl", "no_label.jsonl has no labels, which"),
]


@pytest.mark.parametrize(("line", "message"), REPORT + FINETUNE, ids=lambda value: str(value)[:60])
def test_a_fault_is_one_line_and_leaves_nothing(attnlens: Run, place: Path, line: str, message: str):
    before = tree(place)
    done = attnlens(*line.split(), *(["-o", "new/out"] if not line.startswith("info") else []))
    assert refused(done, message), done
    assert tree(place) == before and not (place / "new").exists()


@pytest.mark.parametrize("where", ["text.ckpt", "text.ckpt/below"])
def test_an_output_that_is_a_file(attnlens: Run, place: Path, where: str):
    done = attnlens("report", "TUNED", "-o", where)
    assert refused(done, "text.ckpt")
    done = attnlens("finetune", "BASE", "--data", "good.jsonl", "-o", where)
    assert refused(done, "text.ckpt")
    assert (place / "text.ckpt").read_text() == "no checkpoint"


def test_debug_shows_where_an_error_came_from(attnlens: Run, place: Path):
    """Before the same line, with the same exit status."""
    plain, told = attnlens("info", "empty"), attnlens("--debug", "info", "empty")
    assert refused(plain, "empty holds no config.json") and told.code == 1 and told.out == ""
    assert told.err.startswith("Traceback (most recent call last):") and "source.py" in told.err
    assert told.err.endswith(f"\n{plain.err}")


def test_a_real_process_leaves_no_traceback(place: Path):
    """What the console script does, in an interpreter of its own."""
    before = tree(place)
    done = process("report", "BASE", "TUNED", "--data", "outside.jsonl", "-o", "new", cwd=place)
    assert refused(done, "outside its text"), done
    assert tree(place) == before


@pytest.mark.parametrize(
    "line",
    [
        "reprot",
        "report",
        "report BASE TUNED --nonsense",
        "report BASE TUNED --limit 0",
        "report BASE TUNED --limit many",
        "report BASE TUNED --seed -1",
        "finetune BASE -o new",
        "finetune BASE --data good.jsonl -o new --max-steps 0",
        "info",
        "demo --nonsense",
    ],
)
def test_wrong_usage_exits_2(attnlens: Run, place: Path, line: str):
    before = tree(place)
    done = attnlens(*line.split())
    assert done.code == 2 and done.out == "" and "Usage: attnlens" in done.err
    assert tree(place) == before
