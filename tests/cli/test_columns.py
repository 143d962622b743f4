"""Data whose columns have other names: named once for training, found again by the report."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attnlens.analysis.results import open_comparison
from tests.cli.shell import Run, refused
from tests.conftest import Tuning
from tests.training.conftest import rows, tiny_lm

__all__ = ["tiny_lm"]

QUESTIONS = [
    {"ask": f"{row['text']}: ", "answer": f"the {row['label']} of the deed", "note": f"{row['text']}, says the deed"}
    for row in rows()
]
FEW = ("--limit", "12", "--json")


def jsonl(path: Path, values: list[dict]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.fixture
def tuned(attnlens: Run, tiny_lm: Callable[[str], Path], tmp_path: Path) -> Path:
    """A language model tuned on qa.jsonl, whose prompts are in `ask`."""
    jsonl(tmp_path / "qa.jsonl", QUESTIONS)
    columns = ("--prompt-column", "ask", "--completion-column", "answer")
    done = attnlens("finetune", tiny_lm("gpt2"), "--data", "qa.jsonl", *columns, "--max-steps", "1", "-o", "qa.ckpt")
    assert done.code == 0, done.err
    return tiny_lm("gpt2")


def test_the_columns_of_training_are_read_again(attnlens: Run, undrawn: None, tuned: Path, tmp_path: Path):
    """Without --data, with the same file, and with another; completions are found, so their rows are measured."""
    jsonl(tmp_path / "other.jsonl", QUESTIONS[::-1])
    for number, data in enumerate(((), ("--data", "qa.jsonl"), ("--data", "other.jsonl"))):
        done = attnlens("report", "qa.ckpt", *data, *FEW, "-o", f"it{number}")
        assert done.code == 0, done.err
        assert open_comparison(tmp_path / f"it{number}").provenance["rows"] == "completion"


def test_a_file_without_those_columns_is_read_by_its_own(attnlens: Run, undrawn: None, tuned: Path, tmp_path: Path):
    (tmp_path / "plain.txt").write_text("\n\n".join(row["text"] for row in rows()))
    done = attnlens("report", "qa.ckpt", "--data", "plain.txt", *FEW)
    assert done.code == 0 and json.loads(done.out)["texts"] == 12


def test_columns_that_are_named_win(attnlens: Run, undrawn: None, tuned: Path, tmp_path: Path):
    words = ("report", tuned, "qa.ckpt", "--data", "qa.jsonl")
    named = attnlens(*words, "--prompt-column", "ask", "--completion-column", "answer", *FEW, "-o", "it")
    assert named.code == 0, named.err
    provenance = open_comparison(tmp_path / "it").provenance
    assert provenance["rows"] == "completion"
    assert "--prompt-column ask --completion-column answer" in provenance["command"]
    assert attnlens(*words, "--text-column", "note", *FEW, "-o", "text").code == 0
    assert open_comparison(tmp_path / "text").provenance["rows"] != "completion"
    assert refused(attnlens(*words, "--text-column", "question"), "needs a column 'question'")


def test_conversations_are_named_too(attnlens: Run, tuning: Tuning, tmp_path: Path):
    """The column is found; this tokenizer has no chat template, as the next line of advice says."""
    turns = [{"role": "user", "content": "The rent?"}, {"role": "assistant", "content": "Due on Monday."}]
    jsonl(tmp_path / "chat.jsonl", [{"talk": turns}] * 4)
    done = attnlens("report", tuning.base, tuning.tuned, "--data", "chat.jsonl", "--messages-column", "talk")
    assert refused(done, "chat template")
    done = attnlens("report", tuning.base, tuning.tuned, "--data", "chat.jsonl")
    assert refused(done, "--prompt-column and --completion-column, or --messages-column")
