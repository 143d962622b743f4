"""`attnlens study`: what it would take, what it found, what it says of a faulty file."""

import json
from pathlib import Path

import pytest

from tests.cli.shell import Run
from tests.conftest import Tuning


@pytest.fixture
def file(tuning: Tuning, tmp_path: Path) -> Path:
    """One trained arm of two steps, and one checkpoint that is there already."""
    path = tmp_path / "first.toml"
    path.write_text(
        f"""
title = "Two ways"
seeds = [0]
[[models]]
name = "tiny"
checkpoint = "{tuning.base}"
[[data]]
name = "clauses"
train = "attnlens:contracts_train"
test = "attnlens:contracts_eval"
limit = 64
[training]
max_steps = 2
max_length = 32
[measure]
limit = 8
max_length = 32
salience = ["spans"]
[[arms]]
name = "head"
method = "head"
[[arms]]
name = "there"
checkpoints = ["{tuning.tuned}"]
"""
    )
    return path


def test_a_dry_run_says_what_it_would_take_and_writes_no_cell(attnlens: Run, file: Path, tmp_path: Path):
    done = attnlens("study", file, "--dry-run")
    assert done.code == 0 and "2 cells to run: about" in done.out and "measuring only" in done.out
    assert done.out.rstrip().endswith("Nothing was trained.")
    told = json.loads(attnlens("study", file, "--dry-run", "--json").out)
    assert told["cells"] == 2 and [line["arm"] for line in told["lines"]] == ["head", "there"]
    assert not list(tmp_path.glob("first/cells/*"))


def test_a_study_is_run_told_and_not_run_again(attnlens: Run, file: Path):
    done = attnlens("study", file, "--processes", 2)
    assert done.code == 0, done.err
    assert "1 of 2 · tiny, clauses: " in done.err and "2 of 2 · tiny, clauses: " in done.err
    assert "test accuracy (%)" in done.out and max(map(len, done.out.splitlines()[:4])) <= 80
    assert "Note: 1 seeds: too few" not in done.out and "Note: 1 seed: too few for a claim" in done.out.replace(
        "\n", " "
    )
    assert done.out.splitlines()[-1] == "Study: first/study.html" and Path("first/study.html").is_file()
    again = attnlens("study", file)
    assert again.code == 0 and "first is already complete: no cell was run again." in again.err
    assert again.out == done.out
    values = json.loads(attnlens("study", file, "--json").out)
    assert values["cells"] == {"planned": 2, "finished": 2, "failed": 0} and values["study"] == "first/study.html"


def test_a_faulty_file_is_one_line_with_its_line(attnlens: Run, file: Path):
    file.write_text(file.read_text().replace("max_steps = 2", "max_step = 2"))
    done = attnlens("study", file)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"attnlens: {file}, line 13: 'max_step' is not known here: did you mean 'max_steps'?\n"
