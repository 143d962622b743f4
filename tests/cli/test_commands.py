"""The other commands, what all share on the terminal, and that the shell asks what the library asks."""

import inspect
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command

from attnlens.analysis.results import open_comparison
from attnlens.checkpoints.identity import read_record
from attnlens.cli import app, finetune, report, terminal
from attnlens.show import demo as demonstration
from attnlens.show.run import ReportOptions, command, run_report
from attnlens.show.tables import summary
from attnlens.training.options import TrainOptions
from tests.cli.shell import Finished, Run, tree
from tests.conftest import Tuning

TWIN = "demo/tuned.null.ckpt"
COMMANDS = list(get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example(attnlens: Run, name: str):
    done = attnlens(name, "--help")
    assert done.code == 0 and done.err == "" and f"Example: attnlens {name}" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines())


def test_the_commands_alone_show_the_help(attnlens: Run):
    done = attnlens("--help")
    assert done.code == 0 and re.findall(r"^│ (\w+)", done.out, re.M) == COMMANDS
    assert {"demo", "finetune", "report", "info"} <= set(COMMANDS)


@pytest.mark.parametrize(("function", "options"), [(report.report, ReportOptions), (finetune.finetune, TrainOptions)])
def test_defaults_are_those_of_the_library(function: Callable[..., None], options: type):
    """Options that both have; --no-text is `text`, the three --*-column are `columns`."""
    shell = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    library = {field.name: field.default for field in fields(options)}
    renamed = {"columns", "text", "progress", "further", "announce", "names", "notes", "patience"}
    assert library.keys() - shell.keys() <= renamed
    for name in library.keys() & shell.keys():
        nothing = shell[name] is None and library[name] == ()  # a repeatable option that was not given
        assert nothing or shell[name] == library[name], name


def test_finetune_writes_a_checkpoint_and_says_what_it_is(attnlens: Run, tuning: Tuning, tmp_path: Path):
    words = ("finetune", tuning.base, "--method", "head", "--data", tuning.data, "--max-steps", "2", "-o", "out.ckpt")
    done = attnlens(*words)
    assert done.code == 0 and "base.ckpt fine-tuned by 'head' → " in done.out and "accuracy" in done.out
    record = read_record(tmp_path / "out.ckpt")
    assert record is not None and record["method"] == "head" and record["options"]["max_steps"] == 2
    again = attnlens(*words)
    assert again.code == 1 and "--force" in again.err
    result = json.loads(attnlens(*words, "--force", "--json").out)
    assert Path(result["path"]).name == "out.ckpt" and result["metrics"] == record["metrics"]


def test_info_names_architecture_proof_and_training(attnlens: Run, tuning: Tuning):
    done = attnlens("info", tuning.base)
    assert done.code == 0 and done.out.startswith("base.ckpt\n") and "BertModel" in done.out
    assert "2 layers × 2 heads equal eager attention" in done.out
    done = attnlens("info", tuning.tuned)
    facts = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in done.out.splitlines()[1:])
    assert facts["architecture"] == "BertForSequenceClassification"
    assert facts["method"] == "full" and facts["base"] == "base.ckpt" and facts["seed"] == "0"
    assert 0 <= float(facts["macro f1"]) <= 1
    value = json.loads(attnlens("info", tuning.tuned, "--json").out)
    assert (
        facts["trained on"] == str(tuning.data)
        and facts["measures"] == "attention on texts of up to 512 tokens, weights"
    )
    assert value["name"] == "tuned.ckpt" and value["training"]["base"]["name"] == "base.ckpt"
    value = json.loads(attnlens("info", tuning.base, "--json").out)
    assert value["training"] is None and value["adapter"] is None and value["longest_input"] == 512


def test_the_demo_trains_once_and_reports(
    attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In small: the base of these tests for the real encoder, six steps for enough."""
    monkeypatch.setattr(demonstration, "encoder", lambda: tuning.base)
    monkeypatch.setattr(demonstration, "STEPS", 6)
    done = attnlens("demo")
    assert done.code == 0 and done.err.startswith("A check of the instrument on text we wrote;")
    assert "Note: A check of the instrument" in done.out and done.out.endswith("Report: demo/report/report.html\n")
    assert "A null, not an answer: " in done.out and "trained on shuffled labels" in attnlens("info", TWIN).out
    before = tree(tmp_path)
    value = json.loads(attnlens("demo", "-o", "demo", "--json").out)
    assert value["models"] == list(demonstration.NAMES) and tree(tmp_path) == before
    records = [json.loads((tmp_path / folder / "attnlens.json").read_text()) for folder in ("demo/tuned.ckpt", TWIN)]
    assert [(record["method"], record["null_twin"]) for record in records] == [("alf", False), ("alf", True)]
    shutil.rmtree(tmp_path / TWIN)  # as if stopped between the two
    assert attnlens("demo").code == 0 and tree(tmp_path / "demo/tuned.ckpt") == {
        Path(name).relative_to("demo/tuned.ckpt").as_posix(): value
        for name, value in before.items()
        if str(name).startswith("demo/tuned.ckpt")
    }


def test_the_library_gives_what_the_command_gives(finished: Finished, undrawn: None, tuning: Tuning, tmp_path: Path):
    result = run_report([tuning.base, tuning.tuned], ReportOptions(output=tmp_path / "it"))
    assert not result.was_complete
    said = json.loads(finished.done.out)
    assert summary(result.comparison) == {name: value for name, value in said.items() if name != "report"}
    opened = open_comparison(finished.folder)
    assert opened.data.identical(open_comparison(tmp_path / "it").data)
    assert opened.provenance["command"] == f"attnlens report {tuning.base} {tuning.tuned}"


def test_the_command_in_the_provenance_asks_the_same():
    options = ReportOptions(
        data=Path.home() / "my data.jsonl",
        salience=("spans", "textrank"),
        limit=50,
        text=False,
        columns={"text": "body"},
        force=True,
        seed=0,
    )
    assert command(["base", Path.home() / "tuned"], options) == (
        "attnlens report base '~/tuned' --data '~/my data.jsonl' --salience spans,textrank --limit 50 --no-text "
        "--text-column body"
    )


HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202egnp"


def test_hostile_names_do_not_reach_the_terminal(attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path):
    """A folder named with escape sequences and with Rich's markup: shown as text, and valid JSON."""
    name = f"[bold]{HOSTILE}[red]"
    shutil.copytree(tuning.tuned, tmp_path / name)
    for words in (
        ["info", name],
        ["info", name, "--json"],
        ["report", tuning.base, name, "--limit", "20"],
        ["report", tuning.base, name, "--limit", "20", "--json"],
        ["report", tuning.base, name, "--limit", "21"],
        ["report", tuning.base, f"{name}/none"],
        ["report", tuning.tuned, "-o", f"{name}"],
        ["finetune", tuning.base, "--data", tuning.data, "--max-steps", "1", "-o", f"{name}/new"],
        ["finetune", name, "--data", tuning.data, "--method", HOSTILE, "-o", "new"],
    ):
        done = attnlens(*words)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.out + done.err), words
        assert "red" in done.out + done.err, words
        if "--json" in words:
            assert json.loads(done.out)
        elif words[0] == "info":
            assert "[bold]" in done.out and "[red]" in done.out


def test_json_escapes_control_characters(capsys: pytest.CaptureFixture[str]):
    terminal.print_json({"name": HOSTILE, "minus": "−"})
    text = capsys.readouterr().out
    assert "\x9b" not in text and "\x1b" not in text and "−" in text
    assert json.loads(text)["name"] == HOSTILE


def test_an_announcement_is_one_line_whatever_its_length(capsys: pytest.CaptureFixture[str]):
    line = f"Measuring on /{'long' * 60}/data [red].jsonl"
    terminal.announce(line)
    assert capsys.readouterr().err == line + "\n"


def test_a_log_says_once_how_long_it_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """10 of 40 texts in 6 seconds leave 18; nothing is said before five seconds, nor again."""
    now = iter([0.0, 2.0, 6.0, 12.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    with terminal.progress("Measuring") as (advance,):
        for done in (0, 5, 10, 20):
            advance(done, 40)
    assert capsys.readouterr().err == "Measuring: 10 of 40, 1.7 a second, about 18 s left\n"
