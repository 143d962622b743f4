"""Reports whose salience reads a lexicon or asks a third model: the same question resumes, another one does not."""

from pathlib import Path

import pytest

from attnlens.core.errors import AttnlensError, CheckpointError, CorpusError, OutputExists
from attnlens.show.run import ReportOptions, command, run_report
from tests.conftest import Tuning


def options(tuning: Tuning, folder: Path, **more) -> ReportOptions:
    return ReportOptions(data=tuning.data, output=folder / "it", limit=6, **more)


def ask(tuning: Tuning, asked: ReportOptions) -> bool:
    """Whether the report had been complete before."""
    return run_report([tuning.base, tuning.tuned], asked).was_complete


@pytest.mark.usefixtures("undrawn")
def test_the_terms_are_part_of_the_question(tuning: Tuning, tmp_path: Path):
    terms = tmp_path / "terms.txt"
    terms.write_text("agreement\nparty\nthe term\n")
    asked = options(tuning, tmp_path, salience=("lexicon",), lexicon=terms)
    assert not ask(tuning, asked)
    assert ask(tuning, asked)
    terms.write_text("the term\n\nparty\nagreement\nparty\n")  # the same terms
    assert ask(tuning, asked)
    terms.write_text("agreement\n")
    with pytest.raises(OutputExists):
        ask(tuning, asked)
    assert "--lexicon" in command([tuning.base, tuning.tuned], asked)


@pytest.mark.usefixtures("undrawn")
def test_the_third_model_is_part_of_the_question(tuning: Tuning, minilm: Path, tmp_path: Path):
    asked = options(tuning, tmp_path, salience=("leave_one_out",), encoder=minilm)
    assert not ask(tuning, asked)
    assert ask(tuning, asked)
    with pytest.raises(OutputExists):
        ask(tuning, options(tuning, tmp_path, salience=("leave_one_out",), encoder=tuning.base))


def test_faults_leave_nothing(tuning: Tuning, tmp_path: Path):
    folder = tmp_path / "out"
    terms = tmp_path / "terms.txt"
    faults = [
        (CorpusError, r"missing\.txt does not exist", {"lexicon": tmp_path / "missing.txt", "salience": ("lexicon",)}),
        (CorpusError, "holds no term", {"lexicon": terms, "salience": ("lexicon",)}),
        (AttnlensError, r"'lexicon' needs the terms that matter", {"salience": ("lexicon",)}),
        (AttnlensError, r"'leave_one_out' asks a third model", {"salience": ("leave_one_out",)}),
        (AttnlensError, "is one of those under test", {"salience": ("leave_one_out",), "encoder": tuning.tuned}),
        (AttnlensError, "no salience that reads it", {"encoder": tuning.base}),
        (CheckpointError, "nowhere", {"salience": ("leave_one_out",), "encoder": tmp_path / "nowhere"}),
    ]
    terms.write_text("\n")
    for error, message, more in faults:
        with pytest.raises(error, match=message):
            ask(tuning, options(tuning, folder, **more))
        assert not folder.exists()
