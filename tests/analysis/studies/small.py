"""A study small enough for tests: a random encoder of two layers, and some of the embedded clauses."""

from pathlib import Path

from tests.conftest import Tuning

SEEDS = "seeds = [0, 1]"
HEAD = """\
title = "Small"
{seeds}
keep_checkpoints = {keep}

[[models]]
name = "tiny"
checkpoint = "{tuning.base}"

[[data]]
name = "clauses"
train = "attnlens:contracts_train"
test = "attnlens:contracts_eval"
labels = 3
window = 48
limit = 90

[training]
max_steps = 16
batch_size = 16
max_length = 48

[measure]
salience = ["spans"]
limit = 60
max_length = 48
"""
GRID = '[[arms]]\nname = "full"\nmethod = "full"\nlearning_rate = [1e-2, 3e-3]\ntwin = true\n'
FROZEN = '[[arms]]\nname = "head"\nmethod = "head"\n'
GIVEN = '[[arms]]\nname = "given"\ncheckpoints = ["{tuning.tuned}"]\n'
BROKEN = '[[arms]]\nname = "broken"\nmethod = "layers"\nlayers = [9]\n'


def small(folder: Path, tuning: Tuning, *arms: str, seeds: str = SEEDS, keep: bool = True) -> Path:
    """The study file; the given checkpoint is of seed 0."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "small.toml"
    text = "\n".join([HEAD, *arms])
    for name, value in {"tuning.base": tuning.base, "tuning.tuned": tuning.tuned, "seeds": seeds, "keep": keep}.items():
        text = text.replace(f"{{{name}}}", str(value).lower() if name == "keep" else str(value))
    path.write_text(text, encoding="utf-8")
    return path
