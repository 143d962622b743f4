"""The study file: what it says, and every kind of fault told with its line and what would be right."""

from pathlib import Path

import pytest

from attnlens.analysis.studies.file import describe_arm, read_study
from attnlens.core.errors import AttnlensError

GOOD = """\
title = "Two ways"
seeds = [0, 1]

[[models]]
name = "tiny"
checkpoint = "base.ckpt"

[[data]]
name = "clauses"
train = "train.jsonl"
test = "test.jsonl"

[training]
max_steps = 4
batch_size = 8

# A comment, and an arm with a grid.
[[arms]]
name = "full"
method = "full"
learning_rate = [1e-3, 1e-2]
twin = true

[[arms]]
name = "last"
method = "last_k"
k = 2
"""
SHIPPED = sorted((Path(__file__).parents[3] / "figures" / "studies").glob("*.toml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_read_as_it_stands(tmp_path: Path):
    file = read_study(write(tmp_path, GOOD))
    assert (file.title, file.seeds, file.held_against, file.margin, file.threads) == (
        "Two ways",
        (0, 1),
        "full",
        0.01,
        1,
    )
    assert file.training.max_steps == 4 and file.training.batch_size == 8 and file.training.epochs == 3.0
    full, last = file.arms
    assert full.rates == (1e-3, 1e-2) and full.twin and full.settings == {}
    assert last.rates == (None,) and last.settings == {"k": 2}
    assert describe_arm(last) == "Last k blocks, k 2"
    one = read_study(write(tmp_path, GOOD.replace("[1e-3, 1e-2]", "1")))  # a whole number is a rate, too
    assert one.arms[0].rates == (1.0,)


def test_given_checkpoints_are_an_arm(tmp_path: Path):
    text = GOOD.replace('method = "last_k"\nk = 2', 'checkpoints = ["a", "b"]')
    arm = read_study(write(tmp_path, text)).arms[1]
    assert arm.checkpoints == ("a", "b") and describe_arm(arm) == "2 checkpoints that were given"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_studies_are_valid(path: Path):
    file = read_study(path)
    assert file.held_against in [arm.name for arm in file.arms]


def test_studies_are_shipped():
    assert "legal.toml" in [path.name for path in SHIPPED]


# old text, new text, line, what the message says
FAULTS = {
    "unknown key on top": ('title = "', 'tilte = "', 1, "'tilte' is not known here: did you mean 'title'?"),
    "unknown table": ("[training]", "[trainig]", 13, "'trainig' is not known here: did you mean 'training'?"),
    "unknown in training": ("batch_size", "batchsize", 15, "'batchsize' is not known here: did you mean 'batch_size'?"),
    "unknown in second arm": ("k = 2", "budgt = 0.2", 27, "'budgt' is not known here: did you mean 'budget'?"),
    "unknown like nothing": ("k = 2", "zzz = 2", 27, "'zzz' is not known here"),
    "missing on top": ('title = "Two ways"\n', "", 1, "'title' is missing"),
    "missing in a table": ('train = "train.jsonl"\n', "", 8, "'train' is missing"),
    "missing name of second arm": ('name = "last"\n', "", 24, "'name' is missing"),
    "wrong type": ("max_steps = 4", 'max_steps = "4"', 14, "max_steps: input should be a valid integer; got '4'"),
    "a number bent": ("max_steps = 4", "max_steps = 4.5", 14, "max_steps: input should be a valid integer; got 4.5"),
    "a truth as seed": ("[0, 1]", "[0, true]", 2, "seeds: input should be a valid integer; got True"),
    "one seed without list": ("[0, 1]", "3", 2, "seeds: input should be a valid list; got 3"),
    "no seed": ("[0, 1]", "[]", 2, "seeds: list should have at least 1 item after validation, not 0; got []"),
    "negative seed": ("[0, 1]", "[0, -1]", 2, "seeds: input should be greater than or equal to 0; got -1"),
    "seed twice": ("[0, 1]", "[0, 1, 0]", 2, "seeds: 0 stands there twice"),
    "out of range": ("batch_size = 8", "batch_size = 0", 15, "batch_size: input should be greater than or equal to 1"),
    "none of the words": ("batch_size = 8", 'dtype = "float16"', 15, "dtype: input should be 'float32' or 'bfloat16'"),
    "rate of a word": ("[1e-3, 1e-2]", '"fast"', 21, "learning_rate: input should be a valid number; got 'fast'"),
    "rate in a grid": ("[1e-3, 1e-2]", "[1e-3, -1]", 21, "learning_rate: input should be greater than 0; got -1"),
    "rate without end": ("[1e-3, 1e-2]", "inf", 21, "learning_rate: input should be a finite number; got inf"),
    "rate twice": ("[1e-3, 1e-2]", "[1e-3, 1e-3]", 21, "learning_rate: 0.001 stands there twice"),
    "empty grid": ("[1e-3, 1e-2]", "[]", 21, "learning_rate: value should have at least 1 item"),
    "unknown method": ('"last_k"', '"last"', 26, "method: unknown fine-tuning method 'last': did you mean 'last_k'?"),
    "option of another method": ("k = 2", "rank = 4", 24, "rank=4 means nothing to 'last_k': it belongs to lora"),
    "share above 1": ("k = 2", "budget = 1.5", 27, "budget: input should be less than or equal to 1; got 1.5"),
    "neither source": ('method = "last_k"\nk = 2\n', "", 24, "give a method, or checkpoints that are trained already"),
    "both sources": ("k = 2", 'checkpoints = ["a"]', 24, "give a method, or checkpoints that are trained already"),
    "rate of given": (
        'method = "last_k"\nk = 2',
        'checkpoints = ["a"]\nlearning_rate = 1e-3',
        24,
        "checkpoints are trained already: their arm takes a name and nothing else",
    ),
    "name twice": ('"last"', '"full"', 25, "name: 'full' stands twice among the arms"),
    "name of the model": ('"last"', '"tiny"', 25, "name: 'tiny' is the name of a model or of a twin"),
    "name of a twin": ('"last"', '"shuffled twin"', 25, "name: 'shuffled twin' is the name of a model or of a twin"),
    "name of a path": ('"last"', '"a/b"', 25, "name: string should match pattern"),
    "reference": ("seeds", 'reference = "ful"\nseeds', 2, "reference: unknown arm 'ful': did you mean 'full'?"),
}


@pytest.mark.parametrize(("old", "new", "line", "told"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_file_line_and_remedy(tmp_path: Path, old: str, new: str, line: int, told: str):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(AttnlensError) as caught:
        read_study(path)
    assert str(caught.value).startswith(f"{path}, line {line}: {told}"), caught.value


def test_second_entries_of_models_and_data_have_their_own_lines(tmp_path: Path):
    text = GOOD + '[[models]]\nname = "tiny"\ncheckpoint = "other"\n'
    with pytest.raises(AttnlensError, match=r"line 29: name: 'tiny' stands twice among the models"):
        read_study(write(tmp_path, text))
    text = GOOD + '[[data]]\nname = "more"\ntrain = "a"\ntest = "b"\nwindow = 2\n'
    with pytest.raises(AttnlensError, match="line 32: window: input should be greater than or equal to 3; got 2"):
        read_study(write(tmp_path, text))


def test_what_is_no_toml_names_the_place(tmp_path: Path):
    path = write(tmp_path, GOOD.replace('"Two ways"', '"Two ways'))
    with pytest.raises(AttnlensError, match=r"study.toml is no TOML: .*line 1, column 18"):
        read_study(path)


def test_inline_tables_have_the_line_of_their_entry(tmp_path: Path):
    text = GOOD.replace("[training]\nmax_steps = 4\nbatch_size = 8\n", "").replace(
        "seeds", "training = {max_steps = 0}\nseeds"
    )
    with pytest.raises(AttnlensError, match="line 2: max_steps: input should be greater than or equal to 1; got 0"):
        read_study(write(tmp_path, text))
